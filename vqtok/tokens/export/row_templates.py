"""Templates of rows: the order of caption, image and audio in a sequence, such as `{caption}{image}`."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vqtok.errors import UsageError


@dataclass(frozen=True)
class RowTemplate:
    """What a sequence is made of, in order.

    Raises:
        UsageError: The text is no template, or has no field.
    """

    text: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> RowTemplate:
        """Return the template of a text, which may end in `=` and its weight."""
        body, equals, weight = text.rpartition("=")
        if equals and not body.endswith("{") and "}" in body:
            try:
                return cls(body, float(weight))
            except ValueError:
                pass
        return cls(text)

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"`row` {self.text}: its weight must be above 0")
        try:
            fields = [field for _, field in self.parts if field is not None]
        except ValueError as error:
            raise UsageError(f"`row` {self.text!r}: {error}") from None
        if not fields or not all(fields):
            raise UsageError(f"`row` {self.text!r}: needs fields such as {{caption}}{{image}}")

    @property
    def parts(self) -> list[tuple[str, str | None]]:
        """Return pairs of a text and the field after it; the last may have none."""
        return [(literal, field) for literal, field, _, _ in string.Formatter().parse(self.text)]

    @property
    def fields(self) -> set[str]:
        return {field for _, field in self.parts if field}


def choose_template(templates: Sequence[RowTemplate], available: Collection[str], key: str) -> RowTemplate | None:
    """Return one of the templates whose fields a row has, by weight and a hash of its key; None if there is none.

    The choice for a key stays the same when other rows are added.
    """
    possible = [template for template in templates if template.fields <= set(available)]
    place = hash_fraction(f"template {key}") * sum(template.weight for template in possible)
    for template in possible:
        place -= template.weight
        if place < 0:
            return template
    return possible[-1] if possible else None


@dataclass(frozen=True)
class Splits:
    """Names of splits and their fractions.

    Raises:
        UsageError: The fractions are not such.
    """

    fractions: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> Splits:
        """Return the splits of a text such as `train=0.98,validation=0.02`."""
        fractions: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            try:
                fractions[name.strip()] = float(number)
            except ValueError:
                raise UsageError(
                    f"`split` {text}: give names and fractions, such as train=0.98,validation=0.02"
                ) from None
        return cls(fractions)

    def __post_init__(self) -> None:
        total = sum(self.fractions.values())
        if not all(name.isidentifier() and 0 < value <= 1 for name, value in self.fractions.items()) or (
            abs(total - 1) > 1e-6
        ):
            raise UsageError(f"`split`: fractions must be above 0 and add up to 1, not {total:g}; names are words")

    def of(self, key: str) -> str:
        """Return the split of a row, by a hash of its key: it stays the same when rows are added."""
        place = hash_fraction(f"split {key}")
        for name, fraction in self.fractions.items():
            place -= fraction
            if place < 0:
                return name
        return name


def hash_fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on a text alone."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
