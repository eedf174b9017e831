"""Import of checkpoints of other projects."""

from vqtok.models.importers.import_checkpoint import import_checkpoint

__all__ = ["import_checkpoint"]
