"""Many token files and shards to one data set for a trainer of language models; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, naming
from vqtok.media.kinds import stem
from vqtok.models.token_reader import TokenReader
from vqtok.tokens.export.export import write_export
from vqtok.tokens.export.options import Recipe, Target
from vqtok.tokens.find import token_files
from vqtok.tokens.tokens import Tokens


class Item(NamedTuple):
    """Tokens to export, and where they lie."""

    key: str
    file: Path
    inside: str | None = None
    """Its key in the shard `file`; None for a token file."""

    @property
    def name(self) -> str:
        return str(self.file) if self.inside is None else f"{self.file}: {self.inside}"

    def facts(self) -> dict[str, str]:
        return {"file": str(self.file)} | ({} if self.inside is None else {"key": self.inside})


OnError = Callable[[Item, VqtokError], None]


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
    """Write token files, shards, and those in folders, to one file for a trainer of language models.

    Args:
        model: The model that made them; by default a bundled one. Bit-packed files need none.
        num_codebooks: Take only the first so many.
        choices: Of `vqtok.tokens.export.options.Recipe`, such as `layout="delay"`.

    Returns:
        What was written, as `vqtok export --json` prints it.

    Raises:
        VqtokError: a token file is damaged or of another model than the rest, the choices do not go together, or the
            output exists.
    """
    items = iterate_tokens(find_items(inputs), model, num_codebooks)
    return write_export(items, Path(output), Recipe(to, **choices), overwrite=overwrite)


def find_items(inputs: Sequence[str | Path]) -> list[Item]:
    """Find token files and the items of shards, and give each a key without its suffix.

    The key of a token file is its name, or its path in the folder that was given; that of an item its key in the shard.

    Raises:
        UsageError: an input that is missing, or two with the same key. MediaError: a folder without token files.
        CorruptFileError: a shard whose keys cannot be read.
    """
    found: dict[str, Item] = {}
    reader = TokenReader()
    for path in map(Path, inputs):
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        for file in [STDIO] if path == STDIO else token_files([path]):
            name = file.relative_to(path) if path.is_dir() else Path(file.name if file != STDIO else "stdin")
            for inside in reader.keys(file):
                item = Item(name.with_suffix("").as_posix() if inside is None else stem(inside), file, inside)
                if item.key in found:
                    names = f"{found[item.key].name} and {item.name}"
                    raise UsageError(f"{names} would both have the key {item.key}; rename one")
                found[item.key] = item
    return list(found.values())


def iterate_tokens(
    items: Iterable[Item],
    model: str | None = None,
    num_codebooks: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[tuple[str, Tokens]]:
    """Read the tokens of each item when its turn comes.

    Args:
        on_error: Takes the error of an item that cannot be read, which is then left out; by default it is raised.
    """
    reader = TokenReader(model)
    for item in items:
        try:
            with naming(item.name if item.file != STDIO else STDIO):
                _check_key(item.key)
                tokens = reader.read(item.file, item.inside, num_codebooks)
        except VqtokError as error:
            if on_error is None:
                raise
            on_error(item, error)
        else:
            yield item.key, tokens


def _check_key(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UsageError("its name is not UTF-8, as JSON and Parquet need; rename it") from None
