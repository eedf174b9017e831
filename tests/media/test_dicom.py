"""DICOM images: values, windows, frames, colors, damage, and that nothing of a header gets out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

import vqtok
from vqtok.errors import MediaError
from vqtok.media import dicom
from vqtok.media.image import image_size, num_pixels, read_image, read_pixels, read_windowed
from vqtok.media.kinds import modality_of, sniff

PATIENT = "Doe^Jane"


def write_dicom(path: Path, pixels: NDArray[np.generic], **attributes: object) -> Path:
    """Write gray frames `(height, width)` or `(frames, height, width)`, or color ones with a last axis of 3."""
    is_color = pixels.shape[-1] == 3 and pixels.ndim > 2
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    dataset.PatientName, dataset.PatientID = PATIENT, "4711"
    frames = pixels.reshape(-1, *pixels.shape[-3:]) if is_color else pixels.reshape(-1, *pixels.shape[-2:])
    dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if is_color else (1, "MONOCHROME2")
    if is_color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def others(name: str) -> Path:
    """Return a file that is part of pydicom."""
    return Path(str(pydicom.data.get_testdata_file(name, download=False)))


def scaled(values: Sequence[float], black: float, white: float) -> list[float]:
    return [min(1.0, max(-1.0, 2 * (value - black) / (white - black) - 1)) for value in values]


VALUES = np.array([[-2000, -1000, 0, 40, 80, 3000]], np.int16)


@pytest.mark.parametrize(
    ("attributes", "black", "white"),
    [
        ({}, -2000, 3000),
        ({"WindowCenter": 40, "WindowWidth": 400}, 39.5 - 199.5, 39.5 + 199.5),
        ({"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}, 39.5 - 199.5, 39.5 + 199.5),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, -160, 240),
        ({"WindowCenter": 40, "WindowWidth": 0}, -2000, 3000),
    ],
)
def test_the_window_is_the_range_from_black_to_white(
    tmp_path: Path, attributes: dict[str, object], black: float, white: float
) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, **attributes)
    pixels, window = read_windowed(path, 1)
    assert window == (black, white)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(read_image(path, 1).data[0, 0], scaled(VALUES[0].tolist(), black, white), atol=4e-5)


def test_values_are_rescaled_before_the_window(tmp_path: Path) -> None:
    stored = np.array([[0, 1024, 1064, 4095]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=2001
    )
    values = (2.0 * stored[0] - 1024).tolist()
    np.testing.assert_allclose(read_image(path, 1).data[0, 0], scaled(values, -0.5, 1999.5), atol=4e-5)


def test_a_sigmoid_window(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    expected = 2 / (1 + np.exp(-4 * (VALUES[0] - 40.0) / 400)) - 1
    np.testing.assert_allclose(read_image(path, 1).data[0, 0], expected, atol=4e-5)


def test_white_is_the_smallest_value_of_monochrome1(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, PhotometricInterpretation="MONOCHROME1")
    assert read_windowed(path, 1)[1] == (3000, -2000)
    np.testing.assert_allclose(
        read_image(path, 1).data[0, 0], [-value for value in scaled(VALUES[0].tolist(), -2000, 3000)], atol=4e-5
    )


def test_eight_bits_have_their_whole_range(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.array([[10, 51, 204]], np.uint8))
    pixels, window = read_windowed(path, 1)
    assert window == (0, 255)
    assert (pixels // 257).tolist() == [[[10, 51, 204]]]


def test_an_even_image(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full((2, 3), 7, np.uint16))
    assert not read_pixels(path, 1).any()


def test_gray_images_for_color_models_and_color_ones_for_gray_models(tmp_path: Path) -> None:
    gray = write_dicom(tmp_path / "gray.dcm", VALUES)
    assert (read_pixels(gray, 3) == read_pixels(gray, 1)).all()
    color = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]], np.uint8)
    path = write_dicom(tmp_path / "color.dcm", color)
    pixels, window = read_windowed(path, 3)
    assert window is None
    np.testing.assert_array_equal(pixels, color.transpose(2, 0, 1))
    assert read_pixels(path, 1)[0].tolist() == [[76, 150, 18]]


@pytest.mark.parametrize(
    ("name", "shape", "corner"),
    [
        ("examples_palette.dcm", (3, 350, 800), None),
        ("SC_rgb_jpeg_dcmtk.dcm", (3, 100, 100), (254, 0, 0)),
        ("SC_rgb_rle_16bit.dcm", (3, 100, 100), (255, 0, 0)),
        ("SC_ybr_full_422_uncompressed.dcm", (3, 100, 100), (254, 0, 0)),
    ],
)
def test_files_of_others(name: str, shape: tuple[int, ...], corner: tuple[int, ...] | None) -> None:
    pixels = read_pixels(others(name))
    assert pixels.shape == shape
    if corner:
        np.testing.assert_allclose(pixels[:, 0, 0].astype(int), corner, atol=2)


def test_sizes_come_from_the_header(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 6), np.uint16))
    assert image_size(path) == (6, 4)
    assert num_pixels(path) == 24
    assert modality_of(path) == "image"
    assert sniff(path.read_bytes()[:132]) == "image"
    assert read_pixels(path.read_bytes(), 1).shape == (1, 4, 6)
    assert read_pixels(BytesIO(path.read_bytes()), 1).shape == (1, 4, 6)


def test_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.arange(24, dtype=np.uint16).reshape(3, 2, 4))
    assert dicom.num_frames(path) == 3
    assert read_windowed(path, 1, frame=2)[1] == (16, 23)
    assert not caplog.records
    assert read_windowed(path, 1)[1] == (0, 7)
    assert "only the first of 3 frames" in caplog.text


def test_frames_have_windows_of_their_own(tmp_path: Path) -> None:
    groups = []
    for center in (10, 20):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = center, 11
        group = Dataset()
        group.FrameVOILUTSequence = Items([window])
        groups.append(group)
    rescale, shared = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, 5
    shared.PixelValueTransformationSequence = Items([rescale])
    path = write_dicom(
        tmp_path / "a.dcm",
        np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
        PerFrameFunctionalGroupsSequence=Items(groups),
        SharedFunctionalGroupsSequence=Items([shared]),
    )
    assert [read_windowed(path, 1, frame)[1] for frame in (0, 1)] == [(4.5, 14.5), (14.5, 24.5)]
    np.testing.assert_allclose(
        read_windowed(path, 1, 0)[0][0, 0] / 32767.5 - 1, scaled([5, 6, 7, 8], 4.5, 14.5), atol=4e-5
    )


def test_damage_and_what_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_dicom(tmp_path / "a.dcm", np.zeros((40, 40), np.uint16)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-100])
    (tmp_path / "head.dcm").write_bytes(whole[:140])
    (tmp_path / "ls.dcm").write_bytes(others("MR_small_jpeg_ls_lossless.dcm").read_bytes())
    cases = {"cut.dcm": "damaged", "head.dcm": "DICOM", "ls.dcm": "JPEG-LS Lossless.*pyjpegls"}
    for name, message in cases.items():
        with pytest.raises(MediaError, match=message) as caught:
            read_pixels(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert PATIENT not in str(caught.value)
    monkeypatch.setattr(dicom, "is_installed", lambda module: False)
    dicom._load_pydicom.cache_clear()
    with pytest.raises(MediaError, match=r"a\.dcm: DICOM requires pydicom: pip install 'vqtok\[dicom\]'"):
        read_pixels(tmp_path / "a.dcm")
    dicom._load_pydicom.cache_clear()


def test_nothing_of_a_patient_gets_out(make_model, run, tmp_path, caplog, monkeypatch):
    """Header fields, also of types that do not fit, in outputs, tokens, models and messages."""
    caplog.set_level(logging.DEBUG)
    model = make_model("image")
    odd = {"StudyDate": "JaneDoe-date", "PatientAge": "JaneDoe-age", "AccessionNumber": "J" * 40}
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    (tmp_path / "in").mkdir()
    for name in ("0.dcm", "1.dcm"):
        write_dicom(tmp_path / "in" / name, VALUES.repeat(40, 0).repeat(8, 1), **odd)
    data = (tmp_path / "in" / "1.dcm").read_bytes()
    (tmp_path / "in" / "cut.dcm").write_bytes(data[: data.index(b"JaneDoe-age") + 4])
    result = run("encode", tmp_path / "in", "-m", model, "-o", tmp_path / "out", "--json")
    shown = run("inspect", tmp_path / "out" / "1.vqt", "--json")
    assert [json.loads(line).get("exit_code", 0) for line in result.stdout.splitlines()][:3] == [0, 0, 1]
    assert json.loads(shown.stdout)["metadata"]["window"] == [-2000, 3000]
    written = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").iterdir()))
    for text in (result.stdout, result.stderr, shown.stdout, caplog.text, written.decode("latin-1")):
        assert "Jane" not in text
        assert "4711" not in text


def test_the_window_is_kept_on_every_way_in(make_model, run, tmp_path):
    model = make_model("image", channels=1)
    path = write_dicom(tmp_path / "a.dcm", VALUES.repeat(16, 0).repeat(4, 1))
    assert vqtok.encode(path, str(model)).metadata == {"bits": 16, "window": [-2000, 3000]}
    assert vqtok.encode(path.read_bytes(), str(model)).metadata == {"bits": 16, "window": [-2000, 3000]}
    run("encode", path, "-m", model, "-o", tmp_path / "a.vqt", "--target-psnr", 99)
    shown = run("inspect", tmp_path / "a.vqt", "--json")
    assert json.loads(shown.stdout)["metadata"] == {"bits": 16, "window": [-2000, 3000]}
