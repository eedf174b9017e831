"""Train a preset with and without its discriminator, and compare what comes out with real images.

python tests/benchmarks/bench_gan.py mnist10k.npz WORK/ [--minutes 12] [--preset digits-gan]
python tests/benchmarks/bench_gan.py PHOTOS/ WORK/ [--minutes 12] [--preset texture-gan]

Of the digits, 1,000 are held out, 3,000 are for the classifier that judges, and the models are trained on the rest. Of
a folder of photographs, the 3,000 crops of 64 x 64 pixels are taken that have the most texture in the smoothest of
their parts. Those of every fifth photograph are held out. They are compared by features of a classifier that has
learned to tell from which of the other photographs a texture is, and by those of EfficientNet, which knows objects.
WORK/ keeps what is done, so that the script continues there: delete a file to make it again.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_generator import CACHE, Judge, cached, judge_of_images, vqtok
from torch import Tensor

from vqtok.codec.codec import Codec
from vqtok.files.walk import files_below
from vqtok.generation.media import contact_sheet
from vqtok.media.image import as_bytes, read_image, write_image
from vqtok.media.kinds import modality_of
from vqtok.media.media import Media
from vqtok.metrics.image import psnr
from vqtok.metrics.means import Moments, frechet_distance
from vqtok.metrics.measure import features
from vqtok.metrics.texture import TextureDistance
from vqtok.metrics.view import View
from vqtok.models.model_file import load_model

HELD_OUT, FOR_JUDGE = 1000, 3000
CROP, PART, TEXTURED, EVERY = 64, 21, 3000, 5
MOVED, LEAST = 16, 4
"""How far the classifier of textures sees crops moved, and from how many of them it learns a photograph."""
SHOWN = 16
QUANTILES = torch.tensor([0.9, 0.95, 0.99])
"""Of the differences between neighboring pixels: how steep edges are."""


@dataclass(frozen=True)
class Domain:
    """A kind of images.

    Args:
        preset: What is trained if no other preset is given.
        x: The held-out images `(count, channels, height, width)`.
        features: Return the features of images, one row each, that Frechet distances compare, by name.
        recognized: Returns the fraction of reconstructions of `x` that are classified as what they are; None without
            labels.
    """

    preset: str
    x: Tensor
    features: dict[str, Callable[[Tensor], Tensor]]
    recognized: Callable[[Tensor], float] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mnist10k.npz, or a folder of photographs")
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--minutes", type=float, default=12, help="for each of the two models")
    options = parser.parse_args()
    CACHE["folder"] = options.work
    media = options.work / "media"
    media.mkdir(parents=True, exist_ok=True)
    domain = (photographs if options.data.is_dir() else digits)(options.data, media)
    models = {"squared error alone": "plain", "with the discriminator": "gan"}
    for name in models.values():
        settings = ["--set", "adversarial.weight=0"] if name == "plain" else []
        path = options.work / f"{name}.safetensors"
        preset = options.preset or domain.preset
        train = ("train", media, "-o", path, "--preset", preset, "--minutes", options.minutes)
        vqtok(*train, *settings, made=path)
    decoded, usage = {"real": domain.x}, {"real": float("nan")}
    for title, name in models.items():
        codec = Codec(load_model(options.work / f"{name}.safetensors"))
        tokens = [codec.encode(Media("image", image)) for image in domain.x.numpy()]
        decoded[title] = torch.from_numpy(np.stack([codec.decode(image).data for image in tokens])).clamp(-1, 1)
        planes = np.stack([image.codes.reshape(image.num_codebooks, -1) for image in tokens], axis=1)
        used = [len(np.unique(plane)) / size for plane, size in zip(planes, tokens[0].codebook_sizes, strict=True)]
        usage[title] = min(used)
    report(domain, decoded, usage)
    step = len(domain.x) // SHOWN if options.data.is_dir() else 1
    shown = [Media("image", version[step * index].numpy()) for version in decoded.values() for index in range(SHOWN)]
    write_image(contact_sheet(shown, SHOWN), options.work / "pictures.png")


def digits(data: Path, media: Path) -> Domain:
    """Write the digits to train on to `media`, and return the others."""
    arrays = np.load(data)
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    pixels, labels = arrays["images"][order], arrays["labels"][order]
    np.save(media / "digits.npy", pixels[HELD_OUT + FOR_JUDGE :])
    judge = judge_of_images(pixels[HELD_OUT:][:FOR_JUDGE], labels[HELD_OUT:][:FOR_JUDGE])
    x = torch.from_numpy(pixels[:HELD_OUT].astype(np.float32) / 127.5 - 1)[:, None]
    own = torch.from_numpy(labels[:HELD_OUT].astype(np.int64))
    return Domain(
        "digits-gan",
        x,
        {"digits": lambda images: judge.model[:-1](judge.inputs(images))},
        lambda images: judge(images, own)[0],
    )


def photographs(data: Path, media: Path) -> Domain:
    """Write the textures to train on to `media`, and return the others."""
    found = heapq.nlargest(2 * TEXTURED, crops(data), key=lambda crop: crop[0])
    textures = found[:TEXTURED]
    trained = [as_bytes(crop.permute(1, 2, 0).numpy()) for _, number, crop in textures if number % EVERY]
    if not (media / "textures.npy").exists():
        np.save(media / "textures.npy", np.stack(trained))
    judge = judge_of_textures([(number, crop) for _, number, crop in found if number % EVERY])

    def embedded(images: Tensor) -> Tensor:
        views = (View(Media("image", image)) for image in images.numpy())
        return torch.from_numpy(np.stack([features("frechet_efficientnet", view) for view in views]))

    return Domain(
        "texture-gan",
        torch.stack([crop for _, number, crop in textures if not number % EVERY]),
        {"textures": lambda images: judge.model[:-1](judge.inputs(images)), "EfficientNet": embedded},
    )


def judge_of_textures(crops: Sequence[tuple[int, Tensor]]) -> Judge:
    """Train a classifier to tell from which photograph a crop is, given the number of the photograph of each crop."""
    counts = Counter(number for number, _ in crops)
    labels = {number: label for label, number in enumerate(sorted(n for n in counts if counts[n] >= LEAST))}
    order = torch.randperm(sum(counts[number] for number in labels), generator=torch.Generator().manual_seed(0))
    x = torch.stack([crop for number, crop in crops if number in labels])[order]
    y = torch.tensor([labels[number] for number, _ in crops if number in labels])[order]

    def moved(batch: Tensor) -> Tensor:
        top, left = torch.randint(MOVED + 1, (2,)).tolist()
        part = batch[..., top : top + CROP - MOVED, left : left + CROP - MOVED]
        return part.flip(-1) if torch.rand(()) < 0.5 else part

    count = len(x) // 10
    model = cached(f"textures-{len(labels)}", x[count:], y[count:], 16, moved)
    return Judge(f"{len(labels)} textures", model, lambda batch: batch.clamp(-1, 1), x[:count], y[:count])


def crops(data: Path) -> Iterator[tuple[float, int, Tensor]]:
    """Yield the crops of photographs: the texture of the smoothest part, the number of the photograph, the pixels."""
    for number, name in enumerate(files_below(data, lambda path: modality_of(path) == "image")):
        photo = torch.from_numpy(read_image(data / name, 3).data)
        if min(photo.shape[1:]) < CROP:
            continue
        found = photo.unfold(1, CROP, CROP).unfold(2, CROP, CROP).permute(1, 2, 0, 3, 4).flatten(0, 1)
        steep = gradients(found.mean(1, keepdim=True))[:, 0].unfold(1, PART, PART).unfold(2, PART, PART)
        for texture, crop in zip(steep.mean((-1, -2)).flatten(1).amin(1).tolist(), found, strict=True):
            yield texture, number, crop.clone()


def report(domain: Domain, decoded: dict[str, Tensor], usage: dict[str, float]) -> None:
    edges = " | ".join(f"edges {quantile:.0%}" for quantile in QUANTILES.tolist())
    distances = " | ".join(f"Frechet ({name})" for name in domain.features)
    recognized = " recognized |" if domain.recognized else ""
    print(f"\n| | PSNR dB | {distances} | texture | {edges} |{recognized} usage |")
    print(f"|{'---|' * (7 + len(domain.features) + bool(recognized))}")
    real = moments(domain, domain.x)
    for title, x_hat in decoded.items():
        texture = TextureDistance()
        for pair in zip(domain.x.numpy(), x_hat.numpy(), strict=True):
            texture.add(*pair)
        own = moments(domain, x_hat)
        figures = [
            f"{psnr(domain.x, x_hat).clamp(max=99).mean():.2f}",
            *(f"{frechet_distance(real[name], own[name]):.3f}" for name in real),
            f"{texture.distance():.4f}",
            *(f"{value:.3f}" for value in np.quantile(gradients(x_hat).flatten().numpy(), QUANTILES.numpy())),
            *([f"{domain.recognized(x_hat):.1%}"] if domain.recognized else []),
            f"{usage[title]:.1%}",
        ]
        print(f"| {title} | {' | '.join(figures)} |", flush=True)


@torch.no_grad()
def moments(domain: Domain, x: Tensor) -> dict[str, Moments]:
    """Return the moments of the features of images by name."""
    found = {name: Moments() for name in domain.features}
    for name, embedded in domain.features.items():
        found[name].add(embedded(x).numpy())
    return found


def gradients(x: Tensor) -> Tensor:
    """Return the magnitudes of the differences between neighboring pixels, in units of the full range.

    Shapes:
        x: `(count, channels, height, width)`; returns `(count, channels, height - 1, width - 1)`.
    """
    return torch.hypot(x.diff(dim=2)[..., :-1], x.diff(dim=3)[..., :-1, :]) / 2


if __name__ == "__main__":
    main()
