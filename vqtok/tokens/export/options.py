"""How tokens are written for trainers of language models: what one may choose, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vqtok.errors import UsageError
from vqtok.tokens.export.layout import SPECIALS, Layout, Vocabulary
from vqtok.tokens.export.text import DEFAULT_TEXTS, TokenText
from vqtok.tokens.shape import Modality
from vqtok.tokens.tokens import Tokens

ExportFormat = Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"]
"""
npy       the token ids of all items one after another, as one array
bin       the same without a header
megatron  the same with the index (`.idx`, version 1) of Megatron's IndexedDataset: each item is a document
jsonl     a line an item: `{"key": ..., "size": ..., "grid": ..., "input_ids": ...}`
parquet   the same as columns
text      a line an item: each id as text

The steps of `parallel` and `delay` are kept in `npy`, `jsonl` and `parquet`; in the others they follow one another.
"""
ARRAYS: tuple[ExportFormat, ...] = ("npy", "bin", "megatron")
TABLES: tuple[ExportFormat, ...] = ("jsonl", "parquet")
"""Targets that themselves say which items they hold."""

_UINT16_BELOW = 65_500  # Megatron's own bound


@dataclass(frozen=True)
class ExportSpec:
    """How the tokens of one model are written: what an export's JSON file says."""

    to: ExportFormat
    layout: Layout
    vocabulary: Vocabulary
    modality: Modality
    model: bytes
    stride: int
    texts: Mapping[str, str] = field(default_factory=dict)
    """For the target `text`, as `TokenText` takes them."""

    @property
    def dtype(self) -> str:
        return "uint16" if self.vocabulary.size < _UINT16_BELOW else "int32"

    @property
    def steps(self) -> tuple[int, ...]:
        """The shape of what is told apart along a sequence: nothing, or a step of all codebooks."""
        return (len(self.vocabulary.codebook_sizes),) if self.layout in ("parallel", "delay") else ()

    def token_text(self) -> TokenText:
        return TokenText(self.texts, self.vocabulary, self.modality)

    def facts(self) -> dict[str, Any]:
        """Give this as JSON."""
        facts: dict[str, Any] = {
            "to": self.to,
            "layout": self.layout,
            "modality": self.modality,
            "model": self.model.hex(),
            "stride": self.stride,
            "codebook_sizes": list(self.vocabulary.codebook_sizes),
            "offset": self.vocabulary.offset,
            "shared_vocabulary": self.vocabulary.shared,
            "codebook_starts": self.vocabulary.starts,
            "special_tokens": dict(self.vocabulary.specials),
            "vocabulary_size": self.vocabulary.size,
        }
        if self.to in ARRAYS:
            facts["dtype"] = self.dtype
        if self.to == "text":
            facts["texts"] = dict(self.texts)
        return facts

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ExportSpec:
        """Read `facts` back.

        Raises:
            ValueError, KeyError, TypeError: they are not what `facts` gives.
        """
        if facts["to"] not in get_args(ExportFormat) or facts["layout"] not in get_args(Layout):
            raise ValueError(f"no way to export: {facts['to']}, {facts['layout']}")
        sizes, offset, shared = tuple(facts["codebook_sizes"]), facts["offset"], facts["shared_vocabulary"]
        try:
            return cls(
                to=facts["to"],
                layout=facts["layout"],
                vocabulary=Vocabulary(sizes, offset, shared, facts["special_tokens"]),
                modality=facts["modality"],
                model=bytes.fromhex(facts["model"]),
                stride=facts["stride"],
                texts=facts.get("texts", {}),
            )
        except UsageError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class ExportOptions:
    """What to make of tokens.

    A special token is an id, "auto" (the next free id behind the codes) or "none". By default there are none, but in
    text `begin_token` and `end_token`, and in the layout `delay` `pad_token`. In text it may be any words instead.

    Raises:
        UsageError: choices that do not go together.
    """

    to: ExportFormat
    layout: Layout = "flat"
    offset: int = 0
    shared_vocabulary: bool = False
    begin_token: int | str | None = None
    end_token: int | str | None = None
    row_token: int | str | None = None
    pad_token: int | str | None = None
    template: str | None = None
    """Of codes in text: `DEFAULT_TEXTS`."""

    def __post_init__(self) -> None:
        if self.template is not None and self.to != "text":
            raise UsageError("--template: is for --to text")
        if self.pad_token is not None and self.layout != "delay":
            raise UsageError("--pad-token: only --layout delay pads")
        if self.pad_token == "none":
            raise UsageError("--pad-token none: --layout delay pads")
        self._specials()

    def form(self, tokens: Tokens) -> ExportSpec:
        """Work out how tokens like these are written."""
        ids, texts = self._specials()
        vocabulary = Vocabulary.choose(tokens.codebook_sizes, self.offset, self.shared_vocabulary, ids)
        if self.template is not None:
            texts["code"] = self.template
        return ExportSpec(
            to=self.to,
            layout=self.layout,
            vocabulary=vocabulary,
            modality=tokens.modality,
            model=tokens.model,
            stride=tokens.stride,
            texts=texts if self.to == "text" else {},
        )

    def _specials(self) -> tuple[dict[str, int | None], dict[str, str]]:
        """Give the special tokens' ids as far as they are known, and their texts."""
        ids: dict[str, int | None] = {}
        texts = {"code": DEFAULT_TEXTS["code"]}
        for name in SPECIALS:
            choice = getattr(self, f"{name}_token")
            if choice is None:
                wanted = self.layout == "delay" if name == "pad" else self.to == "text" and name != "row"
                choice = "auto" if wanted else "none"
            if choice == "none":
                continue
            texts[name] = DEFAULT_TEXTS[name] if choice == "auto" else str(choice)
            try:
                ids[name] = None if choice == "auto" or self.to == "text" else int(choice)
            except ValueError:
                raise UsageError(f"--{name}-token {choice}: must be an id, auto or none") from None
        return ids, texts
