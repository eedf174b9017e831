"""The image tokenizers of transformers, most of which are parts of a larger model: a table of families.

To add a family: an entry in `FAMILIES`, its names in `ADAPTERS` of the registry, and for a part of a larger model its
modules in `PARTS` of `vqtok.models.hub`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.pretrained import SavedModel, fill, find_class, ready, with_config
from vqtok.models.registry import folder_family


@dataclass(frozen=True)
class Normalization:
    """How a library's image processor converts 8-bit values: `(value * rescale - mean) / std`, each for all channels.

    The default maps them to [-1, 1], the range of `Media`.
    """

    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    def apply(self, x: Tensor) -> Tensor:
        """Convert images in [-1, 1]."""
        if self == Normalization():
            return x
        return ((x + 1) * (127.5 * self.rescale) - self._of("mean", x)) / self._of("std", x)

    def invert(self, y: Tensor) -> Tensor:
        """Convert the output of a network to [-1, 1]."""
        if self == Normalization():
            return y
        return (y * self._of("std", y) + self._of("mean", y)) / (127.5 * self.rescale) - 1

    def _of(self, name: str, x: Tensor) -> Tensor:
        return x.new_tensor(getattr(self, name))[:, None, None]


@dataclass(frozen=True)
class Family:
    """A kind of image tokenizer.

    Args:
        network_class: Its class in transformers.
        section: The entry of a larger model's config that is its config.
        settings: As for `SavedModel`.
        codebook_size: The entry of the config with the size of the codebook.
        stride: Returns the stride, given the config.
        encode: Returns codes `(batch, height, width)`, given the network and images.
        decode: Returns images, given the network and such codes; None if the library has no decoder.
        normalization: What the network expects unless its folder has the settings of an image processor.
        has_processor: Whether these settings are for this network.
    """

    network_class: str
    section: str
    settings: tuple[str, ...]
    codebook_size: str
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor] | None = None
    stride: Callable[[Any], int] = lambda config: 2 ** (len(config.channel_multiplier) - 1)
    normalization: Normalization = Normalization()
    has_processor: bool = True
    why_whole: str = "its norms and its attention depend on the whole image"


class ImageVQ(SavedModel):
    """An image tokenizer of transformers. Of a larger model that contains one, only the tokenizer is loaded.

    Images are not resized, as the library's image processors do.
    """

    modality = "image"
    channels = 3

    def __init__(self, source: str) -> None:
        self.family = family = FAMILIES[folder_family(Path(source)) or ""]
        self.network_class, self.section, self.settings = family.network_class, family.section, family.settings
        self.why_whole = family.why_whole
        if family.decode is None:
            self.why_encode_only = (
                f"transformers has no decoder of {family.network_class}; use its tokens, or export them"
            )
        self.normalization = family.normalization
        if family.has_processor:
            self.normalization = processor_normalization(Path(source), family.normalization)
        super().__init__(source)
        self.stride = family.stride(self.config)
        self.codebook_sizes = (int(attrgetter(family.codebook_size)(self.config)),)

    def _load(self, modules: Sequence[str]) -> Any:
        if len(modules) > 1:
            return load_glm_image(self.folder, self.files, modules)
        return super()._load(modules)

    def more_settings(self) -> dict[str, Any]:
        if self.normalization == Normalization():
            return {}
        return {name: value if name == "rescale" else list(value) for name, value in vars(self.normalization).items()}

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        # In the memory format that users of the library have, so that results are rounded in the same way.
        codes = self.family.encode(self.network, self.normalization.apply(x.contiguous()))
        return codes.reshape(len(x), 1, x.shape[2] // self.stride, x.shape[3] // self.stride)

    def decode(self, codes: Tensor) -> Tensor:
        if self.family.decode is None:
            return super().decode(codes)
        return self.normalization.invert(self.family.decode(self.network, codes[:, 0]))


def processor_normalization(folder: Path, default: Normalization) -> Normalization:
    """Return the normalization of the image processor that is saved in a folder, or the default.

    Raises:
        ModelError: Its settings are not usable.
    """
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            found = json.loads((folder / name).read_bytes())
            settings |= found.get("image_processor", found)
        except OSError:
            continue
        except (ValueError, AttributeError, TypeError):
            raise ModelError(f"{folder / name}: is not the settings of an image processor; copy it again") from None
    try:
        mean, std = (
            tuple(float(value) for value in settings.get(f"image_{name}", getattr(default, name)))
            for name in ("mean", "std")
        )
        rescale = float(settings.get("rescale_factor", default.rescale))
    except (ValueError, TypeError):
        raise ModelError(f"{folder}: the settings of its image processor are not numbers; copy it again") from None
    return Normalization(mean, std, rescale)


def _encode_emu3(network: Any, x: Tensor) -> Tensor:
    sizes = torch.tensor([x.shape[2:]] * len(x))
    return torch.stack(network.encode(x, image_sizes=sizes).image_tokens)


def _decode_janus(network: Any, codes: Tensor) -> Tensor:
    """Decode grids of any size; the library only decodes those of `num_patches` x `num_patches`."""
    quantized = F.normalize(network.quantize.embedding(codes), p=2, dim=-1).permute(0, 3, 1, 2).contiguous()
    media: Tensor = network.decoder(network.post_quant_conv(quantized))
    return media


def load_glm_image(folder: Path, files: Sequence[Path], modules: Sequence[str]) -> Any:
    """Load the vision transformer of GLM-Image and the quantizer of its features."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        configs, network = {}, nn.ModuleDict()
        for name, class_name, section in zip(
            modules, ("GlmImageVisionModel", "GlmImageVQVAE"), ("vision_config", "vq_config"), strict=True
        ):
            found = find_class(folder, "transformers", class_name)
            configs[section] = found.config_class(**config[section])
            network[name] = found(configs[section])
    except ModelError:
        raise
    except Exception as error:  # The library may raise anything for a config that it cannot use.
        raise ModelError(f"{folder}: transformers cannot load it: {type(error).__name__}: {error}") from error
    with_config(network, configs, {section: found.to_dict() for section, found in configs.items()})
    return ready(fill(network, folder, files, modules))


def _encode_glm_image(network: Any, x: Tensor) -> Tensor:
    """Encode images one after another: the transformer takes their patches in one sequence."""
    size = network.config.vision_config.patch_size
    codes = []
    for image in x:
        patches = image.unfold(1, size, size).unfold(2, size, size)  # channels, rows, columns, size, size
        grid = torch.tensor([[1, *patches.shape[1:3]]], device=x.device)
        features = network.visual(patches.permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1), grid_thw=grid).pooler_output
        latents = features.view(1, *patches.shape[1:3], -1).permute(0, 3, 1, 2).contiguous()
        codes.append(network.vqmodel.encode(latents).image_tokens.view(patches.shape[1:3]))
    return torch.stack(codes)


_VQGAN = ("in_channels", "channel_multiplier", "num_res_blocks")

EMU3 = Family(
    "Emu3VQVAE",
    "vq_config",
    (*_VQGAN, "attn_resolutions", "temporal_downsample_factor", "num_attention_heads"),
    "codebook_size",
    _encode_emu3,
    lambda network, codes: network.decode(codes),
)
"""Wang et al. 2024, "Emu3: Next-Token Prediction is All You Need". The library encodes an image as a video of equal
frames."""

JANUS = Family(
    "JanusVQVAE",
    "vq_config",
    _VQGAN,
    "num_embeddings",
    lambda network, x: network.encode(x).image_tokens,
    _decode_janus,
)
"""Chen et al. 2025, "Janus-Pro: Unified Multimodal Understanding and Generation with Data and Model Scaling"."""

CHAMELEON = Family(
    "ChameleonVQVAE",
    "vq_config",
    (*_VQGAN, "resolution", "attn_resolutions", "attn_type"),
    "num_embeddings",
    lambda network, x: network.encode(x).image_tokens,
    normalization=Normalization((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.0078),
)
"""Chameleon Team 2024, "Chameleon: Mixed-Modal Early-Fusion Foundation Models"."""

FLAVA = Family(
    "FlavaImageCodebook",
    "image_codebook_config",
    ("num_groups", "num_blocks_per_group", "input_channels"),
    "vocab_size",
    lambda network, x: network.get_codebook_indices(x),
    stride=lambda config: 8,
    # The mapping of [0, 1] to [0.1, 0.9] in section 3 of Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation".
    normalization=Normalization((-0.125, -0.125, -0.125), (1.25, 1.25, 1.25)),
    has_processor=False,  # Those in the folder are for another network; the codebook's have names of their own.
    why_whole="its context is not known",
)
"""Singh et al. 2022, "FLAVA: A Foundational Language And Vision Alignment Model": the encoder of DALL-E's dVAE."""

APERTUS = Family(
    "Apertus1p5VisionTokenizerModel",
    "vision_config",
    (*_VQGAN, "attn_resolutions", "resolution"),
    "codebook_size",
    lambda network, x: network.encode(x).image_tokens,
)
"""The encoder of Emu3.5 (Cui et al. 2025, "Emu3.5: Native Multimodal Models are World Learners") with its codebook of
131,072 vectors (IBQ)."""

GLM_IMAGE = Family(
    "GlmImageVQVAE",
    "vq_config",
    (
        "vision_config.patch_size",
        "vision_config.image_size",
        "vision_config.num_heads",
        "vision_config.hidden_act",
        "vision_config.layer_norm_eps",
        "vision_config.spatial_merge_size",
    ),
    "vq_config.num_embeddings",
    _encode_glm_image,
    stride=lambda config: int(config.vision_config.patch_size),
    normalization=Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    why_whole="its transformer attends to the whole image",
)
"""The semantic tokens of GLM-Image, which its diffusion decoder renders: a vision transformer and a quantizer."""

FAMILIES = {
    "emu3_vqgan": EMU3,
    "emu3": EMU3,
    "janus_vqgan": JANUS,
    "janus": JANUS,
    "chameleon_vqgan": CHAMELEON,
    "chameleon": CHAMELEON,
    "flava_image_codebook": FLAVA,
    "flava": FLAVA,
    "apertus1p5_vision_tokenizer": APERTUS,
    "apertus1p5": APERTUS,
    "glm_image": GLM_IMAGE,
}
"""Families by the `model_type` of a saved tokenizer, and of the larger model."""
