"""Checkpoints of other projects, turned into models of vqtok."""

from vqtok.models.importers.import_checkpoint import import_checkpoint

__all__ = ["import_checkpoint"]
