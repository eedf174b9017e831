"""Data sets of small images and audio, as people have them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import soundfile
from conftest import picture, wave
from PIL import Image


def png(index: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(16 + 4 * index, 12)).save(file, "png")
    return file.getvalue()


def wav(samples: int = 1600) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(samples, 16_000), 16_000, format="WAV")
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def captioned(indices: Iterable[int]) -> list[tuple[str, bytes]]:
    """Return the members of rows: an image, a caption and fields."""
    return [
        member
        for index in indices
        for member in (
            (f"{index:03}.png", png(index)),
            (f"{index:03}.txt", f"image {index}\n".encode()),
            (f"{index:03}.json", json.dumps({"score": index / 2, "tags": ["a", "b"]}).encode()),
        )
    ]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Return a folder with three tars of four rows."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for part in range(3):
        write_tar(folder / f"train-{part:04}.tar", captioned(range(4 * part, 4 * part + 4)))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as file:
        for index, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
            file.writestr(name, png(index))
        file.writestr("cat/2.txt", "two")
        file.writestr("dog/1.wav", wav())
        file.writestr("readme.md", "nothing")
    return path
