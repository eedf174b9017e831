"""What the first codebooks of tokens decode to, and how many bytes they take."""

from __future__ import annotations

import math
from functools import partial

from vqtok.codec.codec import Codec
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump


def prefix_lengths(num_codebooks: int) -> list[int]:
    """Return the numbers of codebooks to report: powers of two, and all."""
    return sorted({2**i for i in range(int(math.log2(num_codebooks)) + 1)} | {num_codebooks})


class Prefixes:
    """The token files and reconstructions of the first codebooks of tokens; each file is made once."""

    def __init__(self, codec: Codec, tokens: Tokens, coder: ChosenCoder = "auto") -> None:
        self.tokens = tokens
        self.counts = [count for count in codec.tokenizer.prefixes if count <= tokens.num_codebooks]
        """The numbers of codebooks that can be decoded."""
        self._codec, self._coder = codec, coder
        self._files: dict[int, bytes] = {}

    def file(self, num_codebooks: int) -> bytes:
        """Return the token file of the first `num_codebooks`."""
        if num_codebooks not in self._files:
            tokens, model = self.tokens.prefix(num_codebooks), self._codec.tokenizer.entropy_model
            self._files[num_codebooks] = self._codec.on_core(partial(dump, tokens, model, self._coder))
        return self._files[num_codebooks]

    def decode(self, num_codebooks: int) -> Media:
        """Return what a file of the first `num_codebooks` decodes to; images are rounded to 8 bits, as in files."""
        if self.tokens.modality == "image":
            return Media("image", as_float(self._codec.decode_pixels(self.tokens, num_codebooks)))
        return self._codec.decode(self.tokens, num_codebooks)
