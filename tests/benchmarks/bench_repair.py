"""Repair held-out media with a generator: holes in photographs beside OpenCV's Telea, gaps in speech beside silence.

python tests/benchmarks/bench_repair.py images GENERATOR FOLDER [N] [--sheet FILE.png]
python tests/benchmarks/bench_repair.py speech GENERATOR FOLDER [N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.generation.generate import Generation
from vqtok.generation.media import contact_sheet
from vqtok.media.audio import read_audio
from vqtok.media.image import as_bytes, read_image, write_image
from vqtok.media.media import Media
from vqtok.metrics.audio import mel_distance
from vqtok.metrics.image import psnr
from vqtok.metrics.measure import measures
from vqtok.metrics.view import View

HOLE = 64
GAPS = 0.05, 0.1, 0.2, 0.3
FRAME_SECONDS = 0.02
AROUND_SECONDS = 0.2
"""Audio on either side of a gap that is compared too, since its edges are audible."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["images", "speech"])
    parser.add_argument("generator", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=24)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    files = sorted(path for path in options.folder.iterdir() if path.suffix != ".csv")
    files = files[:: max(1, len(files) // options.count)][: options.count]
    session = Generation(options.generator)
    if options.what == "images":
        repair_images(session, files, options.sheet)
    else:
        repair_speech(session, files)


def repair_images(session: Generation, files: list[Path], sheet: Path | None) -> None:
    import cv2

    compare = measures(["ssimulacra2"])["ssimulacra2"]
    scores: dict[str, list[tuple[float, float]]] = {}
    shown: list[Media] = []
    for index, path in enumerate(files):
        image = read_image(path, channels=3)
        height, width = image.data.shape[1:]
        rng = np.random.default_rng(index)
        top, left = int(rng.integers(height - HOLE)), int(rng.integers(width - HOLE))
        where = np.s_[top : top + HOLE, left : left + HOLE]
        mask = np.zeros((height, width), bool)
        mask[where] = True
        holed = image.data.copy()
        holed[:, mask] = 0
        bgr = as_bytes(holed).transpose(1, 2, 0)[:, :, ::-1]
        telea = cv2.inpaint(np.ascontiguousarray(bgr), mask.astype(np.uint8), 5, cv2.INPAINT_TELEA)
        found = {
            "gray": holed,
            "Telea": (telea[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1).astype(np.float32),
            "generator": session.inpaint(Media("image", holed), mask, seed=index).data,
        }
        for name, data in found.items():
            hole = psnr(*(torch.from_numpy(x[:, *where].copy())[None] for x in (image.data, data)))
            whole = compare(View(image), View(Media("image", data)))
            scores.setdefault(name, []).append((hole.item(), whole))
        if len(shown) < 24:
            around = slice(max(0, top - 32), top + HOLE + 32), slice(max(0, left - 32), left + HOLE + 32)
            shown += [Media("image", data[:, *around]) for data in (image.data, *found.values())]
    print(f"{len(files)} photographs, a hole of {HOLE} x {HOLE} pixels in each\n")
    print("| filled with | PSNR dB of the hole | SSIMULACRA2 of the image |\n|---|---|---|")
    for name, values in scores.items():
        hole, whole = np.mean(values, axis=0)
        print(f"| {name} | {hole:.2f} | {whole:.1f} |")
    if sheet:
        write_image(contact_sheet(shown, 8), sheet)


def repair_speech(session: Generation, files: list[Path]) -> None:
    print(
        f"{len(files)} recordings of speech, one gap in each: mel distance from {AROUND_SECONDS:g} s before it to as "
        "much after it\n"
    )
    print("| gap | silence | the last frame repeated | generator |\n|---|---|---|---|")
    for seconds in GAPS:
        scores = []
        for index, path in enumerate(files):
            audio = read_audio(path, mono=True)
            rate = audio.sample_rate or 1
            begin = loud_place(audio, seconds, index)
            end, around = begin + round(seconds * rate), round(AROUND_SECONDS * rate)
            silent = audio.data.copy()
            silent[:, begin:end] = 0
            frame = audio.data[:, begin - round(FRAME_SECONDS * rate) : begin]
            repeated = audio.data.copy()
            repeated[:, begin:end] = np.tile(frame, -(-(end - begin) // frame.shape[1]))[:, : end - begin]
            made = session.replace(Media("audio", silent, rate), begin / rate, end / rate, seed=index).data
            part = np.s_[:, begin - around : end + around]
            scores.append([distance(audio.data[part], data[part], rate) for data in (silent, repeated, made)])
        print(f"| {1000 * seconds:.0f} ms | " + " | ".join(f"{value:.3f}" for value in np.mean(scores, axis=0)) + " |")


def distance(x: NDArray[np.float32], x_hat: NDArray[np.float32], sample_rate: int) -> float:
    return mel_distance(*(torch.from_numpy(data.copy())[None] for data in (x, x_hat)), sample_rate).item()


def loud_place(audio: Media, seconds: float, seed: int) -> int:
    """Return where a gap begins: a random place among those where the audio is not silent."""
    rate, samples = audio.sample_rate or 1, audio.data.shape[1]
    rng = np.random.default_rng(seed)
    margin, length = round((AROUND_SECONDS + 0.1) * rate), round(seconds * rate)
    begins = rng.integers(margin, samples - margin - length, 50)
    power = [float(np.square(audio.data[:, b : b + length]).mean()) for b in begins]
    return int(next(b for b, p in zip(begins, power, strict=True) if p >= np.median(power)))


if __name__ == "__main__":
    main()
