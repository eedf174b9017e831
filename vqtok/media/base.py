"""`Media`: one picture or sound in memory; and the bytes it is read from and written to."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.files import atomic_write

Source: TypeAlias = Path | bytes | BinaryIO


@dataclass(frozen=True)
class Media:
    """One picture or sound as float32 with a nominal range of [-1, 1].

    Shapes:
        data: `(channels, height, width)` for images, `(channels, samples)` for sound.
    """

    modality: Literal["image", "audio"]
    data: NDArray[np.float32]
    sample_rate: int | None = None
    """Hz; None for images."""


def source_name(source: Source) -> str:
    """Name a source or target in messages: a path in full, else the stream's `name`."""
    if isinstance(source, Path):
        return str(source)
    return str(getattr(source, "name", "input"))


def open_source(source: Source) -> BinaryIO:
    """Open a source for reading and seeking; a stream is read to its end, as a pipe cannot seek.

    Raises:
        MediaError: the file cannot be opened, or holds nothing.
    """
    name = source_name(source)
    try:
        if isinstance(source, Path):
            file: BinaryIO = source.open("rb")
        else:
            file = BytesIO(source if isinstance(source, bytes) else source.read())
    except OSError as error:
        raise MediaError(f"{name}: cannot be read: {error.strerror or error}") from error
    if not file.read(1):
        file.close()
        raise MediaError(f"{name}: is empty")
    file.seek(0)
    return file


def save_target(data: bytes, target: Path | BinaryIO) -> None:
    """Write an encoded file at once: encoders seek, which a pipe cannot.

    Raises:
        OutputError: the path cannot be written.
    """
    if not isinstance(target, Path):
        target.write(data)
        return
    atomic_write(target, data)


def target_suffix(target: Path | BinaryIO, format: str | None, default: str) -> str:
    """Return the suffix that decides the format to write: `format`, else the path's, else `default`."""
    if format is not None:
        return "." + format.lower().removeprefix(".")
    return (target.suffix.lower() if isinstance(target, Path) else "") or default
