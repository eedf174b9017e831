"""Rate and memory of encoding the same images from a folder, from WebDataset tars and from a Parquet table.

    python tests/benchmarks/bench_rows.py IMAGES [--count 2000] [--side 64] [--jobs 1] [--rounds 5]

IMAGES is a folder; its images are repeated until there are enough. Each source is encoded to a shard by the command
line in a process of its own, in turns. Rates are items for each second of processor time, the best of all rounds;
they are compared by the median over the rounds of each source's time relative to the folder's, since other work on the
machine changes both alike. Memory is the peak of the process, for all rows and for a tenth of them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vqtok.media.kinds import modality_of

ROWS_PER_TAR = 500


def images_in(folder: Path, count: int, side: int) -> list[bytes]:
    """Return the content of small image files, which differ in their crop where images are repeated."""
    paths = [path for path in sorted(folder.iterdir()) if modality_of(path) == "image"]
    found = []
    for number, path in enumerate(itertools.islice(itertools.cycle(paths), count)):
        with Image.open(path) as image:
            left = (7 * number) % max(1, image.width - side)
            top = (3 * number) % max(1, image.height - side)
            file = io.BytesIO()
            image.convert("RGB").crop((left, top, left + side, top + side)).save(file, "jpeg", quality=95)
            found.append(file.getvalue())
    return found


def write_sources(folder: Path, images: list[bytes]) -> dict[str, str]:
    """Write the images, each with a caption; return the argument of encode for each source."""
    (folder / "folder").mkdir(parents=True)
    for number, data in enumerate(images):
        (folder / f"folder/{number:06}.jpg").write_bytes(data)
        (folder / f"folder/{number:06}.txt").write_text(f"image {number}")
    (folder / "tars").mkdir()
    for start in range(0, len(images), ROWS_PER_TAR):
        with tarfile.open(folder / f"tars/{start // ROWS_PER_TAR:04}.tar", "w") as tar:
            for number, data in enumerate(images[start : start + ROWS_PER_TAR], start):
                for suffix, content in (("jpg", data), ("txt", f"image {number}".encode())):
                    info = tarfile.TarInfo(f"{number:06}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    table = {
        "image": [{"bytes": data, "path": None} for data in images],
        "caption": [f"image {number}" for number in range(len(images))],
    }
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=100)
    return {"folder": f"{folder}/folder", "tars": f"{folder}/tars/*.tar", "parquet": f"{folder}/table.parquet"}


def measure(source: str, jobs: int) -> tuple[float, float]:
    """Return the processor time in seconds and the peak memory in megabytes of encoding a source."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "vqtok",
            "encode",
            source,
            "--shard",
            f"{out}/x.vqts",
            "--jobs",
            str(jobs),
            "-q",
        ]
        child = subprocess.Popen(command)
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, command
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = images_in(given.images, given.count, given.side)
        sources = write_sources(Path(folder) / "all", images)
        few = write_sources(Path(folder) / "few", images[: given.count // 10])
        print(f"{given.count} images of {given.side} x {given.side}, {given.jobs} core(s)")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for _ in range(given.rounds):
            for name, source in sources.items():
                found[name].append(measure(source, given.jobs))
                print(f"{name}: {found[name][-1][0]:.1f} s", file=sys.stderr, flush=True)
        for name, runs in found.items():
            seconds, memory = min(seconds for seconds, _ in runs), max(memory for _, memory in runs)
            ratio = statistics.median(
                own / reference for (own, _), (reference, _) in zip(runs, found["folder"], strict=True)
            )
            small = measure(few[name], given.jobs)[1]
            print(
                f"{name:8} {given.count / seconds:6.1f} items/s of processor time ({ratio - 1:+.1%} time), "
                f"{memory:.0f} MB, of a tenth {small:.0f} MB"
            )


if __name__ == "__main__":
    main()
