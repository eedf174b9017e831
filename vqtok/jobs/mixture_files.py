"""The options of an export of rows in one vocabulary, and its files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok.errors import MediaError, UsageError
from vqtok.files.atomic import atomic_write, make_folder, refuse_existing
from vqtok.files.paths import local_path
from vqtok.media.transforms import METADATA_KEY
from vqtok.tokens.export.mixture import DEFAULT_KINDS, Mixture
from vqtok.tokens.export.row_templates import RowTemplate, Splits
from vqtok.tokens.export.sequences import SUFFIXES, Packer, SequenceFormat, Write, write_sequences
from vqtok.tokens.export.sequences import Sequence as Ids
from vqtok.tokens.export.sidecar import FOLDER_FILE, remove_other_sidecar, sidecar_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixtureOptions:
    """How rows are exported.

    Raises:
        UsageError: The options contradict each other.
    """

    to: str
    layout: str = "flat"
    offset: int | None = None
    """The id of the first code; by default the size of the text vocabulary."""
    tokenizer: str | None = None
    """A tokenizer of Hugging Face for captions, or `bytes`."""
    row: Sequence[str] = ()
    """Templates such as `{caption}{image}`, each with a weight after `=` if there are several."""
    split: str | None = None
    shuffle: int | None = None
    """A seed."""
    pack: int | None = None
    rows_per_file: int | None = None
    special_tokens: Sequence[str] = DEFAULT_KINDS
    begin_token: int | str | None = None
    end_token: int | str | None = None

    def __post_init__(self) -> None:
        if self.to not in SUFFIXES:
            raise UsageError(f"`to` {self.to}: rows in one vocabulary are written as {', '.join(SUFFIXES)}")
        if self.layout not in ("flat", "coarse-first"):
            raise UsageError(f"`layout` {self.layout}: rows in one vocabulary are flat or coarse-first")
        if self.pack is not None and self.to not in ("parquet", "jsonl"):
            raise UsageError(f"`pack` is for parquet and jsonl; trainers pack what is written as {self.to} themselves")
        if self.rows_per_file is not None and self.rows_per_file < 1:
            raise UsageError(f"`rows_per_file` {self.rows_per_file}: must be at least 1")
        _ = self.templates, self.splits

    @property
    def templates(self) -> list[RowTemplate]:
        return [RowTemplate.parse(text) for text in self.row]

    @property
    def splits(self) -> Splits | None:
        return None if self.split is None else Splits.parse(self.split)


def origin(row: Ids) -> str:
    """Return the key of the file that a row is a part of, so that flipped images and segments stay in its split."""
    facts = row.columns.get(METADATA_KEY)
    with suppress(ValueError):
        facts = json.loads(facts) if isinstance(facts, str) else facts  # As Parquet stores it.
    if not isinstance(facts, Mapping):
        return row.key
    key = row.key.removesuffix("-flipped") if facts.get("flipped") else row.key
    segment = facts.get("segment")
    return key.removesuffix(f"-{segment:05}") if isinstance(segment, int) else key


class MixtureFiles:
    """The files of an export: one, or those of splits and parts in a folder. They get their names when complete."""

    def __init__(
        self, output: str, options: MixtureOptions, mixture: Mixture, facts: dict[str, Any], overwrite: bool
    ) -> None:
        self._options, self._mixture, self._facts, self._overwrite = options, mixture, facts, overwrite
        self._path = local_path(output)
        self._to: SequenceFormat = options.to  # type: ignore[assignment]
        self._splits = options.splits
        is_folder = bool(self._splits or options.rows_per_file or output.endswith("/") or self._path.is_dir())
        self._folder = self._path if is_folder else None
        if is_folder and self._path.exists() and not self._path.is_dir():
            raise UsageError(f"`output` {output}: is a file; splits and parts need a folder")
        self._sidecar = (
            self._path / FOLDER_FILE if is_folder else sidecar_name(_data_file(self._path, self._to), self._to)
        )
        self._opened: dict[str, tuple[ExitStack, Write, Path]] = {}
        self._in_file: Counter[str] = Counter()
        self._parts: Counter[str] = Counter()
        self._packers: dict[str, Packer] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._files: list[Path] = []
        if not overwrite:
            refuse_existing(self._sidecar)
            for split in self._splits.fractions if self._splits else ["train"]:
                refuse_existing(self._file(split))

    def __enter__(self) -> MixtureFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for stack, _, _ in self._opened.values():
            stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(self, sequence: Ids) -> None:
        split = self._splits.of(origin(sequence)) if self._splits else "train"
        counts = self._counts.setdefault(split, Counter())
        counts["num_items"] += 1
        counts["num_ids"] += int((sequence.ids >= 0).sum())  # Others are characters.
        if self._options.pack is None:
            self._write(split, sequence)
            return
        packer = self._packers.setdefault(split, Packer(self._options.pack))
        for packed in packer.add(sequence.ids):
            self._write(split, packed)

    def finish(self) -> None:
        """Complete the files.

        Raises:
            MediaError: Nothing was added.
        """
        if not self._counts:
            raise MediaError(f"{self._path}: not written, because there is nothing to export")
        for split, packer in self._packers.items():
            self._counts[split]["num_sequences"] = packer.count
            self._counts[split]["ids_left_over"] = packer.left
            if not packer.count:
                logger.warning(
                    "%s: the %d ids of the split %s do not fill a sequence of %d, so it gets no file",
                    self._path,
                    self._counts[split]["num_ids"],
                    split,
                    self._options.pack,
                )
        totals = sum(self._counts.values(), Counter[str]())
        self._facts |= dict(totals)
        if self._splits:
            self._facts["splits"] = {name: dict(found) for name, found in self._counts.items()}
        for split in [*self._opened]:
            self._close(split)
        if not self._files:
            raise MediaError(f"{self._path}: not written: {totals['num_ids']} ids do not fill a sequence")
        for stale in self._stale():
            stale.unlink()
        if self._folder is None:
            remove_other_sidecar(self._files[0], self._to)
        make_folder(self._sidecar.parent)
        atomic_write(self._sidecar, json.dumps(self._facts, indent=2).encode() + b"\n")

    def facts(self) -> dict[str, Any]:
        """Return what was written."""
        names = [str(path) for path in [*self._files, self._sidecar]]
        return self._facts | {"files": names, "file_bytes": sum(path.stat().st_size for path in self._files)}

    def _write(self, split: str, sequence: Ids) -> None:
        if split not in self._opened:
            path = self._file(split)
            make_folder(path.parent)
            stack = ExitStack()
            self._opened[split] = (
                stack,
                stack.enter_context(write_sequences(path, self._to, self._mixture, self._facts)),
                path,
            )
        self._opened[split][1](sequence)
        self._in_file[split] += 1
        if self._in_file[split] == self._options.rows_per_file:
            self._close(split)

    def _close(self, split: str) -> None:
        stack, _, path = self._opened.pop(split)
        stack.close()
        self._files.append(path)
        self._parts[split] += 1
        self._in_file[split] = 0

    def _file(self, split: str) -> Path:
        if self._folder is None:
            return _data_file(self._path, self._to)
        # nanoGPT's own name.
        name = "val" if split == "validation" and self._to == "bin" else split
        part = f"-{self._parts[split]:05}" if self._options.rows_per_file else ""
        return self._folder / f"{name}{part}{SUFFIXES[self._to]}"

    def _stale(self) -> Iterator[Path]:
        """Yield the parts of an earlier export that this one has not replaced."""
        if self._folder is None or not self._options.rows_per_file:
            return
        for split in self._parts:
            for path in self._folder.glob(f"{split}-[0-9]*{SUFFIXES[self._to]}"):
                if path not in self._files:
                    yield path


def _data_file(path: Path, to: str) -> Path:
    return path.with_name(path.name + ".bin") if to == "megatron" and path.suffix != ".bin" else path
