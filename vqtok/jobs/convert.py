"""Convert token files of other tools to token files, and token files to numpy arrays."""

from __future__ import annotations

import functools
import io
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.errors import CorruptFileError, MediaError, UsageError, VqtokError
from vqtok.files.atomic import atomic_write, make_folder, refuse_existing
from vqtok.files.paths import error_context, local_path, spooled
from vqtok.inspection import grid_facts, token_facts
from vqtok.jobs.job import Job, Outcome, done, failed
from vqtok.jobs.mapping import check_input, same_output
from vqtok.media.kinds import kind_of, stem
from vqtok.models.token_reader import TokenReader, open_items
from vqtok.tokens.foreign import ForeignCodes, read_foreign_codes
from vqtok.tokens.tokens import Tokens, pack_side_data
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import parse_header

logger = logging.getLogger(__name__)

MAX_CHANNELS = 64
"""More channels than this are codebooks or batches in the wrong place."""


@dataclass(frozen=True)
class Conversion:
    """An item to convert, and the function that reads it."""

    job: Job
    read: Callable[[], ForeignCodes | Tokens]


def convert(
    source: str | Path,
    output: str | Path | None = None,
    model: str | None = None,
    *,
    size: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert one file. The arguments are those of `plan_conversions` and `convert_files`.

    Raises:
        VqtokError: The first failure.
    """
    conversions = plan_conversions([local_path(source)], None if output is None else str(output), model)
    for outcome in convert_files(conversions, model, size=size, overwrite=overwrite):
        if outcome.error:
            raise outcome.error


def plan_conversions(sources: Sequence[Path], output: str | None, model: str | None = None) -> list[Conversion]:
    """Find the items of the sources: those of other tools become token files, those of vqtok's own files arrays.

    Where outputs would have the same name, all of them keep the suffix of their source: `a.npy.vqt`.

    Args:
        output: A file, or a folder; by default beside the source. With a name ending in `.npy` the codes become an
            array.
        model: The model that made token files and shards; bit-packed ones need none.

    Raises:
        UsageError: The only source does not exist, a source is a folder, or outputs are equal.
    """
    for source in sources:
        check_input(source, len(sources), output)
    sources = [spooled(source) for source in sources]
    for source in sources:
        if source.is_dir():
            raise UsageError(f"{source}: is a folder; give its files")
    conversions = [found for source in sources for found in _conversions(source, output, len(sources) > 1, model)]
    counts = Counter(conversion.job.target for conversion in conversions)
    conversions = [
        _keeping_suffix(found) if counts[found.job.target] > 1 and len(sources) > 1 else found for found in conversions
    ]
    targets: dict[Path, Job] = {}
    for job in (conversion.job for conversion in conversions):
        other = targets.setdefault(job.target, job)
        if other is not job:
            raise same_output(other, job)
    return conversions


def _keeping_suffix(conversion: Conversion) -> Conversion:
    job = conversion.job
    name = job.source.name if job.key is None else Path(job.key).name
    target = job.target.with_name(name + job.target.suffix)
    return replace(conversion, job=replace(job, target=target))


def convert_files(
    conversions: Iterable[Conversion], model: str | None = None, *, size: str | None = None, overwrite: bool = False
) -> Generator[Outcome, None, None]:
    """Convert item by item; yield an outcome each, in order.

    Args:
        model: The model that made the codes; by default the one that an `.ecdc` file names.
        size: The size of media whose files do not state it: "640x480", or samples and rate as in "48000@44100" or, at
            the model's rate, "48000". By default all that the grid covers.

    Raises:
        UsageError: A file does not name its model, or the size is not valid.
    """
    codecs_of = functools.cache(Codecs)
    for conversion in conversions:
        job = conversion.job
        try:
            with error_context(job.name):
                if not overwrite:
                    refuse_existing(job.target)
                found = conversion.read()
                if job.target.suffix.lower() == ".npy":
                    facts = _write_array(job, found)
                elif isinstance(found, Tokens):
                    raise UsageError(f"`output` {job.target}: token files are converted to .npy")
                else:
                    codec = codecs_of(_model_of(found, model)).get(_modality_of(found, size))
                    facts = _write_tokens(job, found, codec, size)
                yield done(job, facts)
        except UsageError:
            raise
        except VqtokError as error:
            yield failed(job, error)


def _conversions(source: Path, output: str | None, several: bool, model: str | None) -> Iterator[Conversion]:
    try:
        with error_context(source):
            items, suffix = _items(source, model)
    except UsageError:
        raise
    except VqtokError as error:
        # Report the error when the turn of this source comes.
        yield Conversion(Job(source, source.with_suffix(".vqt")), functools.partial(_raise, error))
        return
    several = several or len(items) > 1
    if len(items) > 1 and output is None:
        raise UsageError(f"{source}: contains {len(items)} items; give a folder as `output`")
    is_folder = output is not None and (several or output.endswith("/") or Path(output).is_dir())
    if is_folder and output is not None and Path(output).is_file():
        raise UsageError(f"`output` {output}: is a file; several items need a folder")
    for key, read in items.items():
        name = Path(source.stem if key is None else stem(key))
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(f"{source}: the name of item {key!r} leads out of the folder for outputs")
        target = source.with_suffix(suffix) if output is None else local_path(output)
        yield Conversion(Job(source, target / f"{name}{suffix}" if is_folder else target, key), read)


def _raise(error: VqtokError) -> NoReturn:
    raise error


def _items(source: Path, model: str | None) -> tuple[Mapping[str | None, Callable[[], ForeignCodes | Tokens]], str]:
    """Return functions that read the items of a source, by key, and the suffix of their outputs."""
    if kind_of(source) == "tokens":
        return {None: functools.partial(TokenReader(model).read, source)}, ".npy"
    tokens = open_items(source, model)
    if tokens is not None:
        return {key: functools.partial(tokens.__getitem__, key) for key in tokens}, ".npy"
    return read_foreign_codes(source), ".vqt"


def _model_of(found: ForeignCodes, model: str | None) -> str:
    """Return the name of the model that made the codes."""
    if model is not None:
        return model
    if found.model is not None:
        return f"hf:facebook/{found.model}"
    raise UsageError("does not say which model made the codes; give it as `model`")


def _modality_of(found: ForeignCodes, size: str | None) -> str:
    """Return the modality of codes of a model that encodes both, by the form of `size` or by the number of axes."""
    is_image = "x" in size if size else found.size is None and found.codes.ndim == 3
    return "image" if is_image else "audio"


def _write_array(job: Job, found: ForeignCodes | Tokens) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, found.codes)
    make_folder(job.target.parent)
    atomic_write(job.target, file.getbuffer())
    facts = grid_facts(found) if isinstance(found, Tokens) else {"num_tokens": found.codes.size}
    return {"file": str(job.source), "kind": "array", "shape": list(found.codes.shape)} | facts


def _write_tokens(job: Job, found: ForeignCodes, codec: Codec, size: str | None) -> dict[str, Any]:
    encoded = dump(_tokens(job, found, codec, size), codec.tokenizer.entropy_model)
    make_folder(job.target.parent)
    atomic_write(job.target, encoded)
    return token_facts(job.source, parse_header(encoded)[0])


def _tokens(job: Job, found: ForeignCodes, codec: Codec, size: str | None) -> Tokens:
    """Make tokens of codes.

    Raises:
        MediaError: The model cannot have made these codes of media of this size.
    """
    codes = _arranged(job, found, codec)
    extent = found.size
    if extent is None:
        extent = _covered(codes, codec) if size is None else _parsed(size, codes, codec)
        if size is None:
            logger.warning(
                "%s: taken as %s, all that its grid covers; --size sets another size", job.name, _shown(extent)
            )
    if "input_db" in found.metadata:
        logger.warning(
            "%s: decodes to DAC's loudness instead of its own of %.1f dB", job.name, found.metadata["input_db"]
        )
    try:
        tokens = codec.tokens(codes, extent, found.metadata | pack_side_data(found.side_data))
        codec.check(tokens)
    except ValueError as error:
        raise MediaError(f"{error}; another model may have made these codes") from None
    except CorruptFileError:
        raise MediaError(
            f"codes of shape {codes.shape} are not what this model makes of media of {_shown(extent)}; "
            "give another `model` or `size`"
        ) from None
    return tokens


def _arranged(job: Job, found: ForeignCodes, codec: Codec) -> NDArray[Any]:
    """Return codes as `(num_codebooks, height, width)` or `(num_codebooks[, channels], time)`, without a batch of 1.

    Raises:
        MediaError: They have another shape, or more codebooks or channels than the model.
    """
    tokenizer, codes = codec.tokenizer, found.codes
    shape, num_channels = codes.shape, 1 if found.size is None else found.size[-1]
    is_image, available = tokenizer.modality == "image", len(tokenizer.codebook_sizes)
    axes = "num_codebooks, height, width" if is_image else "num_codebooks, channels, time"
    if is_image and codes.ndim == 2:
        codes = codes[None]  # rows and columns of a single codebook
    elif codes.ndim == 4:
        codes = _without_batch(codes, axes)
    elif not is_image and codes.ndim == 3 and available > 1 and len(codes) == 1 and num_channels == 1:
        # (1, n, time) is a batch of one item, as most libraries return it, unless n cannot be codebooks.
        if shape[1] > available:
            raise MediaError(f"codes of shape {shape} have {shape[1]} codebooks, but the model has {available}")
        codes = codes[0]
        logger.warning(
            "%s: codes of shape %s are taken as a batch of one with %d codebooks", job.name, shape, len(codes)
        )
    expected = (3,) if is_image else (2, 3)
    if codes.ndim not in expected:
        axes = axes if is_image else f"num_codebooks, time) or ({axes}"
        raise MediaError(f"codes of shape {shape}; expected ({axes})")
    if len(codes) > available:
        batch = ", or batches of several items" if codes.ndim == 3 and not is_image else ""
        raise MediaError(f"codes of shape {shape} have {len(codes)} codebooks{batch}, but the model has {available}")
    if not is_image and codes.ndim == 3 and codes.shape[1] > MAX_CHANNELS:
        raise MediaError(f"codes of shape {shape} have {codes.shape[1]} channels; expected (num_codebooks, time)")
    return codes


def _without_batch(codes: NDArray[Any], axes: str) -> NDArray[Any]:
    if len(codes) != 1:
        raise MediaError(
            f"codes of shape {codes.shape} are a batch of {len(codes)} items; save one item ({axes}) a file"
        )
    item: NDArray[Any] = codes[0]
    return item


def _shown(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size)) + " pixels" if len(size) == 2 else f"{size[0]} samples at {size[1]} Hz"


def _covered(codes: NDArray[np.int64], codec: Codec) -> tuple[int, ...]:
    """Return the size of the media that a grid covers completely."""
    stride = codec.tokenizer.stride
    if codec.tokenizer.modality == "image":
        height, width = codes.shape[1:]
        return width // codec.tokenizer.sequence_length * stride, height * stride
    return codes.shape[-1] * stride, codec.tokenizer.sample_rate or 0, _channels(codes, codec)


def _channels(codes: NDArray[np.int64], codec: Codec) -> int:
    return 1 if codes.ndim == 2 else codes.shape[1] * codec.tokenizer.channels


def _parsed(size: str, codes: NDArray[np.int64], codec: Codec) -> tuple[int, ...]:
    """Parse `size`."""
    is_image = codec.tokenizer.modality == "image"
    try:
        first, separator, second = size.partition("x" if is_image else "@")
        if is_image:
            return int(first), int(second)
        rate = int(second) if separator else codec.tokenizer.sample_rate or 0
        return int(first), rate, _channels(codes, codec)
    except ValueError:
        form = "WIDTHxHEIGHT" if is_image else "SAMPLES or SAMPLES@HZ"
        raise UsageError(f"`size` {size}: for this model, give {form}") from None
