"""How tokens are exported: the options of a user, and the specification that results from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vqtok.errors import UsageError
from vqtok.tokens.export.layout import SPECIALS, Layout, Vocabulary, interleaved
from vqtok.tokens.export.text import DEFAULT_TEXTS, TokenText
from vqtok.tokens.shape import Modality
from vqtok.tokens.tokens import Tokens

ExportFormat = Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"]
"""
npy       the token ids of all items one after another, as one array
bin       the same without a header
megatron  the same with the index (`.idx`, version 1) of Megatron's IndexedDataset; each item is a document
jsonl     one line per item: `{"key": ..., "size": ..., "grid": ..., "input_ids": ...}`
parquet   the same as columns
text      one line per item, each id as text

`npy`, `jsonl` and `parquet` keep the steps of `parallel` and `delay` as an axis; the others flatten them.
"""
ARRAYS: tuple[ExportFormat, ...] = ("npy", "bin", "megatron")
TABLES: tuple[ExportFormat, ...] = ("jsonl", "parquet")
"""Formats that store their items themselves."""

_UINT16_BELOW = 65_500  # The bound that Megatron itself uses.


@dataclass(frozen=True)
class ExportSpec:
    """How the tokens of one model are written; the JSON file of an export stores it."""

    to: ExportFormat
    layout: Layout
    vocabulary: Vocabulary
    modality: Modality
    model: bytes
    stride: int
    texts: Mapping[str, str] = field(default_factory=dict)
    """The texts of tokens in the format `text`, as for `TokenText`."""
    levels: tuple[int, ...] = ()
    """Codes of each codebook per position, in the layout `interleave`; `vocabulary` then has its order."""
    strides: Mapping[str, int] = field(default_factory=dict)
    """The stride of each modality, in an export of both modalities of a fusion model that is read."""

    @property
    def dtype(self) -> str:
        return "uint16" if self.vocabulary.size < _UINT16_BELOW else "int32"

    @property
    def steps(self) -> tuple[int, ...]:
        """The shape of one element of a sequence: empty, or a step of all codebooks."""
        return (len(self.vocabulary.codebook_sizes),) if self.layout in ("parallel", "delay") else ()

    @property
    def order(self) -> list[int]:
        """The order of codebooks: the place of each of those of `vocabulary` in `Tokens`."""
        return interleaved(self.levels) if self.levels else list(range(len(self.vocabulary.codebook_sizes)))

    def token_text(self) -> TokenText:
        return TokenText(self.texts, self.vocabulary, self.modality)

    def facts(self) -> dict[str, Any]:
        """Return this as a JSON-like dict."""
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
        if self.levels:
            facts["levels"] = list(self.levels)
        if self.to in ARRAYS:
            facts["dtype"] = self.dtype
        if self.to == "text":
            facts["texts"] = dict(self.texts)
        return facts

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ExportSpec:
        """Return the spec of what `facts` has returned.

        Raises:
            ValueError, KeyError, TypeError: `facts` cannot have returned it.
        """
        if facts["to"] not in get_args(ExportFormat) or facts["layout"] not in get_args(Layout):
            raise ValueError(f"unknown format {facts['to']} or layout {facts['layout']}")
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
                levels=tuple(facts.get("levels", ())),
                strides=facts.get("strides", {}),
            )
        except UsageError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class ExportOptions:
    """How to export tokens.

    A special token is an id, "auto" (the next free id after the codes) or "none". The default is none, except for
    `begin_token` and `end_token` in text and `pad_token` in the layout `delay`. In text it can be any words instead.

    Raises:
        UsageError: The options contradict each other.
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
    """The text of a code; by default that of `DEFAULT_TEXTS`."""

    def __post_init__(self) -> None:
        if self.template is not None and self.to != "text":
            raise UsageError("`template` is only for `to` text")
        if self.pad_token is not None and self.layout != "delay":
            raise UsageError("`pad_token` is only for `layout` delay")
        if self.pad_token == "none":
            raise UsageError("`pad_token` none: `layout` delay needs a pad token")
        self._specials()

    def form(self, tokens: Tokens) -> ExportSpec:
        """Return the spec for tokens like these."""
        ids, texts = self._specials()
        levels = tokens.levels if self.layout == "interleave" else ()
        sizes = tokens.codebook_sizes
        if levels:
            sizes = tuple(sizes[index] for index in interleaved(levels))
        vocabulary = Vocabulary.choose(sizes, self.offset, self.shared_vocabulary, ids)
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
            levels=levels,
        )

    def _specials(self) -> tuple[dict[str, int | None], dict[str, str]]:
        """Return the ids of the special tokens, None for those to be chosen, and their texts."""
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
                raise UsageError(f"`{name}_token` {choice}: must be an id, auto or none") from None
        return ids, texts
