"""Print what `vqtok evaluate` takes, relative to the metrics and codecs that it calls.

python tests/benchmarks/bench_evaluate.py PHOTOS [--items 24] [--against jpeg,webp,avif]

One model at four numbers of codebooks, in one process, from reading the files to the finished page. Processor time, so
that other work on the machine hardly matters. The rest is reading, statistics, sheets, curves, the page and Python.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqtok.codec.codec import Codec
from vqtok.codec.prefixes import Prefixes
from vqtok.evaluation import items as items_module
from vqtok.evaluation.candidates import make_plan, open_models
from vqtok.evaluation.codecs import Files
from vqtok.evaluation.items import Item
from vqtok.evaluation.report import make_report
from vqtok.metrics import measure

seconds: Counter[str] = Counter()
inside = False


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the processor time of calls to `seconds`, but for those within another timed call."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        global inside
        if inside:
            return function(*args, **options)
        inside, begin = True, time.process_time()
        try:
            return function(*args, **options)
        finally:
            inside = False
            seconds[name] += time.process_time() - begin

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--against", default="jpeg,webp,avif")
    options = parser.parse_args()
    for name, make in measure.MEASURES.items():
        measure.MEASURES[name] = functools.partial(lambda name, make: timed(name, make()), name, make)
    items_module.features = timed("features of sets", items_module.features)
    for owner, method, name in (
        (Codec, "encode", "tokenizer encode"),
        (Codec, "decode_pixels", "tokenizer decode"),
        (Prefixes, "file", "token files"),
        (Files, "file", "classical encode"),
        (Files, "decode", "classical decode"),
    ):
        setattr(owner, method, timed(name, getattr(owner, method)))
    paths = sorted(options.photos.iterdir())
    chosen = [paths[index * len(paths) // options.items] for index in range(options.items)]
    plan = make_plan("image", open_models(["image"], [1, 2, 4, 8]), options.against.split(","))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        make_report([plan], {"image": [Item(path.name, path) for path in chosen]}, Path(folder) / "report")
        whole = time.process_time() - begin
    print(f"{len(chosen)} images, one model at 4 rates, {options.against}\n\n| | processor s |\n|---|---|")
    for name, value in seconds.most_common():
        print(f"| {name} | {value:.1f} |")
    print(
        f"| sum | {seconds.total():.1f} |\n| vqtok evaluate | {whole:.1f} |\n| ratio | {whole / seconds.total():.2f} |"
    )


if __name__ == "__main__":
    main()
