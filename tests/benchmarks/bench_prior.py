"""Print how small each coder makes token files, and how fast the prior is.

python tests/benchmarks/bench_prior.py FOLDER [model]    (of .vqt files; headers and checksums are counted in)
"""

from __future__ import annotations

import lzma
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard

from vqtok.models.token_reader import entropy_model_of
from vqtok.tokens.statistics import CodeStatistics
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump, load


def main() -> None:
    files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).rglob("*.vqt"))]
    model = entropy_model_of(files[0][6:14], sys.argv[2] if len(sys.argv) > 2 else None)
    items = [load(data, model) for data in files]
    prior = model.prior
    assert prior
    frame = sum(len(dump(tokens, model, "packed")) for tokens in items) - sum(map(packed_bytes, items))
    raw = [tokens.codes.astype("<u2").tobytes() for tokens in items]
    statistics = CodeStatistics()
    for tokens in items:
        statistics.add(tokens)
    positions = statistics.num_tokens / len(statistics.counts)
    rows = {
        "packed": total(lambda tokens: dump(tokens, model, "packed"), items),
        "order-0 entropy of the whole set": frame + positions * sum(statistics.entropy_bits) / 8,
        "zstd -19 of uint16 codes": frame + sum(len(zstandard.compress(data, 19)) for data in raw),
        "xz -9e of uint16 codes": frame + sum(len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) for data in raw),
        "static": total(lambda tokens: dump(tokens, model, "static"), items),
        "prior": total(lambda tokens: dump(tokens, model, "prior"), items),
        "auto": total(lambda tokens: dump(tokens, model), items),
    }
    print(f"{len(items)} files, {statistics.num_tokens} tokens\n\n| coder | bytes | of packed |\n|---|---|---|")
    for name, size in rows.items():
        print(f"| {name} | {size:.0f} | {size / rows['packed']:.1%} |")
    first = sum(len(prior.encode(tokens.codes[:1])[0]) for tokens in items)
    print(f"\nfirst codebook alone: {first / sum(packed_bytes(tokens.prefix(1)) for tokens in items):.1%} of packed")
    times = [0.0, 0.0]
    for tokens in items:
        begin = time.process_time()
        streams = prior.encode(tokens.codes)
        middle = time.process_time()
        assert np.array_equal(prior.decode(streams, tokens.grid), tokens.codes)
        times[0] += middle - begin
        times[1] += time.process_time() - middle
    print(
        "prior, tokens a second of processor time: encode {:.0f}, decode {:.0f}".format(
            *(statistics.num_tokens / seconds for seconds in times)
        )
    )


def packed_bytes(tokens: Tokens) -> int:
    return sum((tokens.codes[0].size * (size - 1).bit_length() + 7) // 8 for size in tokens.codebook_sizes)


def total(write: Callable[[Tokens], bytes], items: list[Tokens]) -> int:
    return sum(len(write(tokens)) for tokens in items)


if __name__ == "__main__":
    main()
