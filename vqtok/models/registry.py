"""Open models by name or path, and register families of models. Torch is only imported to open a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vqtok.errors import ModelError, UsageError, VqtokError, WrongModelError
from vqtok.files.cache import read_cache, write_cache
from vqtok.files.paths import absolute, error_context
from vqtok.models.card import read_card

if TYPE_CHECKING:
    import torch

    from vqtok.models.tokenizer import Tokenizer


def open_tokenizer(name: str) -> Tokenizer:
    """Open a model: a bundled one, a model file, a folder saved by a known family, or `FAMILY:SOURCE`.

    `hf:ORG/NAME[/FOLDER][@REVISION]` is a folder of the Hugging Face Hub.

    Raises:
        ModelError: The model does not exist or cannot be used.
        CorruptFileError: It is damaged.
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
            raise ModelError(f"{name}: no family of models is called {family_name!r}; `vqtok models` lists them")
        return family(source)
    from vqtok.models.model_file import load_model

    return load_model(find_model(name))


def load(name: str, device: torch.device | str = "cpu") -> Tokenizer:
    """Load a tokenizer that works on batches of tensors.

    `encode(x)` returns the codes, int64 `(batch, num_codebooks, *grid)`, of images `(batch, channels, height, width)`
    or audio `(batch, channels, samples)`, float32 in [-1, 1], whose sizes are multiples of `stride`. `decode(codes)`
    returns their reconstructions. A fusion model is used through `of("image")` and `of("audio")`.

    Args:
        name: A bundled model, a model file, a folder saved by a known family, or `FAMILY:SOURCE`.

    Raises:
        ModelError: The model does not exist or cannot be used.
        CorruptFileError: It is damaged.
    """
    return open_tokenizer(name).to(device)


def _remember(name: str, tokenizer: Tokenizer) -> Tokenizer:
    """Record the name of an adapted model by its identity, so that `wrong_model` can find it later."""
    known, key = read_cache("models.json"), tokenizer.identity[:8].hex()
    if known.get(key) != name:
        write_cache("models.json", known | {key: name})
    return tokenizer


def _open_folder(folder: Path) -> Tokenizer:
    name = folder_family(folder)
    family = find_family(name) if name else None
    if name in CONTINUOUS:
        raise ModelError(f"{folder}: {name} has continuous latents instead of codes; choose a model with a codebook")
    if family is None:
        what = f"a model of the unknown kind {name!r}" if name else "a folder without the config.json of a model"
        raise ModelError(f"{folder}: is {what}; `vqtok models` lists the known models")
    return family(str(folder))


Family: TypeAlias = "Callable[[str], Tokenizer]"
"""Returns the tokenizer of a source: the model `blocks:16` is opened by calling the family `blocks` with "16"."""

BUNDLED = Path(__file__).parent.parent / "bundled"
ENTRY_POINTS = "vqtok.tokenizers"
"""The group of entry points by which installed packages add families."""

ADAPTERS = {
    "encodec": "vqtok.models.adapters.encodec:Encodec",
    "dac": "vqtok.models.adapters.dac:Dac",
    "mimi": "vqtok.models.adapters.mimi:Mimi",
    "xcodec": "vqtok.models.adapters.xcodec:Xcodec",
    "wavtokenizer": "vqtok.models.adapters.wavtokenizer:WavTokenizer",
    "wavtokenizer_encoder": "vqtok.models.adapters.wavtokenizer:WavTokenizer",
    "xcodec2": "vqtok.models.adapters.xcodec2:Xcodec2",
    "neucodec": "vqtok.models.adapters.xcodec2:NeuCodec",
    "higgs_audio_v2_tokenizer": "vqtok.models.adapters.xcodec:HiggsAudioV2",
    "qwen3_tts_tokenizer_12hz": "vqtok.models.adapters.qwen3_tts:Qwen3TTS",
    "speechtokenizer": "vqtok.models.adapters.speechtokenizer:SpeechTokenizer",
    "bigcodec": "vqtok.models.adapters.bigcodec:BigCodec",
    "snac": "vqtok.models.adapters.snac:Snac",
    "titok": "vqtok.models.adapters.titok:TiTok",
    "var_tokenizer": "vqtok.models.adapters.var:Var",
    "cosmos_tokenizer": "vqtok.models.adapters.cosmos:Cosmos",
    "VQModel": "vqtok.models.adapters.diffusers:DiffusersVQModel",
    "emu3_vqgan": "vqtok.models.adapters.image_vq:ImageVQ",
    "emu3": "vqtok.models.adapters.image_vq:ImageVQ",
    "janus_vqgan": "vqtok.models.adapters.image_vq:ImageVQ",
    "janus": "vqtok.models.adapters.image_vq:ImageVQ",
    "chameleon_vqgan": "vqtok.models.adapters.image_vq:ImageVQ",
    "chameleon": "vqtok.models.adapters.image_vq:ImageVQ",
    "flava_image_codebook": "vqtok.models.adapters.image_vq:ImageVQ",
    "flava": "vqtok.models.adapters.image_vq:ImageVQ",
    "apertus1p5_vision_tokenizer": "vqtok.models.adapters.image_vq:ImageVQ",
    "apertus1p5": "vqtok.models.adapters.image_vq:ImageVQ",
    "glm_image": "vqtok.models.adapters.image_vq:ImageVQ",
    "vqtok": "vqtok.models.adapters.published:open_published",
}
"""The module and class of each family with an adapter in vqtok, by the name in the config.json of its models."""

CONTINUOUS = {"pocket_tts_audio_tokenizer", "vibevoice_acoustic_tokenizer", "AutoencoderKL", "AutoencoderOobleck"}
"""Families without codes, by the name in the config.json of their models."""

_registered: dict[str, Family] = {}


def bundled_models() -> dict[str, Path]:
    """Return the models that are part of vqtok, by name; the default model of a modality is named after it."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(name: str) -> Path:
    """Return the file of a bundled model by its name, else by its path: `./image` is a file, `image` a bundled model.

    Raises:
        ModelError: There is no such model.
    """
    models = bundled_models()
    if name in models:
        return models[name]
    path = Path(name)
    if path.is_file():
        return path
    raise ModelError(f"{name}: is neither a model file nor a bundled model ({', '.join(models) or 'there are none'})")


def wrong_model(identity: bytes, given: str | None, beside: Path | None = None) -> WrongModelError:
    """Return the error for tokens of another model than the given one; it names the right model if that can be found.

    Args:
        identity: The first 8 bytes of the identity of the model that made the tokens.
        given: The model that the user chose, if any.
        beside: A folder to search besides the bundled models and those that were opened on this machine before.
    """
    other = f"not by {given}" if given else "which is not a bundled model"
    found = find_identity(identity, [beside] if beside else [])
    advice = f"use `model` {found}" if found else "set `model` to it"
    return WrongModelError(f"made by model {identity.hex()}, {other}; {advice}")


def find_identity(identity: bytes, folders: Sequence[Path] = ()) -> str | None:
    """Return the name or path of the model with this identity (its first 8 bytes); None if it is not found.

    Args:
        folders: Folders to search besides the current one, the bundled models and those that were opened before.
    """
    files = bundled_models()
    for folder in dict.fromkeys((*folders, Path())):
        files |= {str(path): path for path in sorted(folder.glob("*.safetensors"))}
    for name, path in files.items():
        with suppress(VqtokError):
            if bytes.fromhex(read_card(path).identity)[:8] == identity:
                return name
    return read_cache("models.json").get(identity.hex())


def register(name: str, family: Family) -> None:
    """Register a family of models: the model `NAME:SOURCE` is then opened by calling `family("SOURCE")`.

    The family also opens folders whose config.json has this name as `model_type` or `_class_name`. An installed
    package registers a family by an entry point in the group `vqtok.tokenizers`.

    Args:
        family: Usually a subclass of `Tokenizer` whose `__init__` takes the source.

    Raises:
        UsageError: The name is taken or has characters that are not allowed.
    """
    if not name.replace("_", "").replace("-", "").isalnum() or name == "hf":
        raise UsageError(f"family {name!r}: a name consists of letters, digits, - and _, and is not hf")
    if name in bundled_models() or name in ADAPTERS:
        raise UsageError(f"family {name!r}: the name is taken by vqtok; choose another")
    _registered[name] = family


def families() -> list[str]:
    """Return the names of the families added by packages and by `register`."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def find_family(name: str) -> Family | None:
    """Return the family with this name; None if there is none.

    Raises:
        ModelError: The package of the family cannot be imported.
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
    """Return whether a name belongs to a family instead of a model file. The model itself may not exist."""
    if name in bundled_models() or Path(name).is_file():
        return False
    family, colon, _ = name.partition(":")
    return folder_family(Path(name)) is not None or (
        colon != "" and (family == "hf" or find_family(family) is not None)
    )


def folder_family(folder: Path) -> str | None:
    """Return the name of the family that saved a folder, according to its config.json; None if unknown."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        name = config.get("model_type") or config.get("_class_name") or _nameless(config)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _nameless(config: Mapping[str, Any]) -> str | None:
    """Return the family of a config.json that does not name it."""
    if "vq_strides" in config:
        return "snac"
    return "titok" if "num_latent_tokens" in config.get("model", {}).get("vq_model", {}) else None
