"""Print the entropy coder's speed and what it loses: `python tests/benchmarks/bench_rans.py`."""

import time

import numpy as np

from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.packing import pack, unpack
from vqtok.tokens.coding.rans import TOTAL, decode, encode


def best_of(repeats, function, *args):
    """Return the function's result and its shortest time in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - begin)
    return result, min(times)


def main() -> None:
    rng = np.random.default_rng(0)
    print("codebook_size   tokens  encode  decode    pack  unpack (M tokens/s)  above entropy")
    for codebook_size in (64, 1024, 8192):
        table = frequencies((1e6 * rng.dirichlet(np.full(codebook_size, 0.7))).astype(np.int64))
        for count in (256, 4096, 65_535, 65_536, 1 << 18, 1 << 20, 1 << 22):
            codes = rng.choice(codebook_size, count, p=table / TOTAL).astype(np.int32)
            data, encode_seconds = best_of(5, encode, codes, table)
            decoded, decode_seconds = best_of(5, decode, data, table, count)
            packed, pack_seconds = best_of(5, pack, codes, codebook_size)
            unpacked, unpack_seconds = best_of(5, unpack, packed, codebook_size, count)
            if not (np.array_equal(decoded, codes) and np.array_equal(unpacked, codes)):
                raise SystemExit("codes came back altered")
            ideal = -np.log2(table[codes] / TOTAL).sum() / 8
            all_seconds = (encode_seconds, decode_seconds, pack_seconds, unpack_seconds)
            speeds = "".join(f"{count / seconds / 1e6:8.1f}" for seconds in all_seconds)
            above = f"{len(data) - ideal:9.0f} B {100 * (len(data) / ideal - 1):7.3f} %"
            print(f"{codebook_size:13}{count:9}{speeds}{above}")


if __name__ == "__main__":
    main()
