"""`train`: from a folder of media to a model file."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.compute.device import choose_device
from vqtok.compute.distributed import on_first_process, process_group, rank, world_size
from vqtok.config import Config, apply_setting, from_dict, load_preset
from vqtok.errors import OutputError, TrainingError, UsageError
from vqtok.files.atomic import refuse_existing
from vqtok.media.kinds import modality_of
from vqtok.models.card import read_card
from vqtok.models.model_file import decoding_state, load_model, save_model
from vqtok.models.registry import find_model
from vqtok.models.vqmodel import VQModel
from vqtok.quantizers import build_quantizer
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.prior import Prior
from vqtok.tokens.coding.rans import TOTAL
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.clock import SAVE_SECONDS, Clock, Pace, evaluation_seconds
from vqtok.training.data import (
    BatchLoader,
    Item,
    MediaCache,
    find_files,
    find_items,
    split_items,
    validation_crops,
)
from vqtok.training.evaluation import evaluate
from vqtok.training.initialise import tuning_config
from vqtok.training.loop import Trainer
from vqtok.training.monitor import Progress
from vqtok.training.optim import Budget
from vqtok.training.prior import LearntPrior, final_prior, learn_prior, prior_seconds
from vqtok.training.state import CHECKPOINT_NAME, RUN_FILES, RUN_SUFFIX
from vqtok.training.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Where the model is, what it is called, and what its card says of the training."""

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
    """Train a model on the images or sounds below a folder and write it to `output`.

    Checkpoints, metrics and pictures go to a run folder named after the output: `model.safetensors` has `model.run`.

    Args:
        preset: Name of a preset or path of a TOML file; by default `image` or `audio`, whichever the folder holds.
        settings: `path=value` changes to the preset.
        init: A model to start from, by path or bundled name: its architecture, weights and codebooks, and without a
            preset also its way of training.
        steps: Training steps; with `minutes`, whichever ends first. By default those of the preset.
        minutes: Time for everything: reading, training, validations, the final evaluation and the prior.
        resume: Go on from the run folder's last checkpoint.
        force: Overwrite the output and start the run folder anew.
        tensorboard: Write TensorBoard files to the run folder, too.
        device: "auto", "cpu", "cuda" or "mps".
        began: When the minutes began, by `time.monotonic()`; by default now.
        on_stage, on_start, on_step, on_progress, on_evaluate, on_prior: Called with what a display needs.

    Raises:
        UsageError: settings that make no sense. TrainingError: nothing to train on, or divergence.
        OutputError: the output or its run folder exists.
    """
    clock = Clock(minutes, began)
    folder, output = Path(folder), Path(output)
    run_folder = output.with_suffix(RUN_SUFFIX)
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder of media to train on")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be 0 to 2^32 - 1, not {seed}")
    config, preset, initial = _set_up(folder, preset, settings, init)
    with process_group(choose_device(device)) as training_device:
        if not resume:
            _refuse_existing(output, run_folder, force)
        on_stage("looking for files")
        items = find_items(folder, config.model.modality)
        if len(items) < 2:
            raise TrainingError(f"{folder}: needs at least 2 readable {config.model.modality} files, has {len(items)}")
        training, held_out = split_items(items, config.data.validation_fraction)
        cache = MediaCache(config)
        parent = _prior_to_start_from(initial, config)
        on_stage("measuring the speed of this machine")
        for_prior = on_first_process(
            lambda: prior_seconds(config, build_quantizer(config.model.quantizer).codebook_sizes, clock, parent)
        )
        on_stage("reading held-out files")
        trainer = Trainer(
            config,
            BatchLoader(config, training, cache, seed, first=rank() * config.train.batch_size),
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
            on_first_process(lambda: _start_folder(run_folder))
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
                parent=parent,
                clock=clock,
                rate=trainer.rate,
            )
        )


def _ending_seconds(clock: Clock, for_prior: float) -> float:
    """Return what follows training: evaluation, prior, model file; 0 without a budget."""
    return 0.0 if clock.seconds is None else evaluation_seconds(clock) + for_prior + SAVE_SECONDS


def _prior_to_start_from(initial: VQModel | None, config: Config) -> Prior | None:
    """Return the prior of the model that training started from, unless all its codes are new."""
    if initial is None or config.train.restart_codebook:
        return None
    return initial.entropy_model.prior


def _validation_sample(
    config: Config, folder: Path, held_out: Sequence[Item], cache: MediaCache
) -> list[tuple[str, NDArray[np.float32]]]:
    sample = held_out[:: max(1, len(held_out) // config.train.validation_items)][: config.train.validation_items]
    crops = [(item.name, crop) for item, crop in validation_crops(config, sample, cache.read)]
    if not crops:
        raise TrainingError(f"{folder}: no held-out file can be used: all unreadable or smaller than the stride")
    return crops


def _training_facts(trainer: Trainer, preset: str, training: int, held_out: int, unreadable: int) -> dict[str, Any]:
    """Give what the model card says of the training."""
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
) -> tuple[Config, str, VQModel | None]:
    """Give the config, the name of its preset, and the model to start from."""
    if init is None:
        preset = preset or default_preset(folder)
        config = load_preset(preset, settings)
        if config.train.freeze or config.train.restart_codebook:
            raise UsageError("train.freeze and train.restart_codebook are for a model to start from; give --init")
        return config, preset, None
    path = find_model(init)
    card = read_card(path)
    return tuning_config(card.config, preset, settings), preset or card.training.get("preset", ""), load_model(path)


def finish(
    model: VQModel,
    config: Config,
    training: Sequence[Item],
    held_out: Sequence[Item],
    cache: MediaCache,
    output: Path,
    facts: dict[str, Any],
    on_evaluate: Callable[[int, int], None],
    on_prior: Callable[[int, int, float], None],
    *,
    for_prior: float = math.inf,
    parent: Prior | None = None,
    clock: Clock | None = None,
    rate: float = 0.0,
) -> TrainingResult:
    """Round the weights as they are stored, evaluate that model, count its tables, fit its prior, write the file.

    Args:
        for_prior: Seconds for the prior, 0 for none.
        parent: The prior of the model that training started from.
        clock: What time there is; by default as much as it takes.
        rate: Seconds to evaluate one number of the media's data, as expected.
    """
    dtype = getattr(torch, config.train.stored_precision)
    model = model.cpu().eval()
    for tensor in decoding_state(model).values():
        tensor.copy_(tensor.to(dtype))
    # The codec names the model in its tokens; this one has no name before its tables are counted.
    model.identity = bytes(32)
    codec = Codec(model)
    clock = clock or Clock()
    until, pace = clock.until, None
    if until is not None:
        # Any of them, as the first by name may be of one folder alone.
        held_out = [held_out[index] for index in np.random.default_rng(0).permutation(len(held_out))]
        pace = Pace(until - for_prior, rate)
    evaluation, statistics = evaluate(codec, held_out, cache.read, on_evaluate, pace)
    prior = LearntPrior({}, CodeStatistics())
    if for_prior:
        prior = final_prior(codec, config, training, cache.read, facts["steps"], parent, facts["seed"], on_prior, until)
    counts = statistics.counts
    if until is not None and prior.statistics.counts:
        # Few held-out files may have been evaluated.
        counts = [a + b for a, b in zip(counts, prior.statistics.counts, strict=True)]
    tables = {index: frequencies(count) for index, count in enumerate(counts)}
    summary = {**facts, "evaluation": evaluation}
    identity = save_model(
        output,
        model,
        config,
        entropy_tables={index: table for index, table in tables.items() if table is not None},
        prior=prior.arrays,
        training=summary,
        dtype=dtype,
    )
    return TrainingResult(output, identity.hex(), summary)


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
    """Fit a prior to what a model makes of a folder of media; the rest of the model stays as it is.

    A model without entropy tables, as imported ones are, gets them of the same codes.

    Args:
        init: The model, by path or bundled name.
        settings: `path=value` changes to `prior` and `data`.
        seed: That of the prior.

    Raises:
        As `train` does.
    """
    folder, output = Path(folder), Path(output)
    path = find_model(init)
    card, model = read_card(path), load_model(path)
    foreign = [setting for setting in settings if not setting.startswith(("prior.", "data."))]
    if foreign:
        raise UsageError(f"--set {foreign[0]}: only the prior is fitted; set prior.* or data.*")
    values = dict(card.config)
    for setting in settings:
        apply_setting(values, setting)
    config = from_dict(Config, values)
    if not force:
        refuse_existing(output)
    if not config.prior.fit_steps or max(model.codebook_sizes) > TOTAL:
        raise UsageError(f"a prior needs prior.fit_steps and codebooks of at most {TOTAL} codes")
    training, _ = split_items(find_items(folder, config.model.modality), config.data.validation_fraction)
    if not training:
        raise TrainingError(f"{folder}: needs at least 2 readable {config.model.modality} files")
    learnt = learn_prior(
        Codec(model), config, training, MediaCache(config).read, config.prior.fit_steps, seed, on_prior
    )
    counted = zip(model.entropy_model.tables, learnt.statistics.counts, strict=True)
    found = [frequencies(counts) if table is None else table for table, counts in counted]
    tables = {index: table for index, table in enumerate(found) if table is not None}
    facts = {**card.training, "parent": card.identity, "kept": ["encoder", "codebook", "decoder"]}
    dtype = getattr(torch, config.train.stored_precision)
    identity = save_model(
        output, model, config, entropy_tables=tables, prior=learnt.arrays, training=facts, dtype=dtype
    )
    return TrainingResult(output, identity.hex(), facts)


def default_preset(folder: Path) -> str:
    """Choose `image` or `audio` by which kind of file the folder holds more of."""
    kinds = [modality_of(path) for path in find_files(folder)]
    return "audio" if kinds.count("audio") > kinds.count("image") else "image"


def _refuse_existing(output: Path, run_folder: Path, force: bool) -> None:
    if output == run_folder:
        raise UsageError(f"{output}: {RUN_SUFFIX} is for the run folder; name the model .safetensors")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder")
    if not force and (run_folder / CHECKPOINT_NAME).exists():
        raise OutputError(f"{run_folder}: contains a run; `resume` continues it, `overwrite` starts over")
    if not force:
        refuse_existing(output)


def _start_folder(run_folder: Path) -> None:
    """Make the run folder, or take out of it what an earlier run wrote."""
    try:
        run_folder.mkdir(exist_ok=True)
        for pattern in RUN_FILES:
            for path in run_folder.glob(pattern):
                path.unlink()
    except OSError as error:
        raise OutputError(f"{run_folder}: cannot be written: {error.strerror}") from None
