"""Rows of WebDataset tars, read in one pass: members with the same key, one after another, are a row.

Source: https://github.com/webdataset/webdataset, "The WebDataset format".
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vqtok.files.paths import RemotePath
from vqtok.media.kinds import modality_of
from vqtok.rows.row import Row, Unreadable

COLUMN_OF = {"txt": "caption", "text": "caption", "cls": "label"}
"""The columns of members whose suffix is not the name that folders use."""
MAX_TEXT_BYTES = 1 << 20
"""A longer member cannot be a column."""


def tar_rows(path: Path, media: str | None) -> Iterator[Row]:
    """Yield the rows of a tar, compressed or not. A cut or damage becomes the fault of a last row.

    Args:
        media: The suffix of the members that hold the media; by default all that are images or audio.
    """
    group: list[tuple[str, str, bytes]] = []
    key = ""
    try:
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
            for member, name in _files(tar):
                own, suffix = split_name(name)
                if own != key:
                    yield from _rows(key, group, media)
                    group, key = [], own
                content = tar.extractfile(member)
                assert content is not None
                group.append((name, suffix, content.read()))
            is_whole = bool(getattr(tar, "saw_end", False))
    except Exception as error:  # Remote file systems and decompressors raise almost anything.
        reason = getattr(error, "strerror", None) or error
        inside = f" in item {key}" if key else ""
        yield Row("", fault=f"cannot be read, cut off or damaged{inside}: {reason}")
        return
    yield from _rows(key, group, media)
    if not is_whole:
        after = f"after item {key}" if key else "before its first item"
        yield Row("", fault=f"cut off or damaged {after}: it has no end mark")


def tar_count(path: Path, media: str | None) -> int | None:
    """Return the number of rows of a tar from the headers of its members; None if it is damaged."""
    count = inside = 0
    key = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as tar:
            for _, name in _files(tar):
                own, suffix = split_name(name)
                if own != key:
                    count, key, inside = count + (key is not None and not inside), own, 0
                if _is_media(name, suffix, media):
                    count, inside = count + 1, inside + 1
            is_whole = bool(getattr(tar, "saw_end", False))
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return None
    return count + (key is not None and not inside) if is_whole else None


def _files(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the members that are files with their names, but for hidden ones."""
    for member in tar:
        name = member.name.removeprefix("./")
        if member.isfile() and not Path(name).name.startswith((".", "__")):
            yield member, name


def _is_media(name: str, suffix: str, media: str | None) -> bool:
    if media is None:
        return modality_of(Path(name)) is not None
    return media.lower() in (suffix, suffix.rpartition(".")[2])


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member: the suffix begins at the first dot of the name of the file."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _rows(key: str, group: list[tuple[str, str, bytes]], media: str | None) -> Iterator[Row]:
    """Yield a row for each image and audio of a key."""
    if not group:
        return
    is_media = [_is_media(name, suffix, media) for name, suffix, _ in group]
    columns: dict[str, Any] = {}
    for (_, suffix, data), own in zip(group, is_media, strict=True):
        # Other media of the row are neither its media nor its columns, if one suffix was asked for.
        if not own and modality_of(Path(f"x.{suffix}")) is None:
            columns |= column_of(suffix, data)
    if not any(is_media):
        what = "neither an image nor audio" if media is None else f"no member .{media}"
        found = ", ".join(f".{suffix}" for _, suffix, _ in group)
        yield Row(key, fault=f"has {what}, only {found}")
        return
    for (name, _, data), own in zip(group, is_media, strict=True):
        if own:
            yield Row(name, data, columns, shares_stem=sum(is_media) > 1)


def column_of(suffix: str, data: bytes) -> dict[str, Any]:
    """Return the columns of a member or sidecar that is not media."""
    name = COLUMN_OF.get(suffix, suffix)
    if len(data) > MAX_TEXT_BYTES:
        return {name: Unreadable(f"has {len(data)} bytes", hides=suffix.endswith("json"))}
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return {name: Unreadable("is not UTF-8 text", hides=suffix.endswith("json"))}
    if suffix == "cls" and text.isdecimal():
        return {name: int(text)}
    if suffix.rpartition(".")[2] != "json":
        return {name: text} if text else {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {name: Unreadable("is not JSON", hides=True)}
    return value if isinstance(value, dict) and suffix == "json" else {name: value}


class _Member(tarfile.TarInfo):
    """Notes in its tar that the end mark was seen: tarfile takes a cut between two members for an end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.saw_end = True  # type: ignore[attr-defined]
            raise


def _opened(path: Path) -> BinaryIO:
    return path.stream() if isinstance(path, RemotePath) else path.open("rb")
