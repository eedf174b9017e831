"""Tokens from ids as language models generate them: whole, cut off, and with ids out of place."""

from __future__ import annotations

import json

import numpy as np
import pytest

import vqtok
from tokens.test_export import LAYOUTS, image, sound
from vqtok.errors import MediaError, UsageError
from vqtok.tokens.export.export import write_export
from vqtok.tokens.export.mend import grammar_of, tokens_from_ids
from vqtok.tokens.export.mixture import choose_mixture
from vqtok.tokens.export.options import ExportOptions
from vqtok.tokens.export.sidecar import FORMAT, MIXTURE_VERSION

PICTURE, SPEECH = image(5, 4), sound(6)


def facts_of(*kinds, **more):
    mixture = choose_mixture([PICTURE], kinds=kinds, end="auto", text_size=256, tokenizer="bytes")
    return mixture, {"format": FORMAT, "version": MIXTURE_VERSION, **mixture.facts(), **more}


def mend(ids, facts, **options):
    (found,) = tokens_from_ids(ids, facts, **options)
    return found


@pytest.mark.parametrize("kinds", [("image", "row"), ("image", "size"), ("image", "row", "size"), ("row",)])
def test_whole_items_among_text(kinds):
    mixture, facts = facts_of(*kinds)
    ids = [104, 105, *mixture.segment(PICTURE)[0], 33, mixture.specials["end"]]
    found = mend(ids, facts)
    assert not found.notes
    assert np.array_equal(found.tokens.codes, PICTURE.codes)
    assert found.tokens.size == (5, 4)


def test_the_grid_of_the_data_set_a_given_one_or_a_square():
    mixture, facts = facts_of("image")
    ids = mixture.segment(PICTURE)[0]
    with pytest.raises(MediaError, match="20 positions are no square.*give `grid`"):
        tokens_from_ids(ids, facts)
    assert mend(ids, facts, grid=(2, 10)).tokens.grid == (2, 10)
    assert mend(ids, facts | {"grids": {"image": [4, 5]}}).tokens.grid == (4, 5)
    assert mend(mixture.segment(image(3, 3))[0], facts).tokens.grid == (3, 3)


def test_an_unfinished_item_is_filled_in():
    mixture, facts = facts_of("image", "row")
    ids = mixture.segment(PICTURE)[0]
    cut = ids[:-14]  # The last row has none of its ids, the row before lacks one position.
    found = mend(cut, facts)
    assert found.tokens.grid == (3, 5)
    assert found.notes == ["1 of 30 codes missing and filled in"] or "missing" in found.notes[0]
    assert np.array_equal(found.tokens.codes[:, :2], PICTURE.codes[:, :2])
    whole = mend(cut, facts, grid=(4, 5))
    assert whole.tokens.grid == (4, 5)
    with pytest.raises(MediaError, match="missing and filled in"):
        tokens_from_ids(cut, facts, grid=(4, 5), strict=True)


def test_a_row_token_that_is_missing():
    mixture, facts = facts_of("image", "row")
    ids = list(mixture.segment(PICTURE)[0])
    place = ids.index(mixture.specials["row"])
    found = mend([*ids[:place], *ids[place + 1 :]], facts)
    assert np.array_equal(found.tokens.codes, PICTURE.codes)


def test_ids_out_of_place():
    mixture, facts = facts_of("image", "size")
    ids = list(mixture.segment(PICTURE)[0])
    expected = PICTURE.codes.copy()
    noisy = [*ids[:9], 65, 66, *ids[9:]]
    found = mend(noisy, facts)
    assert found.notes == ["2 ids out of place passed over"]
    assert np.array_equal(found.tokens.codes, expected)
    # A code of the second codebook is missing: what follows is not shifted.
    found = mend([*ids[:10], *ids[11:]], facts)
    assert found.notes == ["1 of 40 codes missing and filled in"]
    assert (found.tokens.codes != expected).sum() <= 1
    # One too many at the end, and codes after the end token.
    found = mend([*ids[:-1], *ids[3:5], ids[-1], *ids[3:8]], facts)
    assert found.notes == ["5 ids after the end token passed over", "2 codes beyond the grid left out"]
    assert np.array_equal(found.tokens.codes, expected)
    with pytest.raises(MediaError, match="no codes of images or audio"):
        tokens_from_ids([1, 2, 3], facts)


def test_several_items_of_several_models():
    from dataclasses import replace

    speech = replace(SPEECH, model=b"speechmo")
    mixture = choose_mixture([PICTURE, speech])
    facts = {"format": FORMAT, "version": MIXTURE_VERSION, **mixture.facts(), "grids": {"image": [4, 5]}}
    ids = np.concatenate([mixture.segment(speech)[0], mixture.segment(PICTURE)[0], mixture.segment(speech)[0]])
    found = tokens_from_ids(ids, facts, sample_rate=8000)
    assert [item.tokens.modality for item in found] == ["audio", "image", "audio"]
    assert np.array_equal(found[2].tokens.codes, speech.codes)
    assert not any(item.notes for item in found)
    with pytest.raises(UsageError, match="sample_rate"):
        tokens_from_ids(ids, facts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", ["none", "auto"])
def test_exports_of_one_model_in_all_layouts(tmp_path, layout, row):
    recipe = ExportOptions("jsonl", layout, 100, begin_token="auto", end_token="auto", row_token=row)
    write_export([("a", PICTURE)], tmp_path / "x.jsonl", recipe)
    ids = json.loads((tmp_path / "x.jsonl").read_text())["input_ids"]
    found = mend(ids, tmp_path / "x.jsonl", grid=(4, 5))
    assert np.array_equal(found.tokens.codes, PICTURE.codes)
    assert not found.notes
    assert mend(np.ravel(ids)[:-8], tmp_path / "x.jsonl", grid=(4, 5)).tokens.grid == (4, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_ids_give_tokens_or_an_error(tmp_path, layout):
    write_export([("a", PICTURE)], tmp_path / "x.jsonl", ExportOptions("jsonl", layout, 3, row_token="auto"))
    random = np.random.default_rng(0)
    for _ in range(200):
        ids = random.integers(0, 24, random.integers(0, 60))
        try:
            found = tokens_from_ids(ids, tmp_path / "x.jsonl", grid=(4, 5))
        except MediaError:
            continue
        assert all(item.tokens.grid == (4, 5) for item in found)


def test_what_is_no_export(tmp_path):
    with pytest.raises(UsageError, match="not the facts of an export"):
        grammar_of({"format": FORMAT, "version": 1})
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(vqtok.errors.CorruptFileError, match="is not the JSON file of an export"):
        tokens_from_ids([1], tmp_path / "x.json")


def test_decode_ids(run, photo, sound, tmp_path):
    """What was exported, given back as bare lists, decodes to the same images; the rest is mended or reported."""
    for path in (photo, sound):
        assert run("encode", path, "-o", tmp_path / f"t/{path.stem}.vqt").exit_code == 0
    like = tmp_path / "x.jsonl"
    assert (
        run("export", tmp_path / "t", "--to", "jsonl", "-o", like, "--special-tokens", "image,audio,row").exit_code == 0
    )
    assert run("decode", like, "-o", tmp_path / "whole").exit_code == 0
    rows = {row["key"]: row["input_ids"] for row in map(json.loads, like.read_text().splitlines())}
    lines = [
        json.dumps(rows["photo"]),
        " ".join(map(str, rows["sound"])),
        "1 x 2",
        json.dumps({"input_ids": rows["photo"][:-40]}),
    ]
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(lines))
    result = run("decode", "--ids", ids, "--like", like, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "'x' is neither an id nor a token" in result.stderr
    assert "000003: " in result.stderr
    assert "missing and filled in" in result.stderr
    assert (tmp_path / "out/000000.png").read_bytes() == (tmp_path / "whole/photo.png").read_bytes()
    assert (tmp_path / "out/000001.wav").exists()
    assert (tmp_path / "out/000003.png").exists()
    strict = run("decode", "--ids", ids, "--like", like, "-o", tmp_path / "strict", "--strict", "--json")
    assert strict.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "strict").iterdir()) == [
        "000000.png",
        "000001.wav",
        "failures.jsonl",
    ]
    np.save(tmp_path / "ids.npy", np.array(rows["photo"]))
    assert run("decode", "--ids", tmp_path / "ids.npy", "--like", like, "-o", tmp_path / "one.png").exit_code == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "whole/photo.png").read_bytes()
    piped = run("decode", "--ids", "-", "--like", like, "-o", tmp_path / "piped", stdin=lines[0].encode())
    assert piped.exit_code == 0, piped.output
    for wrong in (["--ids", ids], ["--like", like, photo], [], ["--ids", ids, "--like", like]):
        assert run("decode", *wrong).exit_code == 2
