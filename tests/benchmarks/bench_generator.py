"""Train a tokenizer of both modalities and a generator on triples of digits, and judge what the generator makes.

python tests/benchmarks/bench_generator.py digits-av/ mnist10k.npz WORK/ [--minutes 15 30]

Of the triples (image, spoken digit, word) 200 are held out and 500 are for the judge of spoken digits; models are
trained on the rest, and on half of the digits of MNIST that are in none of the triples, each an image with its word.
The other half is for the judge of images. The generator also learns from each image shifted, turned and scaled a
little, in several ways. WORK/ keeps what is done, so that the script continues there: delete a file to make it again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vqtok.generation.generate import Generation
from vqtok.generation.media import contact_sheet
from vqtok.losses.reconstruction import magnitudes, mel_filters
from vqtok.media.audio import read_audio
from vqtok.media.image import read_image, write_image
from vqtok.media.media import Media
from vqtok.metrics.image import psnr

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HELD_OUT, FOR_JUDGE = 200, 500
RATE, SAMPLES = 16_000, 12_800
PER_WORD = 50
VARIANTS = 7
"""Images that the generator learns from beside each original."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triples", type=Path)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, nargs=2, default=(15, 30), help="for the tokenizer, for the generator")
    options = parser.parse_args()
    CACHE["folder"] = options.work
    stems = sorted((path.stem for path in options.triples.glob("*.png")), key=digest)
    held_out, judging, training = np.split(np.array(stems), [HELD_OUT, HELD_OUT + FOR_JUDGE])
    images, words = (
        Digits(options.triples),
        [WORDS.index((options.triples / f"{s}.txt").read_text().strip()) for s in stems],
    )
    labels = dict(zip(stems, words, strict=True))
    pixels, digits = unseen(options.mnist, images, stems)
    half = len(pixels) // 2
    media = options.work / "media"
    for stem in training:
        write_item(
            media, stem, to_uint8(images.image([stem]).numpy()[0, 0]), labels[stem], options.triples / f"{stem}.ogg"
        )
    for index, (image, digit) in enumerate(zip(pixels[half:], digits[half:], strict=True)):
        write_item(media, f"mnist-{index:04}", image, digit)
    generator = train(media, options.work, *options.minutes)
    judges = {
        "image": judge_of_images(pixels[:half], digits[:half]),
        "audio": judge_of_audio(images, judging, labels),
    }
    report(
        Generation(generator, [str(options.work / "fusion.safetensors")]),
        images,
        held_out.tolist(),
        labels,
        judges,
        options.work,
    )


def digest(stem: str) -> bytes:
    """Return a hash for a split that is independent of the one that training makes by the hash of the stem."""
    return hashlib.sha256(f"bench_generator/{stem}".encode()).digest()


def write_item(media: Path, stem: str, image: NDArray[np.uint8], digit: int, audio: Path | None = None) -> None:
    """Write an image, its word, and a link to its audio if it has any; and the same with variants of the image."""
    rng = np.random.default_rng(int.from_bytes(digest(stem)[:8], "little"))
    for index in range(VARIANTS + 1):
        path = media / (f"variants/{stem}-{index}.png" if index else f"original/{stem}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        found = moved(Image.fromarray(image), rng) if index else Image.fromarray(image)
        if not path.exists():
            found.save(path)
            path.with_suffix(".txt").write_text(WORDS[digit])
            if audio and not index:
                path.with_suffix(".ogg").symlink_to(audio.resolve())


def moved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift an image by up to two pixels, turn it by up to 12 degrees and scale it by up to a tenth."""
    angle, scale = np.radians(rng.uniform(-12, 12)), rng.uniform(0.9, 1.1)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    middle = (np.array(image.size) - 1) / 2
    begin = middle - matrix @ (middle + rng.uniform(-2, 2, 2))
    rows = (*matrix[0], begin[0], *matrix[1], begin[1])
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


def train(media: Path, work: Path, for_tokenizer: float, for_generator: float) -> Path:
    """Train both models with the shipped presets, and return the generator."""
    tokens = work / "tokens"
    tokenizer, generator = work / "fusion.safetensors", work / "generator.safetensors"
    vqtok(
        "train", media / "original", "-o", tokenizer, "--preset", "fusion", "--minutes", for_tokenizer, made=tokenizer
    )
    vqtok("encode", media, "-m", tokenizer, "-o", tokens, "-q", made=tokens)
    for audio in (tokens / "original").glob("*.ogg.vqt"):
        for index in range(1, VARIANTS + 1):
            path = tokens / "variants" / f"{audio.name.removesuffix('.ogg.vqt')}-{index}.ogg.vqt"
            if not path.exists():
                path.symlink_to(audio.resolve())
    vqtok("train", tokens, "-o", generator, "--tokenizer", tokenizer, "--minutes", for_generator, made=generator)
    return generator


def vqtok(*arguments: object, made: Path) -> None:
    if not made.exists():
        print("vqtok", *arguments, flush=True)
        subprocess.run([sys.executable, "-m", "vqtok", *map(str, arguments)], check=True)


class Digits:
    """The media of the triples, read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, stems: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.stack([read_image(self.folder / f"{s}.png", channels=1).data for s in stems]))

    def audio(self, stems: Sequence[str]) -> Tensor:
        return torch.stack([one_length(read_audio(self.folder / f"{s}.ogg")) for s in stems])


def one_length(media: Media) -> Tensor:
    data = torch.from_numpy(media.data[:1, :SAMPLES])
    return F.pad(data, (0, SAMPLES - data.shape[1]))


def network(channels: int, classes: int) -> nn.Sequential:
    """Return a small convolutional classifier, whose features are those before the last layer."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 32, 1), *block(32, 32, 2), *block(32, 64, 1), *block(64, 64, 2),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 64), nn.ReLU(),
        nn.Linear(64, classes),
    )  # fmt: skip


def fit(x: Tensor, y: Tensor, epochs: int, augmented: Callable[[Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    model = network(x.shape[1], classes(y))
    steps, step = epochs * (len(x) // 64), 0
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    while step < steps:
        order = torch.randperm(len(x))
        for rows in order[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(augmented(x[rows])), y[rows], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
            step += 1
    return model.eval()


class Judge:
    """Recognizes digits, and measures how varied they are by the distances of their features."""

    def __init__(self, name: str, model: nn.Sequential, inputs: Callable[[Tensor], Tensor], real: Tensor, y: Tensor):
        self.model, self.inputs = model, inputs
        self.spread = 1.0
        right, self.spread = self(real, y)
        print(f"judge of {name}: {right:.1%} of {len(y)} real held-out ones recognized", flush=True)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Return the share that is recognized, and the mean distance of features relative to that of real ones."""
        features = self.model[:-1](self.inputs(x))
        right = (self.model[-1](features).argmax(1) == y).float().mean().item()
        return right, torch.pdist(features).mean().item() / self.spread


def unseen(mnist: Path, digits: Digits, stems: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images and labels of the digits of MNIST that are in none of the triples."""
    arrays = np.load(mnist)
    known = {to_uint8(image).tobytes() for image in digits.image(stems).numpy()}
    rows = [index for index, image in enumerate(arrays["images"]) if image.tobytes() not in known]
    return arrays["images"][rows], arrays["labels"][rows]


def judge_of_images(pixels: NDArray[np.uint8], digits: NDArray[np.uint8]) -> Judge:
    x = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)[:, None]
    y = torch.from_numpy(digits.astype(np.int64))

    def moved(batch: Tensor) -> Tensor:
        return torch.roll(batch, tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3))

    count = len(x) // 10
    model = cached(f"images-{len(x)}", x[count:], y[count:], 8, moved)
    return Judge("images", model, lambda batch: batch.clamp(-1, 1), x[:count], y[:count])


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint((image + 1) * 127.5).astype(np.uint8)


def judge_of_audio(digits: Digits, stems: NDArray[np.str_], labels: dict[str, int]) -> Judge:
    y = torch.tensor([labels[stem] for stem in stems])
    x = digits.audio(stems.tolist())

    def varied(batch: Tensor) -> Tensor:
        batch = torch.roll(batch, int(torch.randint(-2, 3, ())), 3)
        return batch + 0.3 * torch.randn(len(batch), 1, 1, 1) + 0.2 * torch.randn_like(batch)

    count = len(stems) // 5
    model = cached(f"audio-{len(stems)}", log_mel(x[count:]), y[count:], 24, varied)
    return Judge("spoken digits", model, log_mel, x[:count], y[:count])


def log_mel(x: Tensor) -> Tensor:
    mel = mel_filters(RATE, 1024, 40) @ magnitudes(x[:, 0], 1024)
    return mel.clamp(min=1e-4).log10()[:, None] + 2


CACHE: dict[str, Path] = {}


def cached(name: str, x: Tensor, y: Tensor, epochs: int, augmented: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Return a judge from a file of an earlier run, or train it."""
    path = CACHE.get("folder", Path()) / f"judge-{name}.pt"
    if path.exists():
        model = network(x.shape[1], classes(y))
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = fit(x, y, epochs, augmented)
    torch.save(model.state_dict(), path)
    return model


def classes(y: Tensor) -> int:
    return int(y.max()) + 1


def report(
    session: Generation,
    digits: Digits,
    stems: list[str],
    labels: dict[str, int],
    judges: dict[str, Judge],
    work: Path,
) -> None:
    y = torch.tensor([labels[stem] for stem in stems])
    real = {"image": digits.image(stems), "audio": digits.audio(stems)}
    given = {
        name: [session.condition(Media(name, x.numpy(), None if name == "image" else RATE)) for x in media]
        for name, media in real.items()
    }
    print("\n| from | to | recognized | variety |\n|---|---|---|---|")

    def row(source: str, target: str, right: float, variety: float | None) -> None:
        print(f"| {source} | {target} | {right:.1%} | {'' if variety is None else f'{variety:.2f}'} |", flush=True)

    for name, judge in judges.items():
        row(f"{name}, real", name, *judge(real[name], y))
        codec = session.codec(session.stream(name))
        decoded = [
            codec.decode(session.tokens(Media(name, x.numpy(), None if name == "image" else RATE))) for x in real[name]
        ]
        row(f"{name}, encoded and decoded", name, *judge(torch.stack([tensor_of(m) for m in decoded]), y))
    asked = torch.arange(len(WORDS)).repeat_interleave(PER_WORD)
    for name, judge in judges.items():
        conditions = [session.text_condition(WORDS[word]) for word in asked]
        made = generate(session, name, conditions)
        row("text", name, *judge(torch.stack(list(map(tensor_of, made))), asked))
        if name == "image":
            write_image(
                contact_sheet([made[word * PER_WORD + k] for k in range(4) for word in range(10)], 10),
                work / "text-to-image.png",
            )
    for source, target in (("audio", "image"), ("image", "audio")):
        for via in ("", "text"):
            conditions = session.chain("text", given[source], range(len(stems))) if via else given[source]
            made = generate(session, target, conditions)
            right, variety = judges[target](torch.stack(list(map(tensor_of, made))), y)
            row(source + (", via text" if via else ""), target, right, variety)
        if target == "image":
            write_image(contact_sheet(made[:40], 10), work / "audio-to-image.png")
    for source in ("image", "audio"):
        codes = session.sample("text", given[source], range(len(stems)))
        right = np.mean([session.media("text", c) == WORDS[word] for c, word in zip(codes, y.tolist(), strict=True)])
        row(source, "text", float(right), None)
    inpaint(session, real["image"], y, judges["image"], work)


def generate(session: Generation, target: str, conditions: list) -> list[Media]:
    codes = session.sample(target, conditions, range(len(conditions)))
    return [session.media(target, item) for item in codes]


def tensor_of(media: Media) -> Tensor:
    return torch.from_numpy(media.data) if media.modality == "image" else one_length(media)


def inpaint(session: Generation, images: Tensor, y: Tensor, judge: Judge, work: Path) -> None:
    """Fill in the lower right quarter of each image, beside OpenCV's Telea if it is installed."""
    mask = np.zeros(images.shape[2:], bool)
    mask[14:, 14:] = True
    holed = images.clone()
    holed[:, :, torch.from_numpy(mask)] = -1
    filled = torch.stack([torch.from_numpy(session.inpaint(Media("image", x.numpy()), mask).data) for x in holed])
    rows = {"with the quarter missing": holed, "filled in by the generator": filled}
    try:
        import cv2
    except ImportError:
        print("\nOpenCV is not installed, so it is not compared with")
    else:
        telea = [cv2.inpaint(to_uint8(x[0].numpy()), mask.astype(np.uint8), 3, cv2.INPAINT_TELEA) for x in holed]
        rows["filled in by OpenCV (Telea)"] = torch.from_numpy(np.stack(telea).astype(np.float32) / 127.5 - 1)[:, None]
    print("\n| images | PSNR dB of the quarter | recognized |\n|---|---|---|")
    for name, x in rows.items():
        quality = psnr(images[:, :, 14:, 14:], x[:, :, 14:, 14:]).clamp(max=60).mean().item()
        print(f"| {name} | {quality:.2f} | {judge(x, y)[0]:.1%} |", flush=True)
    shown = [Media("image", x[i].numpy()) for x in (images, *rows.values()) for i in range(12)]
    write_image(contact_sheet(shown, 12), work / "inpainted.png")


if __name__ == "__main__":
    main()
