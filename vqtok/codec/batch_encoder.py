"""`Encoder`: encode batches of a data pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.files import Codecs, encode_media
from vqtok.codec.options import DEFAULT_OPTIONS, CodecOptions
from vqtok.codec.threads import in_order
from vqtok.compute.device import choose_device
from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import as_path, error_context
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
            batch: With the column `bytes` (whole files), or else `path` (names, which may have a scheme).

        Returns:
            Its columns but `bytes`, and `tokens` (the bytes of a .vqt file each; empty where it failed), `error` (why
            it failed, or empty), and if asked for `codes` (int32 `(num_codebooks, *grid)`; empty where it failed).

        Raises:
            UsageError: there is neither column. ModelError: the model is not there.
        """
        column = next((name for name in ("bytes", "path") if name in batch), None)
        if column is None:
            raise UsageError("a batch to encode needs a column `bytes` or `path`")
        rows = zip(batch[column], batch.get("path", batch[column]), strict=True)
        found = list(in_order(lambda row: self._encode(*row), rows, 2 * self._codecs.jobs))
        columns = {name: values for name, values in batch.items() if name != "bytes"}
        columns["tokens"] = _objects([tokens for tokens, _, _ in found])
        columns["error"] = _objects([error for _, error, _ in found])
        if self._codes:
            columns["codes"] = _objects([codes for _, _, codes in found])
        return columns

    def _encode(self, source: str | bytes, name: str | bytes) -> tuple[bytes, str, NDArray[np.int32]]:
        """Give tokens, error and codes of a medium."""
        medium = BytesIO(source) if isinstance(source, bytes) else as_path(source)
        try:
            with error_context(name if isinstance(name, str) else "input"):
                tokens, codec = encode_media(medium, self._codecs, num_codebooks=self._num_codebooks, mono=self._mono)
            return codec.on_core(lambda: dump(tokens, codec.tokenizer.entropy_model, self._coder)), "", tokens.codes
        except (MediaError, MemoryError) as error:
            return b"", str(error) or "too large for this machine's memory", np.empty(0, np.int32)


def _objects(values: Sequence[object]) -> NDArray[np.object_]:
    """Make a column of things of any shapes."""
    column = np.empty(len(values), object)
    for index, value in enumerate(values):
        column[index] = value
    return column
