"""A reader of `.vqt` and `.vqts` files written from the README's specification alone, without vqtok."""

from __future__ import annotations

import json
import math
import zlib
from itertools import accumulate

import numpy as np

DTYPES = {"I8": "<i1", "I16": "<i2", "I32": "<i4"}


def read_model(data: bytes) -> dict:
    """Give the integer arrays of a model file."""
    end = 8 + int.from_bytes(data[:8], "little")
    arrays = json.loads(data[8:end])
    arrays.pop("__metadata__")
    return {
        name: np.frombuffer(data[end + a["data_offsets"][0] : end + a["data_offsets"][1]], DTYPES[a["dtype"]])
        .reshape(a["shape"])
        .astype(np.int64)
        for name, a in arrays.items()
        if a["dtype"] in DTYPES
    }


class Bytes:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                assert shift == 7 or byte
                return value
            assert shift < 35

    def varints(self, count: int) -> list[int]:
        return [self.varint() for _ in range(count)]


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def read_file(data: bytes, model: dict) -> np.ndarray:
    """Give the codes `(codebooks, *grid)` of a token file."""
    file = Bytes(data)
    assert file.take(4) == bytes.fromhex("8956510A")
    version, flags = file.take(2)
    assert version >> 4 == 1
    assert flags & 7 < 3
    assert not flags & 64
    file.take(8)
    sizes = file.varints(file.varint())
    file.varint()
    size = file.varints(3 if flags & 8 else 2)
    grid = file.varints(1 if flags & 8 and size[2] == 1 else 2)
    axis = len(grid) - 1 if flags & 8 else 0
    step = file.varint() if flags & 32 else grid[axis]
    segments = -(-grid[axis] // step)
    lengths = file.varints(len(sizes) * segments)
    if flags & 16:
        json.loads(file.take(file.varint()))
    parts = []
    header = data[: file.at]
    if flags & 32:
        assert file.take(4) == crc(header)
    for segment in range(segments):
        own, begin = lengths[segment * len(sizes) :][: len(sizes)], file.at
        shape = [*grid[:axis], min(step, grid[axis] - segment * step), *grid[axis + 1 :]]
        streams = [file.take(length) for length in own]
        parts.append(decode(flags & 7, streams, sizes, shape, model))
        if flags & 32:
            assert file.take(4) == crc(crc(header) + segment.to_bytes(4, "little") + data[begin : file.at - 4])
    again = header + crc(header) if flags & 32 else b""
    last = again + len(again).to_bytes(4, "little") if again else crc(data[: file.at])
    assert data[file.at :] == last
    return np.concatenate(parts, axis + 1)


def decode(coder: int, streams: list[bytes], sizes: list[int], grid: list[int], model: dict) -> np.ndarray:
    count = math.prod(grid)
    if coder == 0:
        codes = [unpack(stream, size, count) for stream, size in zip(streams, sizes, strict=True)]
    elif coder == 1:
        tables = [model[f"entropy.{k}"] for k in range(len(sizes))]
        pairs = list(zip(streams, tables, strict=True))
        codes = [static(s, [t], count)[0] if count < 65536 else lanes(s, t, count) for s, t in pairs]
    else:
        planes = np.zeros((len(sizes), *([1, *grid] if len(grid) == 1 else grid)), np.int64)
        high = model["prior.kernel"][0] > 1
        axis = 1 if high else 2
        step = max(1, 65536 // planes.shape[3 - axis])
        states = [State(stream) for stream in streams]
        for begin in range(0, planes.shape[axis], step):
            piece = planes[:, begin : begin + step] if high else planes[:, :, begin : begin + step]
            for k, state in enumerate(states):
                decode_plane(state, k, piece, model)
        for state in states:
            state.finish()
        codes = list(planes)
    return np.stack(codes).reshape(len(sizes), *grid)


def unpack(stream: bytes, size: int, count: int) -> list[int]:
    width, value = (size - 1).bit_length(), int.from_bytes(stream, "little")
    assert len(stream) == -(-count * width // 8)
    assert value < 1 << count * width
    bits = f"{value:0{count * width}b}"
    codes = [int(bits[len(bits) - (i + 1) * width : len(bits) - i * width], 2) for i in range(count)]
    assert max(codes) < size
    return codes


class State:
    """A state of rANS and the bytes that it takes in."""

    def __init__(self, stream: bytes) -> None:
        assert not stream.startswith(b"\0")
        self.stream, self.at, self.state = stream, 0, 0

    def symbol(self, ends: list[int]) -> int:
        while self.state < 1 << 24 and self.at < len(self.stream):
            self.state = self.state * 256 + self.stream[self.at]
            self.at += 1
        return self.step(ends)

    def step(self, ends: list[int]) -> int:
        slot = self.state % 16384
        symbol = int(np.searchsorted(ends, slot, "right"))
        start = ends[symbol - 1] if symbol else 0
        self.state = int(ends[symbol] - start) * (self.state // 16384) + slot - int(start)
        return symbol

    def finish(self) -> None:
        assert self.state == 0
        assert self.at == len(self.stream)


def static(stream: bytes, tables: list[np.ndarray], count: int) -> list[list[int]]:
    """Decode `count` codes of each table, one state going through all."""
    state = State(stream)
    codes = [[state.symbol(ends) for _ in range(count)] for ends in map(np.cumsum, tables)]
    state.finish()
    return codes


def lanes(stream: bytes, table: np.ndarray, count: int) -> list[int]:
    number, ends, file, codes = math.isqrt(count), table.cumsum(), Bytes(stream), []
    rows = [(count - 1) % number + 1] + [number] * ((count - 1) // number)
    states = [State(b"") for _ in range(number)]
    for state in states:
        state.state = int.from_bytes(file.take(4), "little")
        assert state.state >= 1 << 24
    for row, length in enumerate(rows):
        for state in states if row == len(rows) - 2 else []:
            state.state -= 1 << 24
        codes += [state.step(ends) for state in states[:length]]
        for state in states[:length] if row < len(rows) - 2 else []:
            while state.state < 1 << 24:
                state.state = state.state * 256 + file.take(1)[0]
    assert file.at == len(stream)
    assert not any(state.state for state in states)
    return codes


EXPONENTIALS = np.array([v >> 32 for v in accumulate(range(255), lambda v, _: v * 4034748382 >> 32, initial=1 << 50)])


def ends_of(logits: np.ndarray) -> np.ndarray:
    """Turn logits before their scaling, a row for each position, into sums of frequencies."""
    z = (logits + 64) // 128
    e = EXPONENTIALS[np.minimum(255, z.max(1, keepdims=True) - z)].cumsum(1)
    return e * (16384 - z.shape[1]) // e[:, -1:] + np.arange(1, z.shape[1] + 1)


def scale(v: np.ndarray) -> np.ndarray:
    return np.clip((v + 64) // 128, 0, 127)


def decode_plane(state: State, k: int, planes: np.ndarray, model: dict) -> None:
    """Fill in codebook k of a piece, those before being there."""
    own = {name.removeprefix(f"prior.{k}."): array for name, array in model.items() if name.startswith(f"prior.{k}.")}
    high, wide = model["prior.kernel"]
    y, x = np.indices(planes.shape[1:])
    if high > 1:
        stages = np.where((y % 2 == 0) & (x % 2 == 0), 0, np.where((y % 2 == 1) & (x % 2 == 1), 1, 2))
    else:
        stages = np.where(x % 4 == 0, 0, np.where(x % 2 == 0, 1, 2))
    dim = own["embedding"].shape[1]
    known = np.zeros((*y.shape, 2 * dim), np.int64)
    for before in range(k):
        known[..., :dim] += model[f"prior.{before}.embedding"][planes[before]]
    known[..., :dim] = np.clip(known[..., :dim], -127, 127)
    code_of = {int(rank): code for code, rank in enumerate(own["rank"])}
    members = own["member"].shape[2]
    for stage in range(3):
        padded = np.pad(known, ((high // 2, high // 2), (wide // 2, wide // 2), (0, 0)))
        positions = np.argwhere(stages == stage)
        for begin in range(0, len(positions), 16384):
            run = positions[begin : begin + 16384]
            inputs = np.stack([padded[i : i + high, j : j + wide].ravel() for i, j in run])
            a = scale(inputs @ own["context"] + own["context_bias"][stage])
            b = scale(a @ own["hidden"] + own["hidden_bias"])
            groups = [state.symbol(ends) for ends in ends_of(b @ own["group"] + own["group_bias"])]
            logits = [row @ own["member"][g] + own["member_bias"][g] for row, g in zip(b, groups, strict=True)]
            for (i, j), g, ends in zip(run, groups, ends_of(np.stack(logits)), strict=True):
                planes[k, i, j] = code_of[g * members + state.symbol(ends)]
        now = stages == stage
        known[now, dim:] = own["embedding"][planes[k][now]]


def read_shard(data: bytes, model: dict) -> dict[str, np.ndarray]:
    """Give the codes of all items of a shard, by key."""
    file = Bytes(data)
    assert file.take(4) == bytes.fromhex("8956530A")
    version, flags = file.take(2)
    assert version >> 4 == 1
    assert not flags & 0b1110111
    file.take(8)
    sizes = file.varints(file.varint())
    stride = file.varint()
    usual = file.varints(2 if flags & 8 else 1)
    rate = file.varint()
    header = data[: file.at]
    assert file.take(4) == crc(header)
    header += crc(header)
    assert data[-4:] == bytes.fromhex("8956450A")
    count, second = (int.from_bytes(data[at:][:8], "little") for at in (len(data) - 24, len(data) - 16))
    index = data[second:].removeprefix(header)
    assert index[-8:-4] == crc(index[:-8])
    items = {}
    for number in range(count):
        begin = file.at
        if number % 16 == 0:
            assert int.from_bytes(index[3 * count + number // 2 :][:8], "little") == begin
        (lead,) = file.take(1)
        key = file.take(file.varint())
        assert crc(key)[:3] == index[3 * number :][:3]
        assert lead >> 6 == 2
        size = [file.varint(), *(file.varints(len(usual)) if lead & 32 else usual)]
        if lead & 16:
            grid = file.varints(1 if flags & 8 and size[2] == 1 else 2)
        elif flags & 8:
            grid = [*([size[2]] if size[2] > 1 else []), -(-size[0] * rate // (size[1] * stride))]
        else:
            grid = [-(-size[1] // stride), -(-size[0] // stride)]
        if lead & 8:
            json.loads(file.take(file.varint()))
        packed = [-(-math.prod(grid) * (s - 1).bit_length() // 8) for s in sizes]
        length = sum(packed) - file.varint()
        payload = Bytes(file.take(length))
        assert file.take(4) == crc(data[begin : file.at - 4])
        if lead & 7 == 1:
            tables = [model[f"entropy.{k}"] for k in range(len(sizes))]
            codes = np.reshape(static(payload.data, tables, math.prod(grid)), (len(sizes), *grid))
        else:
            streams = []
            for fixed in packed[:-1]:
                streams.append(payload.take(payload.varint() if lead & 7 else fixed))
            streams.append(payload.data[payload.at :])
            codes = decode(lead & 7, streams, sizes, grid, model)
        items[key.decode("utf-8", "surrogatepass")] = codes
    assert file.at == second
    return items
