"""Print the processor time of the search and of a training step, relative to the bare product `x @ codebook.T`.

The product is computed in the fastest block size, with the fastest library, and discarded.

python tests/benchmarks/bench_codebook.py [threads]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from vqtok.quantizers import VQ, Quantizer, Residual
from vqtok.quantizers.codebook import BLOCK, ROWS, _scores

CASES = {"65536 x 32, 1024": (65536, 32, 1024, 1), "16384 x 8, 16384": (16384, 8, 16384, 1)} | {
    "4096 x 256, 16384": (4096, 256, 16384, 1),
    "16384 x 32, 8 x 1024": (16384, 32, 1024, 8),
}
REPEATS = 3


def ours(dim: int, size: int, depth: int) -> Quantizer:
    parts = [VQ(dim, size) for _ in range(depth)]
    for part in parts:
        part.reset_statistics()
    return parts[0] if depth == 1 else Residual(parts, prefix_dropout=0)


def theirs(dim: int, size: int, depth: int) -> torch.nn.Module:
    options = {"dim": dim, "codebook_size": size, "threshold_ema_dead_code": 1}
    return VectorQuantize(**options) if depth == 1 else ResidualVQ(num_quantizers=depth, **options)


def runs(name: str) -> dict[str, Callable[[], object]]:
    """Return the functions to time: the product, and encoding and training with each library."""
    n, dim, size, depth = CASES[name]
    x, codebook = torch.randn(1, n, dim), torch.randn(size, dim)
    mine, other = ours(dim, size, depth), theirs(dim, size, depth)
    bias = torch.zeros(BLOCK)

    @torch.no_grad()
    def product() -> None:
        for _ in range(depth):
            for vectors in x[0].split(ROWS):
                for block in codebook.split(BLOCK):
                    _scores(vectors, block, bias)

    def encode(model: torch.nn.Module, media: torch.Tensor) -> None:
        model.eval()
        with torch.no_grad():
            model(media)

    def train(model: torch.nn.Module, media: torch.Tensor) -> None:
        model.train()
        model(media)

    z = x.mT  # In channels_last memory, as networks return it.
    return {
        "product": product,
        "vqtok encode": lambda: mine.eval().encode(z),
        "vqtok train": lambda: train(mine, z),
        "vector-quantize-pytorch encode": lambda: encode(other, x),
        "vector-quantize-pytorch train": lambda: train(other, x),
    }


def peak_megabytes(name: str, run: str) -> float:
    """Run once in a new process and return how much memory it needed beyond the setup (Linux only)."""
    code = f"""
import re, bench_codebook
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
function = bench_codebook.runs({name!r})[{run!r}]
before = peak()
function()
print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=sys.path[0], check=True)
    return int(done.stdout) / 1024


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print("| (vectors x dim, size) | run | processor time / product | MB above set-up |\n|---|---|---|---|")
    for name in CASES:
        functions = runs(name)
        times: dict[str, list[float]] = {run: [] for run in functions}
        for repeat in range(REPEATS + 1):
            for run, function in functions.items():  # in turns, because the machine's speed drifts
                since = time.process_time()
                function()
                if repeat:
                    times[run].append(time.process_time() - since)
        for run in list(functions)[1:]:
            ratio = statistics.median(b / a for a, b in zip(times["product"], times[run], strict=True))
            print(f"| {name} | {run} | {ratio:.2f} | {peak_megabytes(name, run):.0f} |", flush=True)


if __name__ == "__main__":
    main()
