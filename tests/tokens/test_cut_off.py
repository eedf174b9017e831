"""Token files that were cut off decode to the codebooks that are whole, with every coder."""

from __future__ import annotations

import json
from itertools import accumulate

import numpy as np
import pytest
from conftest import GOLDEN, MODELS, TOKEN_FILES, codes_of, picture
from PIL import Image

import vqtok
from vqtok.errors import CorruptFileError
from vqtok.models.token_reader import read_entropy_model
from vqtok.tokens.vqt import file as vqt
from vqtok.tokens.vqt.file import load_parts
from vqtok.tokens.vqt.header import parse_parts, parse_whole


@pytest.mark.parametrize("name", [name for name in TOKEN_FILES if "segments" not in name])
def test_golden_files_cut_at_every_codebook(name):
    data, codes = (GOLDEN / name).read_bytes(), codes_of(name)["codes"]
    header, (start,) = parse_whole(data)[:2]
    model = read_entropy_model(GOLDEN / MODELS[header.modality])
    ends = list(accumulate(header.payload_lengths, initial=start))
    for whole, (end, following) in enumerate(zip(ends[1:], [*ends[2:], len(data)], strict=True), 1):
        for stop in sorted({end, (end + following) // 2, following - 1}):
            parts = parse_parts(data[:stop])
            assert parts.whole_codebooks == whole
            assert f"cut off after {whole} of {header.num_codebooks} codebooks" in parts.damage
            found = load_parts(data[:stop], parts, model)
            assert np.array_equal(found.codes, codes[:whole])
            assert found.codebook_sizes == header.codebook_sizes[:whole]
    for stop in (0, 5, start, ends[1] - 1):
        with pytest.raises(CorruptFileError):
            parse_parts(data[:stop])


@pytest.mark.parametrize("name", [name for name in TOKEN_FILES if "segments" in name])
def test_golden_files_in_segments(name):
    """Whole segments keep all codebooks; of the first segment alone, the first codebooks are found."""
    data, codes = (GOLDEN / name).read_bytes(), codes_of(name)["codes"]
    header, starts = parse_whole(data)[:2]
    model = read_entropy_model(GOLDEN / MODELS[header.modality])
    first = header.payload_lengths[: header.num_codebooks]
    blank = list(range(1, header.num_codebooks + 1))
    stop = starts[0] + sum(first[:-1])
    parts = parse_parts(data[:stop])
    assert parts.whole_codebooks == header.num_codebooks - 1
    found = load_parts(data[:stop], parts, model, blank=blank).codes
    axis = 1 if header.modality == "image" else -1
    known = np.take(found, range(header.segment_steps), axis)
    assert np.array_equal(known, np.take(codes[:-1], range(header.segment_steps), axis))
    rest = np.take(found, range(header.segment_steps, header.grid[axis - 1 if axis == 1 else -1]), axis)
    assert (rest == np.reshape(blank[:-1], (-1, *[1] * len(header.grid)))).all()
    parts = parse_parts(data[: starts[1] + 1])
    assert (parts.whole_codebooks, parts.starts[0]) == (None, starts[0])
    with pytest.raises(CorruptFileError):
        parse_parts(data[: starts[0] + first[0] - 1])


def test_an_altered_file_is_not_one_that_was_cut_off():
    data = bytearray((GOLDEN / "image-static.vqt").read_bytes())
    data[-10] ^= 1
    with pytest.raises(CorruptFileError, match="truncated or altered"):
        parse_parts(bytes(data))


def test_the_command(run, photo, tmp_path):
    assert run("encode", photo).exit_code == 0
    data = photo.with_suffix(".vqt").read_bytes()
    header, (start,) = parse_whole(data)[:2]
    half = tmp_path / "half.vqt"
    half.write_bytes(data[: start + sum(header.payload_lengths[:2]) + 1])
    refused = run("decode", half)
    assert refused.exit_code == 4
    assert "cut off after 2 of 4 codebooks; vqtok decode --salvage" in refused.stderr.replace("\n", " ")
    result = run("decode", half, "--salvage", "--json")
    assert result.exit_code == 1
    assert f"half.vqt: cut off after 2 of 4 codebooks in {half.with_suffix('.png')}" in result.stderr.replace("\n", "")
    line = json.loads(result.stdout)
    assert (line["whole_codebooks"], line["decoded_codebooks"], line["lost_fraction"]) == (2, 2, 0)
    assert line["decoded_bytes"] == half.stat().st_size
    run("decode", photo.with_suffix(".vqt"), "--codebooks", 2, "-o", tmp_path / "two.png")
    two, decoded = (np.asarray(Image.open(path)) for path in (tmp_path / "two.png", half.with_suffix(".png")))
    assert np.array_equal(two, decoded)
    fewer = run("decode", half, "--salvage", "--codebooks", 1, "--force", "--json")
    assert json.loads(fewer.stdout)["decoded_codebooks"] == 1
    more = run("decode", half, "--salvage", "--codebooks", 3, "--force", "--json")
    assert json.loads(more.stdout)["decoded_codebooks"] == 2
    assert vqtok.decode(half, salvage=True).data.shape == (3, 64, 96)


def test_a_large_image_that_was_cut_off_in_its_first_segment(run, tmp_path, monkeypatch):
    monkeypatch.setitem(vqt.SEGMENT_POSITIONS, "image", 200)
    Image.fromarray(picture(96, 64)).save(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png").exit_code == 0
    data = (tmp_path / "a.vqt").read_bytes()
    header, starts = parse_whole(data)[:2]
    (tmp_path / "b.vqt").write_bytes(data[: starts[0] + header.payload_lengths[0]])
    result = run("decode", tmp_path / "b.vqt", "--salvage")
    assert result.exit_code == 1
    assert "cut off after 1 of 4 codebooks of its first segment, lost rows" in result.stderr.replace("\n", " ")
