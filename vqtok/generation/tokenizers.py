"""Find and open the tokenizers that made tokens, by their identity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.generation.streams import Stream
from vqtok.models.registry import find_identity, open_tokenizer, wrong_model
from vqtok.models.token_reader import TokenReader
from vqtok.models.tokenizer import Tokenizer
from vqtok.models.vqmodel import VQModel


class Tokenizers:
    """The tokenizers of tokens, opened when they are first needed.

    Args:
        named: Models by path or name that the user has chosen; others are searched among the bundled models, in the
            current folder, and in `folders`.

    Raises:
        ModelError: A named model does not exist or is not a tokenizer.
    """

    def __init__(
        self, named: Sequence[str] = (), folders: Sequence[Path] = (), device: torch.device | str = "cpu"
    ) -> None:
        self._folders = tuple(folders)
        self._named = {open_tokenizer(name).identity[:8]: name for name in named}
        self.name = cache(self._name)
        self.reader = cache(lambda identity: TokenReader(self.name(identity)))
        self._codecs = cache(lambda identity: Codecs(self.name(identity), str(device)))

    def _name(self, identity: bytes) -> str:
        """Return the name or path of the tokenizer with this identity (its first 8 bytes).

        Raises:
            WrongModelError: It is not found.
        """
        found = self._named.get(identity) or find_identity(identity, self._folders)
        if found is None:
            raise wrong_model(identity, None)
        return found

    def codec(self, stream: Stream) -> Codec:
        """Return the codec of a stream's tokenizer.

        Raises:
            WrongModelError: The tokenizer is not found.
        """
        return self._codecs(stream.identity).get(stream.name)


def codebook_vectors(tokenizer: Tokenizer, num_codebooks: int) -> list[Tensor]:
    """Return the vectors `(size, dim)` of the first codebooks; none if the model does not show them."""
    if not isinstance(tokenizer, VQModel):
        return []
    return [vectors.detach().float().cpu() for vectors in tokenizer.quantizer.codebooks()[:num_codebooks]]
