"""Tables that describe files and models."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vqtok.cli.console import one_line, out
from vqtok.cli.lines import bits_line, file_size, media_size, times
from vqtok.metrics.catalogue import METRICS

BARS = " ▁▂▃▄▅▆▇█"
HISTOGRAM_COLUMNS = 20, 64
"""Smallest and largest width of a histogram, within the width of the terminal."""


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print the result of `inspect` as a table."""
    shown = {"tokens": _show_tokens, "shard": _show_shard, "export": _show_export, "model": _show_model}
    shown |= {"table": _show_table, "rows": _show_rows}
    shown["generator"] = _show_generator
    shown.get(facts["kind"], _show_media)(facts)


def _facts_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    out.print(one_line(title, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, one_line(value))
    out.print(table)


def _show_tokens(facts: Mapping[str, Any]) -> None:
    rate = f"{facts['bpp']:.4f} bpp" if "bpp" in facts else f"{facts['kbps']:.3f} kbps"
    saved = 1 - facts["coded_bits"] / facts["raw_bits"]
    segments = f", {facts['num_segments']} segments" if facts["num_segments"] > 1 else ""
    rows = [
        ("format", f"vqt {facts['version']}, {facts['coder']}{segments}"),
        ("medium", f"{facts['modality']} {media_size(facts)}"),
        ("model", facts["model"]),
        ("codebooks", _codebooks(facts["codebook_sizes"])),
        ("grid", f"{times(facts['grid'])} at stride {facts['stride']}, {facts['num_tokens']} tokens"),
        *_sequence(facts),
        ("raw bits", f"{facts['raw_bits']:.0f}"),
        ("coded bits", f"{facts['coded_bits']} ({saved:.1%} saved)"),
        ("file", f"{facts['file_bytes']} bytes, {rate}"),
    ]
    if "metadata" in facts:
        rows.append(("metadata", json.dumps(facts["metadata"], ensure_ascii=False)))
    _facts_table(facts["file"], rows)


def _show_shard(facts: Mapping[str, Any]) -> None:
    if "bpp" in facts:
        rate, medium = f"{facts['bpp']:.4f} bpp", facts["modality"]
    else:
        rate, medium = f"{facts['kbps']:.3f} kbps", f"{facts['modality']} {facts['duration_seconds']:.2f} s"
    saved = 1 - facts["coded_bits"] / facts["raw_bits"]
    rows = [
        ("format", f"vqts {facts['version']}, {', '.join(f'{n} {coder}' for coder, n in facts['coders'].items())}"),
        ("medium", medium),
        ("model", facts["model"]),
        ("codebooks", f"{_codebooks(facts['codebook_sizes'])} at stride {facts['stride']}"),
        ("items", f"{facts['num_items']}, {facts['num_tokens']} tokens"),
        ("raw bits", f"{facts['raw_bits']:.0f}"),
        ("coded bits", f"{facts['coded_bits']} ({saved:.1%} saved)"),
        ("file", f"{facts['file_bytes']} bytes, {rate}"),
    ]
    _facts_table(facts["file"], rows)


def _show_table(facts: Mapping[str, Any]) -> None:
    rows = [
        (model["modality"], f"{model['model']}, {_codebooks(model['codebook_sizes'])} at stride {model['stride']}")
        for model in facts["models"]
    ]
    rows += [("items", f"{facts['num_items']}"), ("file", f"{facts['file_bytes']} bytes")]
    _facts_table(facts["file"], rows)


def _show_rows(facts: Mapping[str, Any]) -> None:
    more = ", ..." if facts["num_rows"] > len(facts["first_keys"]) else ""
    rows = [
        ("rows", f"{facts['num_rows']:,}"),
        ("keys", ", ".join(facts["first_keys"]) + more),
        ("columns", ", ".join(facts["columns"]) or "none"),
        ("file", f"{facts['file_bytes']} bytes"),
    ]
    _facts_table(facts["file"], rows)


def _show_mixture(facts: Mapping[str, Any]) -> None:
    specials = {name: number for name, number in facts["special_tokens"].items() if not name.startswith("size_")}
    shown = ", ".join(f"{name} {number}" for name, number in specials.items())
    rows = [("format", f"{facts['to']}, {facts['layout']}, {facts.get('dtype', '')}")]
    if facts["text_size"]:
        rows.append(("text", f"0 to {facts['text_size'] - 1}, {facts['tokenizer']}"))
    for model in facts["models"]:
        last = model["start"] + sum(model["codebook_sizes"]) - 1
        what = f"{model['model']}, {_codebooks(model['codebook_sizes'])}"
        rows.append((" and ".join(model["strides"]), f"{model['start']} to {last}, {what}"))
    rows += [
        ("specials", shown or "none"),
        ("vocabulary", f"{facts['vocabulary_size']}"),
        ("rows", f"{' '.join(facts['rows']) or 'all media of a row'}"),
        ("items", f"{facts['num_items']}, {facts['num_ids']} token ids"),
        *((f"split {name}", f"{found['num_items']} items") for name, found in facts.get("splits", {}).items()),
        ("file", f"{facts['file_bytes']} bytes"),
    ]
    _facts_table(facts["file"], rows)


def _show_export(facts: Mapping[str, Any]) -> None:
    if "models" in facts:
        _show_mixture(facts)
        return
    specials = ", ".join(f"{name} {number}" for name, number in facts["special_tokens"].items())
    first = "all from the same" if facts["shared_vocabulary"] else "one after another"
    rows = [
        ("format", f"{facts['to']}, {facts['layout']}" + (f", {facts['dtype']}" if "dtype" in facts else "")),
        ("medium", " and ".join(facts.get("strides", [facts["modality"]]))),
        ("model", facts["model"]),
        ("codebooks", f"{_codebooks(facts['codebook_sizes'])} at stride {_strides(facts)}"),
        ("vocabulary", f"{facts['vocabulary_size']}, codes from {facts['offset']} on, {first}"),
        ("specials", specials or "none"),
        ("items", f"{facts['num_items']}, {facts['num_ids']} token ids"),
        ("file", f"{facts['file_bytes']} bytes"),
    ]
    _facts_table(facts["file"], rows)


def show_files(files: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of the token files and shards of a folder, with totals."""
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold", ratio=1)
    for heading in ("content", "codebooks", "tokens", "size", "rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for facts in files:
        content = f"{facts['num_items']} items" if facts["kind"] == "shard" else media_size(facts)
        table.add_row(
            one_line(facts["file"]),
            content,
            _codebooks(facts["codebook_sizes"]),
            str(facts["num_tokens"]),
            file_size(facts["file_bytes"]),
            _rate(facts),
        )
    if len(files) > 1:
        num_tokens, num_bytes = (sum(facts[name] for facts in files) for name in ("num_tokens", "file_bytes"))
        table.add_row(f"{len(files)} files", "", "", str(num_tokens), file_size(num_bytes), "", style="bold")
    out.print(table)


def _rate(facts: Mapping[str, Any]) -> str:
    return f"{facts['bpp']:.3f} bpp" if "bpp" in facts else f"{facts['kbps']:.2f} kbps"


def show_item(facts: Mapping[str, Any]) -> None:
    """Print the line of one item of a shard."""
    size = f"{media_size(facts)}, {facts['num_tokens']} tokens, {file_size(facts['file_bytes'])}"
    out.print(one_line(f"  {facts['key']} {size}"), soft_wrap=True)


def _show_media(facts: Mapping[str, Any]) -> None:
    rows = [(facts["kind"], f"{media_size(facts)}, {file_size(facts['file_bytes'])}")]
    if "would_become" in facts:
        future = facts["would_become"]
        rows.append(
            (
                "would become",
                f"{future['num_tokens']} tokens ({future['num_codebooks']} codebooks on a grid of "
                f"{times(future['grid'])}), about {file_size(future['raw_bits'] / 8)}, with model {future['model']}",
            )
        )
    _facts_table(facts["file"], rows)


def _import_rows(imported: Mapping[str, Any]) -> list[tuple[str, str]]:
    config = f", {imported['config']['file']}" if imported["config"] else ""
    dropped = [f"{count} of {rule}" for rule, count in imported["dropped"].items()]
    averaged = " averaged" if imported["averaged"] else ""
    return [
        ("imported", f"from {imported['file']}{config}, family {imported['family']}"),
        ("taken", f"{imported['taken']}{averaged} weights"),
        ("dropped", "; ".join(dropped) or "none"),
    ]


def _show_model(facts: Mapping[str, Any]) -> None:
    training = facts["training"]
    rate = f", {facts['sample_rate']} Hz" if facts["sample_rate"] else ""
    rows = [
        ("identity", facts["identity"]),
        ("codes", f"{' and '.join(facts['modalities'])}{rate}"),
        ("codebooks", _codebooks(facts["codebook_sizes"]) + (", with a prior" if facts["prior"] else "")),
        ("stride", _strides(facts)),
    ]
    if facts["num_parameters"] is not None:
        rows.insert(2, ("parameters", f"{facts['num_parameters'] / 1e6:.2f} M, {file_size(facts['file_bytes'])}"))
    if "imported" in training:
        rows += _import_rows(training["imported"])
    if "steps" in training:
        rows.append(
            (
                "trained",
                f"preset {training['preset']}, {training['steps']} steps, {training['items_seen']} crops, "
                f"{training['hours']:.2f} h on {training['device']} in {training['precision']}, "
                f"seed {training['seed']}",
            )
        )
        rows.append(("data", f"{training['files']} files, {training['held_out_files']} held out"))
    if "parent" in training:
        rows.append(("parent", training["parent"]))
        rows.append(("kept", ", ".join(training.get("kept", facts["config"]["train"]["freeze"])) or "nothing"))
    for identity in facts.get("decodes", ()):
        rows.append(("decodes", f"tokens of {identity}"))
    if note := facts["config"].get("data", {}).get("note"):
        rows.append(("", note))
    if facts.get("family"):
        rows.append(("family", facts["family"]))
    if facts.get("levels"):
        rows.append(("levels", _levels(facts["levels"])))
    rows += _sequence(facts)
    if amount := _token_rate(facts):
        rows.append(("tokens", amount))
    if facts.get("output_rate", facts["sample_rate"]) != facts["sample_rate"]:
        rows.append(("decodes to", f"{facts['output_rate']} Hz"))
    if facts.get("why_encode_only"):
        rows.append(("encode only", facts["why_encode_only"]))
    if facts.get("why_whole"):
        rows.append(("at once", f"all of a medium: {facts['why_whole']}"))
    for alarm in training.get("alarms", []):
        rows.append(("alarm", alarm))
    _facts_table(facts["file"], rows)
    found = training.get("evaluation")
    if found:
        for evaluation in [found] if "prefixes" in found else found.values():  # those of each modality
            _show_evaluation(evaluation)


def _show_generator(facts: Mapping[str, Any]) -> None:
    training = facts["training"]
    rows = [
        ("identity", facts["identity"]),
        ("generates", ", ".join(facts["modalities"])),
        ("parameters", f"{facts['num_parameters'] / 1e6:.2f} M, {file_size(facts['file_bytes'])}"),
    ]
    for stream in facts["streams"]:
        made_by = f", tokens of {stream['model']}" if stream["model"] else ""
        rows.append((stream["name"], f"{_codebooks(stream['codebook_sizes'])} on {times(stream['window'])}{made_by}"))
    rows.append(
        (
            "trained",
            f"preset {training['preset']}, {training['steps']} steps, {training['items_seen']} items, "
            f"{training['hours']:.2f} h on {training['device']} in {training['precision']}, seed {training['seed']}",
        )
    )
    rows.append(("data", f"{training['items']} items, {training['held_out_items']} held out"))
    evaluation = training["evaluation"]
    rows.append(("bits a token", bits_line(evaluation["bits"], evaluation["bits_given_rest"])))
    rows += [("alarm", alarm) for alarm in training["alarms"]]
    _facts_table(facts["file"], rows)


MODEL_HEADINGS = "input", "codebooks", "tokens", "size", "license"


def show_models(models: Iterable[Mapping[str, Any]]) -> None:
    """Print a table of available models, grouped by how to get them.

    Names stay in one piece: in a narrow terminal the other cells are in the line below.
    """
    groups: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for model in models:
        groups.setdefault(_how_to_get(model), []).append((f"  {model['name']}", _model_cells(model)))
    rows = [("model", MODEL_HEADINGS), *(row for group in groups.values() for row in group)]
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows if cells[1:]), strict=True)]
    name_width = max(len(name) for name, _ in rows) + 1
    is_narrow = name_width + sum(widths) + 2 * len(widths[1:]) > out.width

    def show(name: str, cells: Sequence[str], style: str = "") -> None:
        first, *others = (cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        facts = "  ".join([first.strip().rjust(widths[0]), *others]).rstrip()
        for line in [name, f"    {facts}"] if is_narrow else [f"{name:{name_width}}{facts}"]:
            out.print(one_line(line, style=style), soft_wrap=True)

    show(*rows[0], style="dim")
    for heading, group in groups.items():
        out.print(one_line(heading, style="bold"), soft_wrap=True)
        for name, cells in group:
            show(name, cells)
    out.print(one_line("tokens: of 1 s of mono audio or an image of 256 x 256 pixels; size: parameters", style="dim"))


def _how_to_get(model: Mapping[str, Any]) -> str:
    how = {
        "bundled": "bundled",
        "cache": "in the Hugging Face cache",
        "package": "families of installed packages",
        "hub": "downloaded on first use",
        "import": "checkpoints of the Hub for vqtok import",
    }[model["where"]]
    return f"{how}; needs {model['needs']}" if model.get("needs") else how


def _model_cells(model: Mapping[str, Any]) -> Sequence[str]:
    """Return the cells below `MODEL_HEADINGS`; of an unknown model only one, its family and the size of its files."""
    if "stride" not in model:
        return (model["family"] + (f", {file_size(model['file_bytes'])}" if "file_bytes" in model else ""),)
    is_audio = model["modality"] == "audio"
    return (
        f"{model['sample_rate'] / 1000:g} kHz" if is_audio else "image",
        _codebooks(model["codebook_sizes"]),
        f"{model['tokens_per_second']:.0f}/s" if is_audio else f"{model['tokens_per_256px']}/image",
        f"{model['num_parameters'] / 1e6:.{3 if model['num_parameters'] < 1e9 else 4}g} M",
        model["licence"] + (", encode only" if model.get("encode_only") else ""),
    )


def _sequence(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the sequence of an image, if that is what a model makes."""
    length, side = facts.get("sequence_length", 1), facts["stride"]
    return [("sequence", f"{length} codes of each square of {side} x {side} pixels")] if length > 1 else []


def _levels(levels: Sequence[int]) -> str:
    """Describe codebooks of different rates."""
    return f"{len(levels)} codebooks with {', '.join(map(str, levels))} codes a step; each code counts as a codebook"


def _token_rate(facts: Mapping[str, Any]) -> str:
    """Describe how many tokens a model makes; empty if it is not known."""
    if "tokens_per_second" in facts:
        return f"{facts['tokens_per_second']:g} a second"
    return f"{facts['tokens_per_256px']} for 256 x 256 pixels" if "tokens_per_256px" in facts else ""


def _show_evaluation(evaluation: Mapping[str, Any]) -> None:
    groups = [("all", evaluation), *evaluation.get("by_folder", {}).items()]
    metrics = [metric for name, metric in METRICS.items() if name in evaluation]
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out files")
    table.add_column("codebooks", justify="right")
    if "bpp" in evaluation or "kbps" in evaluation:
        table.add_column("bpp" if "bpp" in evaluation else "kbps", justify="right")
    for metric in metrics:
        table.add_column(metric.heading, justify="right")
    for group, values in groups:
        for row, length in enumerate(evaluation["prefixes"]):
            label = f"{group or '.'} ({values['files']})" if row == 0 else ""
            rates = [f"{values[name][row]:.3f}" for name in ("bpp", "kbps") if name in values]
            figures = [_figure(values.get(metric.name), row, metric.decimals) for metric in metrics]
            table.add_row(one_line(label), str(length), *rates, *figures)
    out.print(table)
    out.print(one_line(evaluation["protocol"], style="dim"))
    _show_codebooks(evaluation)


def _figure(values: Sequence[float | None] | None, row: int, decimals: int) -> str:
    value = values[row] if values else None
    return "-" if value is None else f"{value:.{decimals}f}"


def show_usage(facts: Mapping[str, Any]) -> None:
    """Print the codebook usage of files, with a histogram of each codebook."""
    out.print(Text(f"{facts['num_files']} files, {facts['num_tokens']} tokens, model {facts['model']}", style="bold"))
    _show_codebooks(facts)
    for modality, use in facts.get("modalities", {}).items():
        out.print(Text(f"{modality}: {use['num_files']} files, {use['num_tokens']} tokens", style="bold"))
        _show_codebooks(use)
    for index, shared in enumerate(facts.get("shared_fraction", [])):
        divergence = facts["divergence_bits"][index]
        out.print(
            f"codebook {index + 1}: both modalities use {shared:.1%} of the used codes; "
            f"Jensen-Shannon divergence {divergence:.3f} bits (1 if they share none)"
        )


def _show_codebooks(facts: Mapping[str, Any]) -> None:
    counts = facts.get("counts")
    table = Table(box=None, pad_edge=False)
    headings = ("codebook", "usage", "perplexity", "entropy bits", "dead codes")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    narrowest, widest = HISTOGRAM_COLUMNS
    columns = min(widest, max(narrowest, out.width - sum(len(heading) + 2 for heading in headings)))
    if counts:
        table.add_column("codes by frequency", no_wrap=True, overflow="crop")
    for index, used in enumerate(facts["usage"]):
        figures = [
            str(index + 1),
            f"{used:.1%}",
            f"{facts['perplexity'][index]:.1f}",
            f"{facts['entropy_bits'][index]:.2f}",
            str(facts["dead_codes"][index]),
        ]
        table.add_row(*figures, *([histogram(counts[index], columns)] if counts else []))
    out.print(table)


def histogram(counts: Sequence[int], columns: int) -> str:
    """Draw sorted counts as one line of bars, in which every used code is visible."""
    columns = min(columns, len(counts))
    edges = [round(i * len(counts) / columns) for i in range(columns + 1)]
    means = [sum(counts[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = max(means) or 1
    return "".join(BARS[math.ceil(mean / top * (len(BARS) - 1))] for mean in means)


def plot_usage(facts: Mapping[str, Any], path: Path) -> None:
    """Plot the sorted code frequencies of each codebook to an image.

    Raises:
        UsageError: matplotlib is not installed.
    """
    from vqtok.errors import OutputError, UsageError

    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'vqtok[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for modality, use in facts.get("modalities", {"": facts}).items():
        for index, counts in enumerate(use["counts"]):
            label = f"{modality} {index + 1}: {use['usage'][index]:.1%} used, perplexity {use['perplexity'][index]:.0f}"
            places = [(i + 0.5) / len(counts) for i in range(len(counts))]
            axes.step(places, counts, where="mid", label=label.lstrip())
    axes.set(
        xlabel="codes, most frequent first (fraction of the codebook)",
        ylabel="times used",
        yscale="symlog",
        title=f"{facts['num_files']} files, {facts['num_tokens']} tokens, model {facts['model']}",
    )
    axes.legend(title="codebook", fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {error}") from None
    finally:
        plt.close(figure)


def _strides(facts: Mapping[str, Any]) -> str:
    """Return the stride, or those of both modalities."""
    strides: Mapping[str, int] = facts.get("strides", {})
    return f"{facts['stride']}" if len(strides) < 2 else ", ".join(f"{strides[name]} ({name})" for name in strides)


def _codebooks(sizes: Sequence[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return ", ".join(map(str, sizes))
