"""The kind of a file, by its suffix or its first bytes. Imports little, so that listing files is fast."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vqtok.errors import MediaError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})
AUDIO_SUFFIXES = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp1", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".rf64",
    ".snd", ".w64", ".wav", ".wave",
})
PLUGIN_SUFFIXES: dict[str, tuple[frozenset[str], Literal["image", "audio"]]] = {  # by the package that is needed
    "av": (frozenset({".aac", ".m4a", ".m4b", ".mka", ".weba", ".webm", ".wma"}), "audio"),
    "pillow_heif": (frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"}), "image"),
    "pillow_jxl": (frozenset({".jxl"}), "image"),
    "pydicom": (frozenset({".dcm", ".dicom"}), "image"),
}
# fmt: on

_SIGNATURES = {
    "image": re.compile(
        rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]"
        rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cxms]|mif1|msf1)|\xff\x0a|\0\0\0\x0cJXL "
        rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|8BPS\0|qoif|P[1-6]\s|.{128}DICM",
        re.DOTALL,
    ),
    # An MPEG frame is 11 bits of sync, layer II or III (layer I would match UTF-16 text) and a valid rate. The last
    # patterns are AAC, MP4, Matroska and ASF.
    "audio": re.compile(
        rb"(?:RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11|fLaC|OggS|FORM....AIF[FC]|\.snd|caff\0"
        rb"|ID3[\2-\4]|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]"
        rb"|\xff[\xf0\xf1\xf8\xf9][\0-\x33\x40-\x73\x80-\xb3\xc0-\xf3]|....ftyp|\x1aE\xdf\xa3|0&\xb2u\x8ef\xcf\x11",
        re.DOTALL,
    ),
    "tokens": re.compile(rb"\x89VQ\n"),
    "shard": re.compile(rb"\x89VS\n"),
}
HEAD_BYTES = 132
"""By so many first bytes of a file its kind is known; DICOM has the longest signature."""
_MAX_MODEL_HEADER_BYTES = 100_000_000  # the limit of safetensors


def modality_of(path: Path) -> Literal["image", "audio"] | None:
    """Return the modality of a file by its suffix; None for other files, or if the package to read it is missing."""
    suffix = path.suffix.lower()
    for module, (suffixes, modality) in PLUGIN_SUFFIXES.items():
        if suffix in suffixes:
            return modality if is_installed(module) else None
    return "image" if suffix in IMAGE_SUFFIXES else "audio" if suffix in AUDIO_SUFFIXES else None


@cache
def is_installed(module: str) -> bool:
    """Return whether an optional package is installed, without importing it."""
    return find_spec(module) is not None


def stem(key: str) -> str:
    """Return the key of an item without the suffix of an image or audio file."""
    suffix = Path(key).suffix
    known = IMAGE_SUFFIXES.union(AUDIO_SUFFIXES, *(suffixes for suffixes, _ in PLUGIN_SUFFIXES.values()))
    return key.removesuffix(suffix) if suffix.lower() in known else key


def sniff(head: bytes) -> Literal["image", "audio", "tokens", "shard", "model"] | None:
    """Return the kind of a file by its first `HEAD_BYTES` bytes."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_MODEL_HEADER_BYTES:
        return "model"
    for kind in ("image", "audio", "tokens", "shard"):
        if _SIGNATURES[kind].match(head):
            return kind
    return None


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by its first bytes, else by its suffix; None if unknown.

    Kinds are "tokens", "shard", "model", "image" and "audio".

    Raises:
        MediaError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    # The suffixes of vqtok's own formats count too, so that a damaged file is reported as damaged.
    own = {".vqt": "tokens", ".vqts": "shard", ".safetensors": "model"}.get(path.suffix.lower())
    return sniff(head) or own or modality_of(path)


def is_shard(path: Path) -> bool:
    """Return whether a path is a shard, or a file with the suffix of one."""
    return path.is_file() and kind_of(path) == "shard"
