"""The configuration: frozen dataclasses, read from TOML presets and settings, stored as JSON in the model file."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from vqtok.errors import UsageError

Modality = Literal["image", "audio"]
Kind = Literal["vq", "fsq", "lfq", "bsq", "ibq"]
AdversarialKind = Literal["hinge", "non_saturating", "least_squares"]
PerceptualKind = Literal["efficientnet", "lpips"]

# No number may be negative. These have narrower limits; in a tuple they hold for each number.
# fmt: off
AT_LEAST_ONE = frozenset({
    "strides", "widths", "kernel", "dilations", "channels", "dim", "depth", "groups", "crop_pixels", "steps",
    "batch_size", "accumulate", "validations", "validation_items", "hidden", "positions", "width", "periods", "every",
})
# fmt: on
BELOW_ONE = frozenset({"decay", "average_decay", "betas", "validation_fraction", "start", "warm_up"})


@dataclass(frozen=True)
class NetworkConfig:
    """Encoder and decoder: one stage per stride, each with its width and number of residual blocks."""

    strides: tuple[int, ...] = (4, 2)
    """Downsampling of each stage; their product is the model's stride (hop length)."""
    widths: tuple[int, ...] = (128, 256)
    """Channels of each stage."""
    encoder_blocks: tuple[int, ...] = (2, 2)
    decoder_blocks: tuple[int, ...] = (3, 3)
    kernel: int = 3
    """Size of the convolutions in a block; odd."""
    dilations: tuple[int, ...] = (1,)
    """Dilations of the blocks of a stage, repeated cyclically."""
    activation: Literal["silu", "elu", "snake"] = "silu"
    norm: Literal["channel", "none"] = "channel"
    """With "none" the loudness passes through the network, which audio needs."""
    kind: Literal["convolutional", "vqgan", "magvit2"] = "convolutional"
    """The published networks ("vqgan", "magvit2") are for images: strides are 1 or 2, widths are multiples of 32, and
    `kernel`, `dilations`, `activation` and `norm` have no effect. They need the whole image at once, so it cannot be
    tiled."""
    attention: tuple[bool, ...] = ()
    """For vqgan: whether the blocks of each stage are followed by self-attention; by default nowhere."""
    middle_attention: bool = True
    """For vqgan: self-attention between the two blocks at the resolution of the grid."""


@dataclass(frozen=True)
class QuantizerConfig:
    """The quantizer: `kind`, wrapped in `Projected`, `Grouped` and `Residual` if the numbers require it."""

    kind: Kind = "vq"
    dim: int = 32
    """Channels of the latent."""
    codebook_size: int = 1024
    """Number of codes of `vq` and `ibq`; the other kinds have implicit codebooks."""
    depth: int = 1
    """Number of residual codebooks, from coarse to fine."""
    groups: int = 1
    """Number of slices of the latent that are quantized separately, at each depth."""
    projected_dim: int = 0
    """Dimension in which codes are looked up; for `lfq` and `bsq` the number of bits. 0 for that of the latent."""
    levels: tuple[int, ...] = ()
    """Levels of each dimension of `fsq`."""
    metric: Literal["l2", "cosine"] = "l2"
    learning: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    restart_below: float = 0.03
    """Codes whose usage is below this fraction of uniform usage restart from current latents."""
    prefix_dropout: float = 0.5
    """Probability that an item of a batch is decoded from a random prefix of the codebooks."""
    beam: int = 1
    """Paths through residual codebooks that are followed in training, as `--effort` follows them in encoding."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, on which the weights depend; part of the model's identity."""

    modality: Literal["image", "audio", "fusion"] = "image"
    """A fusion model has an encoder and a decoder for each of image and audio around one quantizer."""
    channels: int = 3
    """Channels of the image; audio is encoded one channel at a time."""
    sample_rate: int = 0
    """Hz; 0 for images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    audio_network: NetworkConfig = field(default_factory=NetworkConfig)
    """The networks for audio in a fusion model, where `network` describes those for images."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model encodes."""
        return ("image", "audio") if self.modality == "fusion" else (self.modality,)

    def of(self, modality: Modality) -> ModelConfig:
        """Return the architecture of one side of a fusion model; that of another model is returned as it is."""
        if self.modality != "fusion":
            return self
        if modality == "image":
            return replace(self, modality="image", sample_rate=0, audio_network=NetworkConfig())
        return replace(self, modality="audio", network=self.audio_network, audio_network=NetworkConfig())


@dataclass(frozen=True)
class DataConfig:
    """The training data and how it is cut."""

    crop_pixels: int = 96
    crop_seconds: float = 1.0
    flip: bool = True
    """Mirror images at random."""
    validation_fraction: float = 0.05
    """Fraction of the files that are held out, selected by a hash of their names."""
    cache_gb: float = 4.0
    """Memory for decoded media; files that do not fit are decoded each time."""
    workers: int = 2
    """Threads that cut crops ahead of the training step."""
    degrade: tuple[str, ...] = ()
    """Degradations of the encoder's inputs, as `vqtok.media.degrade` describes them, such as "noise:5-50"; one is drawn
    for each crop. The model learns to reconstruct the media as they were before."""
    speech: str = ""
    """Which files are speech: a pattern such as `speech/*` of names in the data folder. The losses for speech act on
    crops of these; on all if empty."""
    cache_codes: int = 0
    """In training of the decoder alone, encode the media once, with this effort (see `CodecOptions`), and keep their
    codes in the run folder; 0 to encode the crops of each step. It pays off where a run sees its media often."""
    note: str = ""
    """A note for the model card: the data and its licenses."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out."""

    l1: float = 0.0
    l2: float = 0.0
    mel: float = 0.0
    mel_windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Window sizes in samples of the mel loss. Few are enough for small models, where the loss takes the most time."""
    stft: float = 0.0
    sdr: float = 0.0
    loudness: float = 0.0
    stoi: float = 0.0
    """For speech: its intelligibility."""
    pesq: float = 0.0
    """For speech: how far its quality is below the best one."""
    ssimulacra2: float = 0.0
    """For images: visible differences, at several scales. Crops of 128 pixels have all of the scales."""
    perceptual: float = 0.0
    perceptual_kind: PerceptualKind = "efficientnet"
    """The network whose features are compared; lpips downloads its weights at the first use."""
    commitment: float = 0.25
    codebook: float = 1.0
    entropy: float = 0.1
    code_matching: float = 0.0
    """For fusion models: draws the codes of pairs, an image and an audio of one stem, toward each other."""

    def of(self, modality: Modality) -> LossConfig:
        """Return the weights for one side of a fusion model, where l1 and l2 are for images."""
        if modality == "image":
            return replace(self, mel=0.0, stft=0.0, sdr=0.0, loudness=0.0, stoi=0.0, pesq=0.0, code_matching=0.0)
        return replace(self, l1=0.0, l2=0.0, ssimulacra2=0.0, perceptual=0.0, code_matching=0.0)


@dataclass(frozen=True)
class TrainConfig:
    """The optimization and its schedule."""

    steps: int = 20_000
    """Number of steps, if neither steps nor minutes are given to `train`."""
    batch_size: int = 16
    """Items per step, in each process."""
    accumulate: int = 1
    """Number of parts that a batch is split into, to save memory."""
    gradient_checkpointing: bool = False
    """Recompute the residual blocks in the backward pass, which saves memory and takes more time."""
    learning_rate: float = 1e-3
    resampling_scale: float = 0.4
    """Learning rate of the convolutions between blocks, relative to that of the blocks."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_steps: int = 200
    continuous_steps: int = 250
    """Number of first steps without quantization, after which k-means initializes the codebooks."""
    clip_norm: float = 1.0
    average_decay: float = 0.999
    """Decay of the averaged weights, which are validated and saved."""
    validations: int = 15
    """Number of validations in the run."""
    validation_items: int = 32
    """Number of held-out files in a validation; the final evaluation uses all."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """With "auto", bfloat16 autocast if the hardware supports it, else float32."""
    stored_precision: Literal["float16", "float32"] = "float16"
    """Type of the weights in the model file."""
    freeze: tuple[Literal["encoder", "codebook", "decoder"], ...] = ()
    """Parts that fine-tuning leaves unchanged."""
    keep_initial: float = 0.0
    """The share that the weights of the model to start from have in the result of fine-tuning. It has most of what the
    training gained, and loses less of what the losses do not measure. Needs a frozen codebook.
    Source: Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models"."""
    restart_codebook: bool = False
    """Let fine-tuning keep only the networks, and initialize the codebooks by k-means."""


@dataclass(frozen=True)
class PriorConfig:
    """The context prior, which makes token files smaller; it is fitted after training."""

    fit_steps: int = 1000
    """Maximum number of steps, and at most a quarter of the run's steps; 0 for no prior."""
    learning_rate: float = 4e-3
    dim: int = 32
    """Dimension of the embeddings of known codes."""
    hidden: int = 48
    positions: int = 600_000
    """Maximum number of grid positions of training media that it is fitted to."""


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminators and the weights of their losses.

    Source: the public configurations of VQGAN+ (Weber et al. 2024, "MaskBit") and TA-TiTok (Kim et al. 2025) for the
        learning rate, the clipping (1 is the lowest value there), and a fixed weight of 0.02 to 0.1 from a fifth or a
        third of the run on, with LeCam at 0.001. betas: Esser et al. 2021. For audio see the preset audio-gan.
    """

    weight: float = 0.0
    """Weight of the adversarial loss; 0 for no discriminators."""
    kind: AdversarialKind = "hinge"
    feature_matching: float = 0.0
    """Weight of the differences in the discriminators' features."""
    lecam: float = 0.001
    """Weight of the LeCam regularization, which stabilizes the discriminators."""
    gradient_penalty: float = 0.0
    """Weight of the squared gradient of the discriminators at originals (R1), which keeps them smooth and from winning;
    0.3 is a value to try. A quarter of the steps of the discriminators takes twice as long."""
    weighting: Literal["fixed", "adaptive", "balanced"] = "fixed"
    """With "adaptive", `weight` is relative to the weight that makes the adversarial gradient at the last layer as
    large as that of the other losses. With "balanced", all weights are shares of the gradient at the
    reconstruction, relative to the first reconstruction loss, which keeps its own scale."""
    start: float = 0.2
    """Fraction of the run after which the discriminators' losses are used."""
    warm_up: float = 0.05
    """Fraction of the run before `start` in which the discriminators are already trained."""
    width: int = 64
    """Channels of the discriminators' first layers."""
    depth: int = 4
    """For images: convolutions of the discriminator before its last one; all but one of them halve the size. 4 for
    patches of 70 pixels, 3 for 34, 2 for 16."""
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """For audio: a discriminator for each of these periods in samples."""
    windows: tuple[int, ...] = (2048, 1024, 512)
    """For audio: a discriminator of the spectrum, band by band, for each of these window sizes in samples."""
    crop: float = 1.0
    """Fraction of each side of the crops that the discriminators see, at a random place."""
    every: int = 1
    """The discriminators learn in every step (1), every second step (2), and so on."""
    learning_rate: float = 1e-4
    """Learning rate of the discriminators; it follows the cosine of the run."""
    betas: tuple[float, float] = (0.5, 0.9)
    clip_norm: float = 10.0
    allowed_psnr_loss: float = 0.5
    """For images: how much worse in dB than the best validation a model may be to become the result."""
    allowed_mel_loss: float = 0.05
    """For audio: the same as a fraction of the mel distance."""


@dataclass(frozen=True)
class Config:
    """A training configuration, as in presets and model files."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss term by name."""
        weights = dict(_numbers(self.loss))
        return weights | {
            "adversarial": self.adversarial.weight,
            "feature_matching": self.adversarial.feature_matching,
        }

    def of(self, modality: Modality) -> Config:
        """Return the configuration of one side of a fusion model; that of another model is returned as it is."""
        if self.model.modality != "fusion":
            return self
        return replace(self, model=self.model.of(modality), loss=self.loss.of(modality))

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise UsageError(problem)

    def _problems(self) -> Iterator[str]:
        """Yield what is invalid. The first one is raised, so each check relies on the earlier ones."""
        yield from numbers_out_of_range(self, AT_LEAST_ONE, BELOW_ONE)
        model, quantizer = self.model, self.model.quantizer
        for modality in model.modalities:
            is_second = (model.modality, modality) == ("fusion", "audio")
            network = f"model.{'audio_' if is_second else ''}network"
            yield from _network_problems(network, model.of(modality))
        if ("audio" in model.modalities) != (model.sample_rate > 0):
            yield "model.sample_rate must be set for audio, and only for audio"
        if model.modality != "audio" and model.channels not in (1, 3):
            yield f"model.channels must be 1 (gray) or 3 (RGB), not {model.channels}"
        if self.data.degrade and model.modality == "fusion":
            yield "data.degrade is for models of one modality"
        if self.adversarial.weight and model.modality == "fusion":
            yield "adversarial.weight must be 0 for a fusion model; discriminators are for models of one modality"
        if self.loss.code_matching and model.modality != "fusion":
            yield 'loss.code_matching is for a fusion model (model.modality = "fusion"); set it to 0'
        one_codebook = (quantizer.kind, quantizer.metric, quantizer.depth, quantizer.groups) == ("vq", "l2", 1, 1)
        if self.loss.code_matching and (not one_codebook or quantizer.projected_dim not in (0, quantizer.dim)):
            yield "loss.code_matching needs one learned codebook (kind vq, metric l2, depth 1, groups 1), or must be 0"
        if self.loss.mel and min(self.loss.mel_windows, default=0) < 32:
            yield "loss.mel_windows needs at least one window, none below 32 samples, for example [512]"
        if self.adversarial.weight:
            yield from self._adversarial_problems()
        if quantizer.codebook_size < 2:
            yield "model.quantizer.codebook_size must be at least 2"
        if quantizer.kind == "fsq" and not quantizer.levels:
            yield "model.quantizer.levels must be set for fsq, for example [8, 5, 5, 5]"
        if self.train.batch_size % self.train.accumulate:
            yield "train.batch_size must be a multiple of train.accumulate"
        if {"encoder", "decoder"} <= set(self.train.freeze):
            yield "train.freeze must leave the encoder or the decoder to train"
        if self.train.restart_codebook and "codebook" in self.train.freeze:
            yield "train.restart_codebook cannot be combined with a frozen codebook"
        if self.data.cache_codes and (
            not {"encoder", "codebook"} <= set(self.train.freeze) or model.modality == "fusion" or self.data.degrade
        ):
            yield (
                "data.cache_codes is for training of the decoder alone (train.freeze=encoder,codebook), of models of "
                "one modality, without data.degrade"
            )
        if self.train.keep_initial and not (0 < self.train.keep_initial < 1 and "codebook" in self.train.freeze):
            yield "train.keep_initial must be between 0 and 1, and needs a frozen codebook: train.freeze=codebook"
        if self.adversarial.weight and self.adversarial.weighting != "fixed" and self.train.accumulate > 1:
            yield "adversarial.weighting must be fixed if train.accumulate is above 1; other weights need whole batches"
        if self.adversarial.weight and self.adversarial.weighting == "adaptive" and "decoder" in self.train.freeze:
            yield "adversarial.weighting=adaptive needs the decoder's last layer; leave decoder out of train.freeze"
        if quantizer.dim % quantizer.groups:
            yield "model.quantizer.dim must be a multiple of groups"

    def _adversarial_problems(self) -> Iterator[str]:
        adversarial, modality = self.adversarial, self.model.modality
        if not 0 < adversarial.crop <= 1:
            yield f"adversarial.crop must be above 0 and at most 1, not {adversarial.crop}"
        # What the first convolutions leave has to be large enough for the last two, of size 4.
        smallest = 3 * 2 ** (adversarial.depth - 1)
        if modality == "image" and int(self.data.crop_pixels * adversarial.crop) < smallest:
            yield (
                f"data.crop_pixels times adversarial.crop must be at least {smallest} for the discriminator; "
                "lower adversarial.depth for smaller images"
            )
        if modality == "audio" and not (adversarial.periods or adversarial.windows):
            yield "adversarial.periods and adversarial.windows are both empty: there would be no discriminator"
        if min(adversarial.windows, default=64) < 64:
            yield "adversarial.windows must be at least 64"

    def to_dict(self) -> dict[str, Any]:
        """Return all values. Those of fusion models are left out of others, whose identities would change."""
        values = dataclasses.asdict(self)
        if self.model.modality != "fusion":
            del values["model"]["audio_network"]
        return values


def _network_problems(name: str, model: ModelConfig) -> Iterator[str]:
    """Yield what is invalid for the networks of a model of one modality, which have this name in messages."""
    network = model.network
    lengths = {len(x) for x in (network.strides, network.widths, network.encoder_blocks, network.decoder_blocks)}
    if len(lengths) > 1 or 0 in lengths:
        yield f"{name}: strides, widths, encoder_blocks and decoder_blocks must have equal lengths"
    if network.kernel % 2 == 0:
        yield f"{name}.kernel must be odd, not {network.kernel}"
    if not network.dilations:
        yield f"{name}.dilations needs at least one value, for example [1]"
    if network.kind == "convolutional":
        return
    if model.modality != "image":
        yield f"{name}.kind {network.kind} is for images"
    if not set(network.strides) <= {1, 2}:
        yield f"{name}.strides of {network.kind} must be 1 or 2, for example 1,2,2,2"
    if any(width % 32 for width in network.widths):
        yield f"{name}.widths of {network.kind} must be multiples of 32 (its group norms need that)"
    if len(network.attention) not in (0, len(network.strides)):
        yield f"{name}.attention must be empty or have true or false for each stage"


T = TypeVar("T")


def numbers_out_of_range(config: Any, at_least_one: Container[str], below_one: Container[str]) -> Iterator[str]:
    """Yield what is wrong with numbers of a configuration: none may be negative, some have narrower limits by name."""
    for path, value in _numbers(config):
        name = path.rpartition(".")[2]
        lowest = 1 if name in at_least_one else 0
        if not value >= lowest:
            yield f"{path} must be at least {lowest}, not {value}"
        if name in below_one and value >= 1:
            yield f"{path} must be below 1, not {value}"


def _numbers(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a configuration with its path."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{path}{entry.name}.")
        else:
            items = value if isinstance(value, tuple) else (value,)
            yield from ((path + entry.name, item) for item in items if isinstance(item, (int, float)))


def preset_names() -> list[str]:
    """Return the names of the bundled presets."""
    folder = resources.files("vqtok") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def take_init(values: dict[str, Any]) -> str | None:
    """Remove and return the model that training with a preset starts from, if the preset names one.

    Raises:
        UsageError: It is no name.
    """
    init = values.pop("init", None)
    if init is not None and not isinstance(init, str):
        raise UsageError(f"init must be the name or path of a model, not {init!r}")
    return init


def load_preset(name: str, settings: Iterable[str] = ()) -> Config:
    """Read a preset by name, or a TOML file by path, and apply settings of the form `path=value`.

    Raises:
        UsageError: The preset, a key or a value is unknown or invalid.
    """
    values = read_preset(name)
    take_init(values)
    for setting in settings:
        apply_setting(values, setting)
    return from_dict(Config, values)


def read_preset(name: str) -> dict[str, Any]:
    """Read the values of a preset or TOML file, merged into those of the preset that it names as `base`.

    The values are not checked. `init` among them is the model that training starts from; `take_init` removes it.

    Raises:
        UsageError: The preset does not exist or is not valid TOML.
    """
    source = Path(name) if name.endswith(".toml") else resources.files("vqtok") / "presets" / f"{name}.toml"
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"`preset` {name!r} does not exist; use {', '.join(preset_names())} or a .toml file") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{name}: not valid TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in preset_names():
        raise UsageError(f"{name}: base must be one of {', '.join(preset_names())}, not {base!r}")
    return merged(read_preset(base), values)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values with some of them changed, section by section."""
    sections = {
        key: merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | sections


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Apply a setting such as `train.batch_size=8`. The value is TOML, a list without brackets, or plain text.

    Raises:
        UsageError: The setting has another form, or its path leads through something that is not a section.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise UsageError(f"`settings` {setting!r}: must be path=value, for example train.batch_size=8")
    *sections, key = path.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"`settings` {setting!r}: {section} is a value, not a section")
    values[key] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return text


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Create a configuration from plain values, and check names and types.

    Raises:
        UsageError: A name is unknown or a value has the wrong type; the message has its path.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UsageError(f"unknown setting {path}{unknown[0]}; known are {', '.join(path + name for name in hints)}")
    return cls(**{name: _convert(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} is a section, not a value")
        return from_dict(hint, value, f"{path}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in args:
        return value
    if origin is tuple:
        if isinstance(value, str) and (args[0] is str or typing.get_origin(args[0]) is Literal):
            value = [item.strip() for item in value.split(",") if item.strip()]
        items = value if isinstance(value, (list, tuple)) else [value]
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise UsageError(f"{path} needs {len(args)} values, not {len(items)}")
        return tuple(_convert(args[0], item, path) for item in items)
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = " or ".join(map(repr, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{path} must be {expected}, not {value!r}")
