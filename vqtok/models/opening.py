"""Open any model by its name or path; torch is imported when that is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vqtok.errors import ModelError
from vqtok.files.paths import naming
from vqtok.models.zoo import bundled_models, find_family, find_model, folder_family

if TYPE_CHECKING:
    from vqtok.models.tokenizer import Tokenizer


def open_tokenizer(name: str) -> Tokenizer:
    """Open a model: a bundled one, a model file, a folder that a known family has saved, or `FAMILY:SOURCE`.

    `hf:ORG/NAME[/FOLDER][@REVISION]` is such a folder of the Hugging Face Hub.

    Raises:
        ModelError: there is none of this name, or it cannot be used. CorruptFileError: it is damaged.
    """
    path = Path(name)
    if path.is_dir() and name not in bundled_models():
        return _open_folder(path)
    family_name, colon, source = name.partition(":")
    if family_name == "hf" and colon:
        from vqtok.models.adapters.hub import download

        with naming(name):
            return _open_folder(download(source))
    if colon and not path.exists():
        family = find_family(family_name)
        if family is None:
            raise ModelError(f"no model {name!r}: there is no family {family_name!r}; vqtok models lists them")
        return family(source)
    from vqtok.models.weights import load_model

    return load_model(find_model(name))


def _open_folder(folder: Path) -> Tokenizer:
    name = folder_family(folder)
    family = find_family(name) if name else None
    if family is None:
        what = (
            f"a model of kind {name!r}, which is not known here" if name else "a folder without a model's config.json"
        )
        raise ModelError(f"{folder}: is {what}; vqtok models lists what is")
    return family(str(folder))
