"""vqtok.files.atomic"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vqtok.errors import CorruptFileError, MediaError, OutputError, UsageError
from vqtok.files.atomic import atomic_write
from vqtok.files.paths import STDIO, error_context, local_path, read_bytes, spooled
from vqtok.jobs.mapping import plan_jobs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make a folder with pictures at two depths, something else, and make its parent the current folder."""
    for name in ("in/b.png", "in/a.v1.jpg", "in/deep/c.png", "in/notes.txt", "one.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


HOLDS = {"one.png": ["a", "b/c.d"], "in/b.png": ["e"], "in/a.v1.jpg": []}
"""Keys of the items in some of these, for tests that ask for it."""


def plan(*inputs, output=None):
    jobs = plan_jobs(
        [Path(name) for name in inputs],
        output,
        suffix=lambda path, key: ".vqt",
        accepts=lambda path: path.suffix in (".png", ".jpg"),
        what="pictures",
    )
    return {str(job.source): str(job.target) for job in jobs}


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        (["one.png"], None, {"one.png": "one.vqt"}),
        (["in/a.v1.jpg"], None, {"in/a.v1.jpg": "in/a.v1.vqt"}),
        (["one.png"], "x/two.bin", {"one.png": "x/two.bin"}),
        (["one.png"], "in", {"one.png": "in/one.vqt"}),
        (["one.png"], "new", {"one.png": "new"}),
        (["one.png"], "new/", {"one.png": "new/one.vqt"}),
        (["one.png"], "-", {"one.png": "-"}),
        (["one.png", "in/b.png"], None, {"one.png": "one.vqt", "in/b.png": "in/b.vqt"}),
        (["one.png", "in/b.png"], "new", {"one.png": "new/one.vqt", "in/b.png": "new/b.vqt"}),
        (
            ["in", "one.png"],
            "out",
            {
                "in/a.v1.jpg": "out/a.v1.vqt",
                "in/b.png": "out/b.vqt",
                "in/deep/c.png": "out/deep/c.vqt",
                "one.png": "out/one.vqt",
            },
        ),
        (["-"], None, {"-": "-"}),
        (["-"], "x.vqt", {"-": "x.vqt"}),
        (["-"], "in", {"-": "in/stdin.vqt"}),
    ],
)
def test_outputs(tree, inputs, output, expected):
    assert plan(*inputs, output=output) == expected


@pytest.mark.parametrize(
    ("inputs", "output", "error", "message"),
    [
        (["none.png"], None, UsageError, "none.png: no such file"),
        (["in"], None, UsageError, "in: is a folder; give -o DIR"),
        (["in"], "-", UsageError, "only one input"),
        (["one.png", "in/b.png"], "-", UsageError, "only one input"),
        (["one.png", "in/b.png"], "one.png", UsageError, "one.png: is a file; several inputs need a folder"),
        (["one.png", "one.png"], None, UsageError, "one.png: is given twice"),
        (["one.png"], "in/../one.png", UsageError, "overwritten by its own output"),
        (["in/folder.png"], "out", MediaError, "in/folder.png: no pictures in this folder"),
    ],
)
def test_refused_plans(tree, inputs, output, error, message):
    with pytest.raises(error, match=re.escape(message)):
        plan(*inputs, output=output)


def plan_items(*inputs, output=None, holds=HOLDS):
    jobs = plan_jobs(
        [Path(name) for name in inputs],
        output,
        suffix=lambda path, key: ".out",
        accepts=lambda path: True,
        what="files",
        items=lambda path: holds.get(str(path)),
    )
    return [(job.name, str(job.target)) for job in jobs]


def test_inputs_that_hold_items(tree):
    several = [("one.png: a", "new/a.out"), ("one.png: b/c.d", "new/b/c.d.out")]
    assert plan_items("one.png", output="new") == several
    assert plan_items("in/b.png") == [("in/b.png: e", "in/b.out")]
    assert plan_items("in/b.png", output="new") == [("in/b.png: e", "new")]
    assert plan_items("in/b.png", output="new/") == [("in/b.png: e", "new/e.out")]
    other = ("in/notes.txt", "new/notes.out")
    assert plan_items("in/notes.txt", "one.png", "in/b.png", output="new") == [
        other,
        *several,
        ("in/b.png: e", "new/e.out"),
    ]
    for error, message, arguments in [
        (UsageError, "one.png: contains several items; give -o DIR", {}),
        (UsageError, "only one input", {"output": "-"}),
        (UsageError, "one.png: x and one.png: X would both become new/x.out", {"output": "new", "holds": "xX"}),
        (UsageError, "'../x.out' leads out of the folder", {"output": "new", "holds": ["../x", "y"]}),
        (UsageError, "'/x.out' leads out of the folder", {"output": "new", "holds": ["/x", "y"]}),
        (MediaError, "one.png: contains no items", {"output": "new", "holds": []}),
    ]:
        if "holds" in arguments:
            arguments["holds"] = {"one.png": arguments["holds"]}
        with pytest.raises(error, match=re.escape(message)):
            plan_items("one.png", **arguments)


def test_inputs_of_one_output_keep_their_suffix(tree):
    (tree / "in/b.jpg").touch()
    expected = {
        "in/a.v1.jpg": "out/a.v1.vqt",
        "in/b.jpg": "out/b.jpg.vqt",
        "in/b.png": "out/b.png.vqt",
        "in/deep/c.png": "out/deep/c.vqt",
    }
    assert plan("in", output="out") == expected
    assert plan("in/b.jpg", "in/b.png") == {"in/b.jpg": "in/b.jpg.vqt", "in/b.png": "in/b.png.vqt"}
    assert plan("in/b.jpg", "in/b.png", output="x/") == {"in/b.jpg": "x/b.jpg.vqt", "in/b.png": "x/b.png.vqt"}


def test_names_that_differ_in_case_alone_collide(tree):
    (tree / "in/B.png").touch()
    with pytest.raises(UsageError, match=r"in/B\.png and in/b\.png would both become out/B\.png\.vqt; rename one"):
        plan("in", output="out")


def test_several_folders_are_not_merged(tree):
    (tree / "other").mkdir()
    (tree / "other/b.png").touch()
    assert plan("in/deep", "other", output="out") == {
        "in/deep/c.png": "out/deep/c.vqt",
        "other/b.png": "out/other/b.vqt",
    }


def test_one_missing_input_among_several_fails_by_itself(tree):
    assert plan("none.png", "one.png", output="x/") == {"none.png": "x/none.vqt", "one.png": "x/one.vqt"}


def test_atomic_write_gives_ordinary_permissions_and_keeps_those_of_a_file_that_it_replaces(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        atomic_write(path, b"old and longer")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        atomic_write(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert list(tmp_path.iterdir()) == [path]


def test_writing_through_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/file")
    for content in (b"1", b"2"):
        atomic_write(link, content)
        assert (tmp_path / "folder/file").read_bytes() == content
    assert link.is_symlink()


def test_stdout_by_name_is_appended_to_and_not_replaced(tmp_path):
    """A file that stdout is redirected to must keep what the shell or others have written to it."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    code = "import sys; from pathlib import Path; from vqtok.files.atomic import atomic_write\n"
    code += "for name in sys.argv[1:]: atomic_write(Path(name), b'x')"
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before ")
        file.flush()
        names = ["/dev/stdout", "/dev/fd/1", str(tmp_path / "stdout")]
        subprocess.run([sys.executable, "-c", code, *names], stdout=file, check=True)
    assert (tmp_path / "log").read_bytes() == b"before xxx"
    assert (tmp_path / "stdout").is_symlink()


@pytest.mark.parametrize("scheme", ["s3://bucket/x", "s3:/bucket/x", "zip::s3://bucket/x.zip", "zip:///x.zip"])
def test_remote_names_are_refused_where_only_local_files_work(scheme):
    with pytest.raises(UsageError):
        local_path(scheme)
    assert local_path("file:///x/y") == local_path(Path("file:///x/y")) == Path("/x/y")
    assert local_path("./s3:/x") == Path("./s3:/x")


def test_a_pipe_is_spooled_under_its_own_name(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"content"))
    writer.start()
    copy = spooled(pipe)
    writer.join()
    assert (str(copy), copy.read_bytes(), copy.read_bytes()) == (str(pipe), b"content", b"content")
    assert spooled(tmp_path) == tmp_path


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch, failure):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_long_names_are_written(tmp_path):
    for name in ("a" * 255, "\N{GRINNING FACE}" * 63):
        atomic_write(tmp_path / name, b"x")
    assert len(list(tmp_path.iterdir())) == 2


def test_unwritable_places(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none/file", tmp_path / "file/file"):
        with pytest.raises(OutputError, match=f"^{path}: cannot be written: "):
            atomic_write(path, b"x")


def test_devices_are_written_to_not_replaced():
    atomic_write(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_read_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"\0\xff")
    assert read_bytes(tmp_path / "file") == b"\0\xff"
    with pytest.raises(MediaError, match="none: cannot be read: No such file"):
        read_bytes(tmp_path / "none")


def test_errors_name_their_input():
    for raised, shown in (("is damaged", "a.vqt: is damaged"), ("a.vqt: is damaged", "a.vqt: is damaged")):
        with pytest.raises(CorruptFileError, match=f"^{shown}$"), error_context(Path("a.vqt")):
            raise CorruptFileError(raised)
    with pytest.raises(CorruptFileError, match=r"^stdin: is damaged$"), error_context(STDIO):
        raise CorruptFileError("is damaged")
