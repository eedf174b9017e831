"""Evaluate many items in several processes. Each result is appended to a file, so that a run can be continued."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from vqtok.errors import MediaError, OutputError, VqtokError
from vqtok.evaluation.candidates import Plan
from vqtok.evaluation.items import Item, Worker, file_hash
from vqtok.evaluation.speed import one_thread
from vqtok.files.atomic import atomic_write, make_folder, write_error
from vqtok.media.audio import audio_info
from vqtok.media.image import num_pixels

logger = logging.getLogger(__name__)

Record = dict[str, Any]
LARGE = {"image": 6_000_000, "audio": 30_000_000}
"""Pixels or samples from which an item is evaluated alone: metrics take some hundred bytes for each."""


def evaluate_items(
    plan: Plan,
    items: Sequence[Item],
    lines: Path,
    digest: str,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    on_finished: Callable[[Record], None] = lambda record: None,
) -> None:
    """Evaluate items and append a JSON line for each to a file; those that the file has already are kept.

    Args:
        lines: The file.
        digest: Stands for all that the results depend on besides the items.
        jobs: The number of processes; one is this process.
        overwrite: Start over if the file is of a run with another digest.
        on_finished: Called with the record of each item; with `skipped` in it if the file has it already.

    Raises:
        OutputError: The file is of another run, or cannot be written.
        VqtokError: A process was killed.
    """
    kept = _finished(lines, digest, overwrite)
    make_folder(lines.parent)
    try:
        start = "".join(json.dumps(record) + "\n" for record in ({"run": digest}, *kept.values()))
        atomic_write(lines, start.encode())  # Without a line that was cut off; a kill now loses nothing.
        with lines.open("a", encoding="utf-8") as file:
            waiting = []
            for item in items:
                record = kept.get(item.key)
                if record and _is_current(item, record):
                    on_finished(record | {"skipped": True})
                else:
                    waiting.append(item)
            for record in _evaluated(plan, waiting, min(jobs, len(waiting))):
                file.write(json.dumps(record) + "\n")
                file.flush()
                on_finished(record)
    except OSError as error:
        raise write_error(lines, error) from error


def read_records(lines: Path, items: Sequence[Item]) -> Iterator[Record]:
    """Yield the record of each item, in the order of the items."""
    places: dict[str, int] = {}
    with lines.open("rb") as file:
        file.readline()
        while True:
            place, line = file.tell(), file.readline()
            if not line.endswith(b"\n"):
                break
            places[json.loads(line)["key"]] = place
        for item in items:
            file.seek(places[item.key])
            yield json.loads(file.readline())


def _finished(lines: Path, digest: str, overwrite: bool) -> dict[str, Record]:
    """Return the records in the file of an interrupted run, by key. A line that was cut off is ignored.

    Args:
        overwrite: Return none if the file is of a run with other settings.

    Raises:
        OutputError: The file is of a run with other settings.
    """
    if not lines.is_file():
        return {}
    found: dict[str, Record] = {}
    for number, line in enumerate(lines.read_bytes().splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if number == 0 and record.get("run") != digest:
            if overwrite:
                return {}
            raise OutputError(f"{lines}: left by a run with other models, options or versions; `overwrite` starts over")
        if number and "error" not in record:
            found[record["key"]] = record
    return found


def _is_current(item: Item, record: Record) -> bool:
    try:
        return bool(record["sha256"] == file_hash(item.path))
    except MediaError:
        return False


def _evaluated(plan: Plan, items: Sequence[Item], jobs: int) -> Iterator[Record]:
    """Yield the record of each item as it is finished."""
    if not items:
        return
    if jobs <= 1:
        with one_thread():
            worker = Worker(plan)
            yield from map(worker.evaluate, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_process, (plan,))
    running: dict[Future[tuple[Record, list[str]]], Item] = {}
    waiting = list(reversed(items))
    try:
        while waiting or running:
            while waiting and len(running) < 2 * jobs and _may_start(waiting[-1], running.values(), plan.modality):
                item = waiting.pop()
                running[pool.submit(_evaluate, item)] = item
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                record, warnings = future.result()
                del running[future]
                for warning in warnings:
                    logger.warning("%s", warning)
                yield record
    except BrokenProcessPool as error:
        names = ", ".join(str(item.path) for item in running.values())
        raise VqtokError(
            f"a process was killed while it evaluated one of {names}; the same command continues, "
            "with `jobs` 1 it needs less memory"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _may_start(item: Item, running: Any, modality: str) -> bool:
    """Return whether an item may be evaluated besides others: a large one only by itself."""
    return not running or not any(_is_large(other, modality) for other in (item, *running))


_sizes: dict[Path, bool] = {}


def _is_large(item: Item, modality: str) -> bool:
    if item.path not in _sizes:
        try:
            size = num_pixels(item.path) if modality == "image" else audio_info(item.path)[0]
        except (MediaError, OSError):
            size = 0
        _sizes[item.path] = size > LARGE[modality]
    return _sizes[item.path]


_worker: Worker | None = None
_warnings: list[str] = []


class _Collector(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _warnings.append(record.getMessage())


def _start_process(plan: Plan) -> None:
    """Prepare a process of the pool."""
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent process ends the others.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, handlers=[_Collector()], force=True)
    _worker = Worker(plan)


def _end_with_parent() -> None:
    """End this process when its parent has been killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _evaluate(item: Item) -> tuple[Record, list[str]]:
    assert _worker
    _warnings.clear()
    record = _worker.evaluate(item)
    return record, [message for message, _ in Counter(_warnings).items()]
