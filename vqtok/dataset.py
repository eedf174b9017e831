"""Many token files to one data set for a trainer of language models; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vqtok.errors import UsageError, VqtokError
from vqtok.facts import token_files
from vqtok.files import STDIO, naming, read_bytes
from vqtok.models.entropy import TokenReader
from vqtok.tokens.export import write_export
from vqtok.tokens.grid import Tokens
from vqtok.tokens.recipe import Recipe, Target

OnError = Callable[[Path, VqtokError], None]


def export(
    inputs: Sequence[str | Path],
    output: str | Path,
    to: Target,
    *,
    model: str | None = None,
    num_codebooks: int | None = None,
    overwrite: bool = False,
    **choices: Any,
) -> dict[str, Any]:
    """Write token files, and those in folders, to one file for a trainer of language models.

    Args:
        model: The model that made them; by default a bundled one. Bit-packed files need none.
        num_codebooks: Take only the first so many.
        choices: Of `vqtok.tokens.recipe.Recipe`, such as `layout="delay"`.

    Returns:
        What was written, as `vqtok export --json` prints it.

    Raises:
        VqtokError: a token file is damaged or of another model than the rest, the choices do not go together, or the
            output exists.
    """
    items = iterate_tokens(find_items(inputs), model, num_codebooks)
    return write_export(items, Path(output), Recipe(to, **choices), overwrite=overwrite)


def find_items(inputs: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Give each token file a key: its name, or its path in the folder that was given, without `.vqt`.

    Raises:
        UsageError: an input that is missing, or two with the same key. MediaError: a folder without token files.
    """
    found: dict[str, Path] = {}
    for path in map(Path, inputs):
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        for file in [STDIO] if path == STDIO else token_files([path]):
            name = file.relative_to(path) if path.is_dir() else Path(file.name if file != STDIO else "stdin")
            key = name.with_suffix("").as_posix()
            if key in found:
                raise UsageError(f"{found[key]} and {file} would both have the key {key}; rename one")
            found[key] = file
    return list(found.items())


def iterate_tokens(
    items: Iterable[tuple[str, Path]],
    model: str | None = None,
    num_codebooks: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[tuple[str, Tokens]]:
    """Read the tokens of each item when its turn comes.

    Args:
        on_error: Takes the error of a file that cannot be read, which is then left out; by default it is raised.
    """
    reader = TokenReader(model)
    for key, file in items:
        try:
            with naming(file):
                _check_key(key)
                tokens = reader.read(read_bytes(file), num_codebooks)
        except VqtokError as error:
            if on_error is None:
                raise
            on_error(file, error)
        else:
            yield key, tokens


def _check_key(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UsageError("its name is not UTF-8, as JSON and Parquet need; rename it") from None
