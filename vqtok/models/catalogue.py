"""The list of available models: bundled, cached, from other packages, or known on the Hub. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vqtok.models.card import read_card
from vqtok.models.hub import cached
from vqtok.models.registry import ADAPTERS, bundled_models, families, folder_family


class Known(NamedTuple):
    """A published model for which there is an adapter."""

    name: str
    family: str
    modality: str
    sample_rate: int | None
    stride: int
    num_codebooks: int
    codebook_size: int
    num_parameters: int
    licence: str
    encode_only: bool = False
    levels: tuple[int, ...] = ()
    """Codes of each codebook per grid step, if they have different rates; then `num_codebooks` is their sum."""
    sequence_length: int = 1
    """Codes of each codebook per grid step, side by side in the grid."""
    needs: str = "vqtok[transformers]"
    """What to install with pip; empty for nothing more."""
    where: Literal["hub", "import"] = "hub"
    """Whether it is downloaded on first use, or is a checkpoint for `vqtok import`."""


# fmt: off
KNOWN = (
    Known("hf:facebook/encodec_24khz", "encodec", "audio", 24_000, 320, 32, 1024, 14_900_000, "MIT (code)"),
    Known("hf:facebook/encodec_32khz", "encodec", "audio", 32_000, 640, 4, 2048, 56_900_000, "CC-BY-NC-4.0"),
    Known("hf:facebook/encodec_48khz", "encodec", "audio", 48_000, 320, 16, 1024, 14_900_000, "MIT (code)"),
    Known("hf:descript/dac_16khz", "dac", "audio", 16_000, 320, 12, 1024, 74_100_000, "MIT"),
    Known("hf:descript/dac_24khz", "dac", "audio", 24_000, 320, 32, 1024, 74_700_000, "MIT"),
    Known("hf:descript/dac_44khz", "dac", "audio", 44_100, 512, 9, 1024, 76_600_000, "MIT"),
    Known("hf:kyutai/mimi", "mimi", "audio", 24_000, 1920, 32, 2048, 79_300_000, "CC-BY-4.0"),
    Known("hf:hf-audio/xcodec-hubert-librispeech", "xcodec", "audio", 16_000, 320, 8, 1024, 160_700_000,
          "see its card"),
    Known("hf:swiss-ai/wavtokenizer-large-unify-40token", "wavtokenizer", "audio", 24_000, 600, 1, 4096, 72_100_000,
          "see its card"),
    Known("hf:HKUSTAudio/xcodec2-hf", "xcodec2", "audio", 16_000, 320, 1, 65_536, 629_300_000, "see its card"),
    Known("hf:neuphonic/neucodec", "neucodec", "audio", 16_000, 320, 1, 65_536, 629_900_000, "Apache-2.0"),
    Known("hf:bosonai/higgs-audio-v2-tokenizer", "higgs_audio_v2_tokenizer", "audio", 24_000, 960, 8, 1024, 200_300_000,
          "see its card", needs="vqtok[transformers] and torchaudio"),
    Known("hf:Qwen/Qwen3-TTS-Tokenizer-12Hz", "qwen3_tts_tokenizer_12hz", "audio", 24_000, 1920, 16, 2048, 39_400_000,
          "see its card", encode_only=True),
    Known("hf:hubertsiuzdak/snac_24khz", "snac", "audio", 24_000, 2048, 7, 4096, 19_800_000, "MIT", levels=(1, 2, 4),
          needs="vqtok[snac]"),
    Known("hf:hubertsiuzdak/snac_32khz", "snac", "audio", 32_000, 3072, 15, 4096, 54_500_000, "MIT",
          levels=(1, 2, 4, 8), needs="vqtok[snac]"),
    Known("hf:hubertsiuzdak/snac_44khz", "snac", "audio", 44_100, 3072, 15, 4096, 54_500_000, "MIT",
          levels=(1, 2, 4, 8), needs="vqtok[snac]"),
    Known("hf:kandinsky-community/kandinsky-2-2-decoder/movq", "VQModel", "image", None, 8, 1, 16_384, 67_800_000,
          "Apache-2.0", needs="vqtok[diffusers]"),
    Known("hf:Emu3-community/Emu3-Chat-hf", "emu3", "image", None, 8, 1, 32_768, 270_700_000, "Apache-2.0"),
    Known("hf:deepseek-community/Janus-Pro-1B", "janus", "image", None, 16, 1, 16_384, 71_900_000, "see its card"),
    Known("hf:facebook/chameleon-7b", "chameleon", "image", None, 16, 1, 8192, 29_400_000,
          "Chameleon's", encode_only=True, needs="vqtok[transformers] and its license accepted"),
    Known("hf:swiss-ai/Apertus-v1.5-8B", "apertus1p5", "image", None, 16, 1, 131_072, 218_200_000, "see its card",
          encode_only=True),
    Known("hf:zai-org/GLM-Image/vision_language_encoder", "glm_image", "image", None, 16, 1, 16_384, 1_199_500_000,
          "see its card", encode_only=True),
    Known("hf:yucornetto/tokenizer_titok_l32_imagenet", "titok", "image", None, 256, 32, 4096, 641_000_000,
          "Apache-2.0"),
    Known("hf:yucornetto/tokenizer_titok_b64_imagenet", "titok", "image", None, 256, 64, 4096, 204_000_000,
          "Apache-2.0"),
    Known("hf:yucornetto/tokenizer_titok_s128_imagenet", "titok", "image", None, 256, 128, 4096, 83_000_000,
          "Apache-2.0"),
    Known("hf:facebook/flava-image-codebook", "flava_image_codebook", "image", None, 8, 1, 8192, 53_800_000,
          "see its card", encode_only=True),
    Known("fnlp/SpeechTokenizer", "speechtokenizer", "audio", 16_000, 320, 8, 1024, 102_900_000, "Apache-2.0 (code)",
          where="import"),
    Known("Alethia/BigCodec", "bigcodec", "audio", 16_000, 200, 1, 8192, 159_400_000, "MIT (code)", needs="",
          where="import"),
    Known("FoundationVision/var", "var_tokenizer", "image", None, 256, 1, 4096, 108_900_000, "MIT (code)",
          sequence_length=680, needs="", where="import"),
    Known("nvidia/Cosmos-0.1-Tokenizer-DI8x8", "cosmos_tokenizer", "image", None, 8, 1, 64_000, 79_000_000,
          "NVIDIA Open Model License", needs="", where="import"),
    Known("nvidia/Cosmos-0.1-Tokenizer-DI16x16", "cosmos_tokenizer", "image", None, 16, 1, 64_000, 83_700_000,
          "NVIDIA Open Model License", needs="", where="import"),
)
# fmt: on


def list_models() -> Iterator[dict[str, Any]]:
    """Yield descriptions of the models that can be opened by name, as `vqtok models --json` prints them.

    `where` is "bundled", "cache" (in the Hugging Face cache), "package" (a family added by a package or
    `vqtok.register`), "hub" (downloaded on first use) or "import" (a repository of the Hub with a checkpoint for
    `vqtok import`).
    """
    for name, path in bundled_models().items():
        card = read_card(path)
        model = card.config["model"]
        yield {
            "name": name,
            "where": "bundled",
            "family": "vqtok",
            "modality": model["modality"],
            "sample_rate": model["sample_rate"] or None,
            "stride": card.stride,
            "num_codebooks": len(card.codebook_sizes),
            "codebook_sizes": list(card.codebook_sizes),
            **token_rate(len(card.codebook_sizes), card.stride, model["sample_rate"] or None),
            "num_parameters": card.num_parameters,
            "licence": "Apache-2.0",
        }
    known = {model.name: model for model in KNOWN}
    for name, folder in cached():
        family = folder_family(folder)
        if family in ADAPTERS or family in families():
            published = known.pop(name, None) or known.get(name.partition("@")[0])
            facts = _facts(published) if published else {"family": family}
            yield facts | {"name": name, "where": "cache", "file_bytes": _weight_bytes(folder)}
    for family in families():
        yield {"name": f"{family}:...", "where": "package", "family": family}
    for model in known.values():
        yield _facts(model)


def _facts(model: Known) -> dict[str, Any]:
    per_step = model.num_codebooks * model.sequence_length
    facts = model._asdict() | token_rate(per_step, model.stride, model.sample_rate)
    return facts | {"codebook_sizes": [facts.pop("codebook_size")] * model.num_codebooks}


def token_rate(per_step: int, stride: int, sample_rate: int | None) -> dict[str, float]:
    """Return the number of tokens of a second of mono audio, or of an image of 256 x 256 pixels."""
    if sample_rate:
        return {"tokens_per_second": per_step * sample_rate / stride}
    return {"tokens_per_256px": per_step * math.ceil(256 / stride) ** 2}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
