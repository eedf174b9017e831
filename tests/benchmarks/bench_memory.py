"""Peak memory and time of encoding and decoding, each in a process of its own.

    python tests/benchmarks/bench_memory.py [--minutes 1 10 60] [--megapixels 1 10 80]

Sounds are stereo of 48 kHz, pictures 5:4; the models are the bundled ones. Each sound also goes through pipes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

RATE = 48_000


def write_sound(path: Path, minutes: float) -> None:
    """Write sweeps with noise, a second at a time."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE)[:, None] / RATE
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for second in range(round(60 * minutes)):
            tones = np.sin(2 * np.pi * (100 + second % 50 * 40) * time * [1, 1.5])
            file.write(0.3 * tones + rng.normal(0, 0.01, (RATE, 2)))


def write_picture(path: Path, megapixels: float) -> None:
    """Write waves with noise; 80 megapixels are 10,000 x 8,000."""
    height = round((megapixels * 0.8e6) ** 0.5)
    width = height * 5 // 4
    pixels = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        waves = np.sin(np.arange(width)[:, None] / [30, 50, 70] + y / 40)
        pixels[y] = 127 + 100 * waves + np.random.default_rng(y).normal(0, 4, (width, 3))
    Image.fromarray(pixels).save(path, compress_level=1)


def measure(verb: str, source: Path, target: Path, *, pipes: bool = False) -> tuple[float, float]:
    """Run a vqtok command; return its peak memory in GB and its processor time in seconds."""
    command = [sys.executable, "-m", "vqtok", verb, *(["-"] if pipes else [str(source), "-o", str(target), "--force"])]
    with ExitStack() as opened:
        stdin, stdout = (
            (opened.enter_context(source.open("rb")), opened.enter_context(target.open("wb")))
            if pipes
            else (subprocess.DEVNULL, None)
        )
        process = subprocess.Popen([*command, "--quiet"], stdin=stdin, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return usage.ru_maxrss * scale / 1e9, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 10, 60])
    parser.add_argument("--megapixels", type=float, nargs="*", default=[1, 10, 80])
    options = parser.parse_args()
    print("| medium | encode GB | encode s | decode GB | decode s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        media = [(size, "min stereo 48 kHz", ".wav", write_sound) for size in options.minutes]
        media += [(size, "megapixels", ".png", write_picture) for size in options.megapixels]
        for size, unit, suffix, write in media:
            path, tokens, decoded = (Path(folder, name) for name in (f"in{suffix}", "x.vqt", f"out{suffix}"))
            write(path, size)
            for pipes in (False, True) if suffix == ".wav" else (False,):
                runs = measure("encode", path, tokens, pipes=pipes), measure("decode", tokens, decoded, pipes=pipes)
                numbers = " | ".join(f"{memory:.2f} | {seconds:.0f}" for memory, seconds in runs)
                print(f"| {size:g} {unit}{', - to -' * pipes} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
