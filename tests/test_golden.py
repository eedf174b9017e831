"""Files written once, of every coder and format: they must stay readable for ever, and be written alike for as long.

`python tests/test_golden.py` makes those of FILES that are missing in `tests/golden`, and never touches one that is
there: a file that has been in a release is a promise. `NAME.npz` beside a file holds its codes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    CODERS,
    CONFIGS,
    EXPORTS,
    GOLDEN,
    MODELS,
    NEWER,
    SEGMENTS,
    SHARDS,
    TOKEN_FILES,
    codes_of,
    picture,
    wave,
)
from numpy.typing import NDArray

import vqtok
from vqtok.config import Config, PriorConfig, from_dict
from vqtok.models.token_reader import TokenReader, open_items, read_entropy_model
from vqtok.tokens.export.export import output_files, write_export
from vqtok.tokens.fields import checksum
from vqtok.tokens.shape import Modality
from vqtok.tokens.shard.writer import ShardWriter
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt import file as vqt
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import parse_header

STRIDES: dict[Modality, int] = {"image": 4, "audio": 8}
SIZES: dict[str, tuple[Modality, tuple[int, ...], int]] = {
    # modality, size and number of codebooks by the first word of a name
    "image": ("image", (61, 47), 4),
    "mono": ("audio", (800, 16_000, 1), 3),
    "stereo": ("audio", (900, 44_100, 2), 2),
    "hour": ("audio", (8 * 65_700, 16_000, 1), 1),
}
FILES = [*TOKEN_FILES, NEWER, *SHARDS, *EXPORTS]


def tokens_of(name: str, codes: NDArray[np.int32], key: str = "codes") -> Tokens:
    modality, size, num_codebooks = SIZES[kind_of(name)]
    stride = STRIDES[modality]
    if key == "odd":
        size = size[0] + 4 * stride, *size[1:]
    return Tokens(
        codes=codes,
        codebook_sizes=(16,) * num_codebooks,
        modality=modality,
        size=size,
        stride=stride,
        model=bytes.fromhex(vqtok.inspect(GOLDEN / MODELS[modality])["identity"])[:8],
        metadata={"name": "é", "scale": [0.25]} if "metadata" in name or key == "odd" else {},
    )


def kind_of(name: str) -> str:
    """Give the key in SIZES of a file."""
    return re.split("[-.]", name)[0].replace("export", "image")


def items_of(name: str) -> list[tuple[str, Tokens]]:
    return [(key, tokens_of(name, codes, key)) for key, codes in codes_of(name).items()]


def written(name: str, folder: Path) -> list[Path]:
    """Write a file of FILES as vqtok does today, and give it and those that go with it."""
    path = folder / name
    if name in EXPORTS:
        write_export(items_of(name), path, EXPORTS[name])
        return output_files(path, EXPORTS[name].to)
    items = items_of(name)
    model = read_entropy_model(GOLDEN / MODELS[items[0][1].modality])
    if name in SHARDS:
        with path.open("wb") as file:
            writer = ShardWriter(file, 16_000)
            for (key, tokens), coder in zip(items, (*CODERS, "auto"), strict=True):
                writer.add(key, tokens, model, coder)
            writer.finish()
        return [path]
    (coder,) = [coder for coder in CODERS if coder in name]
    with pytest.MonkeyPatch.context() as patch:
        for modality in MODELS:
            patch.setitem(vqt.SEGMENT_POSITIONS, modality, 50 if SEGMENTS in name else 1 << 20)
        data = dump(items[0][1], model, coder)
    if name == NEWER:
        data = data[:4] + bytes([data[4] | 0x0F, data[5] | 1 << 7]) + data[6:-4]
        data += checksum(data)
    path.write_bytes(data)
    return [path]


@pytest.mark.parametrize("name", [*TOKEN_FILES, NEWER])
def test_token_files_are_read(name):
    (expected,) = items_of(name)
    tokens = TokenReader(str(GOLDEN / MODELS[expected[1].modality])).read(GOLDEN / name)
    assert_same(tokens, expected[1])
    header, _ = parse_header((GOLDEN / name).read_bytes())
    assert header.coder in name
    assert (header.num_segments > 1) == (SEGMENTS in name)


@pytest.mark.parametrize("name", [*SHARDS, *EXPORTS])
def test_shards_and_exports_are_read(name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    expected = items_of(name)
    items = open_items(GOLDEN / name, str(GOLDEN / MODELS[expected[0][1].modality]))
    assert list(items) == [key for key, _ in expected]
    for key, tokens in expected:
        assert_same(items[key], tokens)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".parquet")])
def test_the_same_bytes_are_written(name, tmp_path):
    """But for Parquet, which pyarrow writes."""
    for path in written(name, tmp_path):
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes()


@pytest.mark.parametrize("modality", MODELS)
def test_models_decode(modality):
    name = {"image": "image-prior.vqt", "audio": "stereo-prior.vqt"}[modality]
    media = vqtok.decode(GOLDEN / name, str(GOLDEN / MODELS[modality]))
    assert media.data.shape == {"image": (3, 47, 61), "audio": (2, 900)}[modality]


def test_nothing_lies_about():
    files = [path for name in EXPORTS for path in output_files(GOLDEN / name, EXPORTS[name].to)]
    known = {path.name for path in files} | {"qwen3-tts", *FILES, *MODELS.values(), *(f"{name}.npz" for name in FILES)}
    assert {path.name for path in GOLDEN.iterdir()} == known
    assert sum(path.stat().st_size for path in GOLDEN.iterdir() if path.is_file()) < 300_000


def assert_same(found: Tokens, expected: Tokens) -> None:
    assert np.array_equal(found.codes, expected.codes)
    for name in ("codebook_sizes", "modality", "size", "stride", "model", "metadata"):
        assert getattr(found, name) == getattr(expected, name), name


def make_codes(kind: str, keys: list[str], seed: int) -> dict[str, NDArray[np.uint8]]:
    """Make codes that say something of their neighbours; those of `odd` on a grid that is not as its size says."""
    modality, size, num_codebooks = SIZES[kind]
    grid: tuple[int, ...] = 12, 16
    if modality == "audio":
        samples, sample_rate, channels = size
        time = -(-samples * 16_000 // (STRIDES[modality] * sample_rate))
        grid = (time,) if channels == 1 else (channels, time)
    length, noise = (3, 0.2) if grid[-1] < 1000 else (500, 0.001)
    found = {}
    for number, key in enumerate(keys):
        rng = np.random.default_rng([seed, number])
        shape = *grid[:-1], grid[-1] + 3 * (key == "odd")
        slope = sum(np.indices(shape)) // length + rng.integers(16)
        codes = np.stack([slope // 2**k % 16 for k in range(num_codebooks)])
        found[key] = np.where(rng.random(codes.shape) < noise, rng.integers(0, 16, codes.shape), codes).astype(np.uint8)
    return found


def make_model(modality: Modality, path: Path) -> None:
    """Make a tiny model with random weights, and a prior of codes like those in the files."""
    import torch

    from vqtok.models.model_file import save_model
    from vqtok.models.vqmodel import VQModel
    from vqtok.tokens.coding.frequencies import frequencies
    from vqtok.training.prior import fit_prior

    config = from_dict(Config, {"model": CONFIGS[modality]})
    data = picture(96, 64) / 127.5 - 1 if modality == "image" else wave(8000, 16_000)
    torch.manual_seed(0)
    model = VQModel(config.model)
    model.train()(torch.from_numpy(np.moveaxis(data, -1, 0).astype(np.float32))[None])
    codes = list(make_codes("image" if modality == "image" else "mono", list("abcdefgh"), 1000).values())
    vectors = [torch.arange(16, dtype=torch.float32)[:, None]] * len(codes[0])
    prior = fit_prior([c.astype(np.int32) for c in codes], vectors, modality, PriorConfig(dim=4, hidden=16), 300)
    counts = [np.bincount(np.concatenate([c[k].ravel() for c in codes]), minlength=16) for k in range(len(codes[0]))]
    tables = {index: frequencies(count) for index, count in enumerate(counts)}
    save_model(path, model, config, entropy_tables=tables, prior=prior, training={})


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for modality, name in MODELS.items():
        if not (GOLDEN / name).exists():
            make_model(modality, GOLDEN / name)
    for seed, name in enumerate(FILES):
        keys = ["a/b", "odd"] if name in EXPORTS else ["a/b", "é", "odd", "z"] if name in SHARDS else ["codes"]
        if not (GOLDEN / f"{name}.npz").exists():
            np.savez_compressed(GOLDEN / f"{name}.npz", **make_codes(kind_of(name), keys, seed))
        if not (GOLDEN / name).exists():
            written(name, GOLDEN)
            print("made", name)


if __name__ == "__main__":
    main()
