"""Open any model by its name or path; torch is imported when that is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vqtok.errors import ModelError, UsageError, VqtokError, WrongModelError
from vqtok.files.cache import read_cache, write_cache
from vqtok.files.paths import absolute, error_context
from vqtok.models.card import read_card

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
        return _remember(absolute(path), _open_folder(path))
    family_name, colon, source = name.partition(":")
    if family_name == "hf" and colon:
        from vqtok.models.hub import download

        with error_context(name):
            return _remember(name, _open_folder(download(source)))
    if colon and not path.exists():
        family = find_family(family_name)
        if family is None:
            raise ModelError(f"no model {name!r}: there is no family {family_name!r}; vqtok models lists them")
        return family(source)
    from vqtok.models.model_file import load_model

    return load_model(find_model(name))


def _remember(name: str, tokenizer: Tokenizer) -> Tokenizer:
    """Record the name of an adapted model by its identity, so that `wrong_model` can find it later."""
    known, key = read_cache("models.json"), tokenizer.identity[:8].hex()
    if known.get(key) != name:
        write_cache("models.json", known | {key: name})
    return tokenizer


def _open_folder(folder: Path) -> Tokenizer:
    name = folder_family(folder)
    family = find_family(name) if name else None
    if family is None:
        what = (
            f"a model of kind {name!r}, which is not known here" if name else "a folder without a model's config.json"
        )
        raise ModelError(f"{folder}: is {what}; vqtok models lists what is")
    return family(str(folder))


Family: TypeAlias = "Callable[[str], Tokenizer]"
"""Gives the tokenizer of what stands behind the family's name: `blocks:16` asks the family `blocks` for `16`."""

BUNDLED = Path(__file__).parent.parent / "bundled"
ENTRY_POINTS = "vqtok.tokenizers"
"""The group in which an installed package names its families."""

ADAPTERS = {
    "encodec": "vqtok.models.adapters.encodec:Encodec",
    "dac": "vqtok.models.adapters.dac:Dac",
    "mimi": "vqtok.models.adapters.mimi:Mimi",
    "xcodec": "vqtok.models.adapters.xcodec:Xcodec",
    "VQModel": "vqtok.models.adapters.diffusers:DiffusersVQModel",
}
"""Families that vqtok adapts itself: by the name that a folder's config.json gives, the module and class."""

_registered: dict[str, Family] = {}


def bundled_models() -> dict[str, Path]:
    """Give the models that come with vqtok, by name; the default of a modality is named after it."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(name: str) -> Path:
    """Resolve a model file by the name of a bundled one, else by path: `./image` is a file, `image` the bundled model.

    Raises:
        ModelError: there is none.
    """
    models = bundled_models()
    if name in models:
        return models[name]
    path = Path(name)
    if path.is_file():
        return path
    raise ModelError(f"no model {name!r}: neither a file nor a bundled model ({', '.join(models) or 'there is none'})")


def wrong_model(identity: bytes, given: str | None, beside: Path | None = None) -> WrongModelError:
    """Return the error for tokens whose model is not the given one; it names the right model if that can be found.

    Args:
        identity: The first 8 bytes of the identity of the model that made the tokens.
        given: The model that the user has named.
        beside: A folder to search besides the bundled models and those that were opened on this machine before.
    """
    other = f"not by {given}" if given else "which is not a bundled model"
    found = _find_identity(identity, beside)
    advice = f"`model` {found} is the right one" if found else "give it as `model`"
    return WrongModelError(f"made by model {identity.hex()}, {other}; {advice}")


def _find_identity(identity: bytes, beside: Path | None) -> str | None:
    """Return the name or path of the model with this identity, if it is at hand."""
    files = bundled_models()
    for folder in dict.fromkeys(filter(None, (beside, Path()))):
        files |= {str(path): path for path in sorted(folder.glob("*.safetensors"))}
    for name, path in files.items():
        with suppress(VqtokError):
            if bytes.fromhex(read_card(path).identity)[:8] == identity:
                return name
    return read_cache("models.json").get(identity.hex())


def register(name: str, family: Family) -> None:
    """Make a family of models known by a name: `--model NAME:SOURCE` then calls `family("SOURCE")`.

    A folder whose config.json gives this name as its `model_type` (or `_class_name`) is opened by the family, too. An
    installed package does the same by an entry point of the group `vqtok.tokenizers`.

    Args:
        family: Mostly a subclass of `Tokenizer` whose `__init__` takes the source.

    Raises:
        UsageError: a name that is taken, or that could not stand before a colon.
    """
    if not name.replace("_", "").replace("-", "").isalnum() or name == "hf":
        raise UsageError(f"family {name!r}: the name must be of letters, digits, - and _, and not hf")
    if name in bundled_models() or name in ADAPTERS:
        raise UsageError(f"family {name!r}: vqtok has one of this name; choose another")
    _registered[name] = family


def families() -> list[str]:
    """Give the names of the families that packages and `register` have added."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def find_family(name: str) -> Family | None:
    """Give the family of a name; None where there is none.

    Raises:
        ModelError: the package that has it cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    try:
        if name in ADAPTERS:
            module, _, attribute = ADAPTERS[name].partition(":")
            adapter: Family = getattr(import_module(module), attribute)
            return adapter
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            family: Family = entry.load()
            return family
    except (ImportError, AttributeError) as error:
        raise ModelError(f"family {name!r} cannot be loaded: {error}") from error
    return None


def is_adapted(name: str) -> bool:
    """Tell whether a name is that of a family's model rather than of a file, whether or not it is there."""
    if name in bundled_models() or Path(name).is_file():
        return False
    family, colon, _ = name.partition(":")
    return folder_family(Path(name)) is not None or (
        colon != "" and (family == "hf" or find_family(family) is not None)
    )


def folder_family(folder: Path) -> str | None:
    """Give the name of the family that saved a folder, by its config.json; None where there is none."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        name = config.get("model_type") or config.get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None
