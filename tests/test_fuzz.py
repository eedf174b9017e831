"""Readers meet damaged and forged files: typed errors alone, in bounded time and memory, and never a wrong code.

Damaged files keep their checksums, so that every change must be refused; in forged ones these are right again, so that
what lies behind them is reached. `python tests/test_fuzz.py COUNT [SEED]` runs as many as wanted.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXPORTS, GOLDEN, MODELS, NEWER, SHARDS, TOKEN_FILES, codes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from vqtok.errors import CorruptFileError, UnsupportedVersionError, VqtokError
from vqtok.inspection import inspect, shard_facts
from vqtok.models.card import read_card
from vqtok.models.entropy_model import PREFIXES, entropy_model
from vqtok.models.token_reader import read_entropy_model
from vqtok.tokens import shape
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.export.export import output_files, read_export
from vqtok.tokens.export.sidecar import json_file
from vqtok.tokens.fields import checksum, varint
from vqtok.tokens.shape import cut
from vqtok.tokens.shard import format as record
from vqtok.tokens.shard.format import parse_shard_header
from vqtok.tokens.shard.index import GROUP, HASH_BYTES, pack_index, parse_index, walk
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import merge
from vqtok.tokens.vqt import file as vqt
from vqtok.tokens.vqt.file import dump, load, load_parts
from vqtok.tokens.vqt.header import parse_header, parse_parts, parse_whole, seal

Random = random.Random
REFUSED = CorruptFileError, UnsupportedVersionError
FEW_TOKENS = 2**13
"""Instead of the format's limit, so that a forged file of many tokens takes little time to be honoured."""
SECONDS = 20
"""That one input may take at most, of those that take milliseconds; the machine may be busy."""
NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 2**14, 2**16, 2**20 + 1, 2**28, 2**31, 2**32, 2**35 - 1]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "auto",
    [],
    [0],
    [[]],
    {},
    {"a": 1},
]


def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change something about data, once or several times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(rng, data, rng.randrange(len(data) + 1), others)
    return data


def flip(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    at = min(at, len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else data


def overwrite(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    new = rng.randbytes(rng.randrange(1, 9)) if rng.random() < 0.5 else rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
    return data[:at] + new + data[at + len(new) :]


def insert(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def remove(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    return data[:at] + data[at + rng.randrange(1, 20) :]


def truncate(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    return data[:at] if rng.random() < 0.5 else data[at:]


def repeat(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    return data[:at] + data[max(0, at - rng.randrange(1, 60)) :]


def splice(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[:at] + other[rng.choice((at, rng.randrange(len(other) + 1))) :]


def renumber(rng: Random, data: bytes, at: int, others: Sequence[bytes]) -> bytes:
    """Put another varint where one may stand, mostly early in the file."""
    at = at % 60 if rng.random() < 0.8 else at
    end = at
    while end < len(data) and data[end] & 0x80:
        end += 1
    return data[:at] + varint(rng.choice(NUMBERS)) + data[end + 1 :]


MUTATIONS = [flip, flip, overwrite, insert, remove, truncate, repeat, splice, renumber, renumber]


def mutate_json(rng: Random, value: Any) -> Any:
    """Change one part of a JSON value."""
    if rng.random() < 0.2 or not value or not isinstance(value, dict | list):
        return rng.choice(VALUES)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        changed = [] if rng.random() < 0.1 else [mutate_json(rng, value[place])]
        return value[:place] + changed + value[place + 1 :]
    name = rng.choice(list(value))
    if rng.random() < 0.1:
        return {other: value[other] for other in value if other != name}
    return value | {name: mutate_json(rng, value[name])}


class Fuzzer:
    """Feeds one reader after another; `counts` tells what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, Random(seed)
        self.counts: Counter[str] = Counter()
        self.models = {name: read_entropy_model(GOLDEN / name) for name in MODELS.values()}
        names = [name for name in [*TOKEN_FILES, NEWER] if not name.startswith("hour")]
        self.files = {name: (GOLDEN / name).read_bytes() for name in names}
        self.headers = {name: replace(parse_header(data)[0], file_bytes=0) for name, data in self.files.items()}
        self.expected = {name: codes_of(name)["codes"] for name in names}
        self.shards = {name: (GOLDEN / name).read_bytes() for name in SHARDS}
        self.codes = {name: codes_of(name) for name in SHARDS}
        self.targets: list[Callable[[], str]] = [
            *[self.damaged_tokens] * 12,
            *[self.forged_tokens] * 5,
            *[self.damaged_shard, self.forged_shard, self.model, self.export],
        ]

    def run(self, count: int) -> Counter[str]:
        """Feed `count` mutated inputs.

        Raises:
            Exception: what no reader may do; the input is kept in the folder.
        """
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("a reader hangs")))
        for _ in range(count):
            target = self.rng.choice(self.targets)
            signal.alarm(SECONDS)
            self.counts[f"{target.__name__}: {target()}"] += 1
        signal.alarm(0)
        return self.counts

    def pick(self, files: dict[str, bytes]) -> tuple[str, bytes]:
        return self.rng.choice(list(files.items()))

    def mutated(self, data: bytes, files: dict[str, bytes]) -> bytes:
        return mutate(self.rng, data, list(files.values()))

    def model_of(self, name: str) -> EntropyModel:
        return self.models[MODELS["image" if name.startswith("image") else "audio"]]

    def put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def damaged_tokens(self) -> str:
        name, whole = self.pick(self.files)
        data = self.put_last(self.mutated(whole, self.files))
        if data in self.files.values():
            return "unchanged"
        try:
            load(data, self.model_of(name))
        except REFUSED:
            pass
        else:
            raise AssertionError("a damaged file is read")
        try:
            parts = parse_parts(data)
        except REFUSED:
            return "refused"
        if parts.whole_codebooks is not None:  # No checksum is left: it must be readable or refused, no more.
            with contextlib.suppress(VqtokError):
                load_parts(data, parts, self.model_of(name), blank=[0] * parts.header.num_codebooks)
            return "cut off"
        found = replace(parts.header, file_bytes=0)
        (kept,) = [name for name, known in self.headers.items() if known == found]
        expected = self.expected[kept]
        tokens = load_parts(data, parts, self.model_of(kept), blank=[0] * found.num_codebooks)
        for place, start in zip(cut(found.modality, found.grid, found.segment_steps), parts.starts, strict=True):
            assert start is None or np.array_equal(tokens.codes[:, *place], expected[:, *place])
        return "salvaged"

    def forged_tokens(self) -> str:
        name, whole = self.pick(self.files)
        parts = parse_whole(whole)
        if parts.header.segment_steps:
            head = whole[: parts.starts[0] - 4]
            ends = [start - 4 for start in parts.starts[1:]] + [len(whole) - len(head) - 12]
            payloads = [whole[start:end] for start, end in zip(parts.starts, ends, strict=True)]
            if self.rng.random() < 0.5:
                head = self.mutated(head, self.files)
            else:
                number = self.rng.randrange(len(payloads))
                payloads[number] = self.mutated(payloads[number], self.files)
            data = seal(head + checksum(head), payloads) if len(head) > 5 else head
        else:
            body = self.mutated(whole[:-4], self.files)
            data = body + checksum(body)
        return self.consistent(self.put_last(data), self.model_of(name))

    def consistent(self, data: bytes, model: EntropyModel) -> str:
        try:
            tokens = load(data, model)
        except VqtokError as error:
            return type(error).__name__
        found, _ = parse_header(data)
        again = dump(tokens, model, found.coder)
        if not found.segment_steps:
            assert parse_header(again)[0].payload_lengths == found.payload_lengths
            payload = sum(found.payload_lengths)
            assert data[-4 - payload : -4] == again[-4 - payload : -4], "two streams for one grid of codes"
        return "accepted"

    def put_last(self, data: bytes) -> bytes:
        self.last = data
        return data

    def damaged_shard(self) -> str:
        name, whole = self.pick(self.shards)
        data = self.put_last(self.mutated(whole, self.shards))
        if data in self.shards.values():
            return "unchanged"
        path = self.put("damaged.vqts", data)
        try:
            shard_facts(path)
        except REFUSED:
            pass
        else:
            raise AssertionError("a damaged shard is read")
        result = self.read_shard(path, name)
        if self.rng.random() < 0.7:
            return result
        try:
            merge([path], self.folder / "merged.vqts", salvage=True, overwrite=True)
        except VqtokError:
            return result
        return f"{result}, salvaged {self.read_shard(self.folder / 'merged.vqts', name)}"

    def read_shard(self, path: Path, name: str) -> str:
        """Read what can be read of a shard, all of which must be what was written."""
        expected = {key: codes for codes in self.codes.values() for key, codes in codes.items()}
        try:
            shard = Shard(path, lambda identity: self.model_of(name))
        except REFUSED:
            return "refused"
        read = 0
        for number in range(min(len(shard), 100)):
            try:
                item = shard.find(number)
                tokens = shard.load(item)
            except VqtokError:
                continue
            kept = [codes[item.key] for codes in self.codes.values() if item.key in codes]
            assert any(np.array_equal(tokens.codes, codes) for codes in kept), item.key
            read += 1
        assert read <= len(expected)
        return f"{read} items"

    def forged_shard(self) -> str:
        name, whole = self.pick(self.shards)
        shard, start = parse_shard_header(whole)
        index = parse_index(whole, start)
        records = [whole[item.start : item.end - 4] for item in walk(shard, whole, start, index)]
        head, hashes = whole[: start - 4], index.hashes
        part = self.rng.random()
        if part < 0.2:
            head = self.mutated(head, self.shards)
        elif part < 0.8:
            number = self.rng.randrange(len(records))
            records[number] = self.mutated(records[number], self.shards)
        elif part < 0.9:
            hashes = self.mutated(hashes, self.shards)
        head += checksum(head)
        body, offsets = bytearray(head), bytearray()
        for number, item in enumerate(records):
            if number % GROUP == 0:
                offsets += len(body).to_bytes(8, "little")
            body += item + checksum(item)
        tail = pack_index(shard, hashes[: len(hashes) // HASH_BYTES * HASH_BYTES], bytes(offsets), len(body))
        tail = head + tail[start:] if part < 0.2 else tail
        path = self.put("forged.vqts", self.put_last(bytes(body) + tail))
        try:
            with Shard(path, lambda identity: self.model_of(name)) as opened:
                for key in list(opened):
                    opened[key]
        except VqtokError as error:
            return type(error).__name__
        except KeyError:
            return "a key that is there twice, or in no UTF-8"
        return "accepted"

    def model(self) -> str:
        name = self.rng.choice(list(MODELS.values()))
        whole = (GOLDEN / name).read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        kind = self.rng.randrange(4)
        data = whole
        if kind == 0:
            data = self.mutated(whole, self.shards)
        elif kind == 1:
            data = self.mutated(whole[:end], self.shards) + whole[end:]
        else:
            facts = json.loads(whole[8:end])
            if kind == 2:
                facts = mutate_json(self.rng, facts)
            else:
                card = mutate_json(self.rng, json.loads(facts["__metadata__"]["vqtok"]))
                facts["__metadata__"]["vqtok"] = json.dumps(card)
            text = json.dumps(facts).encode()
            data = len(text).to_bytes(8, "little") + text + whole[end:]
        path = self.put("forged.safetensors", self.put_last(data))
        checked = self.rng.random() < 0.5
        try:
            card = read_card(path)
            model = read_entropy_model(path) if checked else self.unchecked(path)
            for file, tokens in self.files.items():
                if file.startswith("image") == (card.config["model"]["modality"] == "image"):
                    found = load(tokens, model)
                    assert not checked or np.array_equal(found.codes, self.expected[file])
        except (VqtokError, SafetensorError) as error:
            return type(error).__name__
        return "accepted"

    def unchecked(self, path: Path) -> EntropyModel:
        """Read a model as if its identity were right, which a forged one can have."""
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIXES)}  # noqa: SIM118
        return entropy_model(arrays, len(read_card(path).codebook_sizes))

    def export(self) -> str:
        name = self.rng.choice(list(EXPORTS))
        files = output_files(GOLDEN / name, EXPORTS[name].to)
        chosen = files[-1] if name.endswith(".parquet") else self.rng.choice(files)  # pyarrow reads the data itself
        for file in files:
            self.put(file.name, file.read_bytes())
        whole = chosen.read_bytes()
        if chosen == json_file(GOLDEN / name) and self.rng.random() < 0.8:
            data = json.dumps(mutate_json(self.rng, json.loads(whole))).encode()
        else:
            data = self.mutated(whole, {name: whole})
        self.put(chosen.name, self.put_last(data))
        try:
            inspect(self.folder / name)
            opened = read_export(self.folder / name)
            for key in opened:
                opened[key]
        except VqtokError as error:
            return type(error).__name__
        return "accepted"


@pytest.fixture
def few_tokens(monkeypatch):
    for module in (shape, record):
        monkeypatch.setattr(module, "MAX_TOKENS", FEW_TOKENS)
    for modality in vqt.SEGMENT_POSITIONS:
        monkeypatch.setitem(vqt.SEGMENT_POSITIONS, modality, 2**20)


@pytest.mark.usefixtures("few_tokens")
def test_mutated_files(tmp_path):
    counts = Fuzzer(tmp_path, 0).run(1500)
    assert counts.total() == 1500
    # What is behind the checksums is reached, and what is mutated is not always refused.
    assert {"damaged_tokens: salvaged", "forged_tokens: accepted", "forged_shard: accepted"} <= set(counts)


@pytest.mark.usefixtures("few_tokens")
def test_memory_of_mutated_files(tmp_path):
    fuzzer = Fuzzer(tmp_path, 1)
    tracemalloc.start()
    fuzzer.run(200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.usefixtures("few_tokens")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flags=st.integers(0, 255),
    numbers=st.lists(st.sampled_from(NUMBERS) | st.integers(0, 40), max_size=20),
    rest=st.binary(max_size=60),
    sealed=st.booleans(),
)
def test_any_fields(flags, numbers, rest, sealed):
    """Headers made of numbers, which hypothesis makes smaller when one is not refused as it should be."""
    head = b"\x89VQ\n\x10" + bytes([flags]) + b"identity" + b"".join(map(varint, numbers))
    for data in (head + rest, seal(head + checksum(head), [rest]) if sealed else head + rest + checksum(head + rest)):
        with contextlib.suppress(VqtokError):
            load(data, EntropyModel([np.array([2**14 - 1, 1])]))
        with contextlib.suppress(VqtokError):
            load_parts(data, parse_parts(data), blank=[0] * 256)


@pytest.mark.slow
def test_a_million_mutated_files():
    subprocess.run([sys.executable, __file__, "1000000"], check=True)


def main(count: int, seed: int = 0) -> None:
    """Run mutations in 2 GB of address space, and tell what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
    shape.MAX_TOKENS = record.MAX_TOKENS = FEW_TOKENS
    for modality in vqt.SEGMENT_POSITIONS:
        vqt.SEGMENT_POSITIONS[modality] = 2**20
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), seed)
        try:
            fuzzer.run(count)
        except BaseException:
            Path("crash.bin").write_bytes(fuzzer.last)
            print("the input is in crash.bin, after", fuzzer.counts.total(), "others", file=sys.stderr)
            raise
    for outcome, times in sorted(fuzzer.counts.items()):
        print(f"{times:8} {outcome}")
    print(f"{fuzzer.counts.total()} inputs, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
