"""Every source of rows is encoded with its columns; faults cost their row."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
from conftest import files_in, json_lines, picture
from PIL import Image

import vqtok
from rows.conftest import captioned, png, wav, write_tar
from vqtok.errors import MediaError
from vqtok.files.paths import as_path
from vqtok.jobs.planning import plan_encoding
from vqtok.rows.patterns import expand
from vqtok.rows.row import ColumnChoice
from vqtok.rows.sources import Source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def metadata(path):
    return vqtok.inspect(path).get("metadata")


def failures(folder):
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]


def test_tars_by_range(run, tars, tmp_path):
    out = tmp_path / "out"
    result = run("encode", tars / "train-{0000..0002}.tar", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    assert files_in(out) == sorted(f"train-{i // 4:04}/{i:03}.vqt" for i in range(12))
    assert metadata(out / "train-0001/005.vqt") == {"caption": "image 5", "score": 2.5, "tags": ["a", "b"]}
    lines = json_lines(result)
    assert (lines[5]["file"], lines[5]["key"]) == (str(tars / "train-0001.tar"), "train-0001/005.png")
    (tmp_path / "5.png").write_bytes(png(5))
    decoded = vqtok.decode(out / "train-0001/005.vqt")
    assert np.array_equal(decoded.data, vqtok.decode(vqtok.encode(tmp_path / "5.png")).data)


@pytest.mark.parametrize("pattern", ["train-*.tar", "train-{0000,0001,0002}.tar", ""])
def test_globs_lists_and_folders_are_the_same(run, tars, tmp_path, pattern):
    assert run("encode", tars / pattern if pattern else tars, "-o", tmp_path / "out").exit_code == 0
    assert len(files_in(tmp_path / "out")) == 12


def test_a_range_with_a_gap_stops_before_any_work(run, tars, tmp_path):
    result = run("encode", tars / "train-{0000..0007}.tar", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no such file" in result.stderr
    assert "train-0003.tar, and 4 more" in result.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(MediaError, match="more than"):
        expand(as_path(str(tmp_path / "{0..99999999}.tar")))


def test_remote_tars_are_read_in_one_pass(run, tars, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for path in tars.iterdir():
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    for number, pattern in enumerate(("train-{0000..0002}.tar", "*.tar")):
        out = tmp_path / str(number)
        assert run("encode", f"memory://bucket/{pattern}", "-o", out).exit_code == 0
        assert len(files_in(out)) == 12


def test_chosen_columns(run, tars, tmp_path):
    out = tmp_path / "out"
    assert run("encode", tars / "train-0000.tar", "-o", out, "--columns", "caption").exit_code == 0
    assert metadata(out / "001.vqt") == {"caption": "image 1"}
    result = run("encode", tars / "train-0000.tar", "-o", tmp_path / "typo", "--columns", "caption,lable")
    assert result.exit_code == 0
    assert "no item has a column lable" in result.stderr


def test_shards_keep_columns_and_continue(run, tars, tmp_path):
    shard = tmp_path / "x.vqts"
    assert run("encode", tars / "train-0000.tar", "--shard", shard).exit_code == 0
    everything = vqtok.open_shard(shard)
    assert list(everything) == [f"{i:03}.png" for i in range(4)]
    assert everything["002.png"].metadata["caption"] == "image 2"
    again = run("encode", tars / "train-0000.tar", "--shard", shard, "--skip-existing", "--json")
    assert [line.get("skipped") for line in json_lines(again)] == [True] * 4


@pytest.mark.parametrize("count", [2, 5])
def test_tasks_share_the_rows(run, tars, tmp_path, count):
    """Whole tars while there are enough of them, else rows."""
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    for index in range(count):
        assert run("encode", tars, "-o", one, "--num-tasks", count, "--task-index", index).exit_code == 0
    assert len(files_in(one)) == 12
    assert run("encode", tars, "--shard", f"{all_of_them}/", "--num-tasks", count).exit_code == 0
    shards = [vqtok.open_shard(path) for path in sorted(all_of_them.glob("*.vqts"))]
    assert len({key for shard in shards for key in shard}) == 12 == sum(map(len, shards))


def test_skip_existing_continues(run, tars, tmp_path):
    out = tmp_path / "out"
    run("encode", tars, "-o", out)
    assert run("encode", tars / "train-0000.tar", "-o", out / "train-0000").exit_code == 1
    (out / "train-0001/006.vqt").unlink()
    result = run("encode", tars, "-o", out, "--skip-existing", "--json")
    assert [line["key"] for line in json_lines(result) if not line.get("skipped")] == ["train-0001/006.png"]


def test_faults_cost_their_row(run, tmp_path):
    members = captioned([0])
    members += [("1.png", b"no image"), ("1.txt", b"one")]
    members += [("2.txt", b"no media")]
    members += [("../3.png", png())]
    members += [*captioned([4]), ("5.png", png()), *captioned([4])]
    path = write_tar(tmp_path / "x.tar", members)
    result = run("encode", path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert files_in(tmp_path / "out") == ["000.vqt", "004.vqt", "5.vqt", "failures.jsonl"]
    found = {line["key"]: line["error"].partition(f"{line['key']}: ")[2] for line in failures(tmp_path / "out")}
    assert found == {
        "1.png": "neither an image nor audio",
        "2": "has neither an image nor audio, only .txt",
        "../3.png": "its key leads out of the folder for outputs",
        "004.png": "another row has the same key",
    }


def test_a_tar_that_is_cut_keeps_what_is_whole(run, tmp_path):
    path = write_tar(tmp_path / "x.tar", captioned(range(3)))
    whole = path.read_bytes()
    ends = []
    for length in range(512, len(whole), 512):  # Cuts between members, too, which tarfile takes for an end.
        path.write_bytes(whole[:length])
        result = run("encode", path, "-o", tmp_path / "out", "--force", "-q")
        # The blocks of zeros at the end are padding, but for the first one.
        ends.append(result.exit_code)
        if result.exit_code:
            assert "cut off or damaged" in result.stderr, length
    assert set(ends) == {0, 1}
    assert ends == sorted(ends, reverse=True)
    assert files_in(tmp_path / "out")[-1] == "002.vqt"


def test_a_tar_that_cannot_be_read_costs_only_itself(run, tars, tmp_path):
    (tars / "train-0001.tar").write_bytes(b"no tar")
    (tars / "train-0002.tar").unlink()
    (tars / "train-0002.tar").symlink_to(tars / "nowhere")
    result = run("encode", tars, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert len(files_in(tmp_path / "out")) == 5
    assert [line["path"] for line in failures(tmp_path / "out")] == [str(tars / f"train-000{n}.tar") for n in (1, 2)]


def test_columns_that_cannot_be_stored(run, tmp_path):
    members = [("1.png", png()), ("1.npy", b"\x93NUMPY"), ("1.json", b"{broken"), ("2.png", png()), ("2.txt", b"two")]
    path = write_tar(tmp_path / "x.tar", members)
    result = run("encode", path, "-o", tmp_path / "a")
    assert result.exit_code == 0
    assert result.stderr.count("column npy is left out") == result.stderr.count("column json is left out") == 1
    result = run("encode", path, "-o", tmp_path / "b", "--columns", "caption")
    assert result.exit_code == 1
    assert "column caption: json is not JSON" in failures(tmp_path / "b")[0]["error"]
    result = run("encode", path, "-o", tmp_path / "c", "--columns", "npy")
    assert "column npy: is not UTF-8 text" in failures(tmp_path / "c")[0]["error"]
    assert files_in(tmp_path / "c") == ["2.vqt", "failures.jsonl"]
    long = write_tar(tmp_path / "long.tar", [("1.png", png()), ("1.txt", b"x" * 70_000)])
    result = run("encode", long, "-o", tmp_path / "d", "--columns", "caption")
    assert "at most 65,536 bytes an item" in result.stderr.splitlines()[0]
    assert "exceeds 65536" in failures(tmp_path / "d")[0]["error"]


def test_images_and_audio_of_one_key(run, tmp_path):
    path = write_tar(tmp_path / "x.tar", [("7.png", png()), ("7.wav", wav()), ("7.txt", b"seven")])
    assert run("encode", path, "-o", tmp_path / "both").exit_code == 0
    assert files_in(tmp_path / "both") == ["7.png.vqt", "7.wav.vqt"]
    assert metadata(tmp_path / "both/7.wav.vqt") == {"caption": "seven"}
    assert run("encode", path, "-o", tmp_path / "one", "--media-column", "wav").exit_code == 0
    assert files_in(tmp_path / "one") == ["7.vqt"]


def test_archives(run, archive, tmp_path):
    out = tmp_path / "out"
    assert run("encode", archive, "-o", out, "--label-folders").exit_code == 0
    assert files_in(out) == ["cat/1.vqt", "cat/2.vqt", "dog/1.png.vqt", "dog/1.wav.vqt"]
    assert metadata(out / "cat/2.vqt") == {"label": "cat", "caption": "two"}
    damaged = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo("cat/2.png").header_offset
    damaged[start + 80] ^= 0xFF
    archive.write_bytes(damaged)
    assert run("encode", archive, "-o", tmp_path / "b").exit_code == 1
    assert [line["key"] for line in failures(tmp_path / "b")] == ["cat/2.png"]
    archive.write_bytes(damaged[: len(damaged) // 2])
    assert run("encode", archive, "-o", tmp_path / "c").exit_code == 1
    assert "not a zip archive" in failures(tmp_path / "c")[0]["error"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_inspect_tells_what_is_in_a_tar(run, tmp_path, suffix):
    path = tmp_path / f"x.tar{suffix}"
    members = [*captioned(range(3)), ("7.png", png()), ("7.wav", wav()), ("8.txt", b"no media"), ("9.png", png())]
    data = write_tar(tmp_path / "plain", members).read_bytes()
    path.write_bytes(gzip.compress(data) if suffix else data)
    (facts,) = json_lines(run("inspect", path, "--json"))
    assert (facts["kind"], facts["num_rows"]) == ("rows", 7)
    assert facts["num_rows"] == len(list(Source(path).rows(ColumnChoice())))
    assert facts["first_keys"] == ["000.png", "001.png", "002.png"]
    assert facts["columns"] == ["caption", "score", "tags"]
    assert "000.png, 001.png, 002.png, ..." in run("inspect", path).stdout
    assert plan_encoding([path], str(tmp_path / "out")).total == (None if suffix else 7)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run("inspect", path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert plan_encoding([path], str(tmp_path / "out")).total is None


def test_inspect_tells_what_is_in_archives_and_tables(run, archive, tmp_path):
    pq.write_table(table([{"bytes": png(1), "path": None}] * 5, caption=list("abcde")), tmp_path / "t.parquet")
    (zipped,), (rows,) = (json_lines(run("inspect", path, "--json")) for path in (archive, tmp_path / "t.parquet"))
    assert (zipped["num_rows"], zipped["first_keys"][0], zipped["columns"]) == (4, "cat/1.png", ["caption"])
    assert (rows["num_rows"], rows["first_keys"][0], rows["columns"]) == (5, "000000000", ["caption"])


def table(rows, **columns):
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({"image": image, **columns})


def test_tables(run, tmp_path):
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    Image.fromarray(picture(9, 9)).save(tmp_path / "beside.png")
    rows = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "beside.png"}, {"bytes": None, "path": None}, None]
    made = table(rows, label=[0, 1, 0, 0], caption=["a", None, "c", "d"])
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet")
    out = tmp_path / "out"
    assert run("encode", tmp_path / "t.parquet", "-o", out).exit_code == 1
    assert files_in(out) == ["000000000.vqt", "000000001.vqt", "failures.jsonl"]
    assert metadata(out / "000000000.vqt") == {"label": "cat", "caption": "a"}
    assert metadata(out / "000000001.vqt") == {"label": "dog"}
    assert [line["key"] for line in failures(out)] == ["000000002", "000000003"]


def test_which_column_holds_the_media_is_asked_before_work(run, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"left": [png()], "right": [png(1)], "name": ["x/y"]}), path)
    result = run("encode", path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "several columns may hold the media; give one as --media-column: left, right" in result.stderr
    assert run("encode", path, "-o", tmp_path / "out", "--media-column", "middle").exit_code == 2
    assert run("encode", path, "-o", tmp_path / "out", "--key-column", "nothing").exit_code == 2
    result = run("encode", path, "-o", tmp_path / "out", "--media-column", "left", "--columns", "name,lable")
    assert result.exit_code == 2
    assert "no column lable; there are left, name, right" in result.stderr
    assert run("encode", "hf-dataset:./nothing/here", "-o", tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()
    done = run("encode", path, "-o", tmp_path / "out", "--media-column", "right", "--key-column", "name")
    assert done.exit_code == 0
    assert files_in(tmp_path / "out") == ["x/y.vqt"]
    path.write_bytes(path.read_bytes()[:-9])
    assert run("encode", path, "-o", tmp_path / "b").exit_code == 1
    assert "not a Parquet file, or damaged" in failures(tmp_path / "b")[0]["error"]


def test_folders_with_fields_and_labels(run, tmp_path):
    folder = tmp_path / "pets/cat"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(png())
    (folder / "1.json").write_text('{"score": 1, "caption": "from fields"}')
    (folder / "2.png").write_bytes(png())
    (folder / "2.json").write_text("[1]")
    out = tmp_path / "out"
    result = run("encode", tmp_path / "pets", "-o", out, "--label-folders")
    assert result.exit_code == 0
    assert "2.json: is not a JSON object" in result.stderr
    assert "passed over" not in result.stderr
    assert metadata(out / "cat/1.vqt") == {"label": "cat", "score": 1, "caption": "from fields"}
    assert metadata(out / "cat/2.vqt") == {"label": "cat"}
    assert run("encode", tmp_path / "pets", "-o", tmp_path / "b", "--columns", "score").exit_code == 1
    assert metadata(tmp_path / "b/cat/1.vqt") == {"score": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.jsonl", '{"file_name": "1.png", "caption": "one", "n": 1}\n\n{"file_name": "2.png"}\n'),
        ("list.csv", 'file_name,caption,n\n1.png,"one",1\n2.png,,\n'),
        ("list.tsv", "path\tcaption\tn\n1.png\tone\t1\n2.png\t\t\n"),
    ],
)
def test_lists_with_columns(run, tmp_path, name, text):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in (1, 2):
        (folder / f"{index}.png").write_bytes(png(index))
    (tmp_path / name).write_text(text)
    assert run("encode", folder, "--filelist", tmp_path / name, "-o", tmp_path / "out").exit_code == 0
    found = metadata(tmp_path / "out/1.vqt")
    assert (found["caption"], str(found["n"])) == ("one", "1")
    assert metadata(tmp_path / "out/2.vqt") is None
    (tmp_path / name).write_text("{}\n" if name.endswith("jsonl") else "a,b\n1,2\n")
    result = run("encode", folder, "--filelist", tmp_path / name, "-o", tmp_path / "b")
    assert result.exit_code == 2
    assert "no column that names the file" in result.stderr


def test_data_sets_of_hugging_face(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [0, 1, 0]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "saved")
    out = tmp_path / "out"
    result = run("encode", tmp_path / "saved", "-o", out)
    assert result.exit_code == 0, result.output
    assert files_in(out) == ["test/000000000.vqt", *(f"train/{i:09}.vqt" for i in range(3))]
    assert metadata(out / "train/000000001.vqt") == {"label": "b"}
    result = run("encode", f"hf-dataset:{tmp_path / 'saved'}:test", "-o", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "b") == ["000000000.vqt"]
    # A folder that load_dataset opens by itself.
    (tmp_path / "folder/a").mkdir(parents=True)
    (tmp_path / "folder/a/1.png").write_bytes(png())
    result = run("encode", f"hf-dataset:{tmp_path / 'folder'}", "-o", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert len(files_in(tmp_path / "c")) == 1


def test_media_and_data_sets_together_are_refused(run, tars, photo, tmp_path):
    result = run("encode", tars / "train-0000.tar", photo, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "one after another" in result.stderr
    assert run("encode", tars / "train-0000.tar").exit_code == 2
    assert run("encode", tars / "train-0000.tar", "-o", "x.vqts").exit_code == 2
    assert run("encode", tars / "train-0000.tar", "-o", photo).exit_code == 2


def test_damage_of_a_source_is_told_again_by_a_second_run(run, image_model, tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"x" * 3000)
    for _ in range(2):
        result = run("encode", tmp_path / "bad.tar", "-m", image_model, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert "bad.tar: cannot be read, cut off or damaged" in result.stderr
