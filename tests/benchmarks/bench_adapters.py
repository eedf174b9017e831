"""Print the processor time of encoding with vqtok, relative to a call of the library with prepared tensors.

python tests/benchmarks/bench_adapters.py [seconds] [threads]
python tests/benchmarks/bench_adapters.py together [threads]     # audio in batches of 8, relative to one by one

The models have the published sizes and random weights, which are as fast as trained ones.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from vqtok.codec.codec import Codec
from vqtok.media.media import Media
from vqtok.models.registry import open_tokenizer

REPEATS = 7
ENCODEC_48KHZ = {
    "sampling_rate": 48_000,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}
MOVQ = {
    "block_out_channels": [128, 256, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "num_vq_embeddings": 16_384,
    "norm_type": "spatial",
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
}

Encode = Callable[[Any, torch.Tensor], object]


def movq_codes(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.quantize(model.encode(x).latents)[2][2]


# Name: model, codebooks (None: all), the library's own call.
CASES: dict[str, tuple[Callable[[], Any], int | None, Encode]] = {
    "EnCodec 24 kHz": (
        lambda: transformers.EncodecModel(transformers.EncodecConfig()),
        None,
        lambda model, x: model.encode(x, bandwidth=24.0),
    ),
    "EnCodec 24 kHz, 8 codebooks": (
        lambda: transformers.EncodecModel(transformers.EncodecConfig()),
        8,
        lambda model, x: model.encode(x, bandwidth=6.0),
    ),
    "EnCodec 48 kHz": (
        lambda: transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC_48KHZ)),
        None,
        lambda model, x: model.encode(x, bandwidth=24.0),
    ),
    "DAC 44.1 kHz": (
        lambda: transformers.DacModel(transformers.DacConfig(sampling_rate=44_100)),
        None,
        lambda model, x: model.encode(x),
    ),
    "Mimi": (lambda: transformers.MimiModel(transformers.MimiConfig()), None, lambda model, x: model.encode(x)),
    "Mimi, 8 codebooks": (
        lambda: transformers.MimiModel(transformers.MimiConfig()),
        8,
        lambda model, x: model.encode(x, num_quantizers=8),
    ),
    "WavTokenizer": (
        lambda: transformers.WavTokenizerModel(transformers.WavTokenizerConfig()),
        None,
        lambda model, x: model.encode(x),
    ),
    "X-codec": (
        lambda: transformers.XcodecModel(transformers.XcodecConfig()),
        None,
        lambda model, x: model.encode(x),
    ),
    "MoVQ, 256 x 256": (lambda: diffusers.VQModel(**MOVQ), None, movq_codes),
}


def medium(codec: Codec, seconds: float) -> Media:
    """Return noise of a whole number of steps, so that both sides do the same work."""
    tokenizer, rng = codec.tokenizer, np.random.default_rng(0)
    if tokenizer.modality == "image":
        return Media("image", rng.uniform(-1, 1, (3, 256, 256)).astype(np.float32))
    assert tokenizer.sample_rate
    samples = round(seconds * tokenizer.sample_rate / tokenizer.stride) * tokenizer.stride
    data = rng.normal(0, 0.1, (tokenizer.channels, samples)).astype(np.float32)
    return Media("audio", data, tokenizer.sample_rate)


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def bench_together() -> None:
    """Print the time of 8 pieces of audio in a batch, relative to one by one, and how many codes differ."""
    print("| model | seconds each | one by one s | together / one by one | codes that differ |\n|---|---|---|---|---|")
    for name in ("EnCodec 24 kHz", "WavTokenizer", "Mimi", "X-codec"):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            CASES[name][0]().eval().save_pretrained(folder)
            tokenizer = open_tokenizer(folder)
            for seconds in (0.25, 1.0):
                x = torch.from_numpy(np.stack([medium(Codec(tokenizer), seconds).data * (1 + i) for i in range(8)]))
                found = [torch.cat([tokenizer.encode(sound[None]) for sound in x]), tokenizer.encode(x)]
                runs = [lambda: [tokenizer.encode(sound[None]) for sound in x], lambda: tokenizer.encode(x)]  # noqa: B023
                times = [[timed(run) for run in runs] for _ in range(REPEATS)]
                ratio = statistics.median(together / alone for alone, together in times)
                differ = int((found[0] != found[1]).sum())
                alone = statistics.median(alone for alone, _ in times)
                print(
                    f"| {name} | {seconds:g} | {alone:.2f} | {ratio:.2f} | {differ} of {found[0].numel()} |", flush=True
                )


def main() -> None:
    if sys.argv[1:2] == ["together"]:
        torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
        transformers.utils.logging.set_verbosity_error()
        bench_together()
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    transformers.utils.logging.set_verbosity_error()
    print(f"| model, {seconds:g} s of audio | library s | vqtok / library |\n|---|---|---|")
    for name, (make, codebooks, encode) in CASES.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = make().eval()
            model.save_pretrained(folder)
            codec = Codec(open_tokenizer(folder))
            media = medium(codec, seconds)
            x = torch.from_numpy(media.data)[None]
            runs = [(lambda: encode(model, x)), (lambda: codec.encode(media, codebooks))]  # noqa: B023
            times = [[timed(run) for run in runs] for _ in range(REPEATS + 1)][1:]
        ratio = statistics.median(ours / theirs for theirs, ours in times)
        print(f"| {name} | {statistics.median(t for t, _ in times):.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
