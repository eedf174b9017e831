"""Models of the Hugging Face Hub, downloaded by its own library into its own cache."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from vqtok.errors import ModelError, UsageError

WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
"""Names of files with weights, in the order in which transformers and diffusers look for them."""
VARIANTS = ("", "fp16", "bf16")
"""Of a saved model: in full, or of which there is nothing but a copy in half precision (`model.fp16.safetensors`)."""
_NAME = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:/(?P<folder>[^@]+?))?/?(?:@(?P<revision>.+))?")


def at_revision(name: str | None, revision: str | None) -> str | None:
    """Add what `--revision` says to a model's name.

    Raises:
        UsageError: the name is not one of the Hub, or has a revision already.
    """
    if revision is None:
        return name
    if name is None or not name.startswith("hf:") or "@" in name:
        raise UsageError(f"--revision {revision}: goes with --model hf:ORG/NAME")
    return f"{name}@{revision}"


def download(source: str) -> Path:
    """Give the folder of a model of the Hub, `ORG/NAME[/FOLDER][@REVISION]`, downloading what is not in the cache.

    Raises:
        ModelError: there is no such model, or neither it nor the Hub can be reached.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ModelError(f"hf:{source}: not a name of the form hf:ORG/NAME, hf:ORG/NAME/FOLDER or hf:ORG/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(f"hf:{source}: needs transformers or diffusers: pip install 'vqtok[transformers]'") from error
    below = f"{match['folder']}/" if match["folder"] else ""
    # Pickles only where there is nothing safer, and half precision only where there is no other.
    for variant, suffix in itertools.product(VARIANTS, (".safetensors", ".bin")):
        names = [name for name in WEIGHTS if name.endswith(suffix)]
        files = [in_variant(name, variant) for name in names]
        parts = [name.replace(suffix, f"-*{suffix}") for name in files]
        indexes = [in_variant(f"{name}.index.json", variant) for name in names]
        wanted = [below + name for name in ("config.json", *files, *parts, *indexes)]
        try:
            snapshot = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=wanted)
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"hf:{source}: not in the Hugging Face cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set; "
                "connect once, or give the path of a folder with the model"
            ) from error
        except (HfHubHTTPError, HFValidationError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"hf:{source}: the Hub does not give it: {reason}") from error
        except OSError as error:
            raise ModelError(f"hf:{source}: cannot be downloaded: {error}") from error
        folder = Path(snapshot) / below
        if any(folder.glob(f"*{suffix}")):
            return folder
    raise ModelError(
        f"hf:{source}: has no weights that transformers or diffusers would save in {below or 'its folder'}"
    )


def in_variant(name: str, variant: str) -> str:
    """Return what transformers and diffusers call a file of a variant."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def cached() -> Iterator[tuple[str, Path]]:
    """Give what is in the Hugging Face cache: names for `--model`, and folders with a config.json."""
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
