"""`Encoder`: encodes batches of a data pipeline."""

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
from vqtok.errors import MediaError, ModelError, UsageError
from vqtok.files.paths import RemotePath, as_path, error_context
from vqtok.tokens.coding.coders import chosen_coder
from vqtok.tokens.vqt.file import dump


class Encoder:
    """Encodes batches of images or audio: a callable for Ray Data's `map_batches` and similar functions.

    The model is loaded once per object, when it is first needed.

    Args:
        model: Name or path of the model; by default the bundled one for the modality of each item.
        num_codebooks: The number of codebooks to keep; by default all.
        mono: Mix audio down to one channel.
        coder: "auto", "prior", "static" or "packed".
        codes: Also return the codes as arrays.
        device: For example "cuda"; "auto" is the best available one.
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
            batch: Has a column `bytes` (contents of files), `path` (paths or URLs), or both; a row without bytes is
                read from its path. Values may be of Python, numpy or pyarrow. Other values are errors of their rows.

        Returns:
            The columns of the batch except `bytes`, and `tokens` (the bytes of a .vqt file, empty if the row failed),
            `error` (the reason of the failure, else empty), and with the argument `codes` also `codes` (int32
            `(num_codebooks, *grid)`, empty if the row failed).

        Raises:
            UsageError: The batch has neither column.
            ModelError: The model does not exist or does not fit the media.
        """
        if "bytes" not in batch and "path" not in batch:
            raise UsageError("the batch needs a column 'bytes' or 'path'")
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
        """Return the tokens, error and codes of a row."""
        shown, path = "input", None
        try:
            data, path = _as_bytes(_plain(content)), _as_path(_plain(name))
            shown = str(path or shown)
            media = path if data is None else BytesIO(data)
            if media is None:
                raise MediaError(f"{shown}: has neither bytes nor a path")
            with error_context(shown):
                tokens, codec = encode_media(media, self._codecs, num_codebooks=self._num_codebooks, mono=self._mono)
            return codec.on_core(lambda: dump(tokens, codec.tokenizer.entropy_model, self._coder)), "", tokens.codes
        except MediaError as error:
            found = str(error)
        except UsageError as error:
            if not isinstance(path, RemotePath):
                raise  # It concerns all rows, unlike a file system that is not available, which concerns this one.
            found = str(error)
        except MemoryError as error:
            found = str(error) or "too large for this machine's memory"
        except ModelError:
            raise  # The model does not exist, or encodes the other modality: so for all rows.
        except Exception as error:  # Pipelines hand on all sorts of values, and must not end with one of them.
            found = f"{shown}: {error or type(error).__name__}"
        return b"", found, np.empty(0, np.int32)


def _plain(value: object) -> object:
    """Return a value of a column as a Python value; None if it is missing."""
    if hasattr(value, "as_py"):  # A scalar of pyarrow.
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
    raise MediaError(f"input: bytes must be the contents of a file, not {type(value).__name__}")


def _as_path(value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, str | bytes | os.PathLike):
        try:
            return as_path(os.fsdecode(value))
        except UsageError as error:
            raise MediaError(str(error)) from None
    raise MediaError(f"input: path must be that of a file, not {type(value).__name__}")


def _objects(values: Sequence[object]) -> NDArray[np.object_]:
    """Return a column of arbitrary objects."""
    column = np.empty(len(values), object)
    for index, value in enumerate(values):
        column[index] = value
    return column
