"""Checkpoints of other projects, turned into models of vqtok."""

from vqtok.models.importers.importing import import_checkpoint

__all__ = ["import_checkpoint"]
