"""Find token files and the items of shards, and read their tokens; without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, SpooledPath, error_context, local_path, spooled
from vqtok.jobs.mapping import folder_prefix
from vqtok.models.token_reader import Models, TokenReader
from vqtok.tokens.find import token_files
from vqtok.tokens.tokens import Tokens


class TokenSource(NamedTuple):
    """Where the tokens of one exported item are read from."""

    key: str
    file: Path
    inside: str | None = None
    """Its key in the shard `file`; None for a token file."""

    @property
    def name(self) -> str:
        name = "stdin" if str(self.file) == str(STDIO) else str(self.file)
        return name if self.inside is None else f"{name}: {self.inside}"

    def facts(self) -> dict[str, str]:
        return {"file": str(self.file)} | ({} if self.inside is None else {"key": self.inside})


OnError = Callable[[TokenSource, VqtokError], None]


def find_items(inputs: Sequence[str | Path], ignored: Counter[str] | None = None) -> list[TokenSource]:
    """Find token files and the items of shards.

    The key of a token file is its name without suffix, or its path in the given folder; that of an item is its key in
    the shard. If there are several folders, keys begin with the name of theirs.

    Args:
        ignored: Counts the other files in folders by their suffix.

    Raises:
        UsageError: The only input does not exist, or two have the same key.
        MediaError: A folder without token files.
        CorruptFileError: The keys of a shard cannot be read.
    """
    found: dict[str, TokenSource] = {}
    reader = TokenReader()
    paths = list(map(local_path, inputs))
    for path in paths:
        if path != STDIO and len(inputs) == 1 and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        is_folder, prefix = path.is_dir(), folder_prefix(path, paths)
        for file in token_files([path], ignored) if is_folder else [spooled(path)]:
            name = Path(prefix, file.relative_to(path)) if is_folder else name_of(file)
            for inside in reader.keys(file):
                source = TokenSource(name.with_suffix("").as_posix() if inside is None else inside, file, inside)
                if source.key in found:
                    names = f"{found[source.key].name} and {source.name}"
                    raise UsageError(f"{names} would both have the key {source.key}; rename one")
                found[source.key] = source
    return list(found.values())


def name_of(file: Path) -> Path:
    """Return the name of a token file, also of one that was read from a pipe."""
    is_stdin = isinstance(file, SpooledPath) and str(file) == str(STDIO)
    return Path("stdin" if is_stdin else Path(str(file)).name)


def iterate_tokens(
    sources: Iterable[TokenSource],
    model: str | Models | None = None,
    num_codebooks: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[tuple[str, Tokens]]:
    """Yield the key and the tokens of each source.

    Args:
        on_error: Called with the error of a source that cannot be read, which is then left out. By default the error
            is raised.
    """
    reader = TokenReader(model)
    for source in sources:
        try:
            with error_context(source.name):
                check_key(source.key)
                tokens = reader.read(source.file, source.inside, num_codebooks)
        except VqtokError as error:
            if on_error is None:
                raise
            on_error(source, error)
        else:
            yield source.key, tokens


def check_key(key: str) -> None:
    """Raise if a key cannot be written.

    Raises:
        UsageError: It is not UTF-8.
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UsageError("its name is not UTF-8, which JSON and Parquet need; rename it") from None
