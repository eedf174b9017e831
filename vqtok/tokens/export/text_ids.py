"""Text as token ids: by a tokenizer of Hugging Face, or byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vqtok.errors import UsageError

BYTES = "bytes"
"""The name of the tokenizer whose ids are the bytes of UTF-8."""


class TextIds(Protocol):
    """Converts text to token ids."""

    size: int
    """The number of ids, which all of a data set's own ids follow."""
    end: int | None
    """The id of the end of a document, if the tokenizer has one."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""

    def word(self, number: int) -> str:
        """Return the token with an id."""


class ByteText:
    """Each byte of UTF-8 is an id."""

    size: int = 256
    end: int | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def word(self, number: int) -> str:
        return chr(number)


class HubText:
    """A tokenizer of transformers, from a folder, a file or its name.

    Raises:
        UsageError: transformers is not installed, or there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        self.tokenizer = open_tokenizer(name)
        self.size = len(self.tokenizer)
        self.end: int | None = self.tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def word(self, number: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(number))


class Characters:
    """Text that stays text: negative ids stand for its characters, in exports whose rows are lines of text."""

    size: int = 0
    end: int | None = None

    def encode(self, text: str) -> list[int]:
        return [-1 - ord(character) for character in " ".join(text.splitlines())]

    def word(self, number: int) -> str:
        return chr(-1 - number)


def text_ids(name: str | None) -> TextIds | None:
    """Return what converts text with the named tokenizer; None without a name.

    Raises:
        UsageError: As for `HubText`.
    """
    if name is None:
        return None
    return ByteText() if name == BYTES else HubText(name)


def extend_tokenizer(name: str, names: Sequence[str], folder: str) -> int:
    """Save a tokenizer with added tokens, whose ids follow its own in order.

    Returns:
        The number of rows that the embedding of a model needs.

    Raises:
        UsageError: As for `HubText`, or the tokenizer has one of the tokens or gives them other ids.
    """
    from tokenizers import AddedToken

    tokenizer = open_tokenizer(name)
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in names])
    ids = tokenizer.convert_tokens_to_ids(list(names))
    if ids != list(range(first, first + len(names))):
        raise UsageError(f"`tokenizer` {name}: has some of these tokens already, or gaps in its ids")
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def open_tokenizer(name: str) -> Any:
    """Open a tokenizer of transformers.

    Raises:
        UsageError: transformers is not installed, or there is no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError("`tokenizer` needs transformers: pip install 'vqtok[transformers]'") from None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"`tokenizer` {name}: cannot be opened: {reason}") from None
