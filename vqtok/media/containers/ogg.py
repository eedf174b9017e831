"""Ogg files: find the chained streams by their pages.

Source:
    RFC 3533 (pages); "FLAC - Ogg mapping" at xiph.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vqtok.errors import MediaError
from vqtok.media.containers.spliced import Link, Span, Window

_CAPTURE = re.compile(rb"OggS\0")
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # header type flags
_FLAC = b"\x7fFLAC"
_FLAC_MAPPING_BYTES = 9  # before the native FLAC stream, which is split into pages


class _Page(NamedTuple):
    start: int
    body: int
    stop: int
    flags: int
    serial: bytes


def find_links(file: BinaryIO, start: int = 0) -> list[Link]:
    """Return the chained streams of an Ogg file. Parallel streams stay together.

    Raises:
        MediaError: The last page is truncated.
    """
    chain = list[list[_Page]]()
    for page in _pages(file, start):
        if not chain or (page.flags & _FIRST and not chain[-1][-1].flags & _FIRST):
            chain.append([])
        chain[-1].append(page)
    return [_link(file, pages) for pages in chain]


def _link(file: BinaryIO, pages: list[_Page]) -> Link:
    is_ended = {page.serial for page in pages} == {page.serial for page in pages if page.flags & _LAST}
    warning = "" if is_ended else "the Ogg stream has no end mark; its end may be missing"
    file.seek(pages[0].body)
    if (
        file.read(len(_FLAC)) == _FLAC
    ):  # Some versions of libsndfile cannot read FLAC in Ogg, but all read it without the pages.
        spans = [Span(page.body, page.stop) for page in pages if page.serial == pages[0].serial]
        return Link((Span(spans[0].start + _FLAC_MAPPING_BYTES, spans[0].stop), *spans[1:]), warning=warning)
    return Link((Span(pages[0].start, pages[-1].stop),), is_open_ended=not is_ended, warning=warning)


def _pages(file: BinaryIO, start: int) -> Iterator[_Page]:
    """Yield the pages; skip anything between them."""
    window = Window(file)
    while (found := next(window.search(_CAPTURE, start, window.size), None)) is not None:
        head = window.read(found, _HEADER_BYTES + 255)
        count = head[26] if len(head) >= _HEADER_BYTES else 255
        body = found + _HEADER_BYTES + count
        stop = body + sum(head[_HEADER_BYTES : _HEADER_BYTES + count])
        if stop > window.size:
            raise MediaError("is truncated")
        yield _Page(found, body, stop, head[5], head[14:18])
        start = stop
