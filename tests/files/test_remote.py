"""vqtok.files.paths, and the command line on remote file systems."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from conftest import picture
from PIL import Image

import vqtok
from vqtok.errors import UsageError
from vqtok.files.atomic import atomic_open, atomic_write
from vqtok.files.paths import RemotePath, as_path

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def album(memory, tmp_path):
    """Make the same folder of pictures on the disk and in memory."""
    folder = tmp_path / "album"
    for name in ("a.png", "deep/b c.png", "deep/é.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20 + len(name), 10)).save(path)
        memory.pipe_file(f"/album/{name}", path.read_bytes())
    memory.pipe_file("/album/notes.txt", b"not taken")
    return folder


def test_paths():
    path = as_path("s3://bucket/a/b.png")
    assert isinstance(path, RemotePath)
    assert [str(found) for found in (path, path.parent, path.with_suffix(".vqt"), path.parent / "c d")] == [
        "s3://bucket/a/b.png",
        "s3://bucket/a",
        "s3://bucket/a/b.vqt",
        "s3://bucket/a/c d",
    ]
    assert (path.name, path.suffix, path.scheme) == ("b.png", ".png", "s3")
    assert pickle.loads(pickle.dumps(path)) == path
    for name in ("file:///x/y", "c:/x", "a:b", "s3:/x", "x"):
        assert not isinstance(as_path(name), RemotePath)
    assert as_path("file:///x/y") == Path("/x/y")


def test_looking_and_reading(memory):
    path = as_path("memory://x/y.bin")
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        path.open("rb")
    memory.pipe_file("/x/y.bin", b"123")
    assert (path.exists(), path.is_file(), path.is_dir(), path.parent.is_dir()) == (True, True, False, True)
    assert (path.read_bytes(), path.stat().st_size) == (b"123", 3)
    assert path.parent.names_below() == ["y.bin"]


def test_writing_is_whole_or_nothing(memory):
    path = as_path("memory://x/y.bin")
    atomic_write(path, b"123")
    assert memory.cat_file("/x/y.bin") == b"123"
    with pytest.raises(TypeError), atomic_open(path) as file:
        file.writelines([b"other", "no bytes"])
    assert memory.cat_file("/x/y.bin") == b"123"
    assert memory.find("/") == ["/x/y.bin"]


def test_writing_where_files_grow(memory, monkeypatch):
    """Other than in stores of objects, a file is there before it is whole: so it gets its name later."""
    monkeypatch.setattr("vqtok.files.paths._ATOMIC_SCHEMES", frozenset())
    put, moved = memory.put_file, []
    monkeypatch.setattr(type(memory), "put_file", lambda self, local, name: (moved.append(name), put(local, name)))
    atomic_write(as_path("memory://x/y.bin"), b"123")
    assert memory.cat_file("/x/y.bin") == b"123"
    assert (moved, memory.find("/")) == (["memory://x/.y.bin.tmp"], ["/x/y.bin"])


def test_schemes_that_nobody_knows(monkeypatch):
    with pytest.raises(UsageError, match="nonsense://x: Protocol not known"):
        as_path("nonsense://x").exists()
    with pytest.raises(UsageError, match="hdfs:///x: the scheme needs a host"):
        as_path("hdfs:///x")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(UsageError, match="memory://x: remote files need fsspec"):
        as_path("memory://x").exists()


def test_encode_and_decode(run, memory, album, tmp_path):
    assert run("encode", album, "-o", tmp_path / "out").exit_code == 0
    expected = {f"/tokens/{path.relative_to(tmp_path / 'out')}": path.read_bytes() for path in tmp_path.rglob("*.vqt")}
    memory.pipe_file("/album/bad.png", b"")
    result = run("encode", "memory://album", "-o", "memory://tokens")
    assert result.exit_code == 1
    assert "error: memory://album/bad.png: is empty" in result.stderr
    note = json.loads(memory.cat_file("/tokens/failures.jsonl"))
    assert note["path"] == "memory://album/bad.png"
    assert {name: memory.cat_file(name) for name in memory.find("/tokens") if name.endswith("vqt")} == expected
    memory.rm("/album/bad.png")
    memory.rm("/tokens/a.vqt")
    result = run("encode", "memory://album", "-o", "memory://tokens", "--skip-existing")
    assert result.stderr.endswith("1 done, 2 skipped, 0 failed\n")
    result = run("encode", "memory://album/a.png", "-o", "memory://tokens/a.vqt")
    assert (result.exit_code, "memory://tokens/a.vqt: output exists; --force" in result.stderr) == (1, True)
    assert run("decode", "memory://tokens", "-o", "memory://back").exit_code == 0
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back").exit_code == 0
    assert memory.cat_file("/back/deep/b c.png") == (tmp_path / "back/deep/b c.png").read_bytes()
    result = run("encode", "memory://none", "-o", tmp_path / "x")
    assert (result.exit_code, result.stderr) == (2, "error: memory://none: no such file or folder\n")
    lines = b"memory://album/a.png\nmemory://album/gone.png\n"
    result = run("encode", "memory://album", "--filelist", "-", "-o", tmp_path / "list", stdin=lines)
    assert "memory://album/gone.png: cannot be read: No such file" in result.stderr
    assert (tmp_path / "list/a.vqt").read_bytes() == expected["/tokens/a.vqt"]
    assert run("encode", f"file://{album}", "-o", f"file://{tmp_path}/same").exit_code == 0
    assert (tmp_path / "same/a.vqt").read_bytes() == expected["/tokens/a.vqt"]


def test_shards(run, memory, album, tmp_path):
    assert run("encode", album, "--shard", tmp_path / "x.vqts").exit_code == 0
    assert run("encode", "memory://album", "--shard", "memory://x.vqts").exit_code == 0
    assert memory.cat_file("/x.vqts") == (tmp_path / "x.vqts").read_bytes()
    assert "output exists; --force" in run("encode", "memory://album", "--shard", "memory://x.vqts").stderr
    Image.fromarray(picture(9, 9)).save(album / "z.png")
    memory.pipe_file("/album/z.png", (album / "z.png").read_bytes())
    result = run("encode", "memory://album", "--shard", "memory://x.vqts", "--skip-existing")
    assert result.stderr.endswith("1 done, 3 skipped, 0 failed\n")
    result = run("encode", "memory://album", "--shard", "memory://x.vqts", "--skip-existing")
    assert result.stderr.endswith("0 done, 4 skipped, 0 failed\n")
    assert list(vqtok.open_shard(as_path("memory://x.vqts"))) == ["a.png", "deep/b c.png", "deep/é.png", "z.png"]
    assert run("encode", "memory://album", "--num-tasks", 2, "--shard", "memory://parts/").exit_code == 0
    assert memory.find("/parts") == ["/parts/00000-of-00002.vqts", "/parts/00001-of-00002.vqts"]
