"""Find the sources of rows among the inputs of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import RemotePath, absolute
from vqtok.files.walk import files_below
from vqtok.media.kinds import modality_of
from vqtok.media.volume import DICOM_SUFFIXES, NIFTI_SUFFIXES, is_volume
from vqtok.rows.archive import zip_count, zip_rows
from vqtok.rows.patterns import expand, is_pattern
from vqtok.rows.row import ColumnChoice, Row
from vqtok.rows.table import SAVED_FILES, HubDataset, check_parquet, columns_of_parquet, parquet_rows
from vqtok.rows.tar import tar_count, tar_rows
from vqtok.rows.volume import volume_count, volume_rows

HUB_PREFIX = "hf-dataset:"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SUFFIXES = (*TAR_SUFFIXES, ".parquet", ".zip")
"""Names of files that hold rows, beside volumes."""


@dataclass(frozen=True)
class Source:
    """A file of rows, or a split of a Hugging Face data set."""

    path: Path
    prefix: str = ""
    """What the keys of its rows begin with: empty, or a name and a slash if there are several sources."""
    split: str | None = None

    @property
    def absolute(self) -> Path:
        """Its path as processes in other folders know it; a name of the Hub stays as it is."""
        is_name = str(self.path).startswith(HUB_PREFIX)
        return self.path if is_name or isinstance(self.path, RemotePath) else Path(absolute(self.path))

    def rows(self, choice: ColumnChoice) -> Iterator[Row]:
        """Yield its rows, in a fixed order. Faults of single rows and of the file are faults of rows.

        Raises:
            UsageError: It is not plain what holds the media, or a package is missing.
        """
        name = str(self.path).lower()
        if self.split is not None:
            yield from HubDataset(_hub_name(self.path), choice.media, choice.key).rows(self.split)
        elif name.endswith(".parquet"):
            yield from parquet_rows(self.path, choice.media, choice.key, choice.names)
        elif name.endswith(".zip"):
            yield from zip_rows(self.path, choice.media)
        elif not name.endswith(SUFFIXES):
            yield from volume_rows(self.path)
        else:
            yield from tar_rows(self.path, choice.media)

    def count(self, choice: ColumnChoice, *, tars: bool = True) -> int | None:
        """Return the number of its rows if that is known without reading it, after a check of what can be checked.

        Args:
            tars: Count those of tars, too, for which the headers of all members are read.

        Raises:
            UsageError: As `rows` does.
        """
        name = str(self.path).lower()
        if self.split is not None:
            return HubDataset(_hub_name(self.path), choice.media, choice.key).count(self.split)
        if isinstance(self.path, RemotePath):
            return None
        if name.endswith(".parquet"):
            return check_parquet(self.path, choice.media, choice.key)
        if name.endswith(".zip"):
            return zip_count(self.path, choice.media)
        if not name.endswith(SUFFIXES):
            return volume_count(self.path)
        return tar_count(self.path, choice.media) if tars else None


def find_sources(inputs: Sequence[Path], choice: ColumnChoice) -> list[Source]:
    """Return the sources of rows among the inputs: tars, tables, archives, patterns of them, folders that contain
    them and no media, and Hugging Face data sets. Empty if the inputs are media and folders of media.

    Raises:
        UsageError: There are both.
        MediaError: A pattern finds nothing, or there is no such data set.
    """
    found: list[Source] = []
    plain: list[Path] = []
    for path in inputs:
        if str(path).startswith(HUB_PREFIX) or _is_saved(path):
            dataset = HubDataset(_hub_name(path), choice.media, choice.key)
            found += [Source(path, f"{split}/" if len(dataset.splits) > 1 else "", split) for split in dataset.splits]
        elif is_pattern(path):
            files = expand(path)
            rows = [file for file in files if _has_rows(file)]
            found += map(Source, rows)
            plain += [file for file in files if not _has_rows(file)]
        elif _has_rows(path):
            found.append(Source(path))
        elif not isinstance(path, RemotePath) and path.is_dir() and (inside := _files_of_rows(path)):
            found += map(Source, inside)
        else:
            plain.append(path)
    if found and plain:
        raise UsageError(f"{plain[0]}: is not a data set like {found[0].path}; encode them one after another")
    several = len(found) > 1 or any(is_pattern(path) for path in inputs)
    return _with_prefixes(found) if several and all(source.split is None for source in found) else found


def check_columns(sources: Sequence[Source], choice: ColumnChoice) -> None:
    """Check that each column asked for is in one of the sources, if all are Parquet tables on disk.

    Raises:
        UsageError: No table has it.
    """
    paths = [source.path for source in sources]
    if choice.names is None or any(isinstance(p, RemotePath) or p.suffix.lower() != ".parquet" for p in paths):
        return
    found = set[str]().union(*map(columns_of_parquet, paths)) | ({"label"} if choice.label_folders else set())
    if found and (missing := [name for name in choice.names if name not in found]):
        raise UsageError(f"{paths[0]}: no column {', '.join(missing)}; there are {', '.join(sorted(found))}")


def plain_inputs(inputs: Sequence[Path]) -> list[Path]:
    """Return inputs that are no sources of rows, after the expansion of patterns."""
    return [file for path in inputs for file in (expand(path) if is_pattern(path) else [path])]


def _with_prefixes(sources: Sequence[Source]) -> list[Source]:
    """Let keys begin with the names of their files, from the folder on that contains all of them."""
    names = [absolute(source.path) for source in sources]
    root = os.path.commonpath([os.path.dirname(name) for name in names])
    return [
        Source(source.path, _bare(os.path.relpath(name, root)) + "/")
        for source, name in zip(sources, names, strict=True)
    ]


def _bare(name: str) -> str:
    known = (*SUFFIXES, *NIFTI_SUFFIXES, *DICOM_SUFFIXES)
    suffix = next((suffix for suffix in known if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _has_rows(path: Path) -> bool:
    return (_is_data_set(path) and not path.is_dir()) or (not isinstance(path, RemotePath) and is_volume(path))


def _is_data_set(path: Path) -> bool:
    return str(path).lower().endswith((*SUFFIXES, *NIFTI_SUFFIXES))


def _files_of_rows(folder: Path) -> list[Path]:
    """Return the tars, tables, archives and volumes in a folder without images and audio of their own.

    DICOM files count as volumes if the first one is, so that not all have to be opened.
    """
    try:
        media = files_below(folder, lambda path: modality_of(path) is not None)
        first = next(media, None)
        if first is None:
            return [folder / name for name in files_below(folder, _is_data_set)]
        names = [first, *media] if is_volume(folder / first) else []
        return [folder / name for name in names] if all(n.lower().endswith(DICOM_SUFFIXES) for n in names) else []
    except MediaError:
        return []


def _is_saved(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of Hugging Face datasets."""
    return not isinstance(path, RemotePath) and any((path / name).is_file() for name in SAVED_FILES)


def _hub_name(path: Path) -> str:
    return str(path).removeprefix(HUB_PREFIX)
