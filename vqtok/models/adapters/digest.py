"""Find the weight files that another library saved in a folder, and hash their contents."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqtok.errors import CorruptFileError, ModelError
from vqtok.files.cache import read_cache, write_cache
from vqtok.models.hub import VARIANTS, WEIGHTS, in_variant, name_within, shards

logger = logging.getLogger(__name__)


def weight_files(folder: Path, modules: Sequence[str] = ()) -> list[Path]:
    """Return the weight files of a saved model: a single one, or those in an index.

    Args:
        modules: Only the files of an index that hold weights of these modules of a larger model; by default all.

    Raises:
        ModelError: There are none.
    """
    return _saved_weights(folder, modules)[1]


def weight_variant(folder: Path) -> str | None:
    """Return the variant to load with the library: None, unless there are only weights in half precision.

    Raises:
        ModelError: There are no weights.
    """
    return _saved_weights(folder)[0] or None


def _saved_weights(folder: Path, modules: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Return the variant and the files of the weights that the library loads."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; choose another `model`")
    for variant, name in itertools.product(VARIANTS, WEIGHTS):
        path, index = folder / in_variant(name, variant), folder / in_variant(f"{name}.index.json", variant)
        if path.is_file():
            return variant, [path]
        if index.is_file():
            return variant, [folder / name for name in shards(index, modules)]
    raise ModelError(f"{folder}: contains no weights; one of these files is required: {', '.join(WEIGHTS)}")


def weights_digest(files: Sequence[Path], modules: Sequence[str] = ()) -> str:
    """Return the SHA-256 of all tensors in files, in hex. It does not depend on their names and their order.

    Args:
        modules: Only the tensors of these modules of a larger model; by default all.

    Libraries rename tensors from version to version, so that only the contents may count. The digest is cached by the
    paths, sizes and times of the files in the user's cache folder.

    Raises:
        ModelError: A file is a pickle with more than weights.
        CorruptFileError: A file is damaged or missing.
    """
    try:
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise CorruptFileError(f"{error.filename}: cannot be read: {error.strerror}; copy the model again") from error
    key = json.dumps([*stats, *modules])
    known = read_cache("weights.json")
    if key not in known:
        tensors = sorted(_digest(tensor) for file in files for _, tensor in read_weights(file, modules))
        known[key] = hashlib.sha256(b"".join(tensors)).hexdigest()
        write_cache("weights.json", known)
    return known[key]


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def read_weights(file: Path, modules: Sequence[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a weight file. Of safetensors, only those that are yielded are read.

    Args:
        modules: Only the tensors of these modules of a larger model, named as in the module (for several modules, with
            the name of each in front); by default all.

    Raises:
        ModelError: The file is a pickle with more than weights.
        CorruptFileError: It is damaged.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if (own := name_within(name, modules)) is not None:
                        yield own, opened.get_tensor(name)
        except SafetensorError as error:
            raise CorruptFileError(f"{file}: is damaged: {error}; copy it again") from None
        return
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{file}: is a pickle that may contain code, which vqtok never runs; if you trust it, load it with its "
            "library and save it as safetensors with save_pretrained"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise CorruptFileError(f"{file}: is damaged: {str(error).partition(chr(10))[0]}; copy it again") from None
    for name, value in state.items():
        if isinstance(value, Tensor) and (own := name_within(name, modules)) is not None:
            yield own, value
