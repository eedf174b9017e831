"""`Media`, an image or audio in memory, and the sources and targets that it is read from and written to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.files.atomic import atomic_write

Source: TypeAlias = Path | bytes | BinaryIO


@dataclass(frozen=True)
class Media:
    """An image or audio as float32 with a nominal range of [-1, 1].

    Shapes:
        data: `(channels, height, width)` for images, `(channels, samples)` for audio.
    """

    modality: Literal["image", "audio"]
    data: NDArray[np.float32]
    sample_rate: int | None = None
    """In Hz; None for images."""

    def save(self, path: str | Path) -> None:
        """Write a file, in the format of its suffix. An existing one is replaced.

        Raises:
            VqtokError: The format is not supported, or the file cannot be written.
        """
        from vqtok.media.audio import write_audio
        from vqtok.media.image import write_image

        (write_image if self.modality == "image" else write_audio)(self, Path(path))


def source_name(source: Source) -> str:
    """Return the name of a source or target for messages: its path, or the stream's `name`."""
    if isinstance(source, Path):
        return str(source)
    return str(getattr(source, "name", "input"))


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """Open a source for reading and seeking. A pipe is copied to a temporary file.

    Raises:
        MediaError: The source cannot be opened or is empty.
    """
    name = source_name(source)
    with ExitStack() as opened:
        try:
            if isinstance(source, Path):
                file: BinaryIO = opened.enter_context(source.open("rb"))
            elif isinstance(source, bytes):
                file = BytesIO(source)
            elif source.seekable():
                file = source
            else:
                file = opened.enter_context(spool(source, name))
            start = file.tell()
            if not file.read(1):
                raise MediaError(f"{name}: is empty")
            file.seek(start)
        except OSError as error:
            raise MediaError(f"{name}: cannot be read: {error.strerror or error}") from error
        yield file


@contextmanager
def spool(pipe: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Copy a pipe to a temporary file, which can seek and may be larger than memory."""
    with tempfile.TemporaryFile() as file:
        file.raw.name = name  # type: ignore[attr-defined]
        shutil.copyfileobj(pipe, file)
        file.seek(0)
        yield file


def save_target(data: bytes | memoryview, target: Path | BinaryIO) -> None:
    """Write an encoded file in one go. Encoders themselves need to seek, which a pipe cannot.

    Raises:
        OutputError: The file cannot be written.
    """
    if not isinstance(target, Path):
        target.write(data)
        return
    atomic_write(target, data)


def target_suffix(target: Path | BinaryIO, format: str | None, default: str) -> str:
    """Return the suffix that decides the output format: `format`, else the path's, else `default`."""
    if format is not None:
        return "." + format.lower().removeprefix(".")
    return (target.suffix.lower() if isinstance(target, Path) else "") or default
