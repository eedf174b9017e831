"""vqtok.jobs.ray_cluster, on a cluster of two nodes on this machine."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYTHON, picture
from PIL import Image
from rows.conftest import write_tar

import vqtok
from vqtok.codec.files import Codecs
from vqtok.jobs.planning import plan_encoding
from vqtok.jobs.ray_cluster import encode_on_ray
from vqtok.jobs.shards import encode_shards
from vqtok.models.model_file import load_model
from vqtok.models.registry import find_model
from vqtok.tokens.vqt.file import dump

ray = pytest.importorskip("ray")
read_table = pytest.importorskip("pyarrow.parquet").read_table
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own.


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 << 20}
    # Two on the first: an actor and what feeds it must find room when it is alone.
    cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=1, **small)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for index in range(40):
        path = folder / f"{index % 3}/{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(150, 100 + index)).save(path)
    return folder


def shards_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.vqts")}


@pytest.fixture
def expected(album, image_model, tmp_path):
    """Encode to eight shards in this process."""
    work = plan_encoding([album], None, shard=f"{tmp_path}/expected/", num_tasks=8)
    assert not any(outcome.error for outcome in encode_shards(work.shards, Codecs(str(image_model))))
    return shards_in(tmp_path / "expected")


def test_a_node_dies(cluster, album, expected, image_model, tmp_path):
    work = plan_encoding([album], None, shard=f"{tmp_path}/out/", num_tasks=8, on_cluster=True)
    outcomes = encode_on_ray(work.shards, str(image_model))
    done = [next(outcomes)]
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    done += outcomes
    assert [outcome.error for outcome in done] == [None] * 40
    assert shards_in(tmp_path / "out") == expected
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".vqts"}


def test_rows_of_tars(cluster, run, album, image_model, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    for part in range(2):
        members = [(path.name, path.read_bytes()) for path in sorted((album / str(part)).iterdir())]
        write_tar(tars / f"{part}.tar", [*members, ("caption.txt", b"no media")])
    options = ["--model", image_model, "--columns", "caption"]
    result = run("encode", tars, "--engine", "ray", "--shard", f"{tmp_path}/out/", *options)
    assert result.exit_code == 1
    assert result.stderr.count("has neither an image nor audio, only .txt") == 2
    run("encode", tars, "--shard", f"{tmp_path}/here/", "--num-tasks", 2, *options)
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "here")
    assert len(shards_in(tmp_path / "out")) == 2
    for wrong in (["-o", tmp_path / "x.parquet"], ["--shard", tmp_path / "x.vqts"]):
        result = run("encode", tars, "--engine", "ray", *wrong)
        assert (result.exit_code, "give --shard DIR/" in result.stderr) == (2, True)


def test_command_line(cluster, run, album, expected, image_model, tmp_path):
    out = tmp_path / "out"
    (album / "bad.png").write_bytes(b"")
    command = ["encode", album, "--engine", "ray", "--shard", f"{out}/", "--num-tasks", 8, "--model", image_model]
    result = run(*command, "--json")
    assert result.exit_code == 1
    assert re.search(r"items/s, [\d.]+ bpp: 40 done, 0 skipped, 1 failed\n$", result.stderr)
    assert shards_in(out) == expected
    assert len(result.stdout.splitlines()) == 42  # with the summary; what Ray prints of the dead node is elsewhere
    assert json.loads((out / "failures.jsonl").read_text())["path"] == f"{album}/bad.png"
    result = run(*command)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "00000-of-00008.vqts: output exists; --force" in result.stderr


@pytest.mark.slow
def test_finished_shards_are_skipped(cluster, run, album, expected, image_model, tmp_path):
    out = tmp_path / "out"
    assert run("encode", album, "--num-tasks", 8, "--shard", f"{out}/", "--model", image_model).exit_code == 0
    (out / "00003-of-00008.vqts").unlink()
    # As many shards as are there already.
    command = ["encode", album, "--engine", "ray", "--shard", f"{out}/", "--model", image_model, "--skip-existing"]
    result = run(*command)
    assert result.exit_code == 0
    assert re.search(r"[1-9] done, 3\d skipped, 0 failed\n$", result.stderr)
    assert shards_in(out) == expected


def test_encoder_in_a_pipeline(cluster, photo, tmp_path):
    """The example of the README."""
    (code,) = [code for code in PYTHON if "map_batches" in code]
    exec(code.replace("/data/photos", str(photo)).replace("/data", str(tmp_path)), {})
    (row,) = read_table(tmp_path / "tokens").to_pylist()
    model = load_model(find_model("image")).entropy_model
    assert (row["error"], row["tokens"]) == ("", dump(vqtok.encode(photo), model))


@pytest.mark.slow
def test_ray_writes_nothing_by_itself(album, image_model, tmp_path):
    """On a machine of its own, not in a cluster that is there."""
    command = ["encode", album, "--engine", "ray", "--shard", f"{tmp_path}/out/", "--num-tasks", "2"]
    command = [sys.executable, "-m", "vqtok", *map(str, command), "--model", str(image_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    *lines, last = done.stderr.splitlines()
    assert len(lines) == 40
    assert all(" -> " in line for line in lines)
    assert last.endswith("40 done, 0 skipped, 0 failed")
