"""Read and write single token files."""

from __future__ import annotations

from pathlib import Path

from vqtok.errors import WrongModelError
from vqtok.files.atomic import atomic_write, make_folder, refuse_existing
from vqtok.files.paths import local_path
from vqtok.models.token_reader import TokenReader, entropy_model_of
from vqtok.tokens.coding.coders import NO_MODEL
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump


def read(path: str | Path, model: str | None = None, *, num_codebooks: int | None = None) -> Tokens:
    """Read a token file.

    Args:
        model: The model that made the tokens; by default a bundled one. Bit-packed files need none.
        num_codebooks: Read only the first codebooks.

    Raises:
        VqtokError: The file is damaged, or the model is not found.
    """
    return TokenReader(model).read(local_path(path), num_codebooks=num_codebooks)


def write(tokens: Tokens, path: str | Path, model: str | None = None, *, overwrite: bool = False) -> None:
    """Write a token file.

    Args:
        model: The model that made the tokens, whose statistics make the file smaller; by default a bundled one, and
            bit-packed codes if none of these made them.

    Raises:
        OutputError: The file exists or cannot be written.
        WrongModelError: Another model than the given one made the tokens.
    """
    target = local_path(path)
    if not overwrite:
        refuse_existing(target)
    try:
        entropy_model = entropy_model_of(tokens.model, model).of(tokens.modality)
    except WrongModelError:
        if model is not None:
            raise
        entropy_model = NO_MODEL
    make_folder(target.parent)
    atomic_write(target, dump(tokens, entropy_model))
