"""Ogg files: the streams that are chained in one, by their pages.

Source:
    RFC 3533 (pages); "FLAC - Ogg mapping" at xiph.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vqtok.errors import MediaError
from vqtok.media.spliced import Link, Span, Window

_CAPTURE = re.compile(rb"OggS\0")
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # header type flags
_FLAC = b"\x7fFLAC"
_FLAC_MAPPING_BYTES = 9  # before what is a native FLAC stream but for the pages


class _Page(NamedTuple):
    start: int
    body: int
    stop: int
    flags: int
    serial: bytes


def find_links(file: BinaryIO, start: int = 0) -> list[Link]:
    """Find the streams that are chained in an Ogg file; those that run in parallel stay together.

    Raises:
        MediaError: the last page is not whole.
    """
    chain = list[list[_Page]]()
    for page in _pages(file, start):
        if not chain or (page.flags & _FIRST and not chain[-1][-1].flags & _FIRST):
            chain.append([])
        chain[-1].append(page)
    return [_link(file, pages) for pages in chain]


def _link(file: BinaryIO, pages: list[_Page]) -> Link:
    is_ended = {page.serial for page in pages} == {page.serial for page in pages if page.flags & _LAST}
    warning = "" if is_ended else "the Ogg stream has no end mark, its end may be missing"
    file.seek(pages[0].body)
    if file.read(len(_FLAC)) == _FLAC:  # Not every libsndfile reads FLAC in Ogg, but all do without the pages.
        spans = [Span(page.body, page.stop) for page in pages if page.serial == pages[0].serial]
        return Link((Span(spans[0].start + _FLAC_MAPPING_BYTES, spans[0].stop), *spans[1:]), warning=warning)
    return Link((Span(pages[0].start, pages[-1].stop),), is_open_ended=not is_ended, warning=warning)


def _pages(file: BinaryIO, start: int) -> Iterator[_Page]:
    """Yield the whole pages; what lies between them is passed over."""
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
