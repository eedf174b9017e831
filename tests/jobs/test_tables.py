"""Encoding straight to Parquet tables and WebDataset tars, and what is done to media before."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from conftest import files_in, json_lines, picture, wave
from PIL import Image

import vqtok
from vqtok.errors import UsageError
from vqtok.media.transforms import Part, Transforms, with_label
from vqtok.tokens.token_table import TokenTable, write_token_table


@pytest.fixture
def album(tmp_path):
    """Return a folder with five images, one of them with a caption and fields, and audio."""
    folder = tmp_path / "album"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(picture(20 + index, 12)).save(folder / f"{index}.png")
    (folder / "1.txt").write_text("one")
    (folder / "1.json").write_text('{"score": 0.5}')
    soundfile.write(folder / "5.wav", wave(4000, 16_000), 16_000)
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_tables_hold_tokens_and_columns(run, album, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"out/t{suffix}"
    result = run("encode", album, "-o", path, "--json")
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "out") == [path.name]
    table = TokenTable(path)
    assert list(table) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.wav"]
    for key in table:
        expected = vqtok.encode(album / key)
        assert np.array_equal(table[key].codes, expected.codes)
        assert (table[key].size, table[key].model, table[key].metadata) == (
            expected.size,
            expected.model,
            expected.metadata,
        )
    assert table["1.png"].metadata == {"caption": "one", "score": 0.5}
    (facts,) = json_lines(run("inspect", path, "--json"))
    assert (facts["kind"], facts["num_items"]) == ("table", 6)
    assert [model["modality"] for model in facts["models"]] == ["image", "audio"]
    assert "items" in run("inspect", path).output
    # Other verbs take it like a shard.
    assert run("decode", path, "-o", tmp_path / "back").exit_code == 0
    assert files_in(tmp_path / "back") == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.wav"]
    assert run("export", path, "--to", "jsonl", "-o", tmp_path / "x.jsonl").exit_code == 0
    assert run("encode", album, "-o", path).exit_code == 1
    assert run("encode", album, "-o", path, "--force").exit_code == 0


def test_columns_of_parquet_come_back_or_their_loss_is_reported(tmp_path, monkeypatch, caplog):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"box": {"x": [1, None]}, "mixed": "5", "score": 1, "text": "a", "tags": []},
        {"box": {"y": "\u00e9"}, "mixed": 5, "score": 2, "text": "2", "tags": []},
        {"box": "null", "mixed": "plain", "score": 0.5, "text": {"z": 1}, "tags": ["a"], "late": True},
        {"box": [], "mixed": '"quoted"', "score": "high", "text": "b", "tags": [1]},
    ]
    codes = np.zeros((1, 2, 2), np.int64)
    items = [
        vqtok.Tokens(codes, codebook_sizes=(4,), modality="image", size=(8, 8), stride=4, model=b"m" * 8, metadata=row)
        for row in rows
    ]
    monkeypatch.setattr("vqtok.tokens.token_table.ROW_GROUP_CODES", 8)  # Two rows in a group.
    path = tmp_path / "t.parquet"
    with write_token_table(path) as add:
        for index, tokens in enumerate(items):
            add(str(index), tokens)
    found = [dict(TokenTable(path)[str(index)].metadata) for index in range(4)]
    assert found[:2] == rows[:2]
    for name in ("box", "mixed", "tags"):
        assert [row[name] for row in found] == [row[name] for row in rows]
    assert found[2]["text"] == '{"z": 1}'
    assert not {"score", "late"} & (set(found[2]) | set(found[3]))
    assert [message.partition(": column ")[2] for message in caplog.messages] == [
        "score: values are left out which are not int64 as in the first rows: 2",
        "late: values are left out, as none of the first rows has one: 1",
        "text: values that are not text are JSON text: 1",
    ]
    assert parquet.read_table(path)["mixed"].to_pylist() == ['"5"', "5", "plain", '"\\"quoted\\""']


@pytest.mark.parametrize("name", ["t.parquet", "t-{shard}.tar"])
def test_several_files_continue(run, album, tmp_path, name):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    options = ["-o", out / name, "--rows-per-file", 2]
    assert run("encode", album, *options).exit_code == 0
    suffix = name.rpartition(".")[2]
    assert files_in(out) == [f"t-0000{number}.{suffix}" for number in range(3)]
    (out / f"t-00002.{suffix}").unlink()
    result = run("encode", album, *options, "--skip-existing", "--json")
    assert [line["key"] for line in json_lines(result) if not line.get("skipped")] == ["4.png", "5.wav"]
    assert files_in(out) == [f"t-0000{number}.{suffix}" for number in range(3)]
    assert list(TokenTable(out / f"t-00002.{suffix}")) == ["4.png", "5.wav"]
    assert run("encode", album, "-o", out / name, "--rows-per-file", 5, "--force").exit_code == 0
    assert files_in(out) == [f"t-0000{number}.{suffix}" for number in range(2)]
    for index in range(2):
        assert (
            run("encode", album, "-o", tmp_path / f"two/{name}", "--num-tasks", 2, "--task-index", index).exit_code == 0
        )
    keys = [key for path in (tmp_path / "two").iterdir() for key in TokenTable(path)]
    assert sorted(keys) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.wav"]


def test_one_complete_file_is_skipped(run, album, tmp_path):
    path = tmp_path / "t.tar"
    assert run("encode", album, "-o", path).exit_code == 0
    before = path.read_bytes()
    result = run("encode", album, "-o", path, "--skip-existing")
    assert result.exit_code == 0
    assert "0 done, 6 skipped, 0 failed" in result.output
    Image.fromarray(picture(20, 12)).save(album / "new.png")
    result = run("encode", album, "-o", path, "--skip-existing")
    assert result.exit_code == 1
    assert "new.png: " in result.output
    assert "is complete without it; --force replaces it" in " ".join(result.output.split())
    assert path.read_bytes() == before


def test_as_webdataset_reads_it(run, album, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "t.tar"
    run("encode", album, "-o", path)
    found = {row["json"]["key"]: row for row in webdataset.WebDataset(str(path), shardshuffle=False).decode()}
    assert found["1.png"]["json"]["caption"] == "one"
    assert found["1.png"]["npy"].dtype == np.uint16
    assert np.array_equal(found["1.png"]["npy"], vqtok.encode(album / "1.png").codes)
    # Its own writer's tars are sources of rows.
    with webdataset.TarWriter(str(tmp_path / "own.tar")) as sink:
        sink.write({"__key__": "a/1", "png": (album / "1.png").read_bytes(), "json": {"n": 1}, "txt": "eins"})
    assert run("encode", tmp_path / "own.tar", "-o", tmp_path / "own").exit_code == 0
    assert vqtok.inspect(tmp_path / "own/a/1.vqt")["metadata"] == {"n": 1, "caption": "eins"}


def test_a_killed_run_leaves_only_complete_files(run, album, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (album / "3.png").write_bytes(b"")
    result = run("encode", album, "-o", tmp_path / "t.parquet")
    assert result.exit_code == 1
    assert [json.loads(line)["path"] for line in (tmp_path / "t.failures.jsonl").read_text().splitlines()] == [
        str(album / "3.png")
    ]
    assert len(TokenTable(tmp_path / "t.parquet")) == 5

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vqtok.jobs.tables._facts", interrupt)
        assert run("encode", album, "-o", tmp_path / "u.parquet").exit_code == 130
        assert not [name for name in files_in(tmp_path) if name.startswith((".u", "u"))]
        assert run("encode", album, "-o", tmp_path / "v.parquet", "--rows-per-file", 4).exit_code == 130
    assert list(TokenTable(tmp_path / "v-00000.parquet")) == ["0.png"]
    assert run("encode", album, "-o", tmp_path / "v.parquet", "--rows-per-file", 4, "--skip-existing").exit_code == 1
    assert len(TokenTable(tmp_path / "v-00001.parquet")) == 4


# What is done before.


def test_resize_and_crop_are_what_llamagen_does(run, tmp_path):
    Image.fromarray(picture(100, 60)).save(tmp_path / "x.png")
    run("encode", tmp_path / "x.png", "-o", tmp_path / "x.vqt", "--resize", 32, "--crop", 32)
    tokens = vqtok.read(tmp_path / "x.vqt")
    assert tokens.size == (32, 32)
    assert tokens.metadata == {"transforms": {"resize": 32, "crop": 32}}
    with Image.open(tmp_path / "x.png") as image:
        image.resize((53, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32)).save(tmp_path / "y.png")
    assert np.array_equal(tokens.codes, vqtok.encode(tmp_path / "y.png").codes)


def test_pixels_flips_and_small_images(run, album, tmp_path):
    out = tmp_path / "out"
    result = run("encode", album, "-o", out, "--min-pixels", 260, "--flip", "both", "--json")
    assert result.exit_code == 0, result.output
    expected = ["2-flipped.vqt", "2.vqt", "3-flipped.vqt", "3.vqt", "4-flipped.vqt", "4.vqt", "5.vqt"]
    assert files_in(out) == expected
    reasons = [line["reason"] for line in json_lines(result) if line.get("skipped")]
    assert reasons[0] == "has 240 pixels, fewer than 260"
    with Image.open(album / "2.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "turned.png")
    flipped = vqtok.read(out / "2-flipped.vqt")
    assert np.array_equal(flipped.codes, vqtok.encode(tmp_path / "turned.png").codes)
    assert flipped.metadata == {"transforms": {"flipped": True}}
    assert run("encode", album, "--shard", tmp_path / "x.vqts", "--flip", "both").exit_code != 0  # It has audio.
    (album / "5.wav").unlink()
    assert run("encode", album, "--shard", tmp_path / "x.vqts", "--max-pixels", 100, "--flip", "both").exit_code == 0
    shard = vqtok.open_shard(tmp_path / "x.vqts")
    assert list(shard)[:2] == ["0.png", "0-flipped.png"]
    assert all(tokens.size[0] * tokens.size[1] <= 100 for tokens in shard[:])
    assert run("encode", album, "-o", tmp_path / "b", "--crop", 64).exit_code == 1


def test_audio_is_cut(run, tmp_path):
    soundfile.write(tmp_path / "x.wav", wave(16_000, 16_000), 16_000)
    out = tmp_path / "out"
    assert (
        run("encode", tmp_path / "x.wav", "-o", f"{out}/", "--segment-seconds", 0.3, "--max-seconds", 0.7).exit_code
        == 0
    )
    assert files_in(out) == [f"x-0000{number}.vqt" for number in range(3)]
    found = [vqtok.read(out / name) for name in files_in(out)]
    assert [tokens.size[0] for tokens in found] == [4800, 4800, 1600]
    assert found[1].metadata == {"transforms": {"max_seconds": 0.7, "segment_seconds": 0.3, "segment": 1}}
    data = wave(16_000, 16_000)[4800:9600]
    soundfile.write(tmp_path / "part.wav", data, 16_000)
    assert np.array_equal(found[1].codes, vqtok.encode(tmp_path / "part.wav").codes)
    assert run("encode", tmp_path / "x.wav", "-o", tmp_path / "y.vqt", "--max-seconds", 0.5).exit_code == 0
    assert vqtok.read(tmp_path / "y.vqt").size[0] == 8000


def test_blocks_are_cut_where_they_should_be():
    data = np.arange(100, dtype=np.float32)[None]
    transforms = Transforms(segment_seconds=3.0, max_seconds=8.0)
    parts = transforms.parts("audio", 10.0)
    assert [part.segment for part in parts] == [0, 1, 2]
    for size in (1, 7, 100):
        blocks = [data[:, start : start + size] for start in range(0, 100, size)]
        cut = [np.concatenate(list(part.audio(iter(blocks), 10)), axis=1)[0].tolist() for part in parts]
        assert cut == [list(range(30)), list(range(30, 60)), list(range(60, 80))]
    whole = np.concatenate(list(Part().audio([data], 10)), axis=1)
    assert whole.shape == (1, 100)


def test_values_that_cannot_be():
    for changes in ({"resize": 0}, {"max_seconds": -1.0}, {"crop": -5}):
        with pytest.raises(UsageError, match="must be above 0"):
            Transforms(**changes)
    assert with_label("a.b/1.png", "-x") == "a.b/1-x.png"
    assert with_label("a.b/1", "-x") == "a.b/1-x"


def test_options_that_do_not_go_together(run, album, tmp_path):
    for options in (["--target-psnr", 20, "--resize", 8], ["--engine", "ray", "--resize", 8], ["--rows-per-file", 2]):
        assert run("encode", album, "-o", tmp_path / "out", *options).exit_code == 2
    assert run("encode", album / "1.png", "-o", "-", "--flip", "both").exit_code == 2
    piped = run("encode", album / "1.png", "-o", "-", "--resize", 8)
    assert piped.stdout_bytes.startswith(b"\x89VQ")
    made = tmp_path / "x.tar"
    with tarfile.open(made, "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert run("decode", made, "-o", tmp_path / "y").exit_code != 0
