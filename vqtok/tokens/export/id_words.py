"""The words of token ids in generated text, such as `<|image_17|>`, as ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqtok.errors import UsageError
from vqtok.tokens.export.mixture import Mixture
from vqtok.tokens.export.options import ExportSpec
from vqtok.tokens.export.sidecar import checked
from vqtok.tokens.export.text import DEFAULT_TEXTS, TokenText

IdsIn = Callable[[str], list[int]]
"""Returns the ids of the words in a text; everything else in it is passed over."""


def ids_in_text(facts: Mapping[str, Any]) -> IdsIn:
    """Return what finds the ids of an export in text, as a tokenizer with the added tokens decodes them.

    Raises:
        UsageError: These are not the facts of an export.
    """
    checked(facts, Path("like"))
    try:
        if facts.get("kind") == "mixture":
            mixture = Mixture.from_facts(facts)
            ids = {word: number for number, word in mixture.words().items()}
            own = "|".join(map(re.escape, mixture.texts.values()))
            pattern = re.compile(r"<\|/?\w+\|>" + (f"|{own}" if own else ""))
            return lambda text: [ids[word] for word in pattern.findall(text) if word in ids]
        spec = ExportSpec.from_facts(facts)
        default = {name: DEFAULT_TEXTS[name] for name in ("code", *spec.vocabulary.specials)}
        return TokenText(spec.texts or default, spec.vocabulary, spec.modality).find
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"`like`: these are not the facts of an export: {error}") from None
