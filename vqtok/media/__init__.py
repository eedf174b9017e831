"""Reading and writing of image and audio files, without torch. `kinds` does not need numpy either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok.media.media import Media

__all__ = ["Media"]


def __getattr__(name: str) -> Any:
    """Import `Media`, and with it numpy, on first access (PEP 562)."""
    if name == "Media":
        from vqtok.media.media import Media

        return Media
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
