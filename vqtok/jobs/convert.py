"""Other tools' token files to token files, and codes to numpy arrays."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.errors import CorruptFileError, MediaError, OutputError, UsageError, VqtokError
from vqtok.files.atomic import atomic_write, make_folder
from vqtok.files.paths import naming
from vqtok.inspection import grid_facts, token_facts
from vqtok.jobs.job import Job, Outcome
from vqtok.media.kinds import kind_of, stem
from vqtok.models.token_reader import TokenReader, open_items
from vqtok.tokens.foreign import Foreign, read_foreign
from vqtok.tokens.tokens import Tokens, pack_side_data
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import parse_header

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """An item to convert: where it goes, and what reads it."""

    job: Job
    read: Callable[[], Foreign | Tokens]


def convert(
    source: str | Path,
    output: str | Path | None = None,
    model: str | None = None,
    *,
    size: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert one file; the arguments are those of `plan_conversions` and `convert_files`.

    Raises:
        VqtokError: the first thing that went wrong.
    """
    conversions = plan_conversions([Path(source)], None if output is None else str(output), model)
    for outcome in convert_files(conversions, model, size=size, overwrite=overwrite):
        if outcome.error:
            raise outcome.error


def plan_conversions(sources: Sequence[Path], output: str | None, model: str | None = None) -> list[Conversion]:
    """Find the items of files of other tools, which become token files, and of vqtok's own, which become arrays.

    Args:
        output: A file, or a folder; by default beside the source. A name ending in `.npy` gets the codes as an array.
        model: What token files and shards were made with; bit-packed ones need none.

    Raises:
        UsageError: a source that is missing, or an output that cannot be for all items.
    """
    for source in sources:
        if not source.is_file():
            raise UsageError(f"{source}: is {'a folder; give its files' if source.is_dir() else 'not there'}")
    conversions = [found for source in sources for found in _conversions(source, output, len(sources) > 1, model)]
    targets: dict[Path, str] = {}
    for conversion in conversions:
        other = targets.setdefault(conversion.job.target, conversion.job.name)
        if other != conversion.job.name:
            raise UsageError(f"{other} and {conversion.job.name} would both become {conversion.job.target}; rename one")
    return conversions


def convert_files(
    conversions: Iterable[Conversion], model: str | None = None, *, size: str | None = None, overwrite: bool = False
) -> Generator[Outcome, None, None]:
    """Convert item by item; an outcome each, in order.

    Args:
        model: The model that made the codes; by default the one that an `.ecdc` file names.
        size: Of media whose files do not tell it: "640x480", or samples and rate as in "48000@44100" or, at the
            model's rate, "48000". By default as much as the grid covers.

    Raises:
        UsageError: a file does not tell its model, or the size is none.
    """
    codec_of = functools.cache(lambda name: Codecs(name).get("image"))
    for conversion in conversions:
        job = conversion.job
        try:
            with naming(job.name):
                if job.target.exists() and not overwrite:
                    raise OutputError(f"{job.target}: exists; give --force to overwrite it")
                found = conversion.read()
                if job.target.suffix.lower() == ".npy":
                    facts = _write_array(job, found)
                elif isinstance(found, Tokens):
                    raise UsageError(f"-o {job.target}: token files are converted to .npy")
                else:
                    facts = _write_tokens(job, found, codec_of(_model_of(found, model)), size)
                yield Outcome(job, facts | {"output": str(job.target)})
        except UsageError:
            raise
        except VqtokError as error:
            yield Outcome(job, {"file": str(job.source), "error": str(error), "exit_code": error.exit_code}, error)


def _conversions(source: Path, output: str | None, several: bool, model: str | None) -> Iterator[Conversion]:
    try:
        with naming(source):
            items, suffix = _items(source, model)
    except UsageError:
        raise
    except VqtokError as error:
        # It is reported when its turn comes.
        yield Conversion(Job(source, source.with_suffix(".vqt")), functools.partial(_raise, error))
        return
    several = several or len(items) > 1
    if len(items) > 1 and output is None:
        raise UsageError(f"{source}: holds {len(items)} items; give -o DIR for them")
    is_folder = output is not None and (several or output.endswith("/") or Path(output).is_dir())
    if is_folder and output is not None and Path(output).is_file():
        raise UsageError(f"-o {output}: is a file; several items need a folder")
    for key, read in items.items():
        name = Path(source.stem if key is None else stem(key))
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(f"{source}: the name of item {key!r} leads out of the folder for outputs")
        target = source.with_suffix(suffix) if output is None else Path(output)
        yield Conversion(Job(source, target / f"{name}{suffix}" if is_folder else target, key), read)


def _raise(error: VqtokError) -> NoReturn:
    raise error


def _items(source: Path, model: str | None) -> tuple[Mapping[str | None, Callable[[], Foreign | Tokens]], str]:
    """Give what reads each item of a source, and the suffix of what it becomes."""
    if kind_of(source) == "tokens":
        return {None: functools.partial(TokenReader(model).read, source)}, ".npy"
    tokens = open_items(source, model)
    if tokens is not None:
        return {key: functools.partial(tokens.__getitem__, key) for key in tokens}, ".npy"
    return read_foreign(source), ".vqt"


def _model_of(found: Foreign, model: str | None) -> str:
    """Give the name of the model that made codes."""
    if model is not None:
        return model
    if found.model is not None:
        return f"hf:facebook/{found.model}"
    raise UsageError("name the model that made the codes: --model M")


def _write_array(job: Job, found: Foreign | Tokens) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, found.codes)
    make_folder(job.target.parent)
    atomic_write(job.target, file.getbuffer())
    facts = grid_facts(found) if isinstance(found, Tokens) else {"num_tokens": found.codes.size}
    return {"file": str(job.source), "kind": "array", "shape": list(found.codes.shape)} | facts


def _write_tokens(job: Job, found: Foreign, codec: Codec, size: str | None) -> dict[str, Any]:
    encoded = dump(_tokens(job, found, codec, size), codec.tokenizer.entropy_model)
    make_folder(job.target.parent)
    atomic_write(job.target, encoded)
    return token_facts(job.source, parse_header(encoded)[0])


def _tokens(job: Job, found: Foreign, codec: Codec, size: str | None) -> Tokens:
    """Make tokens of codes.

    Raises:
        MediaError: they are not this model's, or of a medium of another size.
    """
    tokenizer, codes = codec.tokenizer, found.codes
    if tokenizer.modality == "image" and codes.ndim == 2:
        codes = codes[None]  # rows and columns of a single codebook
    forms = {"image": {3: "height, width"}, "audio": {2: "time", 3: "channels, time"}}[tokenizer.modality]
    if codes.ndim not in forms:
        expected = " or ".join(f"(num_codebooks, {axes})" for axes in forms.values())
        raise MediaError(f"codes of shape {codes.shape}, not {expected}")
    if len(codes) > len(tokenizer.codebook_sizes):
        raise MediaError(f"has {len(codes)} codebooks, the model {len(tokenizer.codebook_sizes)}; is it another's?")
    extent = found.size
    if extent is None:
        extent = _covered(codes, codec) if size is None else _parsed(size, codes, codec)
        if size is None:
            logger.warning(
                "%s: taken as %s, all that its grid covers; --size tells otherwise", job.name, _shown(extent)
            )
    if "input_db" in found.metadata:
        logger.warning("%s: decodes to DAC's loudness, not its own of %.1f dB", job.name, found.metadata["input_db"])
    try:
        tokens = codec.tokens(codes, extent, found.metadata | pack_side_data(found.side_data))
        codec.check(tokens)
    except ValueError as error:
        raise MediaError(f"{error}; was another model at work?") from None
    except CorruptFileError:
        raise MediaError(
            f"codes of shape {codes.shape} are not what this model makes of a medium of {_shown(extent)}; "
            "give the right --model or --size"
        ) from None
    return tokens


def _shown(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size)) + " pixels" if len(size) == 2 else f"{size[0]} samples at {size[1]} Hz"


def _covered(codes: NDArray[np.int64], codec: Codec) -> tuple[int, ...]:
    """Give the size of all that a grid covers."""
    stride = codec.tokenizer.stride
    if codec.tokenizer.modality == "image":
        return tuple(length * stride for length in codes.shape[:0:-1])
    return codes.shape[-1] * stride, codec.tokenizer.sample_rate or 0, _channels(codes, codec)


def _channels(codes: NDArray[np.int64], codec: Codec) -> int:
    return 1 if codes.ndim == 2 else codes.shape[1] * codec.tokenizer.channels


def _parsed(size: str, codes: NDArray[np.int64], codec: Codec) -> tuple[int, ...]:
    """Read the size that an option gives."""
    is_image = codec.tokenizer.modality == "image"
    try:
        first, separator, second = size.partition("x" if is_image else "@")
        if is_image:
            return int(first), int(second)
        rate = int(second) if separator else codec.tokenizer.sample_rate or 0
        return int(first), rate, _channels(codes, codec)
    except ValueError:
        form = "WIDTHxHEIGHT" if is_image else "SAMPLES or SAMPLES@HZ"
        raise UsageError(f"--size {size}: of this model's {codec.tokenizer.modality}s give {form}") from None
