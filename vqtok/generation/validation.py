"""Validation of a generator on held-out items: bits per token, and samples to look at and to hear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok.compute.device import autocast
from vqtok.files.atomic import atomic_write
from vqtok.generation.items import Item
from vqtok.generation.media import contact_sheet, decode_stream
from vqtok.generation.network import Generator
from vqtok.generation.objective import bits_per_token, middle
from vqtok.generation.sampling import DEFAULT_SAMPLING, MOST_LIKELY, fill
from vqtok.generation.streams import HIDDEN, StreamName, text_of
from vqtok.generation.tokenizers import Tokenizers
from vqtok.media.audio import write_audio
from vqtok.media.image import write_image
from vqtok.training.monitor import Progress

SHOWN_IMAGES, SHOWN_AUDIO = 12, 3
"""The number of samples that a validation writes of each kind."""


@dataclass(frozen=True)
class Validation:
    """The result of a validation."""

    score: float
    """Mean of all bits; lower is better."""
    bits: dict[str, float]
    """Bits per token of each modality alone. A caption alone is not evaluated."""
    bits_given_rest: dict[str, float]
    """Bits per token of each modality, given the others of the same items."""
    items: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GeneratorProgress(Progress):
    """The state of the training of a generator."""

    held_out: Validation | None = None
    """The result of a validation after the step, if there was one."""

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | ({"validation": self.held_out.to_dict()} if self.held_out else {})


class Validator:
    """Validates generators on the same held-out items, with the same masks each time."""

    def __init__(self, items: Sequence[Item], tokenizers: Tokenizers, max_items: int, precision: torch.dtype) -> None:
        self.items, self.tokenizers, self.precision = list(items)[:max_items], tokenizers, precision

    def score(self, generator: Generator) -> Validation:
        """Return the bits per token of each modality."""
        with autocast(next(generator.parameters()).device, self.precision):
            return self._score(generator)

    def _score(self, generator: Generator) -> Validation:
        bits: dict[str, float] = {}
        given_rest: dict[str, float] = {}
        for name in generator.streams:
            own = self._with(generator, [name])
            if own and name != "text":
                bits[name] = bits_per_token(generator, own, name, ())
            rest = self._rest(generator, name)
            items = self._with(generator, [name, *rest])
            if rest and items:
                given_rest[name] = bits_per_token(generator, items, name, rest)
        found = [*bits.values(), *given_rest.values()]
        score = sum(found) / len(found) if found else float("nan")
        return Validation(score, bits, given_rest, len(self.items))

    def validate(self, generator: Generator, folder: Path, step: int) -> Validation:
        """Return the bits per token, and write samples to a folder: a sheet of images, audio files, captions."""
        with autocast(next(generator.parameters()).device, self.precision):
            for name in generator.streams:
                self._show(generator, name, folder, step)
        return self.score(generator)

    def _with(self, generator: Generator, names: Sequence[StreamName]) -> list[Item]:
        return [item for item in self.items if all(item.has(generator.streams[name]) for name in names)]

    def _rest(self, generator: Generator, name: StreamName) -> list[StreamName]:
        """Return the other streams that items with this stream have."""
        return [other for other in generator.streams if other != name and self._with(generator, [name, other])]

    def _show(self, generator: Generator, name: StreamName, folder: Path, step: int) -> None:
        """Write originals, samples given each other modality, and samples given nothing."""
        rows: dict[str, Tensor] = {}
        for given in self._rest(generator, name):
            items = self._with(generator, [name, given])[: SHOWN_AUDIO if name == "audio" else SHOWN_IMAGES]
            codes = {n: _stacked(generator, items, n) for n in (name, given)}
            rows.setdefault("original", codes[name])
            hidden = torch.full_like(codes[name], HIDDEN)
            sampling = MOST_LIKELY if name == "text" else DEFAULT_SAMPLING
            rows[f"from-{given}"] = fill(generator, {**codes, name: hidden}, name, sampling)
        if name != "text":
            items = self._with(generator, [name])[: SHOWN_AUDIO if name == "audio" else SHOWN_IMAGES]
            own = _stacked(generator, items, name)
            rows.setdefault("original", own)
            rows["from-nothing"] = fill(generator, {name: torch.full_like(own, HIDDEN)}, name)
        if name == "text":
            lines = ["\t".join(rows)] + [
                "\t".join(map(text_of, column)) for column in zip(*_arrays(rows), strict=False)
            ]
            atomic_write(folder / f"step-{step:07d}-text.txt", "\n".join(lines).encode() + b"\n")
            return
        stream = generator.streams[name]
        media = {row: decode_stream(codes.cpu().numpy(), stream, self.tokenizers) for row, codes in rows.items()}
        if name == "image":
            sheet = contact_sheet([image for row in media.values() for image in row], max(map(len, media.values())))
            write_image(sheet, folder / f"step-{step:07d}.png")
            return
        for row, clips in media.items():
            for index, clip in enumerate(clips):
                write_audio(clip, folder / f"step-{step:07d}-{index}-{row}.wav")


def _arrays(rows: dict[str, Tensor]) -> list[Any]:
    return [codes.cpu().numpy() for codes in rows.values()]


def _stacked(generator: Generator, items: Sequence[Item], name: StreamName) -> Tensor:
    """Return the middle windows of items, int64 `(batch, num_codebooks, *window)`, on the generator's device."""
    stream = generator.streams[name]
    codes = np.stack([middle(item.codes(stream), stream.window) for item in items])
    return torch.from_numpy(codes).to(next(generator.parameters()).device)
