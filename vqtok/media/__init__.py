"""Pixels and samples in and out, without torch; `kinds` without numpy as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok.media.media import Media

__all__ = ["Media"]


def __getattr__(name: str) -> Any:
    """Import `Media`, and numpy with it, only when asked for (PEP 562)."""
    if name == "Media":
        from vqtok.media.media import Media

        return Media
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
