"""Full and read-only disks, files without permission or that vanish, odd names, closed pipes, on the command line.

Each ends in a right result, or in a clear line and an exit code, and in no file under its final name that is not whole.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture
from PIL import Image

import vqtok
from vqtok.errors import DiskError
from vqtok.tokens.vqt.header import read_header

IS_ROOT = os.geteuid() == 0
CAPABILITY_VERSION = 0x20080522


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    for index in range(12):
        Image.fromarray(picture(90, 90 + index)).save(folder / f"{'deep/' * (index % 2)}{index:02}.png")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mount a disk of a few pages, with a function that gives it other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", folder]
    if not IS_ROOT or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield folder, remount
    subprocess.run(["umount", folder], check=True)


def drop_privileges() -> None:
    """Let the modes of files concern the superuser, too, who still gets to everything that is open to their owner."""
    if IS_ROOT and ctypes.CDLL(None).capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)):
        raise OSError("capabilities cannot be dropped")


def limit_file_size(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def whole(folder: Path) -> set[str]:
    """Check that all files below a folder are whole; give their names."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in names:
        path = folder / name
        if path.suffix == ".vqt":
            read_header(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".vqts":
            vqtok.inspect(path)
        else:
            assert path.suffix in (".jsonl", ".part"), name
    return names


# Disks.


@pytest.mark.parametrize("verb", ["encode", "decode", "shard"])
def test_full_disk(start, album, image_model, small_disk, tmp_path, verb):
    disk, remount = small_disk
    tokens = tmp_path / "tokens"
    assert start("encode", album, "-o", tokens, "--model", image_model).wait() == 0
    command = {
        "encode": ["encode", album, "-o", disk / "out"],
        "decode": ["decode", tokens, "-o", disk / "out"],
        "shard": ["encode", album, "--shard", disk / "out/x.vqts"],
    }[verb]
    command += ["--model", image_model]
    (disk / "filler").write_bytes(bytes(16 << 10 if verb != "decode" else 0))
    run = start(*command)
    assert run.wait() == 1
    (*_, last) = run.stderr.splitlines()
    assert last.startswith("error: ")
    assert last.endswith(": cannot be written: No space left on device")
    assert run.stderr.count("error: ") == 1
    names = whole(disk / "out")
    assert "x.vqts" not in names
    assert len(names) < 12
    remount("size=4m")
    run = start(*command, "--skip-existing")
    assert run.wait() == 0
    assert len(vqtok.open_shard(disk / "out/x.vqts") if verb == "shard" else whole(disk / "out")) == 12
    if verb == "shard":
        assert start("encode", album, "--shard", tmp_path / "y.vqts", "--model", image_model).wait() == 0
        assert (disk / "out/x.vqts").read_bytes() == (tmp_path / "y.vqts").read_bytes()


@pytest.mark.parametrize("verb", ["encode", "decode", "shard"])
def test_file_that_cannot_grow(start, album, image_model, tmp_path, verb):
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    assert start("encode", album, "-o", tokens, "--model", image_model).wait() == 0
    command = {
        "encode": ["encode", album, "-o", out],
        "decode": ["decode", tokens, "-o", out],
        "shard": ["encode", album, "--shard", out / "x.vqts"],
    }[verb]
    run = start(*command, "--model", image_model, before=functools.partial(limit_file_size, 700))
    assert run.wait() == 1
    assert "cannot be written: File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert not {name for name in whole(out) if name.endswith((".png", ".vqts"))}


@pytest.mark.parametrize("verb", ["encode", "decode", "shard", "train"])
def test_read_only_disk(start, album, image_model, small_disk, tmp_path, verb):
    disk, remount = small_disk
    tokens = tmp_path / "tokens"
    assert start("encode", album, "-o", tokens, "--model", image_model).wait() == 0
    remount("ro")
    command = {
        "encode": ["encode", album, "-o", disk, "--model", image_model],
        "decode": ["decode", tokens, "-o", disk, "--model", image_model],
        "shard": ["encode", album, "--shard", disk / "x.vqts", "--model", image_model],
        "train": ["train", album, "-o", disk / "x.safetensors", "--preset", "digits", "--steps", "1"],
    }[verb]
    run = start(*command)
    assert run.wait() == 1
    (line,) = run.stderr.splitlines()
    assert f" {disk}/" in line
    assert line.endswith(": cannot be written: Read-only file system")


# Permissions.


@pytest.mark.parametrize("what", ["file", "folder", "folder of a shard", "output", "shard"])
def test_permission_denied(start, album, image_model, tmp_path, what):
    out = tmp_path / "out"
    out.mkdir()
    closed = album / "02.png" if what == "file" else album / "deep" if "folder" in what else out
    closed.chmod(0)
    target = ["--shard", out / "x.vqts"] if "shard" in what else ["-o", out]
    run = start("encode", album, *target, "--model", image_model, before=drop_privileges)
    assert run.wait() == 1
    closed.chmod(0o777)
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert all(line.endswith("Permission denied") for line in errors), errors
    if what in ("file", "folder"):
        assert errors == [f"error: {closed}: cannot be read: Permission denied"]
        names = {f"{index:02}.vqt" for index in range(0, 12, 2)} | {f"deep/{i:02}.vqt" for i in range(1, 12, 2)}
        gone = {"02.vqt"} if what == "file" else {name for name in names if name.startswith("deep")}
        assert whole(out) == names - gone | {"failures.jsonl"}
        assert json.loads((out / "failures.jsonl").read_text())["path"] == str(closed)
    elif what == "folder of a shard":
        assert whole(out) == {"x.vqts", "x.failures.jsonl"}
        assert len(vqtok.open_shard(out / "x.vqts")) == 6
    else:
        assert whole(out) == set()


# Inputs.


def test_inputs_that_vanish_or_are_no_files(run, album, tmp_path):
    (album / "gone.png").symlink_to("nowhere.png")
    (album / "self.png").symlink_to("self.png")
    os.mkfifo(album / "pipe.png")
    (album / "up").symlink_to("..")
    (album / "deep/here").symlink_to(".")
    (album / "other").symlink_to("deep")
    result = run("encode", album, "-o", tmp_path / "out")
    assert result.exit_code == 1
    errors = {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {
        f"error: {album}/gone.png: cannot be read: No such file or directory",
        f"error: {album}/self.png: cannot be read: Too many levels of symbolic links",
    }
    names = whole(tmp_path / "out")
    assert len(names) == 12 + 6 + 1
    assert {name for name in names if name.startswith("other/")} == {f"other/{i:02}.vqt" for i in range(1, 12, 2)}


@pytest.mark.parametrize("verb", ["encode", "decode", "shard"])
def test_inputs_that_vanish_meanwhile(run, album, tmp_path, monkeypatch, verb):
    if verb == "decode":
        assert run("encode", album, "-o", tmp_path / "tokens").exit_code == 0
        album = tmp_path / "tokens"
    from vqtok.jobs.mapping import plan_items, plan_jobs

    def vanishing(plan):
        def planned(*args, **options):
            found = plan(*args, **options)
            next(album.glob("04.*")).unlink()
            return found

        return planned

    monkeypatch.setattr("vqtok.jobs.planning.plan_jobs", vanishing(plan_jobs))
    monkeypatch.setattr("vqtok.jobs.planning.plan_items", vanishing(plan_items))
    target = ["--shard", tmp_path / "out/x.vqts"] if verb == "shard" else ["-o", tmp_path / "out"]
    result = run("decode" if verb == "decode" else "encode", album, *target)
    assert result.exit_code == 1
    assert "04." in result.stderr
    assert result.stderr.count("cannot be read: No such file or directory") == 1
    assert result.stderr.endswith("11 done, 0 skipped, 1 failed\n")
    assert (tmp_path / "out").exists()
    (manifest,) = (tmp_path / "out").glob("*.jsonl")
    assert set(json.loads(manifest.read_text())) == {"path", "error"}


# Names.

ODD = ["with space", "two\nlines", "é\N{HOT BEVERAGE}", "-dash", os.fsdecode(b"\xff\xfe"), "quote'\"", "tab\t"]


def test_odd_names_everywhere(run, tmp_path, photo):
    album = tmp_path / "album"
    for name in ODD:
        (album / name).mkdir(parents=True)
        shutil.copy(photo, album / name / f"{name}.png")
        (album / name / f"bad{name}.png").write_bytes(b"no picture")
    result = run("encode", album, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    *found, _ = [json.loads(line) for line in result.stdout.splitlines()]
    assert {entry["file"] for entry in found if "error" not in entry} == {f"{album}/{name}/{name}.png" for name in ODD}
    bad = {f"{album}/{name}/bad{name}.png" for name in ODD}
    assert {entry["file"] for entry in found if "error" in entry} == bad
    notes = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_bytes().splitlines()]
    assert {note["path"] for note in notes} == bad
    assert all(note["path"] in note["error"] for note in notes)
    for name in ODD:
        read_header(tmp_path / "out" / name / f"{name}.vqt")
    # The notes name what to try again: with NUL behind each, as names may hold newlines.
    for name in bad:
        shutil.copy(photo, name)
    again = b"".join(os.fsencode(note["path"]) + b"\0" for note in notes)
    result = run("encode", album, "--filelist", "-", "-o", tmp_path / "out", stdin=again)
    assert result.exit_code == 0
    assert result.stderr.endswith("7 done, 0 skipped, 0 failed\n")
    assert not (tmp_path / "out/failures.jsonl").exists()
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back").exit_code == 0
    assert len(whole(tmp_path / "back")) == 14
    assert run("encode", album, "--shard", tmp_path / "x.vqts").exit_code == 0
    assert set(vqtok.open_shard(tmp_path / "x.vqts")) == {f"{n}/{p}{n}.png" for n in ODD for p in ("", "bad")}


# Streams.


@pytest.mark.parametrize("options", [["--json"], ["-o", "-"]])
def test_closed_stdout(album, image_model, tmp_path, options):
    """As in `vqtok encode ... | head -1`."""
    inputs = [album, "-o", tmp_path / "out"] if options == ["--json"] else [album / "02.png"]
    command = [sys.executable, "-m", "vqtok", "encode", *inputs, *options, "--model", image_model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        complaints = process.stderr.read()
    assert (process.returncode, complaints) == (1, b"")
    whole(tmp_path / "out")


def test_checkpoint_before_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    from torch import nn, ones

    from vqtok.training.state import read_checkpoint, save_checkpoint

    def write(step: int) -> None:
        save_checkpoint(tmp_path, {"model": nn.Linear(2, 2)}, {}, ones(1), {"step": step})

    def fail(*_):
        raise OSError(28, "No space left on device")

    write(1)
    write(2)
    monkeypatch.setattr("vqtok.files.atomic._open_temporary", fail)
    with pytest.raises(DiskError, match=r"checkpoint.safetensors: cannot be written: No space left on device"):
        write(3)
    assert read_checkpoint(tmp_path)[1]["step"] == 2
