"""Read token files and shards as multimodal items: those with the same stem are one item."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, TrainingError, UsageError
from vqtok.files.paths import as_path
from vqtok.files.sidecars import read_columns
from vqtok.generation.config import DataConfig
from vqtok.generation.streams import TEXT_SIZE, Stream, StreamName, in_order, text_codes
from vqtok.generation.tokenizers import Tokenizers
from vqtok.media.kinds import is_shard, stem
from vqtok.tokens.find import token_files
from vqtok.tokens.shard.format import parse_shard_header
from vqtok.tokens.shard.index import map_file
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import Header, read_header
from vqtok.training.data import held_out_count, name_hash

logger = logging.getLogger(__name__)

Codes = NDArray[np.integer[Any]]

CAPTION = "caption"
"""The key of the text of an item in the metadata of its tokens."""
WINDOW_PERCENTILE = 10
"""The percentile of the sides of all grids that bounds a window. Smaller grids are left out: few cannot shrink it."""


@dataclass
class Item:
    """One thing in several modalities."""

    name: str
    """The key without suffixes, relative to the folder it was found in."""
    tokens: dict[StreamName, Tokens] = field(default_factory=dict)
    caption: str | None = None

    def codes(self, stream: Stream) -> Codes:
        """Return the codes of a stream, `(num_codebooks, *grid)`. Of several audio channels the first one counts."""
        if stream.name == "text":
            return text_codes(self.caption or "", *stream.window)
        codes = self.tokens[stream.name].codes[: stream.num_codebooks]
        return codes[:, 0] if codes.ndim - 1 > len(stream.window) else codes

    def has(self, stream: Stream) -> bool:
        """Return whether the item has this stream, at least as large as the window."""
        if stream.name == "text":
            return self.caption is not None
        if stream.name not in self.tokens:
            return False
        grid = self.tokens[stream.name].grid[-len(stream.window) :]
        return all(length >= least for length, least in zip(grid, stream.window, strict=True))


def read_items(
    paths: Sequence[str | Path],
    tokenizers: Tokenizers,
    num_codebooks: int | None = None,
    on_read: Callable[[int, int], None] = lambda done, total: None,
) -> list[Item]:
    """Read all token files and shards among `paths` and in folders, and join those with the same stem.

    A file that cannot be read is left out with a warning.

    Args:
        num_codebooks: The number of codebooks to read; by default all.
        on_read: Called with the numbers of files that are read and of all.

    Raises:
        UsageError: Two items of one modality have the same stem, tokens are of several tokenizers of one modality, or
            images are sequences.
        TrainingError: No tokens can be read.
    """
    items: dict[str, Item] = {}
    models: dict[StreamName, bytes] = {}
    failed: Counter[str] = Counter()
    listed = [(file, root) for root in map(as_path, paths) for file in token_files([root])]
    for index, (file, root) in enumerate(listed):
        on_read(index, len(listed))
        try:
            for key, tokens in _read_file(file, tokenizers, num_codebooks):
                name = _name(file, root, key)
                known = models.setdefault(tokens.modality, tokens.model)
                if tokens.model != known:
                    raise UsageError(
                        f"{file}: {tokens.modality} tokens of model {tokens.model.hex()}, others are of {known.hex()}; "
                        "a generator takes one tokenizer a modality"
                    )
                item = items.setdefault(name, Item(name))
                if tokens.modality in item.tokens:
                    raise UsageError(f"{file}: there are two {tokens.modality} items {name}; rename one")
                item.tokens[tokens.modality] = tokens
                item.caption = item.caption or _caption(file, key, tokens)
        except (CorruptFileError, OSError) as error:
            failed[file.suffix] += 1
            logger.warning("skipped: %s", error)
    if not items:
        raise TrainingError(f"{', '.join(map(str, paths))}: no tokens that can be read")
    return list(items.values())


def _read_file(file: Path, tokenizers: Tokenizers, num_codebooks: int | None) -> Iterator[tuple[str | None, Tokens]]:
    header = parse_shard_header(map_file(file))[0] if is_shard(file) else read_header(file)
    if isinstance(header, Header):
        _refuse_sequences(file, header)
    reader = tokenizers.reader(header.model)
    for key in reader.keys(file):
        tokens = reader.read(file, key)
        _refuse_sequences(file, tokens)
        yield key, tokens if num_codebooks is None else tokens.prefix(min(num_codebooks, tokens.num_codebooks))


def _refuse_sequences(file: Path, tokens: Header | Tokens) -> None:
    if (length := tokens.sequence_length) > 1:
        raise UsageError(
            f"{file}: its images are sequences of {length} codes, such as VAR's, on which generators cannot be "
            "trained; encode with a model whose codes lie on a grid"
        )


def _name(file: Path, root: Path, key: str | None) -> str:
    if key is not None:
        return stem(key)
    relative = file.name if file == root else str(file.relative_to(root))
    return stem(relative.removesuffix(file.suffix))


def _caption(file: Path, key: str | None, tokens: Tokens) -> str | None:
    """Return the caption in the metadata, or that in the text file with the stem of a token file."""
    caption = tokens.metadata.get(CAPTION)
    if isinstance(caption, str):
        return caption
    if key is not None:
        return None
    # Named like a media file beside which the text would lie: `a.txt` for both `a.vqt` and `a.png.vqt`.
    return read_columns(file.with_name(f"{stem(file.stem)}{file.suffix}")).get(CAPTION)


def find_streams(items: Sequence[Item], config: DataConfig, tokenizers: Tokenizers) -> list[Stream]:
    """Return the streams that a generator of these items has.

    Raises:
        UsageError: The tokens of a modality have different codebooks.
    """
    streams = []
    for name in in_order([name for item in items for name in item.tokens]):
        streams.append(_media_stream(name, [item.tokens[name] for item in items if name in item.tokens], config))
    captions = [item.caption for item in items if item.caption is not None]
    if captions:
        longest = max(len(caption.encode()) for caption in captions)
        length = min(longest + 1, config.text_length)
        if longest > length:
            cut = sum(len(caption.encode()) > length for caption in captions)
            logger.warning("%d captions are longer than data.text_length, %d bytes, and cut", cut, length)
        streams.append(Stream("text", (TEXT_SIZE,), (length,)))
    for stream in streams:
        missing = sum(stream.name in item.tokens and not item.has(stream) for item in items)
        if missing:
            logger.warning("%d %s items are smaller than the window, and left out", missing, stream.name)
    return streams


def _media_stream(name: StreamName, found: Sequence[Tokens], config: DataConfig) -> Stream:
    first = found[0]
    count = min(tokens.num_codebooks for tokens in found)
    if any(tokens.codebook_sizes[:count] != first.codebook_sizes[:count] for tokens in found):
        raise UsageError(f"the {name} tokens have codebooks of different sizes; encode again with one model")
    dims = 2 if name == "image" else 1
    longest = config.image_window if name == "image" else config.audio_window
    grids = np.array([tokens.grid[-dims:] for tokens in found])
    lowest = np.percentile(grids, WINDOW_PERCENTILE, axis=0, method="lower")
    window = tuple(int(side) for side in np.minimum(lowest, longest))
    whole = next((tokens for tokens in found if tokens.grid[-dims:] == window), None)
    # The size of media that have exactly this grid, for what is generated; others get it from the tokenizer.
    size = whole.size[:2] if whole else ()
    return Stream(name, first.codebook_sizes[:count], window, first.model.hex(), size, first.stride)


def split(items: Sequence[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Split into training and held-out items by a hash of each name, which keeps the split if items are added."""
    ranked = sorted(items, key=lambda item: name_hash(item.name))
    count = held_out_count(len(items), fraction)
    return ranked[count:], ranked[:count]
