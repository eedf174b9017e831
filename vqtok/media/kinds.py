"""What a file is, by its suffix or its first bytes; imports next to nothing, so that listing files stays quick."""

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
PLUGIN_SUFFIXES: dict[str, tuple[frozenset[str], Literal["image", "audio"]]] = {  # by the package that reads them
    "av": (frozenset({".aac", ".m4a", ".m4b", ".mka", ".weba", ".webm", ".wma"}), "audio"),
    "pillow_heif": (frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"}), "image"),
    "pillow_jxl": (frozenset({".jxl"}), "image"),
}
# fmt: on

_SIGNATURES = {
    "image": re.compile(
        rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]"
        rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cxms]|mif1|msf1)|\xff\x0a|\0\0\0\x0cJXL "
        rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|8BPS\0|qoif|P[1-6]\s",
        re.DOTALL,
    ),
    # An MPEG frame: 11 bits of sync, layer II or III (I would take in UTF-16 text), a valid rate; or one of AAC.
    "audio": re.compile(
        rb"(?:RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11|fLaC|OggS|FORM....AIF[FC]|\.snd|caff\0"
        rb"|ID3[\2-\4]|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]"
        rb"|\xff[\xf0\xf1\xf8\xf9][\0-\x33\x40-\x73\x80-\xb3\xc0-\xf3]|....ftyp|\x1aE\xdf\xa3|0&\xb2u\x8ef\xcf\x11",
        re.DOTALL,
    ),
    "tokens": re.compile(rb"\x89VQ\n"),
    "shard": re.compile(rb"\x89VS\n"),
}
_MAX_MODEL_HEADER_BYTES = 100_000_000  # the limit safetensors itself sets


def modality_of(path: Path) -> Literal["image", "audio"] | None:
    """Return what a file is by its suffix; None where it is neither or where the package that reads it is missing."""
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
    """Give the key of an item without the suffix of a picture or a sound."""
    suffix = Path(key).suffix
    known = IMAGE_SUFFIXES.union(AUDIO_SUFFIXES, *(suffixes for suffixes, _ in PLUGIN_SUFFIXES.values()))
    return key.removesuffix(suffix) if suffix.lower() in known else key


def sniff(head: bytes) -> Literal["image", "audio", "tokens", "shard", "model"] | None:
    """Tell what a stream holds by its first bytes (16 are enough)."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_MODEL_HEADER_BYTES:
        return "model"
    for kind in ("image", "audio", "tokens", "shard"):
        if _SIGNATURES[kind].match(head):
            return kind
    return None


def kind_of(path: Path) -> str | None:
    """Tell what a file is: "tokens", "shard", "model", "image" or "audio", by its first bytes, then by its suffix."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    # The names of our own formats count too, so that a damaged file is called damaged.
    own = {".vqt": "tokens", ".vqts": "shard", ".safetensors": "model"}.get(path.suffix.lower())
    return sniff(head) or own or modality_of(path)


def is_shard(path: Path) -> bool:
    """Tell whether a path is that of a shard, or of a file with the name of one."""
    return path.is_file() and kind_of(path) == "shard"
