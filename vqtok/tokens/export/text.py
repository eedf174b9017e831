"""Token ids as text for prompts, `<|image|><|image_17|>...<|/image|>`, and back."""

from __future__ import annotations

import bisect
import re
import string
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.tokens.export.layout import Vocabulary

DEFAULT_TEXTS = {
    "code": "<|{modality}_{id}|>",
    "begin": "<|{modality}|>",
    "end": "<|/{modality}|>",
    "row": "<|row|>",
    "pad": "<|pad|>",
}
"""The template of codes, and the text of each special token."""


class TokenText:
    """Writes and reads token ids as text: a template for codes, a word for each special token.

    Args:
        texts: Texts by name: of codes (`code`, for `str.format` with `id`, `modality`, and `codebook` and `code`
            counted from 0) and of the special tokens of the vocabulary (with `{modality}`).

    Raises:
        UsageError: A template is not valid.
    """

    def __init__(self, texts: Mapping[str, str], vocabulary: Vocabulary, modality: str) -> None:
        if any(text.splitlines() != [text] for text in texts.values()):
            raise UsageError("the text of a token cannot be empty or contain line ends, since each item is a line")
        self.template, self.vocabulary, self.modality = texts["code"], vocabulary, modality
        template = self.template
        # Words by id; those of codes are added when they first occur.
        self._words = {
            special: texts[name].replace("{modality}", modality) for name, special in vocabulary.specials.items()
        }
        self._specials = {word: special for special, word in self._words.items()}
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
            if "codebook" in fields and vocabulary.shared:
                raise ValueError("a shared vocabulary does not distinguish codebooks")
            if not fields <= {"id", "codebook", "code", "modality"} or not fields & {"id", "code"}:
                raise ValueError("it needs {id} or {code}, and may have {codebook} and {modality}")
            longest_first = sorted(self._specials, key=len, reverse=True)
            self._pattern = re.compile("|".join([*map(re.escape, longest_first), self._code_pattern()]))
        except (ValueError, re.error) as error:
            raise UsageError(f"template {template!r}: {error}") from None

    def _code_pattern(self) -> str:
        fixed = {None: "", "modality": re.escape(self.modality)}
        return "".join(
            re.escape(literal) + fixed.get(name, f"(?P<{name}>[0-9]+)")
            for literal, name, _, _ in string.Formatter().parse(self.template)
        )

    def render(self, ids: NDArray[np.integer]) -> str:
        """Return the text of ids.

        Raises:
            UsageError: The ids could not be read back from the text.
        """
        try:
            text = "".join(self._words.get(number) or self._word(number) for number in ids.ravel().tolist())
            exact = np.array_equal(self.parse(text), ids.ravel())
        except ValueError:
            exact = False
        if not exact:
            raise UsageError(
                f"template {self.template!r}: its tokens cannot be separated again; use one such as '<{{id}}>'"
            )
        return text

    def _word(self, number: int) -> str:
        starts = self.vocabulary.starts
        codebook = bisect.bisect(starts, number) - 1
        numbers = {"id": number, "codebook": codebook, "code": number - starts[codebook]}
        word = self._words[number] = self.template.format(modality=self.modality, **numbers)
        return word

    def parse(self, text: str) -> NDArray[np.int64]:
        """Return the ids of a text.

        Raises:
            ValueError: The text contains something else than these tokens.
        """
        ids, position = [], 0
        while position < len(text):
            match = self._pattern.match(text, position)
            if not match:
                raise ValueError(f"{text[position : position + 20]!r} is not a token")
            ids.append(self._id(match))
            position = match.end()
        return np.array(ids, np.int64)

    def find(self, text: str) -> list[int]:
        """Return the ids of the tokens in a text; what is none of them is passed over."""
        found = []
        for match in self._pattern.finditer(text):
            with suppress(ValueError):
                found.append(self._id(match))
        return found

    def _id(self, match: re.Match[str]) -> int:
        special = self._specials.get(match[0])
        if special is not None:
            return special
        fields = match.groupdict()
        codebook = int(fields.get("codebook", 0))
        if codebook >= len(self.vocabulary.starts):
            raise ValueError(f"{match[0]!r} is not a token: there are {len(self.vocabulary.starts)} codebooks")
        number = int(fields["id"]) if "id" in fields else self.vocabulary.starts[codebook] + int(fields["code"])
        if number >= self.vocabulary.size:
            raise ValueError(f"{match[0]!r} is not a token: the vocabulary has {self.vocabulary.size}")
        return number
