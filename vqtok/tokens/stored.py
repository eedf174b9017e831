"""`StoredTokens`, the tokens in a file of many items."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, MediaError
from vqtok.tokens.tokens import Tokens

_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    RecursionError,
    tarfile.TarError,
)
"""What damaged or foreign data cause in the code that reads them."""


class StoredTokens(Mapping[str, Tokens]):
    """The tokens in a file by key, each read on access."""

    path: Path
    _places: Mapping[str, Any]
    """Where the items are, by key."""
    _remedy = "export again"
    """What to do about a damaged file."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def _damaged(self, where: str = "") -> Iterator[None]:
        """Turn the errors that damaged or foreign data cause into one.

        Raises:
            CorruptFileError: The data are damaged.
            MediaError: They cannot be read.
        """
        try:
            yield
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise MediaError(f"{self.path}: cannot be read: {os.strerror(error.errno)}") from error
            what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise CorruptFileError(f"{self.path}: {where}{what}; {self._remedy}") from error
