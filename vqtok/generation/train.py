"""`train_generator`: train a generator on token files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqtok.compute.device import autocast_dtype, choose_device
from vqtok.compute.distributed import on_first_process, process_group, rank, world_size
from vqtok.errors import TrainingError, UsageError
from vqtok.generation.batches import BatchMaker
from vqtok.generation.config import GeneratorConfig, load_generator_preset
from vqtok.generation.items import Item, find_streams, read_items, split
from vqtok.generation.loop import GeneratorTrainer
from vqtok.generation.model_file import save_generator
from vqtok.generation.network import Generator
from vqtok.generation.streams import Stream
from vqtok.generation.tokenizers import Tokenizers, codebook_vectors
from vqtok.generation.validation import GeneratorProgress, Validator
from vqtok.training.clock import SAVE_SECONDS, Clock
from vqtok.training.monitor import Progress
from vqtok.training.optim import Budget
from vqtok.training.state import RUN_SUFFIX, refuse_existing_run, start_run_folder

PRESET = "generator"
FEW_CAPTIONS = 50
"""So many different captions are listed in the card."""


@dataclass(frozen=True)
class GeneratorResult:
    """The path and identity of a trained generator, and the training facts of its card."""

    model: Path
    identity: str
    training: dict[str, Any]


def train_generator(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    tokenizers: Sequence[str] = (),
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    seed: int = 0,
    began: float | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_start: Callable[[Sequence[Stream], int, int, Path], None] = lambda streams, training, held_out, run_folder: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_progress: Callable[[GeneratorProgress], None] = lambda progress: None,
) -> GeneratorResult:
    """Train a generator on token files, shards and folders of them, and write it to `output`.

    Tokens whose files have the same stem are one item with several modalities; captions are in the metadata of tokens,
    or in text files beside them. Checkpoints, metrics and samples are written to a run folder named after the output.

    Args:
        paths: Token files, shards and folders.
        output: The generator file.
        preset: Name of a preset of kind generator or path of a TOML file; by default `generator`.
        settings: Changes to the preset, as `path=value`.
        tokenizers: The models that made the tokens, by path or name. Bundled ones, and those in the current folder or
            beside the tokens, are found without.
        steps: Number of training steps; with `minutes`, whichever ends first. By default that of the preset.
        minutes: Time for everything: reading, training, validations.
        resume: Continue from the run folder's last checkpoint.
        force: Overwrite the output and start over in the run folder.
        device: "auto", "cpu", "cuda" or "mps".
        seed: The seed of the initial weights, batches and masks.
        began: When the minutes began, by `time.monotonic()`; by default now.
        on_stage, on_start, on_step, on_progress: Callbacks for a progress display.

    Raises:
        UsageError: An argument or a setting is invalid, or the tokens do not belong together.
        WrongModelError: The tokenizer of the tokens is not found.
        TrainingError: There is nothing to train on, or training diverged.
        OutputError: The output or its run folder exists.
    """
    clock, output = Clock(minutes, began), Path(output)
    run_folder = output.with_suffix(RUN_SUFFIX)
    if not 0 <= seed < 2**32:
        raise UsageError(f"`seed` must be from 0 to 2^32 - 1, not {seed}")
    config = load_generator_preset(preset or PRESET, settings)
    with process_group(choose_device(device)) as training_device:
        if not resume:
            refuse_existing_run(output, run_folder, force)
        folders = [path if path.is_dir() else path.parent for path in map(Path, paths)]
        found = Tokenizers(tokenizers, folders, training_device)
        items = read_items(
            paths, found, on_read=lambda done, total: on_stage(f"reading tokens: file {done + 1} of {total}")
        )
        streams = find_streams(items, config.data, found)
        items = [item for item in items if any(stream.name != "text" and item.has(stream) for stream in streams)]
        if len(items) < 2:
            raise TrainingError(f"needs at least 2 items of tokens, has {len(items)}")
        training, held_out = split(items, config.data.validation_fraction)
        if resume:
            on_first_process(lambda: None)
        else:
            on_first_process(lambda: start_run_folder(run_folder))
        trainer = GeneratorTrainer(
            config,
            _new(config, streams, found, seed).to(training_device),
            BatchMaker(training, streams, config.train.batch_size, seed, first=rank() * config.train.batch_size),
            Validator(
                held_out,
                found,
                config.train.validation_items,
                autocast_dtype(config.train.precision, training_device),
            ),
            run_folder,
            Budget(steps or (None if minutes else config.train.steps), minutes, reserve=SAVE_SECONDS if minutes else 0),
            seed,
            on_progress,
            on_step,
            on_stage,
            clock,
        )
        if resume:
            trainer.resume()
        on_start(streams, len(training), len(held_out), run_folder)
        generator = trainer.run()
        facts = _training_facts(trainer, preset or PRESET, training, held_out, found)
        return on_first_process(lambda: _finish(generator, trainer, output, facts))


def _new(config: GeneratorConfig, streams: Sequence[Stream], tokenizers: Tokenizers, seed: int) -> Generator:
    torch.manual_seed(seed)
    vectors = {
        stream.name: codebook_vectors(tokenizers.codec(stream).tokenizer, stream.num_codebooks)
        for stream in streams
        if stream.model
    }
    return Generator(config.network, streams, vectors)


def _training_facts(
    trainer: GeneratorTrainer, preset: str, training: Sequence[Item], held_out: Sequence[Item], tokenizers: Tokenizers
) -> dict[str, Any]:
    """Return the training facts for the card."""
    streams = trainer.generator.streams
    facts = {
        "preset": preset,
        "steps": trainer.step,
        "items_seen": trainer.step * trainer.config.train.batch_size * world_size(),
        "hours": round(trainer.seconds / 3600, 3),
        "device": trainer.device.type,
        "precision": str(trainer.precision).removeprefix("torch."),
        "seed": trainer.seed,
        "items": len(training),
        "held_out_items": len(held_out),
        "items_by_modality": {name: sum(item.has(stream) for item in training) for name, stream in streams.items()},
        "tokenizers": {name: tokenizers.name(s.identity) for name, s in streams.items() if s.model},
        **_caption_facts([item.caption for item in training if item.caption is not None]),
        "alarms": trainer.alarms.lines(),
    }
    return facts | ({"processes": world_size()} if world_size() > 1 else {})


def _caption_facts(captions: Sequence[str]) -> dict[str, Any]:
    """Return what `generate` needs to tell whether it can know a caption."""
    if not captions:
        return {}
    different = sorted(set(captions))
    listed = {"captions": different} if len(different) <= FEW_CAPTIONS else {}
    return {"caption_characters": "".join(sorted(set("".join(captions)))), **listed}


def _finish(generator: Generator, trainer: GeneratorTrainer, output: Path, facts: dict[str, Any]) -> GeneratorResult:
    """Round the weights to their stored type, evaluate, and write the generator file."""
    dtype = getattr(torch, trainer.config.train.stored_precision)
    for tensor in generator.state_dict().values():
        tensor.copy_(tensor.to(dtype))
    score = trainer.validator.score(generator)
    if not math.isfinite(score.score):
        raise TrainingError("the held-out items have too little to evaluate; raise data.validation_fraction")
    facts = facts | {"evaluation": score.to_dict()}
    return GeneratorResult(output, save_generator(output, generator, trainer.config, facts, dtype), facts)
