"""vqtok.jobs.worklist and vqtok.jobs.planning"""

from __future__ import annotations

import os
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import RemotePath, as_path
from vqtok.files.walk import files_below
from vqtok.jobs.mapping import plan_jobs
from vqtok.jobs.planning import plan_encoding
from vqtok.jobs.worklist import Share, WorkList, parse_list, share_of


def numbered(count: int) -> WorkList[str]:
    work: WorkList[str] = WorkList()
    for index in range(count):
        work.add(f"{index:04}.png", str.upper if index % 3 else str.title)
    return work


def test_work_lists_are_sequences():
    work = numbered(9)
    assert list(work) == [work[i] for i in range(9)]
    assert work[0] == "0000.Png"
    assert work[-1] == "0008.PNG"
    assert work[1:3] == ["0001.PNG", "0002.PNG"]
    with pytest.raises(IndexError):
        work[9]
    assert list(work.split(1)[0]) == list(work)


def test_parts_are_stable_and_alike_in_length():
    names = list(numbered(2000))
    parts = numbered(2000).split(7)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(200 < len(part) < 370 for part in parts)
    shuffled: WorkList[str] = WorkList()
    order = [f"{index:04}.png" for index in range(3000)]
    random.Random(0).shuffle(order)
    for name in order:
        shuffled.add(name, str)
    for part, other in zip(parts, shuffled.split(7), strict=True):
        assert set(map(str.lower, part)) == {name for name in other if name < "2000"}


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("count", "index", "environment", "expected"),
    [
        (None, None, {}, (1, 0)),
        (5, 2, SLURM, (5, 2)),
        (5, None, {}, (5, None)),
        (None, None, SLURM, (4, 2)),
        (None, None, SLURM | {"SLURM_ARRAY_TASK_STEP": "2"}, (4, 1)),
        (None, None, TORCHRUN, (2, 1)),
        (None, None, SLURM | TORCHRUN, (8, 5)),
        (100, None, SLURM, (100, 7)),
        (3, None, TORCHRUN, (3, 1)),
        (1, None, SLURM, (1, 0)),
    ],
)
def test_shares(count, index, environment, expected):
    share = share_of(count, index, environment)
    assert (share.count, share.index) == expected
    assert bool(share.source) == (count is None and bool(environment))


@pytest.mark.parametrize(
    ("count", "index", "environment", "message"),
    [
        (None, 2, {}, "--task-index needs --num-tasks"),
        (2, 2, {}, "task 2 of 2: tasks are numbered from 0"),
        (7, None, SLURM, "task 7 of 7"),
        (None, None, SLURM | {"SLURM_ARRAY_TASK_ID": "9"}, "has gaps; give --num-tasks"),
        (None, None, SLURM | {"SLURM_ARRAY_TASK_STEP": "3"}, "has gaps; give --num-tasks"),
        (None, None, TORCHRUN | {"RANK": "one"}, "RANK=one: is not a number"),
    ],
)
def test_shares_that_make_no_sense(count, index, environment, message):
    with pytest.raises(UsageError, match=message):
        share_of(count, index, environment)


def test_walks_go_along_links_but_in_no_circles(tmp_path):
    for name in ("a/b/x.png", "a/b.png", "a-b.png", "z/y.png", "z/no.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/b/up").symlink_to("..")
    (tmp_path / "a/b/self").symlink_to("self")
    (tmp_path / "a/link").symlink_to(tmp_path / "z")
    (tmp_path / "z/back").symlink_to(tmp_path / "a")
    found = list(files_below(tmp_path, lambda path: path.suffix == ".png"))
    assert found == ["a/b/x.png", "a/b.png", "a/link/y.png", "a-b.png", "z/back/b/x.png", "z/back/b.png", "z/y.png"]
    assert found == sorted(found, key=lambda name: Path(name).parts)
    with pytest.raises(MediaError, match="none: cannot be read: No such file"):
        list(files_below(tmp_path / "none", lambda path: True))


def test_deep_folders(tmp_path, monkeypatch):
    """Deeper than functions may call themselves, and pytest could tidy up."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("x.png").touch()
    found = list(files_below(tmp_path, lambda path: True))
    Path("x.png").unlink()
    for _ in range(1100):
        os.chdir("..")
        os.rmdir("d")
    assert found == ["d/" * 1100 + "x.png"]


@pytest.mark.parametrize(
    ("data", "folder", "expected"),
    [
        (b"a.png\n\nb/./c.png\n", None, [("", "a.png"), ("", "b/c.png")]),
        (b"a\nb.png\0c.png\0", None, [("", "a\nb.png"), ("", "c.png")]),
        (b"/x/a.png\n\xff.png", None, [("/", "x/a.png"), ("", "\udcff.png")]),
        (b"/x/a.png\n/x/y/b.png", "/x/", [("/x", "a.png"), ("/x", "y/b.png")]),
        (b"in/a.png\n./in/y/b.png", "in", [("in", "a.png"), ("in", "y/b.png")]),
        (b"s3://b/a.png\n", None, [("s3:", "b/a.png")]),
        (b"s3://b/x/a.png\n", "s3://b/x", [("s3://b/x", "a.png")]),
    ],
)
def test_lists(data, folder, expected):
    found = list(parse_list(data, as_path(folder) if folder else None))
    assert [(str(root), name) for root, name in found] == [
        (str(Path(root)).replace(":/", "://"), n) for root, n in expected
    ]
    assert isinstance(found[0][0] / "a", RemotePath) == data.startswith(b"s3")


@pytest.mark.parametrize(
    ("data", "folder", "message"),
    [
        (b"", None, "lists no files"),
        (b"\n\n", None, "lists no files"),
        (b"../a.png", None, "../a.png: is outside of the current folder"),
        (b"/y/a.png", "/x", "/y/a.png: is not in /x"),
        (b"/xy/a.png", "/x", "is not in /x"),
    ],
)
def test_lists_that_make_no_sense(data, folder, message):
    with pytest.raises((UsageError, MediaError), match=message):
        list(parse_list(data, Path(folder) if folder else None))


def test_memory_of_a_plan(monkeypatch):
    """A quarter of what the paths alone would take as objects."""
    count = 30_000
    folder = Path("photos")
    names = [(folder, f"n{index // 1000:05}/ILSVRC_{index:08}.JPEG") for index in range(count)]
    tracemalloc.start()
    jobs = plan_jobs([], "out", suffix=".vqt", accepts=lambda path: True, what="", listed=iter(names))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(jobs) == count
    assert jobs[7].target == Path("out/n00000/ILSVRC_00000007.vqt")
    assert kept / count < 40  # The names themselves were there before.
    assert peak / count < 200


def test_shards_of_a_folder(tmp_path, monkeypatch):
    for index in range(20):
        (tmp_path / f"{index}.png").touch()
    folder = f"{tmp_path / 'out'}/"

    def names(**options) -> list[str]:
        return [path.name for path, _ in plan_encoding([tmp_path], None, shard=folder, **options).shards]

    assert names() == ["00000-of-00001.vqts"]
    assert names(num_tasks=3) == [f"0000{i}-of-00003.vqts" for i in range(3)]
    assert names(num_tasks=3, task_index=1) == ["00001-of-00003.vqts"]
    assert names(on_cluster=True) == ["00000-of-00001.vqts"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00001-of-00002.vqts").touch()
    assert names(on_cluster=True) == ["00000-of-00002.vqts", "00001-of-00002.vqts"]
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert names() == ["00002-of-00004.vqts"]
    assert names(num_tasks=1) == ["00000-of-00001.vqts"]
    assert names(on_cluster=True) == ["00000-of-00002.vqts", "00001-of-00002.vqts"]
    work = plan_encoding([tmp_path], str(tmp_path / "tokens"))
    assert 0 < len(work.jobs) < 15
    assert re.fullmatch(r"task 2 of 4 \(SLURM_ARRAY_TASK_ID\): \d of 20 inputs; --num-tasks 1 for all", work.share)
    assert work.failures == tmp_path / "tokens/failures.00002-of-00004.jsonl"
    # Files that are named are for this process.
    assert len(plan_encoding([tmp_path / "3.png"], None).jobs) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": []}, "Missing argument 'IN'"),
        ({"output": "out", "num_tasks": 3}, "--num-tasks 3: give --task-index as well"),
        ({"output": "out", "shard": "x.vqts"}, "replaces -o"),
        ({"output": "out", "on_cluster": True}, "--engine ray writes shards"),
        ({"shard": "x.vqts", "on_cluster": True}, "x.vqts: would be written by several tasks; give a folder"),
        ({"shard": "x.vqts", "num_tasks": 3}, "several tasks; give a folder"),
        ({"output": "x.vqts"}, "to write a shard give --shard x.vqts"),
        ({"output": "out", "filelist": "list", "inputs": ["IN", "IN"]}, "--filelist replaces IN"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    (tmp_path / "a.png").touch()
    inputs = [tmp_path if name == "IN" else Path(name) for name in options.pop("inputs", ["IN"])]
    with pytest.raises(UsageError, match=message):
        plan_encoding(inputs, options.pop("output", None), **options)


def test_one_task_may_write_one_shard(tmp_path):
    (tmp_path / "a.png").touch()
    work = plan_encoding([tmp_path], None, shard="x.vqts", num_tasks=2, task_index=0)
    other = plan_encoding([tmp_path], None, shard="x.vqts", num_tasks=2, task_index=1)
    assert work.total + other.total == 1
    assert Share(2, 1).name(1) == "00001-of-00002"
