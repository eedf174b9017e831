"""`Encoder`: encode batches of a data pipeline."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.files import Codecs, encode_media
from vqtok.codec.options import DEFAULT_OPTIONS, CodecOptions
from vqtok.codec.threads import in_order
from vqtok.compute.device import choose_device
from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import RemotePath, as_path, error_context
from vqtok.tokens.coding.coders import chosen_coder
from vqtok.tokens.vqt.file import dump


class Encoder:
    """Encode batches of pictures or sounds: a callable for Ray Data's `map_batches` and its like.

    The model is loaded when it is first needed, once in the life of the object.

    Args:
        model: Name or path of the model; by default the bundled one of each medium's modality.
        num_codebooks, mono, coder: As `vqtok encode` takes them.
        codes: Give the codes as arrays, too.
        device: Such as "cuda"; "auto" is the best there is.
        options: How the network runs.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        num_codebooks: int | None = None,
        mono: bool = False,
        coder: str = "auto",
        codes: bool = False,
        device: str = "auto",
        options: CodecOptions = DEFAULT_OPTIONS,
    ) -> None:
        device = str(choose_device(device))
        self._codecs = Codecs(model, device, options)
        self._num_codebooks, self._mono, self._coder = num_codebooks, mono, chosen_coder(coder)
        self._codes = codes

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Encode the media in a batch of columns.

        Args:
            batch: With a column `bytes` (whole files), `path` (names, which may have a scheme), or both: a row without
                bytes is read from its path. Values may be of Python, numpy or pyarrow; what cannot be one of them is an
                error of its row.

        Returns:
            Its columns but `bytes`, and `tokens` (the bytes of a .vqt file each; empty where it failed), `error` (why
            it failed, or empty), and if asked for `codes` (int32 `(num_codebooks, *grid)`; empty where it failed).

        Raises:
            UsageError: there is neither column. ModelError: the model is not there.
        """
        if "bytes" not in batch and "path" not in batch:
            raise UsageError("a batch to encode needs a column `bytes` or `path`")
        size = len(batch["bytes" if "bytes" in batch else "path"])
        rows = zip(*(batch.get(name, repeat(None, size)) for name in ("bytes", "path")), strict=True)
        found = list(in_order(lambda row: self._encode(*row), rows, 2 * self._codecs.jobs))
        columns = {name: values for name, values in batch.items() if name != "bytes"}
        columns["tokens"] = _objects([tokens for tokens, _, _ in found])
        columns["error"] = _objects([error for _, error, _ in found])
        if self._codes:
            columns["codes"] = _objects([codes for _, _, codes in found])
        return columns

    def _encode(self, content: object, name: object) -> tuple[bytes, str, NDArray[np.int32]]:
        """Return tokens, error and codes of a row."""
        shown, path = "input", None
        try:
            data, path = _as_bytes(_plain(content)), _as_path(_plain(name))
            shown = str(path or shown)
            media = path if data is None else BytesIO(data)
            if media is None:
                raise MediaError(f"{shown}: neither bytes nor a path")
            with error_context(shown):
                tokens, codec = encode_media(media, self._codecs, num_codebooks=self._num_codebooks, mono=self._mono)
            return codec.on_core(lambda: dump(tokens, codec.tokenizer.entropy_model, self._coder)), "", tokens.codes
        except MediaError as error:
            found = str(error)
        except UsageError as error:
            if not isinstance(path, RemotePath):
                raise  # What all rows have in common; a file system that is not there is a fault of this one.
            found = str(error)
        except MemoryError as error:
            found = str(error) or "too large for this machine's memory"
        except (OSError, ValueError) as error:
            found = f"{shown}: {error}"
        return b"", found, np.empty(0, np.int32)


def _plain(value: object) -> object:
    """Return a value of a column as one of Python; None where it is missing."""
    if hasattr(value, "as_py"):  # a scalar of pyarrow
        value = value.as_py()
    # Missing values of pandas are NaN.
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_bytes(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.tobytes()
    raise MediaError(f"input: bytes must be those of a file, not {type(value).__name__}")


def _as_path(value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, str | bytes | os.PathLike):
        try:
            return as_path(os.fsdecode(value))
        except UsageError as error:
            raise MediaError(str(error)) from None
    raise MediaError(f"input: path must be the name of a file, not {type(value).__name__}")


def _objects(values: Sequence[object]) -> NDArray[np.object_]:
    """Make a column of things of any shapes."""
    column = np.empty(len(values), object)
    for index, value in enumerate(values):
        column[index] = value
    return column
