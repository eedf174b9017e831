"""Compare the quality of audio at the sizes of its token files with Opus at its lowest rate (6 kbps).

python tests/benchmarks/bench_sounds.py SOUNDS [--model MODEL]

SOUNDS are files or folders, read as mono at the model's rate. The table shows means over the files. The packages `pesq`
and `visqol-python` compute PESQ (wideband) and ViSQOL (speech mode at 16 kHz, audio mode at 48 kHz); files that they
refuse, mostly short or silent ones, are left out of their means. kbps are those of whole files, for Opus in Ogg.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pesq
import soundfile
import torch
from numpy.typing import NDArray
from visqol import VisqolApi

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.jobs.mapping import plan_items
from vqtok.media.audio import read_audio
from vqtok.media.kinds import modality_of
from vqtok.media.media import Media
from vqtok.media.resample import resample
from vqtok.metrics import mel_distance, si_sdr, stoi
from vqtok.tokens.vqt.file import dump

CODEBOOKS = 1, 2, 4, 8
Sound = NDArray[np.float32]
COLUMNS = "kbps", "STOI", "PESQ", "mel distance", "SI-SDR dB", "ViSQOL speech", "ViSQOL audio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path)
    parser.add_argument("--model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codecs(options.model).get("audio")
    judges = [VisqolApi(), VisqolApi()]
    for judge, mode in zip(judges, ("speech", "audio"), strict=True):
        judge.create(mode=mode, use_lattice_model=False)
    files = plan_items(options.sounds, accepts=lambda path: modality_of(path) == "audio", what="sounds")
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for _, path in files:
        sound = read_audio(path)
        original = resample(sound.data.mean(0, keepdims=True), sound.sample_rate, codec.tokenizer.sample_rate)[0]
        for name, decoded, num_bytes in coded(original, codec):
            kbps = num_bytes * 8 / (len(original) / codec.tokenizer.sample_rate) / 1000
            found[name].append((kbps, *quality(original, decoded, codec.tokenizer.sample_rate, judges)))
    print(f"{len(files)} sounds\n\n| codec | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, rows in found.items():
        print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in np.nanmean(rows, axis=0))} |")


def coded(original: Sound, codec: Codec) -> Iterator[tuple[str, Sound, int]]:
    """Yield the reconstruction of each codec at each rate, and its bytes."""
    rate = codec.tokenizer.sample_rate
    tokens = codec.encode(Media("audio", original[None], rate))
    for num_codebooks in CODEBOOKS:
        prefix = tokens.prefix(num_codebooks)
        num_bytes = len(dump(prefix, codec.tokenizer.entropy_model))
        yield f"vqtok, {num_codebooks} codebooks", codec.decode(prefix).data[0], num_bytes
    file = io.BytesIO()
    # With libsndfile's strongest compression Opus has 6 kbps per channel.
    soundfile.write(file, original, rate, "OPUS", format="OGG", compression_level=1.0)
    num_bytes = len(file.getvalue())
    file.seek(0)
    yield "Opus", soundfile.read(file, dtype="float32")[0][: len(original)], num_bytes


def quality(original: Sound, decoded: Sound, rate: int, judges: list[VisqolApi]) -> tuple[float, ...]:
    x, x_hat = (torch.from_numpy(sound)[None, None] for sound in (original, decoded))
    narrow = [resample(sound[None], rate, 16_000)[0] for sound in (original, decoded)]
    wide = [resample(sound[None], rate, 48_000)[0] for sound in (original, decoded)]
    return (
        stoi(x, x_hat, rate).item(),
        perceived(lambda: pesq.pesq(16_000, *narrow, "wb")),
        mel_distance(x, x_hat, rate).item(),
        si_sdr(x, x_hat).item(),
        perceived(lambda: judges[0].measure_from_arrays(*(s.astype(float) for s in narrow), sample_rate=16_000).moslqo),
        perceived(lambda: judges[1].measure_from_arrays(*(s.astype(float) for s in wide), sample_rate=48_000).moslqo),
    )


def perceived(measure) -> float:
    try:
        with warnings.catch_warnings(action="ignore"):
            return measure()
    except Exception:
        return float("nan")


if __name__ == "__main__":
    main()
