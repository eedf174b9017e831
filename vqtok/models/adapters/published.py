"""Models of vqtok that were published with a `config.json`, which makes their folder one that the Hub knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vqtok.errors import ModelError

if TYPE_CHECKING:
    from vqtok.models.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"


def open_published(folder: str) -> Tokenizer:
    """Open the model file in a folder.

    Raises:
        ModelError: There is none.
    """
    from vqtok.models.model_file import load_model

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder}: has the config.json of a vqtok model, but no {WEIGHTS}")
    return load_model(path)
