"""Volumes: slices of NIfTI files and frames of DICOM files, encoded and trained on one by one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from media.test_dicom import write_dicom
from vqtok.config import load_preset
from vqtok.errors import MediaError
from vqtok.media import nifti
from vqtok.media.nifti import Volume
from vqtok.media.volume import is_volume, num_slices, slices
from vqtok.training.data import MediaCache, find_items, split_items
from vqtok.training.train import _find

TOWARD_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(
    path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] | None = None, **header: float
) -> Path:
    """Write values whose axes run to the right, to the front and up, if the affine is not another one."""
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def body() -> NDArray[np.int16]:
    """Return a volume `(3, 4, 2)` in which the right front of slice 0 is 100, and that of slice 1 is 50."""
    values = np.zeros((3, 4, 2), np.int16)
    values[2, 3] = 100, 50
    return values


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_are_shown_as_in_radiology(tmp_path: Path, suffix: str) -> None:
    volume = Volume(write_nifti(tmp_path / f"a{suffix}", body()))
    assert len(volume) == 2
    assert volume.window == (0, 100)
    assert volume[0].shape == (4, 3)
    # The front is above, the right side of the patient on the left.
    assert volume[0][0, 0] == 1
    assert volume[1][0, 0] == 0
    assert (volume[0].ravel()[1:] == -1).all()
    turned = Volume(write_nifti(tmp_path / f"b{suffix}", body()[::-1, ::-1], TOWARD_LPS))
    np.testing.assert_array_equal(turned[0], volume[0])


def test_the_header_can_have_a_window(tmp_path: Path) -> None:
    volume = Volume(write_nifti(tmp_path / "a.nii", body(), cal_min=0, cal_max=200))
    assert volume.window == (0, 200)
    assert volume[0][0, 0] == 0


def test_scaled_values_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = np.array([[[np.nan], [-1.5]], [[np.inf], [2.5]]], np.float32)
    volume = Volume(write_nifti(tmp_path / "a.nii", values))
    assert volume.window == (-1.5, 2.5)
    np.testing.assert_array_equal(volume[0], [[1, -1], [1, -1]])
    scaled = nibabel.Nifti1Image(np.array([[[0], [10]]], np.int16), np.eye(4))
    scaled.header.set_slope_inter(2, -5)
    nibabel.save(scaled, tmp_path / "b.nii")
    assert Volume(tmp_path / "b.nii").window == (-5, 15)


def test_single_slices_and_series(tmp_path: Path) -> None:
    assert Volume(write_nifti(tmp_path / "flat.nii", np.eye(3, dtype=np.uint8)))[0].shape == (3, 3)
    series = Volume(write_nifti(tmp_path / "series.nii", np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)))
    assert len(series) == 12
    # All slices of the first volume come first.
    assert series[1][1, 0] > series[0][1, 0]
    assert series[3][1, 0] == pytest.approx(2 * 1 / 23 - 1)


def test_damage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (40, 40, 5)).astype(np.int16)
    for suffix in (".nii", ".nii.gz"):
        whole = write_nifti(tmp_path / f"a{suffix}", noise).read_bytes()
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MediaError, match=r"cut\.nii(\.gz)?: is cut off or damaged"):
            list(slices(cut, 1))
    (tmp_path / "text.nii").write_text("no volume" * 100)
    with pytest.raises(MediaError, match=r"text\.nii: is no NIfTI volume, or damaged"):
        num_slices(tmp_path / "text.nii")
    write_nifti(tmp_path / "complex.nii", np.ones((2, 2, 2), np.complex64))
    with pytest.raises(MediaError, match=r"has values of complex64 in the shape \(2, 2, 2\), no gray slices"):
        num_slices(tmp_path / "complex.nii")
    monkeypatch.setattr(nifti, "is_installed", lambda module: False)
    with pytest.raises(MediaError, match=r"a\.nii: NIfTI requires nibabel: pip install 'vqtok\[nifti\]'"):
        num_slices(tmp_path / "a.nii")


def test_which_files_are_volumes(tmp_path: Path) -> None:
    frames = np.arange(24, dtype=np.uint16).reshape(3, 2, 4)
    several, one = write_dicom(tmp_path / "3.dcm", frames), write_dicom(tmp_path / "1.dcm", frames[0])
    assert [is_volume(path) for path in (several, one, tmp_path / "a.nii.gz", tmp_path / "a.gz")] == [
        True,
        False,
        True,
        False,
    ]
    (found, window), *_ = slices(several, 1)
    assert found.shape == (1, 2, 4)
    assert window == (0, 7)


@pytest.fixture
def gray_model(make_model):
    return make_model("image", channels=1)


def test_each_slice_becomes_a_token_file_with_16_bits(gray_model, run, tmp_path):
    values = np.random.default_rng(0).integers(-500, 3000, (20, 12, 3)).astype(np.int16)
    path = write_nifti(tmp_path / "head.nii.gz", values)
    result = run("encode", path, "-m", gray_model, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"0000{i}.vqt" for i in range(3)]
    facts = json.loads(run("inspect", tmp_path / "out" / "00002.vqt", "--json").stdout)
    assert (facts["width"], facts["height"]) == (20, 12)
    assert facts["metadata"] == {"bits": 16, "window": [values.min(), values.max()]}
    run("decode", tmp_path / "out" / "00002.vqt", "-m", gray_model, "-o", tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as image:
        assert image.mode == "I;16"


def test_volumes_of_a_folder(gray_model, run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.nii", "b.nii.gz"):
        write_nifti(folder / name, body())
    (folder / "bad.nii").write_text("x" * 400)
    result = run("encode", folder, "-m", gray_model, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "bad.nii" in result.stderr
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.vqt")) == [
        "a/00000.vqt",
        "a/00001.vqt",
        "b/00000.vqt",
        "b/00001.vqt",
    ]
    frames = tmp_path / "frames"
    frames.mkdir()
    write_dicom(frames / "x.dcm", np.arange(24, dtype=np.uint16).reshape(3, 2, 4))
    write_dicom(frames / "y.dcm", np.arange(8, dtype=np.uint16).reshape(2, 4))
    result = run("encode", frames, "-m", gray_model, "--shard", tmp_path / "f.vqts", "--json")
    keys = [row["key"] for row in map(json.loads, result.stdout.splitlines()) if "key" in row]
    assert keys == ["x/00000.tiff", "x/00001.tiff", "x/00002.tiff", "y/00000.tiff"]


def test_training_takes_slices_and_holds_out_whole_volumes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / f"{name}.nii.gz", body() + np.int16(ord(name)))
    write_dicom(tmp_path / "d.dcm", np.arange(24, dtype=np.uint16).reshape(3, 2, 4))
    write_dicom(tmp_path / "e.dcm", np.arange(8, dtype=np.uint16).reshape(2, 4))
    items = find_items(tmp_path, "image")
    assert [item.name for item in items] == [
        *(f"{name}.nii.gz/{i}" for name in "abc" for i in range(2)),
        *(f"d.dcm/{i}" for i in range(3)),
        "e.dcm",
    ]
    training, held_out = split_items(items, 0.4)
    units = {item.name.partition("/")[0] for item in held_out}
    assert len(units) == 2
    assert units.isdisjoint(item.name.partition("/")[0] for item in training)


def test_a_volume_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "a.nii.gz", body())
    items = find_items(tmp_path, "image")
    cache = MediaCache(load_preset("medical"))
    opened = []
    monkeypatch.setattr(nifti.Volume, "__init__", _counting(nifti.Volume.__init__, opened))
    second, first = cache.get(items[1]), cache.get(items[0])
    assert second is not None
    assert first is not None
    assert first.dtype == np.uint16
    assert (first[0, 0, 0], second[0, 0, 0]) == (65535, 32768)
    media = cache.read(items[0])
    assert media is not None
    assert media.data[0, 0, 0] == 1
    assert len(opened) == 1


def _counting(init, calls):
    def counted(self, path):
        calls.append(path)
        init(self, path)

    return counted


def test_of_an_only_volume_slices_are_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_nifti(tmp_path / "a.nii", body())
    training, held_out = _find(tmp_path, load_preset("medical"))
    assert (len(training), len(held_out)) == (1, 1)
    assert "of the only volume" in caplog.text
