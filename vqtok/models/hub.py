"""Models of the Hugging Face Hub, downloaded by its library into its cache."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from vqtok.errors import ModelError, UsageError

WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
"""Names of weight files, in the order in which transformers and diffusers look for them."""
VARIANTS = ("", "fp16", "bf16")
"""Variants of a saved model, the best one first: full precision, or half precision (`model.fp16.safetensors`)."""
PARTS = {
    "apertus1p5": ("vision_tokenizer",),
    "chameleon": ("vqmodel",),
    "emu3": ("vqmodel",),
    "flava": ("image_codebook",),
    "glm_image": ("visual", "vqmodel"),
    "janus": ("vqmodel",),
    "qwen3_tts_tokenizer_12hz": ("encoder",),
}
"""The modules that make up the tokenizer inside a larger model, by its `model_type`."""
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
"""Files with settings that are downloaded beside the weights."""
_NAME = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:/(?P<folder>[^@]+?))?/?(?:@(?P<revision>.+))?")


def at_revision(name: str | None, revision: str | None) -> str | None:
    """Return the name of a model with a revision appended.

    Raises:
        UsageError: The name is not one of the Hub, or already has a revision.
    """
    if revision is None:
        return name
    if name is None or not name.startswith("hf:") or "@" in name:
        raise UsageError(f"`revision` {revision}: only applies to a `model` of the form hf:ORG/NAME")
    return f"{name}@{revision}"


def download(source: str) -> Path:
    """Return the local folder of a model of the Hub, `ORG/NAME[/FOLDER][@REVISION]`; download it if it is not cached.

    Raises:
        ModelError: The model does not exist or cannot be downloaded.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ModelError(f"hf:{source}: is not of the form hf:ORG/NAME, hf:ORG/NAME/FOLDER or hf:ORG/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(f"hf:{source}: needs transformers or diffusers: pip install 'vqtok[transformers]'") from error
    below = f"{match['folder']}/" if match["folder"] else ""
    # Pickle files are downloaded only if there are no safetensors files, and half precision only if there is no other.
    for variant, suffix in itertools.product(VARIANTS, (".safetensors", ".bin")):
        names = [name for name in WEIGHTS if name.endswith(suffix)]
        files = [in_variant(name, variant) for name in names]
        parts = [name.replace(suffix, f"-*{suffix}") for name in files]
        indexes = [in_variant(f"{name}.index.json", variant) for name in names]
        wanted = [below + name for name in (*SETTINGS, *files, *parts, *indexes)]
        try:
            get = partial(snapshot_download, match["repo"], revision=match["revision"])
            # Of a larger model, only the shards that hold its tokenizer are downloaded.
            first = Path(get(allow_patterns=[below + name for name in (*SETTINGS, *indexes)])) / below
            modules = modules_of(first)
            index = next((name for name in indexes if (first / name).is_file()), None)
            if modules and index:
                wanted = [below + name for name in (*SETTINGS, index, *shards(first / index, modules))]
            snapshot = get(allow_patterns=wanted)
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"hf:{source}: is not in the Hugging Face cache, and the Hub cannot be reached or HF_HUB_OFFLINE is "
                "set; connect to the network, or set `model` to a folder with the model"
            ) from error
        except (HfHubHTTPError, HFValidationError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"hf:{source}: the Hub refuses the download: {reason}") from error
        except OSError as error:
            raise ModelError(f"hf:{source}: cannot be downloaded: {error}") from error
        folder = Path(snapshot) / below
        if any(folder.glob(f"*{suffix}")):
            return folder
    raise ModelError(
        f"hf:{source}: {below or 'its folder'} has no weight file of transformers or diffusers; choose another `model`"
    )


def modules_of(folder: Path) -> tuple[str, ...]:
    """Return the modules of the tokenizer if a folder holds a larger model; empty if the model is a tokenizer."""
    try:
        return PARTS.get(json.loads((folder / "config.json").read_bytes())["model_type"], ())
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def name_within(name: str, modules: Sequence[str]) -> str | None:
    """Return the name of a weight within one of these modules of a model; None if it is not in them.

    With several modules, the name begins with that of the module; without any, it is the name in the model.
    """
    if not modules:
        return name
    match = re.match(rf"(?:.*\.)??({'|'.join(modules)})\.(.+)", name)
    return match and (match[2] if len(modules) == 1 else f"{match[1]}.{match[2]}")


def shards(index: Path, modules: Sequence[str] = ()) -> list[str]:
    """Return the names of the weight files of an index, or of those with weights of the given modules."""
    places = json.loads(index.read_bytes())["weight_map"]
    return sorted({file for name, file in places.items() if name_within(name, modules) is not None})


def in_variant(name: str, variant: str) -> str:
    """Return the name that transformers and diffusers give to a file of a variant."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def cached() -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of each model in the Hugging Face cache that has a config.json."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:
        return
    try:
        repos = sorted(scan_cache_dir(constants.HF_HUB_CACHE).repos, key=lambda repo: repo.repo_id)
    except CacheNotFound:
        return
    for repo in repos:
        if repo.repo_type != "model":
            continue
        for revision in sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True):
            current = "" if "main" in revision.refs else f"@{next(iter(sorted(revision.refs)), revision.commit_hash)}"
            for config in sorted(file.file_path for file in revision.files if file.file_name == "config.json"):
                below = config.parent.relative_to(revision.snapshot_path).as_posix()
                yield f"hf:{repo.repo_id}{'' if below == '.' else '/' + below}{current}", config.parent
