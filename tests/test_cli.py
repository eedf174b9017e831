"""The command line, mostly in this process; what only a process has (streams, signals, terminals) in one."""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from conftest import AUDIO_KEYS, IMAGE_KEYS, files_in, json_lines, picture, wave
from PIL import Image

import vqtok.cli.app
from vqtok.__main__ import main
from vqtok.codec.options import CHUNK_SECONDS, TILE_PIXELS
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.tokens.fields import checksum
from vqtok.tokens.vqt.file import load
from vqtok.tokens.vqt.header import read_header

VQTOK = [sys.executable, "-m", "vqtok"]


def picture_facts(path):
    """Give format, mode and size of a picture."""
    with Image.open(path) as image:
        return image.format, image.mode, image.size


@pytest.fixture
def album(tmp_path):
    """Make a folder of small pictures and sounds at several depths, and something else."""
    folder = tmp_path / "album"
    (folder / "deep/er").mkdir(parents=True)
    Image.fromarray(picture(9, 7)).save(folder / "a.png")
    Image.fromarray(picture(12, 8)).save(folder / "deep/b.jpg")
    soundfile.write(folder / "deep/er/c.flac", wave(300, 8000), 8000)
    (folder / "notes.txt").write_text("not taken")
    return folder


# One input, several, folders.


def test_outputs_beside_the_inputs(run, photo, sound, tmp_path):
    for files in ([photo], [sound]):
        result = run("encode", *files)
        assert (result.exit_code, result.stdout) == (0, "")
    assert files_in(tmp_path) == ["photo.png", "photo.vqt", "sound.vqt", "sound.wav"]
    photo.unlink()
    sound.unlink()
    assert run("decode", photo.with_suffix(".vqt"), sound.with_suffix(".vqt")).exit_code == 0
    assert files_in(tmp_path) == ["photo.png", "photo.vqt", "sound.vqt", "sound.wav"]
    assert picture_facts(photo) == ("PNG", "RGB", (96, 64))
    assert soundfile.info(sound).frames == 4000


def test_one_line_tells_of_one_file(run, photo, sound):
    tokens = photo.with_suffix(".vqt")
    line = rf"{photo} 96x64 -> {tokens} \d+ bytes \(1536 tokens, [\d.]+ bpp, \d+:1\)\n"
    assert re.fullmatch(line, run("encode", photo).stderr)
    assert re.search(r"0\.25 s 16000 Hz mono -> .* \([0-9]+ tokens, [\d.]+ kbps", run("encode", sound).stderr)
    line = rf"{tokens} -> {photo} 96x64 \(2 of 4 codebooks\)\n"
    assert re.fullmatch(line, run("decode", tokens, "--force", "--codebooks", 2).stderr)


def test_output_file_or_existing_folder(run, photo, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("encode", photo, "-o", tmp_path / "new/name.bin").exit_code == 0
    assert run("encode", photo, "-o", tmp_path / "out").exit_code == 0
    assert run("encode", photo, "-o", f"{tmp_path / 'made'}/").exit_code == 0
    assert files_in(tmp_path) == ["made/photo.vqt", "new/name.bin", "out/photo.vqt", "photo.png"]


def test_folders_are_mirrored_both_ways(run, album, tmp_path):
    result = run("encode", album, "-o", tmp_path / "tokens")
    assert result.exit_code == 0
    assert result.stderr.endswith("3 done, 0 skipped, 0 failed\n")
    assert files_in(tmp_path / "tokens") == ["a.vqt", "deep/b.vqt", "deep/er/c.vqt"]
    assert run("decode", tmp_path / "tokens", "-o", tmp_path / "back").exit_code == 0
    assert files_in(tmp_path / "back") == ["a.png", "deep/b.png", "deep/er/c.wav"]
    assert soundfile.info(tmp_path / "back/deep/er/c.wav").frames == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "ALBUM"], "is a folder; give -o DIR"),
        (["encode", "ALBUM", "-o", "-"], "only one input"),
        (["encode", "ALBUM/none.png"], "none.png: no such file"),
        (["encode", "ALBUM/a.png", "ALBUM/a.png"], "a.png: is given twice"),
        (["encode", "ALBUM/a.png", "-o", "ALBUM/a.png", "--force"], "overwritten by its own output"),
        (["encode", "ALBUM/a.png", "--device", "abacus"], "--device abacus: not available"),
        (["encode", "ALBUM/a.png", "--codebooks", "5"], "--codebooks 5: there are 4"),
        (["encode", "ALBUM/a.png", "-o", "-", "--json"], "cannot take both"),
        (["inspect", "ALBUM/a.png", "--plot", "x.png"], "give both"),
        (["encode"], "Missing argument"),
        (["encode", "ALBUM/a.png", "--codebooks", "0"], "--codebooks"),
        (["encode", "ALBUM/a.png", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors(run, album, tmp_path, arguments, message):
    before = files_in(tmp_path)
    result = run(*(argument.replace("ALBUM", str(album)) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert files_in(tmp_path) == before


def test_outputs_of_one_name_keep_the_suffix_of_their_inputs(run, album, tmp_path):
    Image.fromarray(picture(4, 4)).save(album / "deep/b.png")
    assert run("encode", album, "-o", tmp_path / "out").exit_code == 0
    assert files_in(tmp_path / "out") == ["a.vqt", "deep/b.jpg.vqt", "deep/b.png.vqt", "deep/er/c.vqt"]
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back").exit_code == 0
    assert files_in(tmp_path / "back") == ["a.png", "deep/b.jpg.png", "deep/b.png.png", "deep/er/c.wav"]


def test_the_rate_is_that_of_the_decoded_codebooks(run, album, tmp_path):
    (album / "deep/er/c.flac").unlink()
    assert run("encode", album, "-o", tmp_path / "out", "--coder", "packed").exit_code == 0
    rates = []
    for count in (4, 1):
        result = run("decode", tmp_path / "out", "-o", tmp_path / str(count), "--codebooks", count, "--json")
        *files, summary = map(json.loads, result.stdout.splitlines())
        decoded = sum(8 * entry["decoded_bytes"] for entry in files)
        assert summary["bpp"] == pytest.approx(decoded / sum(entry["width"] * entry["height"] for entry in files))
        rates.append([entry["file_bytes"] - entry["decoded_bytes"] for entry in files])
    assert rates[0] == [0, 0]
    # Three of four codebooks of 4 bits a position, on grids of 2 x 3 and 2 x 2 positions.
    assert rates[1] == [3 * -(-4 * math.prod(entry["grid"]) // 8) for entry in files]


def test_a_folder_is_a_table_with_totals(run, album, tmp_path):
    assert run("encode", album, "-o", tmp_path / "out").exit_code == 0
    (tmp_path / "out/notes.txt").touch()
    result = run("inspect", tmp_path / "out")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["file", "content", "codebooks", "tokens", "size", "rate"]
    assert lines[-1].startswith("3 files")
    assert max(map(len, lines)) <= 80
    assert "passed over 1 file of another kind: 1 .txt" in result.stderr


def test_pipes(run, photo, image_model, tmp_path):
    """Named pipes, and standard input by its several names, are read once."""
    tokens = photo.with_suffix(".vqt")
    run("encode", photo)
    expected = run("decode", tokens, "-o", "-").stdout_bytes
    for verb in ("decode", "inspect"):
        pipe = tmp_path / f"{verb}.fifo"
        os.mkfifo(pipe)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(pipe.write_bytes, tokens.read_bytes())
            result = run(verb, pipe, *(["-o", tmp_path / "out.png"] if verb == "decode" else []))
        assert result.exit_code == 0
        with tokens.open("rb") as stdin:
            options = ["-o", str(tmp_path / "dev.png"), "--model", str(image_model)] if verb == "decode" else []
            subprocess.run([*VQTOK, verb, "/dev/stdin", *options], stdin=stdin, check=True)
    assert (tmp_path / "out.png").read_bytes() == expected
    assert run("inspect", "-", stdin=tokens.read_bytes()).stdout.splitlines()[1:] == result.stdout.splitlines()[1:]
    assert run("decode", tmp_path / "decode.fifo").exit_code == 2  # no place beside a pipe


def test_closed_stdin(photo):
    script = f"{' '.join(map(shlex.quote, VQTOK))} encode - -o c.vqt <&-"
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, cwd=photo.parent)
    assert (result.returncode, result.stderr) == (1, "error: stdin is closed\n")


@pytest.mark.parametrize("verb", ["export", "merge", "convert", "train", "inspect", "import"])
@pytest.mark.parametrize("name", ["s3://bucket/x", "zip:///x.zip", "zip::s3://bucket/x.zip"])
def test_names_with_a_scheme_are_refused_where_they_do_not_work(run, tmp_path, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    options = {"export": ["--to", "npy", "-o", "x"], "inspect": []}.get(verb, ["-o", "x"])
    result = run(verb, name, *options)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    if verb != "inspect":
        (tmp_path / "a.vqt").touch()
        result = run(verb, "a.vqt", *options[:-1], name)
        assert result.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a.vqt"]


def test_ignored_files_are_counted_by_suffix(run, album, tmp_path):
    for name in ("x.xyz", "y.xyz", "deep/z", ".hidden"):
        (album / name).touch()
    result = run("encode", album, "-o", tmp_path / "out", "--json")
    line = "passed over 4 files of other kinds: 2 .xyz, 1 without suffix, 1 .txt\n"
    assert line in result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["kind"], summary["ignored"]) == ("summary", {".xyz": 2, ".txt": 1, "": 1})
    assert (summary["done"], summary["skipped"], summary["failed"]) == (3, 0, 0)


def test_a_missing_file_among_others(run, photo, tmp_path):
    result = run("encode", tmp_path / "none.jpg", photo, "-o", tmp_path / "out")
    assert (result.exit_code, files_in(tmp_path / "out")) == (1, ["failures.jsonl", "photo.vqt"])
    assert "none.jpg: cannot be read: No such file or directory" in result.stderr


def test_empty_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for verb in ("encode", "decode"):
        result = run(verb, tmp_path / "empty", "-o", tmp_path / "out")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "empty: no " in result.stderr


# Standard streams.


@pytest.mark.parametrize("name", ["photo", "sound"])
def test_streams_equal_files(run, photo, sound, name):
    medium = {"photo": photo, "sound": sound}[name]
    tokens = medium.with_suffix(".vqt")
    assert run("encode", medium).exit_code == 0
    streamed = run("encode", "-", stdin=medium.read_bytes())
    assert (streamed.exit_code, streamed.stdout_bytes) == (0, tokens.read_bytes())
    assert run("encode", medium, "-o", "-").stdout_bytes == tokens.read_bytes()
    assert run("encode", "-", "-o", f"{medium.parent}/x.vqt", stdin=medium.read_bytes()).exit_code == 0
    assert (medium.parent / "x.vqt").read_bytes() == tokens.read_bytes()
    assert run("decode", tokens, "--force").exit_code == 0
    decoded = run("decode", "-", stdin=streamed.stdout_bytes)
    assert (decoded.exit_code, decoded.stdout_bytes) == (0, medium.read_bytes())


def test_stream_errors_name_stdin(run):
    for verb, data, code in [("encode", b"", 1), ("encode", b"text", 1), ("decode", b"", 4), ("decode", b"x" * 40, 4)]:
        result = run(verb, "-", stdin=data)
        assert (result.exit_code, result.stdout_bytes, result.stderr.count("\n")) == (code, b"", 1)
        assert result.stderr.startswith("error: stdin: ")
        assert "input:" not in result.stderr


def test_real_pipeline(photo, image_model):
    """Two processes joined by a pipe."""
    encode = [*VQTOK, "encode", "-", "--model", str(image_model)]
    decode = [*VQTOK, "decode", "-", "-q", "--model", str(image_model)]
    with (
        photo.open("rb") as source,
        subprocess.Popen(encode, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first,
        subprocess.Popen(decode, stdin=first.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second,
    ):
        png, complaints = second.communicate(timeout=120)
        assert first.stderr.read().startswith(b"- 96x64 -> - ")
    assert (first.returncode, second.returncode, complaints) == (0, 0, b"")
    assert picture_facts(io.BytesIO(png)) == ("PNG", "RGB", (96, 64))


def on_terminal(command, *, stdin=None, stdout=None, stderr=None, env=None):
    """Run a command on a terminal but for the streams that are given; give its exit code and what it showed."""
    master, slave = pty.openpty()
    streams = {"stdin": stdin or slave, "stdout": stdout or slave, "stderr": stderr or slave}
    process = subprocess.Popen(command, env=os.environ | {"COLUMNS": "200", "TERM": "xterm"} | (env or {}), **streams)
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    return process.wait(120), shown.decode()


def test_binary_is_kept_off_a_terminal(photo):
    with photo.open("rb") as source:
        for command in (["encode", "-"], ["encode", str(photo), "-o", "-"], ["decode", "-"]):
            code, shown = on_terminal([*VQTOK, *command], stdin=source)
            assert code == 2
            assert "binary data is not written to a terminal" in shown


def test_json_goes_to_stdout_while_the_terminal_shows_progress(album, image_model, tmp_path):
    (album / "deep/er/c.flac").unlink()
    command = [*VQTOK, "encode", str(album), "-o", str(tmp_path / "out"), "--json", "--model", str(image_model)]
    with (tmp_path / "lines").open("wb") as file:
        code, shown = on_terminal(command, stdout=file)
    assert code == 0
    *facts, summary = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [entry["width"] for entry in facts] == [9, 12]
    assert summary["done"] == 2
    assert "2 done" in shown
    assert "{" not in shown


@pytest.mark.parametrize("plain", [False, True])
def test_color_and_no_color(tmp_path, plain):
    command = [*VQTOK, "inspect", str(tmp_path / "none")]
    code, shown = on_terminal(command, env={"NO_COLOR": "1"} if plain else {})
    assert code == 1
    assert "none: cannot be read" in shown
    assert (re.search(r"\x1b\[[\d;]*3\dm", shown) is None) == plain


def test_closed_pipe_is_no_crash(run, photo):
    assert run("encode", photo).exit_code == 0
    names = [str(photo.with_suffix(".vqt"))] * 4000
    with subprocess.Popen(
        [*VQTOK, "inspect", "--json", *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 1)


def test_ctrl_c(photo, tmp_path, image_model):
    (tmp_path / "in").mkdir()
    for index in range(3000):
        (tmp_path / f"in/{index:04}.png").hardlink_to(photo)
    out = tmp_path / "out"
    # A test run in the background of a shell has SIGINT ignored, and hands that on.
    code = (
        "import signal, vqtok.__main__; signal.signal(signal.SIGINT, signal.default_int_handler); vqtok.__main__.main()"
    )
    arguments = ["encode", str(tmp_path / "in"), "-o", str(out), "--model", str(image_model), "--jobs", "2"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        complaints = process.stderr.read()
        assert process.wait(60) == 130
    assert complaints.endswith("error: interrupted\n")
    done = files_in(out)
    assert 0 < len(done) < 3000
    assert all(re.fullmatch(r"\d{4}\.vqt", name) for name in done)
    for name in done:
        read_header(out / name)


def test_precision_is_told_in_the_file(run, photo):
    run("encode", photo, "--precision", "bfloat16", "--jobs", 2)
    (facts,) = json_lines(run("inspect", photo.with_suffix(".vqt"), "--json"))
    assert facts["metadata"] == {"precision": "bfloat16"}
    assert run("decode", photo.with_suffix(".vqt"), "--precision", "bfloat16", "--force").exit_code == 0
    run("encode", photo, "--force")
    (facts,) = json_lines(run("inspect", photo.with_suffix(".vqt"), "--json"))
    assert "metadata" not in facts


def test_ctrl_c_while_writing(run, photo, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    result = run("encode", photo)
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")
    assert files_in(tmp_path) == ["photo.png"]


# What exists already.


def test_existing_outputs(run, photo):
    tokens = photo.with_suffix(".vqt")
    assert run("encode", photo).exit_code == 0
    data = tokens.read_bytes()
    tokens.write_bytes(b"mine")
    result = run("encode", photo)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{tokens}: output exists; --force" in result.stderr
    assert tokens.read_bytes() == b"mine"
    assert run("encode", photo, "--force").exit_code == 0
    assert tokens.read_bytes() == data


def test_skip_existing_keeps_whole_files_of_the_same_model(run, album, make_model, image_model, tmp_path):
    out = tmp_path / "out"
    for index in range(3):
        Image.fromarray(picture(10 + index, 10)).save(album / f"x{index}.png")
    (album / "deep/er/c.flac").unlink()
    other = make_model("image", seed=1)
    assert run("encode", album / "x1.png", "-o", f"{out}/", "--model", other).exit_code == 0
    assert run("encode", album / "x2.png", album / "a.png", "-o", out).exit_code == 0
    cut = out / "x2.vqt"
    cut.write_bytes(cut.read_bytes()[:-1])
    kept = (out / "a.vqt").stat()
    result = run("encode", album, "-o", out, "--skip-existing", "--json")
    assert result.exit_code == 0
    assert result.stderr.endswith("4 done, 1 skipped, 0 failed\n")
    assert [entry.get("skipped", False) for entry in json_lines(result)] == [True, False, False, False, False]
    assert (out / "a.vqt").stat().st_ino == kept.st_ino
    identity = bytes.fromhex(read_card(image_model).identity)[:8]
    assert {read_header(out / name).model for name in files_in(out)} == {identity}
    (out / "x0.vqt").unlink()
    (out / "x0.vqt").mkdir()
    result = run("encode", album, "-o", out, "--skip-existing")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 3)
    assert "x0.vqt: cannot be written: Is a directory" in result.stderr


def test_skip_existing_of_decoded_media(run, photo):
    tokens = photo.with_suffix(".vqt")
    run("encode", photo)
    before = photo.read_bytes()
    result = run("decode", tokens, "--skip-existing")
    assert (result.exit_code, result.stderr) == (0, "0 done, 1 skipped, 0 failed\n")
    assert photo.read_bytes() == before
    photo.write_bytes(b"")
    assert run("decode", tokens, "--skip-existing").exit_code == 0
    assert picture_facts(photo) == ("PNG", "RGB", (96, 64))


# JSON.


def test_json_lines(run, album, sound, tmp_path):
    (album / "bad.png").write_bytes(b"nothing")
    result = run("encode", album, "-o", tmp_path / "out", "--json")
    picture, bad, photograph, recording = json_lines(result)
    assert set(picture) == set(photograph) == IMAGE_KEYS | {"output"}
    assert set(recording) == AUDIO_KEYS | {"output"}
    assert (picture["file"], picture["output"]) == (str(album / "a.png"), str(tmp_path / "out/a.vqt"))
    assert picture["file_bytes"] == (tmp_path / "out/a.vqt").stat().st_size
    assert set(bad) == {"file", "error", "exit_code"}
    assert (result.exit_code, bad["exit_code"]) == (1, 1)

    (decoded,) = json_lines(run("decode", tmp_path / "out/a.vqt", "--json", "--codebooks", 3))
    assert decoded["decoded_codebooks"] == 3
    assert decoded["output"] == str(tmp_path / "out/a.png")

    found = run("inspect", album / "a.png", tmp_path / "out", album / "none", "image", "--json")
    assert found.exit_code == 1
    kinds = ["image", "tokens", "tokens", "tokens", None, "model"]
    assert [entry.get("kind") for entry in json_lines(found)] == kinds
    (usage,) = json_lines(run("inspect", "--usage", tmp_path / "out/a.vqt", "--json"))
    assert {"usage", "perplexity", "entropy_bits", "dead_codes", "num_files", "num_tokens"} < set(usage)


# Models.


def test_codebooks_on_both_sides(run, photo, tmp_path, image_model):
    whole, few, cut = (tmp_path / name for name in ("whole.vqt", "few.vqt", "cut.png"))
    run("encode", photo, "-o", whole)
    run("encode", photo, "-o", few, "--codebooks", 2)
    assert read_header(few).num_codebooks == 2
    tables = load_model(image_model).entropy_model
    codes = [load(path.read_bytes(), tables).codes for path in (whole, few)]
    assert np.array_equal(codes[0][:2], codes[1])
    run("decode", whole, "-o", cut, "--codebooks", 2)
    run("decode", few)
    assert cut.read_bytes() == few.with_suffix(".png").read_bytes()
    result = run("decode", few, "--codebooks", 3, "--force")
    assert result.exit_code == 2
    assert "the token file has 2" in result.stderr


def test_wrong_model(run, photo, sound, make_model, image_model):
    other = make_model("image", seed=1)
    tokens = photo.with_suffix(".vqt")
    run("encode", photo)
    made = read_card(image_model).identity[:16]
    for command in (["decode", tokens, "--force"], ["inspect", "--usage", tokens]):
        result = run(*command, "--model", other)
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
        assert f"photo.vqt: made by model {made}, not by {other}; use --model image" in result.stderr
    assert run("encode", sound, "--model", other).exit_code == 3
    result = run("encode", sound, "--model", sound.parent / "none.safetensors")
    assert result.exit_code == 3
    assert "neither a model file nor a bundled model (audio, image)" in result.stderr
    assert run("encode", sound, "--model", sound).exit_code == 3


def test_damaged_and_future_files(run, photo, tmp_path):
    tokens = photo.with_suffix(".vqt")
    run("encode", photo)
    data = tokens.read_bytes()
    body = data[:4] + b"\x20" + data[5:-4]
    for content, code, message in [
        (data[:-1], 4, "damaged token file"),
        (data[:50] + bytes([data[50] ^ 1]) + data[51:], 4, "damaged token file"),
        (b"", 4, "not a token file"),
        (body + checksum(body), 3, "format version 2, this vqtok reads 1: upgrade"),
    ]:
        path = tmp_path / "other.vqt"
        path.write_bytes(content)
        for command in (["decode", path], ["inspect", path], ["inspect", "--usage", path]):
            result = run(*command)
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1)
            assert f"error: {path}: " in result.stderr
            assert message in result.stderr


def test_bad_inputs_among_good_ones(run, album, tmp_path):
    (album / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbut no more")
    (album / "empty.wav").write_bytes(b"")
    result = run("encode", album, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 2
    assert result.stderr.endswith("3 done, 0 skipped, 2 failed\n")
    assert files_in(tmp_path / "out") == ["a.vqt", "deep/b.vqt", "deep/er/c.vqt", "failures.jsonl"]
    result = run("encode", album / "notes.txt")
    assert (result.exit_code, result.stderr) == (1, f"error: {album}/notes.txt: neither an image nor audio\n")
    result = run("encode", tmp_path / "out/a.vqt", "-o", tmp_path / "x.vqt")
    assert result.stderr == f"error: {tmp_path}/out/a.vqt: neither an image nor audio, but a tokens file\n"


def test_unexpected_errors_are_one_line_unless_debugging(run, photo, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("vqtok.codec.codec.Codec.encode_image", fail)
    result = run("encode", photo)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr == "error: unexpected ZeroDivisionError (VQTOK_DEBUG=1 shows the traceback): oh\n"
    monkeypatch.setenv("VQTOK_DEBUG", "1")
    assert isinstance(run("encode", photo).exception, ZeroDivisionError)


def test_too_little_memory_for_one_does_not_end_the_rest(run, album, tmp_path, monkeypatch):
    from vqtok.codec.codec import Codec

    encode = Codec.encode_image

    def fail(self, pixels, num_codebooks=None):
        if pixels.shape[-1] == 9:
            raise MemoryError
        return encode(self, pixels, num_codebooks)

    monkeypatch.setattr("vqtok.codec.codec.Codec.encode_image", fail)
    result = run("encode", album, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.png: too large for the memory of this machine" in result.stderr
    assert len(files_in(tmp_path / "out")) == 3


# Media.


@pytest.mark.parametrize("size", [(1, 1), (1, 29), (31, 1), (97, 61)])
def test_odd_picture_sizes(run, tmp_path, size):
    path = tmp_path / "p.png"
    Image.fromarray(picture(*size)).save(path)
    assert run("encode", path).exit_code == 0
    assert run("decode", tmp_path / "p.vqt", "--force").exit_code == 0
    assert picture_facts(path) == ("PNG", "RGB", size)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "I;16"])
def test_odd_picture_kinds(run, tmp_path, mode):
    path = tmp_path / "p.tif"
    image = Image.fromarray(picture(20, 10))
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(path)
    else:
        image.putalpha(100)
        image.convert(mode if mode != "CMYK" else "RGB").convert(mode).save(path)
    result = run("encode", path)
    assert result.exit_code == 0
    assert ("warning: " in result.stderr) == (mode in ("LA", "RGBA"))
    assert run("decode", tmp_path / "p.vqt").exit_code == 0
    assert picture_facts(tmp_path / "p.png") == ("PNG", "RGB", (20, 10))
    assert "warning" not in run("encode", path, "--force", "-q").stderr


def test_grey_model(run, photo, make_model):
    model = make_model("image", channels=1)
    assert run("encode", photo, "--model", model).exit_code == 0
    assert run("decode", photo.with_suffix(".vqt"), "--model", model, "--force").exit_code == 0
    assert picture_facts(photo) == ("PNG", "L", (96, 64))


@pytest.mark.parametrize(
    ("samples", "sample_rate", "channels", "level"),
    [
        (300, 8000, 1, 1),
        (1000, 44_100, 2, 1),
        (1, 44_100, 1, 1),
        (7, 16_000, 1, 1),
        (500, 16_000, 3, 0),
        (99, 8000, 1, 9),
    ],
)
def test_sounds_keep_samples_rate_and_channels(run, tmp_path, samples, sample_rate, channels, level):
    path = tmp_path / "s.wav"
    soundfile.write(path, level * wave(samples, sample_rate, channels), sample_rate, subtype="FLOAT")
    assert run("encode", path).exit_code == 0
    assert run("decode", tmp_path / "s.vqt", "--force").exit_code == 0
    info = soundfile.info(path)
    assert (info.frames, info.samplerate, info.channels) == (samples, sample_rate, channels)


def test_mono(run, tmp_path):
    path = tmp_path / "s.wav"
    soundfile.write(path, wave(500, 8000, 2), 8000)
    assert run("encode", path, "--mono").exit_code == 0
    header = read_header(tmp_path / "s.vqt")
    assert (header.size, len(header.grid)) == ((500, 8000, 1), 1)


def test_decoded_format_goes_by_the_suffix(run, photo, sound, tmp_path):
    run("encode", photo, sound)
    for name, kind in [("p.jpg", "JPEG"), ("p.WEBP", "WEBP"), ("p", "PNG"), ("s.flac", "FLAC"), ("s", "WAV")]:
        source = photo if name.startswith("p") else sound
        assert run("decode", source.with_suffix(".vqt"), "-o", tmp_path / name).exit_code == 0
        path = tmp_path / name
        assert kind == (picture_facts(path)[0] if name.startswith("p") else soundfile.info(path).format)
    result = run("decode", photo.with_suffix(".vqt"), "-o", tmp_path / "p.xyz")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'p.xyz'}: cannot write images as '.xyz'" in result.stderr


# Names.


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "two\nlines",
        "[bold]red[blue]",
        "esc\x1b[31m",
        "-dash",
        "é\N{HOT BEVERAGE}",
        os.fsdecode(b"\xff\xfe"),
    ],
)
def test_odd_names(run, photo, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = photo.rename(tmp_path / f"{name}.png")
    result = run("encode", path)
    assert (result.exit_code, result.stderr.count("\n")) == (0, 1)
    shown = name.encode("unicode-escape").decode() if not name.isprintable() else name
    assert shown.replace("\\udcff\\udcfe", r"\udcff\udcfe") in result.stderr
    tokens = path.with_suffix(".vqt")
    (facts,) = json_lines(run("inspect", tokens, "--json"))
    assert facts["file"] == str(tokens)
    assert run("inspect", tokens).stdout.splitlines()[0].rstrip() == f"{tmp_path}/{shown}.vqt"
    assert run("decode", tokens, "--force").exit_code == 0
    os.truncate(tokens, 60)
    result = run("decode", tokens, "--force")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    assert shown in result.stderr


# The rest.


def test_quiet_and_verbose(run, album, tmp_path):
    result = run("encode", album, "-o", tmp_path / "out", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    (album / "bad.png").write_bytes(b"")
    result = run("encode", album, "-o", tmp_path / "out", "-q", "--force")
    assert (result.exit_code, result.stderr) == (1, f"error: {album}/bad.png: is empty\n")


def test_version_and_help(run):
    assert re.fullmatch(r"vqtok \d+\.\d+\.\d+\n", run("--version").stdout)
    for arguments in (["--help"], ["-h"], ["encode", "-h"], ["train", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")


def test_an_interrupt_before_there_are_commands(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("vqtok.cli.app.app", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (end.value.code, capsys.readouterr().err) == (130, "error: interrupted\n")


def test_sigterm_is_treated_as_ctrl_c(photo, image_model, monkeypatch, capsys):
    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("vqtok.codec.codec.Codec.encode_image", terminate)
    monkeypatch.setattr(sys, "argv", ["vqtok", "encode", str(photo), "--model", str(image_model)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (end.value.code, capsys.readouterr().err) == (130, "error: interrupted\n")


@pytest.mark.parametrize("name", ["photo", "sound"])
def test_tiles_and_chunks_give_the_same_files(run, photo, sound, tmp_path, name):
    medium = {"photo": photo, "sound": sound}[name]
    assert run("encode", medium, "-o", tmp_path / "a.vqt").exit_code == 0
    assert run("encode", medium, "-o", tmp_path / "b.vqt", "--tile", 30, "--chunk-seconds", 0.05).exit_code == 0
    assert (tmp_path / "a.vqt").read_bytes() == (tmp_path / "b.vqt").read_bytes()
    suffix = medium.suffix
    assert run("decode", tmp_path / "a.vqt", "-o", tmp_path / f"a{suffix}").exit_code == 0
    cut = run("decode", tmp_path / "a.vqt", "-o", tmp_path / f"b{suffix}", "--tile", 30, "--chunk-seconds", 0.05)
    assert cut.exit_code == 0
    whole, cut = (encoded_media(tmp_path / f"{stem}{suffix}") for stem in "ab")
    assert np.abs(whole - cut).max() <= 1  # rounded to integers


def encoded_media(path):
    """Read the integers of a picture or a sound."""
    if path.suffix == ".wav":
        return soundfile.read(path, dtype="int16")[0].astype(int)
    return np.asarray(Image.open(path)).astype(int)


def test_defaults_are_those_of_the_library():
    for verb in ("encode", "decode"):
        defaults = inspect.signature(vqtok.cli.app.VERBS[verb][0]).parameters
        assert defaults["tile"].default == TILE_PIXELS
        assert defaults["chunk_seconds"].default == CHUNK_SECONDS
