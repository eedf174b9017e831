"""What is compared: models at numbers of codebooks, and classical codecs at the same bytes and over their range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vqtok.codec.prefixes import prefix_lengths
from vqtok.errors import ModelError, UsageError
from vqtok.evaluation.codecs import CODECS, chosen_codecs
from vqtok.metrics.catalogue import METRICS, Metric, chosen_metrics
from vqtok.models.hub import at_revision
from vqtok.models.registry import find_model, is_adapted, open_tokenizer

Kind = Literal["model", "matched", "curve"]


@dataclass(frozen=True)
class Candidate:
    """A model at a number of codebooks, or a classical codec at the bytes of such a model or at one of its settings."""

    source: str
    """The name of the model or codec."""
    kind: Kind
    num_codebooks: int | None = None
    """Of the model; for a codec at the same bytes, of the model it is compared with."""
    model: str | None = None
    """The model that a codec is compared with."""
    setting: int | None = None
    """The setting of a codec on its curve."""

    @property
    def id(self) -> str:
        """A name such as `image@4`, `jpeg=image@4` or `jpeg:50`, which tells it from all others of its modality."""
        if self.kind == "model":
            return f"{self.source}@{self.num_codebooks}"
        return f"{self.source}:{self.setting}" if self.kind == "curve" else f"{self.source}={self.reference}"

    @property
    def reference(self) -> str:
        """The id of the model candidate with which it is grouped."""
        return f"{self.model or self.source}@{self.num_codebooks}"

    @property
    def heading(self) -> str:
        return CODECS[self.source].heading if self.source in CODECS and self.kind != "model" else self.source

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "source": self.source,
            "heading": self.heading,
            "kind": self.kind,
            "num_codebooks": self.num_codebooks,
            "model": self.model,
            "setting": self.setting,
        }


@dataclass(frozen=True)
class Model:
    """A tokenizer to evaluate."""

    name: str
    """Its name in tables."""
    given: str
    """What the user called it."""
    model: str
    """What opens it, also in another process: a path or a name."""
    modality: str
    identity: str
    codebook_sizes: tuple[int, ...]
    stride: int
    sample_rate: int | None
    codebooks: tuple[int, ...]
    """The numbers of codebooks to evaluate."""
    decodes: bool = True
    """Whether there are reconstructions, and so metrics."""


@dataclass(frozen=True)
class Plan:
    """What to compute for every item of one modality."""

    modality: Literal["image", "audio"]
    models: tuple[Model, ...]
    codecs: tuple[str, ...]
    metrics: tuple[str, ...]
    missing: dict[str, str] = field(default_factory=dict)
    """Why codecs and metrics were left out."""
    sample_rate: int | None = None
    """The rate to which audio is resampled first; None for its own."""
    mono: bool = False
    degrade: tuple[str, ...] = ()
    """Rules of `vqtok.media.degrade` for what is encoded; it is compared with the original."""
    effort: int = 1
    """Paths through residual codebooks that are followed in encoding."""
    stability: bool = True
    """Whether to measure how codes change when the input does."""
    curves: bool = True
    """Whether to run codecs over their whole range."""
    device: str = "cpu"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates, each model's rate followed by the codecs at its bytes, and the curves of codecs last."""
        found = []
        for count in sorted({count for model in self.models for count in model.codebooks}):
            for model in self.models:
                if count in model.codebooks:
                    found.append(Candidate(model.name, "model", count))
                    found += [Candidate(name, "matched", count, model.name) for name in self.codecs]
        if self.curves:
            found += [
                Candidate(name, "curve", setting=setting) for name in self.codecs for setting in CODECS[name].ladder
            ]
        return found

    @property
    def item_metrics(self) -> list[Metric]:
        return [METRICS[name] for name in self.metrics if not METRICS[name].of_sets]

    @property
    def set_metrics(self) -> list[Metric]:
        return [METRICS[name] for name in self.metrics if METRICS[name].of_sets]


def open_models(names: Sequence[str], codebooks: Sequence[int] | None, revision: str | None = None) -> list[Model]:
    """Open models by name or path, and choose their numbers of codebooks.

    Args:
        codebooks: The wanted numbers, of which each model has those that it can; by default powers of two, and all.

    Raises:
        ModelError: A model does not exist, or is given twice.
        UsageError: A model has none of the numbers of codebooks.
    """
    found = []
    for given in names:
        model = at_revision(given, revision) or given
        whole = open_tokenizer(model)
        for tokenizer in map(whole.of, whole.modalities):
            available = len(tokenizer.codebook_sizes)
            usual = tokenizer.prefixes if tokenizer.levels else prefix_lengths(available)
            counts = [n for n in (codebooks or usual) if n in tokenizer.prefixes] or list(tokenizer.prefixes[:1])
            if codebooks and counts[0] not in codebooks:
                has = available if not tokenizer.levels else ", ".join(map(str, tokenizer.prefixes))
                raise UsageError(f"`num_codebooks` {min(codebooks)}: model {given} has {has}")
            found.append(
                Model(
                    given,
                    given,
                    model if is_adapted(model) else str(find_model(model)),
                    tokenizer.modality,
                    tokenizer.identity.hex(),
                    tuple(tokenizer.codebook_sizes),
                    tokenizer.stride,
                    tokenizer.sample_rate,
                    tuple(sorted(set(counts))),
                    not tokenizer.why_encode_only,
                )
            )
    return _with_short_names(found)


def _with_short_names(models: Sequence[Model]) -> list[Model]:
    """Name each model file by its stem where that is enough."""
    stems = [Path(model.name).stem if model.name.endswith(".safetensors") else model.name for model in models]
    owners = {(stem, model.name) for stem, model in zip(stems, models, strict=True)}
    counts = Counter(stem for stem, _ in owners)
    names = [stem if counts[stem] == 1 else model.name for stem, model in zip(stems, models, strict=True)]
    for (name, _), count in Counter(zip(names, (model.modality for model in models), strict=True)).items():
        if count > 1:
            raise ModelError(f"`model` {name}: is given twice")
    return [Model(name, *list(vars(model).values())[1:]) for name, model in zip(names, models, strict=True)]


def make_plan(
    modality: Literal["image", "audio"],
    models: Sequence[Model],
    against: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    **how: Any,
) -> Plan:
    """Plan the evaluation of one modality with what is installed.

    Args:
        models: Those of this modality are used.
        against: Names of classical codecs; by default the usual ones.
        metrics: Names of metrics; by default all that need no download.
        how: Further fields of `Plan`.

    Raises:
        UsageError: A name is unknown, or no metric can be computed.
    """
    codecs, missing_codecs = chosen_codecs(against, modality)
    chosen, missing_metrics = chosen_metrics(modality, metrics)
    if not chosen:
        raise UsageError(f"`metrics`: none that is installed is for {modality}")
    return Plan(
        modality,
        tuple(model for model in models if model.modality == modality),
        tuple(codec.name for codec in codecs),
        tuple(metric.name for metric in chosen),
        missing_codecs | missing_metrics,
        **how,
    )
