"""`train`: train a model on a folder of media. `train_prior`: fit only the prior of a model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.compute.device import choose_device
from vqtok.compute.distributed import on_first_process, process_group, rank, world_size
from vqtok.config import Config, Modality, apply_setting, from_dict, load_preset, read_preset, take_init
from vqtok.errors import TrainingError, UsageError
from vqtok.files.atomic import refuse_existing
from vqtok.media.degrade import UNCHANGED, Degrader
from vqtok.media.kinds import modality_of
from vqtok.models.card import read_card
from vqtok.models.entropy_model import of_side
from vqtok.models.model_file import decoding_state, load_model, save_model, save_part
from vqtok.models.registry import find_model
from vqtok.models.vqmodel import VQModel
from vqtok.quantizers import build_quantizer
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.prior import Prior
from vqtok.tokens.coding.rans import TOTAL
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.clock import SAVE_SECONDS, Clock, Pace, evaluation_seconds
from vqtok.training.coded import CodedLoader, CodeStore
from vqtok.training.data import (
    Loader,
    MediaCache,
    TrainingItem,
    find_files,
    find_items,
    items_of,
    make_loader,
    pair_stem,
    split_items,
    validation_crops,
)
from vqtok.training.evaluation import evaluate
from vqtok.training.initialise import tuning_config
from vqtok.training.loop import Trainer
from vqtok.training.monitor import Progress
from vqtok.training.optim import Budget
from vqtok.training.prior import LearnedPrior, final_prior, learn_prior, prior_seconds
from vqtok.training.state import RUN_SUFFIX, refuse_existing_run, start_run_folder
from vqtok.training.tensorboard import TensorBoard
from vqtok.training.validation import HeldOut, one_or_all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The path and identity of a trained model, and the training facts of its card."""

    model: Path
    identity: str
    training: dict[str, Any]


def train(
    folder: str | Path,
    output: str | Path,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    init: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    force: bool = False,
    tensorboard: bool = False,
    device: str = "auto",
    seed: int = 0,
    began: float | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_start: Callable[[Config, int, int, Path], None] = lambda config, training, held_out, run_folder: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_evaluate: Callable[[int, int], None] = lambda done, total: None,
    on_prior: Callable[[int, int, float], None] = lambda steps, step, bits: None,
) -> TrainingResult:
    """Train a model on the images or audio files below a folder and write it to `output`.

    Checkpoints, metrics and samples are written to a run folder named after the output: `model.run` for
    `model.safetensors`.

    Args:
        folder: The folder of training media, searched recursively.
        output: The model file.
        preset: Name of a preset or path of a TOML file; by default `image` or `audio`, according to the folder.
        settings: Changes to the preset, as `path=value`.
        init: A model to start from, by path or bundled name. It determines the architecture, weights and codebooks,
            and without a preset also the other settings.
        steps: Number of training steps; with `minutes`, whichever ends first. By default that of the preset.
        minutes: Time for everything: reading, training, validations, the final evaluation and the prior.
        resume: Continue from the run folder's last checkpoint.
        force: Overwrite the output and start over in the run folder.
        tensorboard: Also write TensorBoard files to the run folder.
        device: "auto", "cpu", "cuda" or "mps".
        seed: The seed of the initial weights, crops and random prefixes.
        began: When the minutes began, by `time.monotonic()`; by default now.
        on_stage, on_start, on_step, on_progress, on_evaluate, on_prior: Callbacks for a progress display.

    Raises:
        UsageError: An argument or a setting is invalid.
        TrainingError: There is nothing to train on, or training diverged.
        OutputError: The output or its run folder exists.
    """
    clock = Clock(minutes, began)
    folder, output = Path(folder), Path(output)
    run_folder = output.with_suffix(RUN_SUFFIX)
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder of media to train on")
    if not 0 <= seed < 2**32:
        raise UsageError(f"`seed` must be from 0 to 2^32 - 1, not {seed}")
    config, preset, parent = _set_up(folder, preset, settings, init)
    initial = None if parent is None else load_model(parent)
    # If only the encoder or only the decoder is trained, the file keeps everything else of its parent: with the decoder
    # also its identity, with the encoder its codes.
    keeps_codes = parent is not None and "codebook" in config.train.freeze and len(config.train.freeze) > 1
    with process_group(choose_device(device)) as training_device:
        if not resume:
            refuse_existing_run(output, run_folder, force)
        on_stage("looking for files")
        training, held_out = _find(folder, config)
        cache = MediaCache(config)
        first = rank() * config.train.batch_size
        if config.data.cache_codes and initial is not None:
            options = CodecOptions(effort=config.data.cache_codes)
            codec = Codec(copy.deepcopy(initial).to(training_device), training_device, options)
            loader: Loader = CodedLoader(CodeStore(codec, run_folder), config, training, cache, seed, first)
        else:
            loader = make_loader(config, training, cache, seed, first)
        parents = _priors_to_start_from(initial, config)
        on_stage("measuring the speed of this machine")
        for_prior = on_first_process(
            lambda: (
                prior_seconds(config, build_quantizer(config.model.quantizer).codebook_sizes, clock, parents)
                if not keeps_codes
                else 0.0
            )
        )
        on_stage("reading held-out files")
        trainer = Trainer(
            config,
            loader,
            _validation_sample(config, folder, held_out, cache),
            run_folder,
            training_device,
            Budget(
                steps or (None if minutes else config.train.steps),
                minutes,
                reserve=_ending_seconds(clock, for_prior),
            ),
            seed,
            on_progress,
            on_step,
            on_stage,
            tensorboard=TensorBoard(run_folder) if tensorboard and rank() == 0 else None,
            initial=initial,
            clock=clock,
        )
        if resume:
            trainer.resume()
        else:
            on_first_process(lambda: start_run_folder(run_folder))
        on_start(config, len(training), len(held_out), run_folder)
        model = trainer.run()
        facts = _training_facts(trainer, preset, len(training), len(held_out), len(cache.unreadable))
        return on_first_process(
            lambda: finish(
                model,
                config,
                training,
                held_out,
                cache,
                output,
                facts,
                on_evaluate,
                on_prior,
                for_prior=for_prior,
                parents=parents,
                clock=clock,
                rate=trainer.rate,
                degraders=trainer.loader.degraders,
                parent=parent if keeps_codes else None,
            )
        )


def _ending_seconds(clock: Clock, for_prior: float) -> float:
    """Return the seconds to reserve for evaluation, prior and model file after training; 0 without a budget."""
    return 0.0 if clock.seconds is None else evaluation_seconds(clock) + for_prior + SAVE_SECONDS


def _find(folder: Path, config: Config) -> tuple[list[TrainingItem], list[TrainingItem]]:
    """Return the items to train on and those to hold out.

    Raises:
        TrainingError: There are fewer than two of a modality.
    """
    modalities = config.model.modalities
    items = find_items(folder, *modalities)
    for modality in modalities:
        count = len(items_of(items, modality))
        if count < 2:
            raise TrainingError(f"{folder}: needs at least 2 readable {modality} files, has {count}")
    name = pair_stem if len(modalities) > 1 else attrgetter("unit")
    if len({item.unit for item in items}) == 1:
        logger.warning("%s: of the only volume, slices are held out; they look like their neighbors", folder)
        name = attrgetter("name")
    return split_items(items, config.data.validation_fraction, name)


def _priors_to_start_from(initial: VQModel | None, config: Config) -> dict[str, Prior]:
    """Return the prior of the model that training starts from, by modality; none if the codebooks are restarted."""
    if initial is None or config.train.restart_codebook:
        return {}
    found = {modality: side.entropy_model.prior for modality, side in initial.sides.items()}
    return {modality: prior for modality, prior in found.items() if prior}


def _validation_sample(
    config: Config, folder: Path, held_out: Sequence[TrainingItem], cache: MediaCache
) -> dict[Modality, HeldOut]:
    found: dict[Modality, HeldOut] = {}
    for modality in config.model.modalities:
        items = items_of(held_out, modality)
        sample = items[:: max(1, len(items) // config.train.validation_items)][: config.train.validation_items]
        crops = validation_crops(config.of(modality), sample, cache.read)
        found[modality] = [(item.name, crop) for item, crop in crops]
        if not found[modality]:
            raise TrainingError(
                f"{folder}: no held-out {modality} file can be used; all are unreadable or smaller than the stride"
            )
    return found


def _training_facts(trainer: Trainer, preset: str, training: int, held_out: int, unreadable: int) -> dict[str, Any]:
    """Return the training facts for the model card."""
    facts = {
        "preset": preset,
        "steps": trainer.step,
        "items_seen": trainer.step * trainer.config.train.batch_size * world_size(),
        "hours": round(trainer.seconds / 3600, 3),
        "device": str(trainer.device.type),
        "precision": str(trainer.precision).removeprefix("torch."),
        "seed": trainer.seed,
        "files": training,
        "held_out_files": held_out,
        "unreadable_files": unreadable,
        "alarms": trainer.alarms.lines(),
    }
    if world_size() > 1:
        facts["processes"] = world_size()
    if trainer.parent:
        facts["parent"] = trainer.parent
    return facts


def _set_up(
    folder: Path, preset: str | None, settings: Sequence[str], init: str | None
) -> tuple[Config, str, Path | None]:
    """Return the configuration, the name of its preset, and the file of the model to start from, if any."""
    if init is None:
        preset = preset or default_preset(folder)
        init = take_init(read_preset(preset))
    if init is None:
        assert preset
        config = load_preset(preset, settings)
        if config.train.freeze or config.train.restart_codebook:
            raise UsageError("train.freeze and train.restart_codebook need a model to start from; give `init`")
        return config, preset, None
    path = find_model(init)
    card = read_card(path)
    return tuning_config(card.config, preset, settings), preset or card.training.get("preset", ""), path


def finish(
    model: VQModel,
    config: Config,
    training: Sequence[TrainingItem],
    held_out: Sequence[TrainingItem],
    cache: MediaCache,
    output: Path,
    facts: dict[str, Any],
    on_evaluate: Callable[[int, int], None],
    on_prior: Callable[[int, int, float], None],
    *,
    for_prior: float = math.inf,
    parents: Mapping[str, Prior] = MappingProxyType({}),
    clock: Clock | None = None,
    rate: float = 0.0,
    degraders: Mapping[Modality, Degrader] = MappingProxyType({}),
    parent: Path | None = None,
) -> TrainingResult:
    """Round the weights to their stored type, evaluate, count entropy tables, fit the prior, and write the model file.

    Args:
        model: The trained model.
        config: The training configuration.
        training: The training items.
        held_out: The held-out items.
        cache: Decodes the items.
        output: The model file.
        facts: The training facts for the model card.
        on_evaluate: Called with the number of items evaluated and their total.
        on_prior: Called with the number of all steps of the fit, of the steps done, and the bits per token.
        for_prior: Seconds for the prior, 0 for none.
        parents: The priors of the model that training started from, by modality.
        clock: The time budget; by default none.
        rate: The expected seconds per sample (one number of the media's data) of the evaluation.
        degraders: Degrade what is encoded, by modality.
        parent: The model file of which everything but the encoder or the decoder is kept, whichever was trained.
    """
    dtype = getattr(torch, config.train.stored_precision)
    model = model.cpu().eval()
    for tensor in decoding_state(model).values():
        tensor.copy_(tensor.to(dtype))
    clock = clock or Clock()
    evaluations: dict[str, Any] = {}
    tables: dict[str, NDArray[np.integer]] = {}
    prior: dict[str, NDArray[Any]] = {}
    several = len(model.sides) > 1
    for index, (modality, side) in enumerate(model.sides.items()):
        # The codec stores the identity of the model in tokens, but the model has none before its tables are counted.
        side.identity = bytes(32)
        evaluations[modality], found, arrays = _measure_side(
            Codec(side),
            config.of(modality),
            items_of(training, modality),
            items_of(held_out, modality),
            cache,
            facts,
            on_evaluate,
            on_prior,
            for_prior=for_prior / len(model.sides),
            parent=parents.get(modality),
            until=clock.deadline(1 / (len(model.sides) - index)),
            rate=rate,
            degrader=degraders.get(modality, UNCHANGED),
        )
        tables |= {f"{modality}.{number}" if several else str(number): table for number, table in found.items()}
        prior |= of_side(arrays, modality) if several else arrays
    summary = {**facts, "evaluation": one_or_all(evaluations)}
    if parent is not None:
        part: Literal["encoder", "decoder"] = "decoder" if "encoder" in config.train.freeze else "encoder"
        identity = save_part(output, model, config, parent, part, training=summary)
        return TrainingResult(output, identity.hex(), summary)
    identity = save_model(output, model, config, entropy_tables=tables, prior=prior, training=summary, dtype=dtype)
    return TrainingResult(output, identity.hex(), summary)


def _measure_side(
    codec: Codec,
    config: Config,
    training: Sequence[TrainingItem],
    held_out: Sequence[TrainingItem],
    cache: MediaCache,
    facts: Mapping[str, Any],
    on_evaluate: Callable[[int, int], None],
    on_prior: Callable[[int, int, float], None],
    *,
    for_prior: float,
    parent: Prior | None,
    until: float | None,
    rate: float,
    degrader: Degrader,
) -> tuple[dict[str, Any], dict[int, NDArray[np.integer]], dict[str, NDArray[Any]]]:
    """Evaluate one modality of a model, and return the metrics, the entropy tables and the arrays of the prior."""
    pace = None
    if until is not None:
        # A random order, since the time may not suffice for all and the first ones by name may be of one folder only.
        held_out = [held_out[index] for index in np.random.default_rng(0).permutation(len(held_out))]
        pace = Pace(until - for_prior, rate)
    evaluation, statistics = evaluate(codec, held_out, cache.read, on_evaluate, pace, degrader)
    prior = LearnedPrior({}, CodeStatistics())
    if for_prior:
        prior = final_prior(codec, config, training, cache.read, facts["steps"], parent, facts["seed"], on_prior, until)
    counts = statistics.counts
    if until is not None and prior.statistics.counts:
        # Perhaps only a few held-out files were evaluated, so the codes that the prior was fitted to count as well.
        counts = [a + b for a, b in zip(counts, prior.statistics.counts, strict=True)]
    tables = {index: frequencies(count) for index, count in enumerate(counts)}
    return evaluation, {index: table for index, table in tables.items() if table is not None}, prior.arrays


def train_prior(
    folder: str | Path,
    output: str | Path,
    init: str,
    *,
    settings: Sequence[str] = (),
    force: bool = False,
    seed: int = 0,
    on_prior: Callable[[int, int, float], None] = lambda steps, step, bits: None,
) -> TrainingResult:
    """Fit a prior to a model's codes of a folder of media, and leave the rest of the model unchanged.

    A model without entropy tables, such as an imported one, also gets tables from the same codes.

    Args:
        folder: The folder of training media, searched recursively.
        output: The new model file.
        init: The model, by path or bundled name.
        settings: Changes to `prior` and `data`, as `path=value`.
        force: Overwrite the output.
        seed: The seed of the prior.
        on_prior: Called with the number of all steps, of the steps done, and the bits per token.

    Raises:
        UsageError: An argument or a setting is invalid.
        TrainingError: There is nothing to train on.
        OutputError: The output exists.
    """
    folder, output = Path(folder), Path(output)
    path = find_model(init)
    card, model = read_card(path), load_model(path)
    foreign = [setting for setting in settings if not setting.startswith(("prior.", "data."))]
    if foreign:
        raise UsageError(f"`settings` {foreign[0]}: only prior.* and data.* can be set, since only the prior is fitted")
    values = dict(card.config)
    for setting in settings:
        apply_setting(values, setting)
    config = from_dict(Config, values)
    if not force:
        refuse_existing(output)
    if not config.prior.fit_steps or max(model.codebook_sizes) > TOTAL:
        raise UsageError(f"a prior needs prior.fit_steps above 0 and codebooks of at most {TOTAL} codes")
    training, _ = _find(folder, config)
    read, steps, several = MediaCache(config).read, config.prior.fit_steps, len(model.sides) > 1
    tables: dict[str, NDArray[np.integer]] = {}
    prior: dict[str, NDArray[Any]] = {}
    for modality, side in model.sides.items():
        items = items_of(training, modality)
        learned = learn_prior(Codec(side), config.of(modality), items, read, steps, seed, on_prior)
        counted = zip(side.entropy_model.tables, learned.statistics.counts, strict=True)
        for index, (table, counts) in enumerate(counted):
            found = frequencies(counts) if table is None else table
            if found is not None:
                tables[f"{modality}.{index}" if several else str(index)] = found
        prior |= of_side(learned.arrays, modality) if several else learned.arrays
    facts = {**card.training, "parent": card.identity, "kept": ["encoder", "codebook", "decoder"]}
    dtype = getattr(torch, config.train.stored_precision)
    identity = save_model(output, model, config, entropy_tables=tables, prior=prior, training=facts, dtype=dtype)
    return TrainingResult(output, identity.hex(), facts)


def default_preset(folder: Path) -> str:
    """Return `audio` if the folder contains more audio files than images, else `image`."""
    kinds = [modality_of(path) for path in find_files(folder)]
    return "audio" if kinds.count("audio") > kinds.count("image") else "image"
