"""Kinds of files by suffix and by first bytes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from vqtok.media.kinds import AUDIO_SUFFIXES, IMAGE_SUFFIXES, modality_of, sniff


def test_kinds_import_no_heavy_package() -> None:
    code = (
        "import sys, vqtok.media, vqtok.media.kinds;"
        "print([m for m in ('numpy', 'PIL', 'soundfile', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_media_package_offers_media_lazily() -> None:
    import vqtok.media
    from vqtok.media.media import Media

    assert vqtok.media.Media is Media
    with pytest.raises(AttributeError, match="nothing"):
        vqtok.media.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("a/b.png", "image"),
        ("B.JPG", "image"),
        ("x.wav", "audio"),
        ("x.y.Ogg", "audio"),
        ("x.vqt", None),
        ("png", None),
    ],
)
def test_modality_goes_by_suffix(name: str, modality: str | None) -> None:
    assert modality_of(Path(name)) == modality


def test_suffixes_are_distinct_and_known_to_pillow() -> None:
    assert not IMAGE_SUFFIXES & AUDIO_SUFFIXES
    assert set(Image.registered_extensions()) >= IMAGE_SUFFIXES


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "QOI"])
def test_sniff_knows_what_pillow_writes(format: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, format)
    assert sniff(buffer.getvalue()[:16]) == "image"


@pytest.mark.parametrize("format", ["WAV", "RF64", "W64", "AIFF", "FLAC", "OGG", "MP3", "AU", "CAF"])
def test_sniff_knows_what_libsndfile_writes(format: str) -> None:
    buffer = BytesIO()
    soundfile.write(buffer, np.zeros(1000, np.float32), 24000, format=format)
    assert sniff(buffer.getvalue()[:16]) == "audio"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89VQ\n\x10\0", "tokens"),
        (struct.pack("<Q", 2) + b"{}", "model"),
        (struct.pack("<Q", 0x0A3150) + json.dumps({"a": 1}).encode(), "model"),  # starts as a PBM would
        (struct.pack("<Q", 1 << 60) + b"{}", None),
        (b"MM\0*\0\0\0\x08", "image"),
        (b"MM\0+\0\x08\0\0", "image"),
        (b"ID3\4\0\0\0\0\0\0", "audio"),
        (b"\xff\xfb\x90\x64", "audio"),
        (b"\xff\xf3\x40\xc0", "audio"),
        (b"\xff\xfb\xf0\0", None),  # no such bit rate
        ("plain text, as UTF-16".encode("utf-16"), None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"FORM\0\0\0\0ILBM", None),
        (b"GIF", None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_sniff_by_first_bytes(head: bytes, kind: str | None) -> None:
    assert sniff(head) == kind
