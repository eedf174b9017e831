"""Export many token files and shards to a data set for a trainer of language models; without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from vqtok.errors import UsageError
from vqtok.files.paths import STDIO, local_path, spooled
from vqtok.jobs.mixture import (
    RowSource,
    export_mixture,
    find_rows,
    layouts_of,
    parse_codebooks,
    several_models,
)
from vqtok.jobs.mixture_files import MixtureOptions
from vqtok.jobs.token_sources import OnError, find_items, iterate_tokens
from vqtok.models.token_reader import Models
from vqtok.tokens.export.export import write_export
from vqtok.tokens.export.options import ExportFormat, ExportOptions

MIXTURE_ONLY = ("tokenizer", "row", "split", "shuffle", "pack", "rows_per_file", "special_tokens")
"""Options of exports of rows in one vocabulary."""


def export(
    inputs: Sequence[str | Path],
    output: str | Path,
    to: ExportFormat,
    *,
    model: str | Models | None = None,
    num_codebooks: int | str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Export token files, shards, and those in folders.

    Tokens of several models, and whatever has one of the options of `MixtureOptions` that `ExportOptions` lacks, become
    rows in one vocabulary.

    Args:
        model: The model that made them, or a tuple of several; by default a bundled one. Bit-packed files need none.
        num_codebooks: Export only the first codebooks; `"image=4,audio=2"` for several models.
        options: Those of `vqtok.tokens.export.options.ExportOptions`, such as `layout="delay"`, or those of
            `vqtok.jobs.mixture_files.MixtureOptions`, such as `row=["{caption}{image}"]`.

    Returns:
        What was written, as `vqtok export --json` prints it.

    Raises:
        VqtokError: A token file is damaged or unlike the rest, the options contradict each other, or the output exists.
    """
    return plan_export(inputs, str(output), to, num_codebooks, **options).run(model=model, overwrite=overwrite)


class PlannedExport:
    """An export whose options have been checked.

    Args:
        num_items: The number of items of one model, or of rows of several.
        run: Writes the export.
    """

    def __init__(self, num_items: int, run: Callable[..., dict[str, Any]]) -> None:
        self.num_items = num_items
        self._run = run

    def run(
        self,
        *,
        model: str | Models | None = None,
        overwrite: bool = False,
        on_error: OnError | None = None,
        on_item: Callable[[object], object] = lambda item: None,
    ) -> dict[str, Any]:
        """Write the export.

        Args:
            model: The model that made the tokens.
            on_error: Called with a source that cannot be read, which is left out. By default the error is raised.
            on_item: Called with each item when it is done.
        """
        return self._run(model=model, overwrite=overwrite, on_error=on_error, on_item=on_item)


def plan_export(
    inputs: Sequence[str | Path],
    output: str,
    to: str,
    num_codebooks: int | str | None = None,
    *,
    ignored: Counter[str] | None = None,
    **options: Any,
) -> PlannedExport:
    """Find what to export, and check the options.

    Args:
        ignored: Counts the other files in folders by their suffix.

    Raises:
        VqtokError: As `export` does.
    """
    codebooks = parse_codebooks(num_codebooks)
    given = {name: value for name, value in options.items() if value is not None}
    paths = [local_path(path) for path in inputs]
    if len(paths) == 1 and paths[0] != STDIO and not paths[0].exists():
        raise UsageError(f"{paths[0]}: no such file or folder")
    inputs = [path if path.is_dir() else spooled(path) for path in paths]
    rows = find_rows(inputs, ignored)
    if any(given.get(name) for name in MIXTURE_ONLY) or several_models(layouts_of(rows, codebooks)):
        return _plan_rows(rows, output, to, codebooks, given)
    if isinstance(num_codebooks, str) and "=" in num_codebooks:
        raise UsageError(f"`num_codebooks` {num_codebooks}: there are tokens of one model; give a number")
    if output.endswith("/"):
        raise UsageError(f"`output` {output}: is a folder; give the name of a new file")
    recipe = ExportOptions(cast(ExportFormat, to), **given)
    items = find_items(inputs)

    def run(
        *, model: str | Models | None, overwrite: bool, on_error: OnError | None, on_item: Callable[[object], object]
    ) -> dict[str, Any]:
        def counted() -> Any:
            for item in items:
                yield item
                on_item(item)

        turns = iterate_tokens(counted(), model, (codebooks or {}).get("all"), on_error)
        return write_export(turns, local_path(output), recipe, overwrite=overwrite)

    return PlannedExport(len(items), run)


def _plan_rows(rows: Sequence[RowSource], output: str, to: str, codebooks: Any, given: dict[str, Any]) -> PlannedExport:
    unfit = [name for name in ("shared_vocabulary", "row_token", "pad_token", "template") if given.get(name)]
    if unfit:
        raise UsageError(f"`{unfit[0]}` is for the tokens of one model, not for rows in one vocabulary")
    if output == "-":
        raise UsageError("`output` -: rows in one vocabulary need a file or folder")
    names = {name: value for name, value in given.items() if name not in ("shared_vocabulary", "template")}
    options = MixtureOptions(to, **names)

    def run(
        *, model: str | Models | None, overwrite: bool, on_error: OnError | None, on_item: Callable[[object], object]
    ) -> dict[str, Any]:
        return export_mixture(
            rows,
            output,
            options,
            model=model,
            codebooks=codebooks,
            overwrite=overwrite,
            on_error=on_error,
            on_row=on_item,
        )

    return PlannedExport(len(rows), run)
