"""Time shards of many small items: `python tests/benchmarks/bench_shard.py [items]`."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vqtok.tokens.shard.format import parse_shard_header
from vqtok.tokens.shard.index import map_file, scan
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import write_shard
from vqtok.tokens.tokens import Tokens


@contextmanager
def timed(what: str, times: int) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds = time.process_time() - start
    print(f"{what}: {seconds:.3f} s, {1e6 * seconds / times:.2f} us an item")


def main(count: int) -> None:
    rng = np.random.default_rng(0)
    some = [
        Tokens(
            rng.integers(0, 1024, (1, 4, 4)),
            codebook_sizes=(1024,),
            modality="image",
            size=(64, 64),
            stride=16,
            model=bytes(8),
        )
        for _ in range(99)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.vqts"
        with timed("write", count):
            write_shard(path, ((f"n{n % 1000:08}/{n}.jpg", some[n % 99]) for n in range(count)))
        data = path.read_bytes()  # into the cache
        with timed("open", count):
            shard = Shard(path)
        numbers = random.Random(0).sample(range(count), min(count, 10_000))
        with timed("first key", 1):
            shard.find(f"n{count % 1000:08}/{count}.jpg") if count in shard else shard[0]
        with timed("items by key", len(numbers)):
            for n in numbers:
                shard[f"n{n % 1000:08}/{n}.jpg"]
        with timed("items by number", len(numbers)):
            for n in numbers:
                shard[n]
        with timed("all keys", count):
            assert sum(1 for _ in shard) == count
        path.write_bytes(rng.bytes(len(data)))
        header, _ = parse_shard_header(data)
        with timed("search noise of that size", count):
            assert len(list(scan(header, map_file(path), 0))) == 1
        print(f"{len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
