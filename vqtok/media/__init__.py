"""Pixels and samples in and out, without torch."""

from vqtok.media.base import Media

__all__ = ["Media"]
