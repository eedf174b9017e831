"""Tiny models with random weights, small media, and the command line in this process."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

# The tests are too small to profit from several threads; this also holds for the processes they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from vqtok.models.card import METADATA_KEY
from vqtok.models.model_file import compute_identity
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.export.options import ExportOptions
from vqtok.tokens.shape import Modality

# Tests must not fail on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tests that start many processes fork them from one that has loaded everything.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    ["vqtok.cli.app", "vqtok.cli.tables", "vqtok.jobs.planning", "vqtok.jobs.runner", "vqtok.models.model_file"]
)

MAKE_MODEL = Callable[..., Path]
RUN = Callable[..., Result]

CONFIGS = {
    "image": {
        "modality": "image",
        "channels": 3,
        "network": {"strides": [2, 2], "widths": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
        "quantizer": {"dim": 8, "codebook_size": 16, "depth": 4},
    },
    "audio": {
        "modality": "audio",
        "sample_rate": 16_000,
        "network": {"strides": [4, 2], "widths": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
        "quantizer": {"dim": 8, "codebook_size": 16, "depth": 3},
    },
}


def picture(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return a smooth image with some noise, `(height, width, channels)`."""
    y, x = np.mgrid[:height, :width] / 32
    waves = np.stack([np.sin(x + i) * np.cos(y * (i + 1)) for i in range(channels)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return (127.5 + 100 * waves + noise).clip(0, 255).astype(np.uint8)


def wave(samples: int, sample_rate: int, channels: int = 1) -> NDArray[np.float32]:
    """Return a sweep that differs between channels, `(samples, channels)`."""
    time = np.arange(samples)[:, None] / sample_rate
    return (0.5 * np.sin(2 * np.pi * (200 + 3000 * time) * time * np.arange(1, channels + 1))).astype(np.float32)


@pytest.fixture
def quick_kmeans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the k-means start of codebooks use only a few batches."""
    monkeypatch.setattr("vqtok.training.initialise.KMEANS_VECTORS", 256)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Return a folder with six short audio files."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for index in range(6):
        soundfile.write(folder / f"{index}.wav", wave(1000 + 100 * index, 2000), 2000)
    return folder


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MAKE_MODEL:
    """Return a function that writes a tiny model with random weights, k-means codebooks and entropy tables."""
    import torch

    from vqtok.config import Config, from_dict
    from vqtok.models.model_file import save_model
    from vqtok.models.vqmodel import VQModel
    from vqtok.tokens.coding.frequencies import frequencies

    def make(modality: str, seed: int = 0, **changes: Any) -> Path:
        config = from_dict(Config, {"model": CONFIGS[modality] | changes})
        data = picture(96, 64, config.model.channels) / 127.5 - 1 if modality == "image" else wave(8000, 16_000)
        x = torch.from_numpy(np.moveaxis(data, -1, 0).astype(np.float32))[None]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VQModel(config.model)
            model.train()(x)
        codes = model.eval().encode(x)[0].flatten(1)
        counts = [np.bincount(plane, minlength=16) for plane in codes.numpy()]
        path = tmp_path_factory.mktemp("model") / f"{modality}.safetensors"
        tables = {index: frequencies(count) for index, count in enumerate(counts)}
        save_model(path, model, config, entropy_tables=tables, training={})
        return path

    return make


@pytest.fixture(scope="session")
def image_model(make_model: MAKE_MODEL) -> Path:
    return make_model("image")


@pytest.fixture(scope="session")
def audio_model(make_model: MAKE_MODEL) -> Path:
    return make_model("audio")


@pytest.fixture
def bundled(image_model: Path, audio_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Path:
    """Replace the bundled models by the tiny ones."""
    folder = tmp_path_factory.mktemp("bundled")
    for path in (image_model, audio_model):
        (folder / path.name).symlink_to(path)
    monkeypatch.setattr("vqtok.models.registry.BUNDLED", folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(96, 64)).save(path)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    soundfile.write(path, wave(4000, 16_000), 16_000)
    return path


@pytest.fixture
def run(bundled: Path) -> Iterator[RUN]:
    """Return a function that runs a command line in this process, with the tiny models as defaults."""
    from vqtok.cli.app import app

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(*args: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [os.fspath(x) if isinstance(x, Path) else str(x) for x in args], input=stdin)

    yield invoke
    root.handlers[:], root.level = handlers, level


class Started:
    """A command line that runs in a separate process.

    Args:
        before: Called in the process first.
    """

    def __init__(self, folder: Path, *args: object, before: Callable[[], object] | None = None) -> None:
        self.folder = folder
        arguments = [os.fspath(x) if isinstance(x, Path) else str(x) for x in args]
        self.process: ForkServerProcess = forks.Process(target=_run, args=(folder, arguments, before))
        self.process.start()

    def send(self, number: signal.Signals, after: float = 0.0) -> None:
        """Send a signal some seconds after the process has begun to work, unless it has ended."""
        self.await_begin()
        time.sleep(0.005 + after)
        if self.process.is_alive():
            assert self.process.pid
            os.kill(self.process.pid, number)

    def await_begin(self) -> None:
        ready = self.folder / "ready"
        while self.process.is_alive() and not (ready.exists() and ready.stat().st_size):
            time.sleep(0.001)

    def wait(self) -> int:
        """Wait for the process and return its exit code."""
        self.process.join(120)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="surrogateescape")


def _run(folder: Path, arguments: list[str], before: Callable[[], object] | None) -> None:
    from vqtok.__main__ import main

    sys.argv = ["vqtok", *arguments]
    out, err, ready = (
        os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o666) for name in ("stdout", "stderr", "ready")
    )
    os.dup2(out, 1)
    os.dup2(err, 2)
    if before:
        before()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.write(ready, b"!")
    main()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Return a function that quickly starts a command line in a separate process."""
    running: list[Started] = []

    def begin(*args: object, before: Callable[[], object] | None = None) -> Started:
        running.append(Started(tmp_path_factory.mktemp("streams"), *args, before=before))
        return running[-1]

    yield begin
    for started in running:
        started.process.kill()
        started.process.join()
        started.process.close()


GOLDEN = Path(__file__).parent / "golden"

MODELS: dict[Modality, str] = {"image": "image.safetensors", "audio": "audio.safetensors"}

SEGMENTS = "segments"
"""Marks the name of a file whose segments are smaller than usual."""

CODERS: tuple[ChosenCoder, ...] = ("packed", "static", "prior")

TOKEN_FILES = [
    *(f"{kind}-{coder}.vqt" for kind in ("image", "mono", "stereo") for coder in CODERS),
    *(f"{kind}-{SEGMENTS}-{coder}.vqt" for kind in ("image", "stereo") for coder in CODERS),
    # In one segment, as earlier versions wrote long files: streams with lanes, and gaps in the context of the prior.
    "hour-static.vqt",
    "hour-prior.vqt",
    "image-metadata-packed.vqt",
]

NEWER = "image-newer-packed.vqt"
"""A file of a future minor version, with a flag that readers ignore."""

SHARDS = ["image.vqts", "stereo.vqts"]

EXPORTS = {
    "export.npy": ExportOptions("npy", layout="flat"),
    "export.flat.bin": ExportOptions("bin", layout="coarse-first", offset=70_000, row_token="auto"),
    "export.bin": ExportOptions("megatron", layout="delay", begin_token="auto", end_token="auto"),
    "export.jsonl": ExportOptions("jsonl", layout="parallel", shared_vocabulary=True),
    "export.txt": ExportOptions("text"),
    "export.parquet": ExportOptions("parquet"),
}


def codes_of(name: str) -> dict[str, NDArray[np.int32]]:
    """Return the codes in a file by key; the key of a token file is `codes`."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: arrays[key].astype(np.int32) for key in arrays}


# fmt: off
TOKEN_KEYS = {
    "file", "kind", "version", "modality", "model", "coder", "num_codebooks", "codebook_sizes", "stride", "grid",
    "num_segments", "num_tokens", "raw_bits", "coded_bits", "file_bytes",
}

IMAGE_KEYS = TOKEN_KEYS | {"bpp", "width", "height"}

AUDIO_KEYS = TOKEN_KEYS | {"kbps", "duration_seconds", "sample_rate", "channels"}


def files_in(folder):
    """Return the names of all files below a folder, including hidden ones."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def json_lines(result):
    lines = map(json.loads, result.stdout.splitlines())
    return [line for line in lines if line.get("kind") != "summary"]

ROOT = Path(__file__).parent.parent

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "vqtok").rglob("*.md")), ROOT / "tests/benchmarks/README.md"]
}


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)

PYTHON = [block for text in DOCUMENTS.values() for block in blocks("python", text)]


def contents(path):
    """Return the tensors and the metadata of a model file, to be changed and written again."""
    header = path.read_bytes()[8:]
    metadata = json.JSONDecoder().raw_decode(header.decode("latin-1"))[0]["__metadata__"]
    return load_file(path), json.loads(metadata[METADATA_KEY])


def write(path, tensors, values, *, sign=True):
    """Write a model file, with its correct identity unless `sign` is false."""
    if sign:
        values["identity"] = compute_identity(values["config"]["model"], tensors).hex()
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(values)})
    return path
