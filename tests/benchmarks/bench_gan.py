"""Train the preset digits-gan with and without its discriminator, and compare what comes out with real digits.

python tests/benchmarks/bench_gan.py mnist10k.npz WORK/ [--minutes 12] [--preset digits-gan]

Of the digits, 1,000 are held out, 3,000 are for the classifier that judges, and the models are trained on the rest.
WORK/ keeps what is done, so that the script continues there: delete a file to make it again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from bench_generator import CACHE, Judge, judge_of_images, vqtok
from torch import Tensor

from vqtok.generation.media import contact_sheet
from vqtok.media.image import write_image
from vqtok.media.media import Media
from vqtok.metrics.image import psnr
from vqtok.metrics.means import Moments, frechet_distance
from vqtok.metrics.texture import TextureDistance
from vqtok.models.model_file import load_model

HELD_OUT, FOR_JUDGE = 1000, 3000
SHOWN = 16
QUANTILES = torch.tensor([0.9, 0.95, 0.99])
"""Of the differences between neighboring pixels: how steep the edges of the strokes are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="digits-gan")
    parser.add_argument("--minutes", type=float, default=12, help="for each of the two models")
    options = parser.parse_args()
    CACHE["folder"] = options.work
    arrays = np.load(options.mnist)
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    pixels, labels = arrays["images"][order], arrays["labels"][order]
    media = options.work / "media"
    media.mkdir(parents=True, exist_ok=True)
    np.save(media / "digits.npy", pixels[HELD_OUT + FOR_JUDGE :])
    models = {"squared error alone": "plain", "with the discriminator": "gan"}
    for name in models.values():
        settings = ["--set", "adversarial.weight=0"] if name == "plain" else []
        path = options.work / f"{name}.safetensors"
        train = ("train", media, "-o", path, "--preset", options.preset, "--minutes", options.minutes)
        vqtok(*train, *settings, made=path)
    judge = judge_of_images(pixels[HELD_OUT:][:FOR_JUDGE], labels[HELD_OUT:][:FOR_JUDGE])
    x = torch.from_numpy(pixels[:HELD_OUT].astype(np.float32) / 127.5 - 1)[:, None]
    decoded, usage = {"real": x}, {"real": float("nan")}
    for title, name in models.items():
        with torch.inference_mode():
            model = load_model(options.work / f"{name}.safetensors")
            codes = model.encode(x)
            decoded[title] = model.decode(codes).clamp(-1, 1)
            usage[title] = len(codes.unique()) / model.codebook_sizes[0]
    report(decoded, usage, torch.from_numpy(labels[:HELD_OUT].astype(np.int64)), judge)
    shown = [Media("image", version[index].numpy()) for version in decoded.values() for index in range(SHOWN)]
    write_image(contact_sheet(shown, SHOWN), options.work / "digits-gan.png")


def report(decoded: dict[str, Tensor], usage: dict[str, float], labels: Tensor, judge: Judge) -> None:
    x = decoded["real"]
    edges = " | ".join(f"edges {quantile:.0%}" for quantile in QUANTILES.tolist())
    print(f"\n| | PSNR dB | Frechet | texture | {edges} | recognized | usage |\n|{'---|' * 9}")
    for title, x_hat in decoded.items():
        texture = TextureDistance()
        for pair in zip(x.numpy(), x_hat.numpy(), strict=True):
            texture.add(*pair)
        figures = [
            f"{psnr(x, x_hat).clamp(max=99).mean():.2f}",
            f"{frechet_distance(moments(judge, x), moments(judge, x_hat)):.3f}",
            f"{texture.distance():.4f}",
            *(f"{value:.3f}" for value in differences(x_hat).quantile(QUANTILES).tolist()),
            f"{judge(x_hat, labels)[0]:.1%}",
            f"{usage[title]:.1%}",
        ]
        print(f"| {title} | {' | '.join(figures)} |", flush=True)


@torch.no_grad()
def moments(judge: Judge, x: Tensor) -> Moments:
    """Return the moments of the classifier's features."""
    found = Moments()
    found.add(judge.model[:-1](judge.inputs(x)).numpy())
    return found


def differences(x: Tensor) -> Tensor:
    """Return the magnitudes of the differences between neighboring pixels, in units of the full range."""
    down, right = x.diff(dim=2)[..., :-1], x.diff(dim=3)[..., :-1, :]
    return torch.hypot(down, right).flatten() / 2


if __name__ == "__main__":
    main()
