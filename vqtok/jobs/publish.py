"""Publish models, exports and shards: a folder in the form of the Hugging Face Hub, with a card."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok import __version__
from vqtok.errors import OutputError, UsageError
from vqtok.files.atomic import atomic_write, make_folder, write_error
from vqtok.files.paths import local_path
from vqtok.inspection import inspect
from vqtok.media.kinds import is_shard
from vqtok.models.adapters.published import WEIGHTS
from vqtok.models.registry import bundled_models, find_identity
from vqtok.tokens.export.sidecar import FOLDER_FILE, export_facts_of, is_export, json_file
from vqtok.tokens.token_table import TokenTable, is_token_table

HUB_PREFIX = "hf:"
HOME = "https://pypi.org/project/vqtok/"
_SPLIT = re.compile(r"(.*?)-?\d*")


@dataclass(frozen=True)
class Card:
    """The README of a repository of the Hub: its metadata, and its text."""

    metadata: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        # JSON is YAML, too, so that every value can be written without a library for it.
        lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in self.metadata.items()]
        return "\n".join(["---", *lines, "---", "", self.text.strip(), ""])


def publish(
    source: str | Path,
    output: str,
    *,
    license: str | None = None,
    data_license: str | None = None,
    overwrite: bool = False,
    private: bool = False,
) -> dict[str, Any]:
    """Write a model, an export or shards to a folder with a card, or upload that to the Hub.

    Args:
        source: A model file or the name of a bundled model; the file or folder of an export; a shard or a folder of
            shards; or tables that `vqtok encode` has written.
        output: A new folder, or `hf:ORG/NAME`.
        license: The identifier of the licence, such as `apache-2.0`; by default `other`, with a note in the card.
        data_license: The licence of the data that the model was trained on, or that were encoded, in words.
        overwrite: Write into a folder that has files.
        private: Create a private repository.

    Returns:
        What was written: `kind`, `files`, and `output`.

    Raises:
        UsageError: `source` is nothing of these, or huggingface_hub is not installed.
        OutputError: The folder is not empty, or cannot be written; or the Hub refuses the upload.
    """
    path = bundled_models().get(str(source)) or local_path(source)
    if not path.exists():
        raise UsageError(f"{source}: no such file, folder or bundled model")
    name = output.removeprefix(HUB_PREFIX) if output.startswith(HUB_PREFIX) else Path(output).resolve().name
    is_model = path.suffix == ".safetensors"
    contents = _model(path, name, license, data_license) if is_model else _data(path, name, license, data_license)
    facts = {"kind": "model" if is_model else "dataset", "files": sorted(contents), "output": output}
    if output.startswith(HUB_PREFIX):
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), contents)
            _upload(Path(folder), name, "model" if is_model else "dataset", private)
        return facts
    target = local_path(output)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not overwrite)):
        raise OutputError(f"{target}: is a file or a folder with files; `overwrite` writes into it")
    _write(target, contents)
    return facts


Contents = dict[str, Path | str]
"""What a repository has, by name: files to copy, and texts."""


def _model(path: Path, name: str, license: str | None, data_license: str | None) -> Contents:
    facts = inspect(path)
    if facts["kind"] != "model":
        raise UsageError(f"{path}: is a {facts['kind']}; only tokenizers are published, with exports and shards")
    modalities = facts["modalities"]
    metadata = {
        "license": license or "other",
        **({} if license else {"license_name": "see-below"}),
        "library_name": "vqtok",
        "tags": ["vqtok", "tokenizer", "vector-quantization", *modalities],
    }
    training, config = facts["training"], facts["config"]
    sizes = facts["codebook_sizes"]
    rows = [
        ("modality", " and ".join(modalities)),
        ("parameters", f"{facts['num_parameters']:,}"),
        ("codebooks", f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))),
        ("stride", ", ".join(str(stride) for stride in facts.get("strides", {"": facts["stride"]}).values())),
        *([("sample rate", f"{facts['sample_rate']} Hz")] if facts["sample_rate"] else []),
        ("identity", f"`{facts['identity']}`"),
        *(
            [("training", f"{training['steps']} steps, {training.get('hours', 0):.2g} hours")]
            if "steps" in training
            else []
        ),
    ]
    example = "photo.jpg" if "image" in modalities else "speech.wav"
    text = f"""# {name.rpartition("/")[2]}

A vector-quantized tokenizer of {" and ".join(modalities)}, made and used with [vqtok]({HOME}) {__version__}.

{_table(("", ""), rows)}

## Use

```sh
pip install 'vqtok[transformers]'
vqtok encode {example} --model hf:{name}
```

```python
import vqtok

tokens = vqtok.encode("{example}", "hf:{name}")
media = vqtok.decode(tokens, "hf:{name}")
```

## Figures

{_figures(training)}

## Training data and licence

{config["data"]["note"] or "The training data are not described in the model file."}

{_licence(license, data_license)}
"""
    settings = {
        "model_type": "vqtok",
        "architectures": ["VQModel"],
        "modality": config["model"]["modality"],
        "identity": facts["identity"],
        "vqtok_version": __version__,
    }
    return {WEIGHTS: path, "config.json": json.dumps(settings, indent=2) + "\n", "README.md": str(Card(metadata, text))}


def _figures(training: Mapping[str, Any]) -> str:
    """Return the table of the figures in a model card, measured on held-out files."""
    found = training.get("evaluation", {})
    by_modality = found if all(isinstance(one, Mapping) for one in found.values()) and found else {"": found}
    parts = []
    for modality, one in by_modality.items():
        prefixes = one.get("prefixes", [])
        columns = [name for name, values in one.items() if _is_series(values, prefixes) and name != "prefixes"]
        if not columns:
            continue
        rows = [(count, *(f"{one[name][i]:.4g}" for name in columns)) for i, count in enumerate(prefixes)]
        files = f"{one['files']} held-out files. " if "files" in one else ""
        title = f"{modality}: " if modality else ""
        parts.append(f"{title}{files}{one.get('protocol', '')}\n\n{_table(('codebooks', *columns), rows)}")
    return "\n\n".join(parts) or "The model file has no figures."


def _is_series(values: object, prefixes: Sequence[object]) -> bool:
    return (
        isinstance(values, list)
        and len(values) == len(prefixes) > 0
        and all(isinstance(value, int | float) for value in values)
    )


def _data(path: Path, name: str, license: str | None, data_license: str | None) -> Contents:
    files = _data_files(path)
    if not files:
        raise UsageError(f"{path}: contains no exports, shards or tables of tokens; a model is a .safetensors file")
    contents: Contents = {}
    rows = []
    splits: dict[str, list[str]] = {}
    models: dict[str, None] = {}
    for file in files:
        relative = file.relative_to(path).as_posix() if path.is_dir() else file.name
        contents[relative] = file
        what, count, made_by = _described(file)
        rows.append((f"`{relative}`", what, f"{count:,}", f"{file.stat().st_size:,}"))
        models |= dict.fromkeys(made_by)
        if file.suffix in (".parquet", ".jsonl", ".txt"):
            found = _SPLIT.fullmatch(file.stem)
            split = found[1] if found and found[1].isidentifier() and path.is_dir() else "train"
            splits.setdefault(split, []).append(relative)
        if is_export(file) and json_file(file).is_file():
            facts_file = json_file(file)
            contents[facts_file.name if path.is_dir() is False else facts_file.relative_to(path).as_posix()] = (
                facts_file
            )
        if file.with_suffix(".idx").is_file():
            index = file.with_suffix(".idx")
            contents[index.relative_to(path).as_posix() if path.is_dir() else index.name] = index
    metadata: dict[str, Any] = {
        "license": license or "other",
        **({} if license else {"license_name": "see-below"}),
        "tags": ["vqtok", "tokens"],
    }
    if splits:
        data_files = [{"split": split, "path": names} for split, names in splits.items()]
        metadata["configs"] = [{"config_name": "default", "data_files": data_files}]
    named = [f"* `{model}`" + (f" ({known})" if (known := _public_name(model)) else "") for model in models]
    load = f'\n```python\nimport datasets\n\nrows = datasets.load_dataset("{name}")\n```\n' if splits else ""
    first = next(iter(contents))
    text = f"""# {name.rpartition("/")[2]}

Tokens of images and audio, made with [vqtok]({HOME}) {__version__} by these models, named by the first 8 bytes of their
identity:

{chr(10).join(named) or "* unknown"}

{_table(("file", "content", "items", "bytes"), rows)}

## Use
{load}
```sh
vqtok inspect {first}
vqtok decode {first} -o media/
```

## Licence

{_licence(license, data_license)}
"""
    contents["README.md"] = str(Card(metadata, text))
    return contents


def _data_files(path: Path) -> list[Path]:
    candidates = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [
        file
        for file in candidates
        if not file.name.startswith(".") and (is_shard(file) or is_token_table(file) or is_export(file))
    ]


def _described(file: Path) -> tuple[str, int, list[str]]:
    """Return what a file of data is, the number of its items, and the models that made them."""
    if is_shard(file):
        facts = inspect(file)
        return "shard", facts["num_items"], [facts["model"]]
    if is_token_table(file):
        table = TokenTable(file)
        models = {table[key].model.hex() for key in list(table)[:1]}
        return "codes", len(table), sorted(models)
    facts = export_facts_of(file)
    made_by = [one["model"] for one in facts["models"]] if "models" in facts else [facts["model"]]
    return f"token ids, {facts['layout']}, vocabulary of {facts['vocabulary_size']}", _count(file, facts), made_by


def _count(file: Path, facts: Mapping[str, Any]) -> int:
    """Return the number of rows of a file, which may be one of several of an export."""
    if json_file(file).name != FOLDER_FILE:
        return int(facts["num_items"])
    if file.suffix in (".jsonl", ".txt"):
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    if file.suffix == ".parquet":
        from vqtok.tokens.export.formats import pyarrow

        return int(pyarrow().parquet.read_metadata(file).num_rows)
    split = "validation" if file.stem == "val" else file.stem
    return int(facts.get("splits", {}).get(split, facts)["num_items"])


def _public_name(model: str) -> str | None:
    """Return the name of a model that others know it by, too: a bundled one, or one of the Hub."""
    found = find_identity(bytes.fromhex(model))
    return found if found and (found in bundled_models() or found.startswith(HUB_PREFIX)) else None


def _licence(license: str | None, data_license: str | None) -> str:
    own = f"Licence: {license}." if license else "No licence was stated by the publisher; ask before use."
    return own + (f" Data: {data_license}" if data_license else " The licences of the data apply as well.")


def _table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _write(folder: Path, contents: Contents) -> None:
    for name, content in contents.items():
        target = folder / name
        make_folder(target.parent)
        if isinstance(content, str):
            atomic_write(target, content.encode())
            continue
        try:
            if not (target.exists() and target.samefile(content)):
                shutil.copyfile(content, target)
        except OSError as error:
            raise write_error(target, error) from error


def _upload(folder: Path, name: str, kind: str, private: bool) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"`output` hf:{name}: is not of the form hf:ORG/NAME")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError:
        raise UsageError(f"`output` hf:{name}: needs huggingface_hub: pip install 'vqtok[transformers]'") from None
    try:
        api = HfApi()
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OutputError(f"hf:{name}: cannot be uploaded: {reason}; `hf auth login` stores a token") from error
