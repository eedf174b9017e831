"""Who may import whom, and what stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vqtok

PACKAGE = Path(vqtok.__file__).parent

FLOORS = [
    {"errors", "__init__"},  # which loads the others by name, when they are asked for
    {"files"},
    {"config", "compute"},
    {"media", "tokens"},
    {"rows"},
    {"networks", "quantizers", "losses"},
    {"models", "metrics"},
    {"inspection"},
    {"codec"},
    {"training", "jobs"},
    {"generation"},
    {"evaluation"},
    {"cli"},
    {"__main__"},
]
"""Modules and folders of the package, lowest first: each imports from floors below its own and from its own folder."""
WITHOUT_TORCH = {"errors", "__init__", "files", "config", "media", "tokens", "rows"}
LIGHT_JOBS = {"planning", "mapping", "worklist", "job", "failures", "rows", "columns"}
"""Modules of `jobs` that do not need torch, so that errors of usage come at once."""
HEAVY = {"torch", "numpy", "numba", "soundfile", "PIL", "safetensors", "matplotlib"}


def part_of(module: str) -> str:
    """Give the module or folder below `vqtok` that a dotted name lies in: `vqtok.media.image` in `media`."""
    return [*module.split("."), "__init__"][1]


def imports_of(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    """Give the dotted names that a file imports, but for those that only type checkers see."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from vqtok import report` imports a module, `from vqtok.cli.tables import say` a name of one.
            yield from [f"vqtok.{alias.name}" for alias in node.names] if node.module == "vqtok" else [node.module]
        else:
            waiting += ast.iter_child_nodes(node)


def sources() -> list[tuple[str, Path]]:
    return [
        (part_of("vqtok." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


@pytest.mark.parametrize(("part", "path"), sources(), ids=lambda value: value if isinstance(value, str) else value.stem)
def test_imports_only_from_below_or_its_own_folder(part, path):
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    used = {part_of(name) for name in imports_of(path) if name.split(".")[0] == "vqtok"} - {part}
    # What is neither a module nor a folder is a name in `vqtok/__init__.py`.
    assert {name for name in used if floor.get(name, floor["__init__"]) >= floor[part]} == set()


def test_torch_begins_above_media_and_tokens():
    users = {part for part, path in sources() if any(name.split(".")[0] == "torch" for name in imports_of(path))}
    assert users & WITHOUT_TORCH == set()
    assert "quantizers" in users  # The search finds what there is.


@pytest.mark.parametrize("module", sorted(LIGHT_JOBS))
def test_planning_stays_free_of_torch(module):
    code = f"import sys, vqtok.jobs.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cli_imports_at_its_top_only_what_is_light():
    verbs = (
        "app",
        "command",
        "help",
        "options",
        "outcomes",
        "process",
        "encode",
        "decode",
        "evaluate",
        "train",
        "tokens",
        "inspect",
    )
    names = {name for verb in verbs for name in imports_of(PACKAGE / f"cli/{verb}.py", inside_functions=False)}
    own = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    light = {"typer", "typer.core", "vqtok.compute.torchrun", "vqtok.errors", "vqtok.files.paths", "vqtok.jobs.job"}
    assert {name for name in own if not name.startswith("vqtok.cli.")} == light


def test_nothing_imports_click():
    """Typer brings its own since 0.26."""
    assert not any(name.split(".")[0] == "click" for _, path in sources() for name in imports_of(path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["encode", "--help"],
        ["inspect", "TOKENS"],
        ["inspect", "SHARD"],
        ["inspect", "MODEL"],
        ["inspect", "image"],
        ["models"],
    ],
)
def test_starts_without_heavy_packages(arguments, bundled, image_model, photo, run):
    run("encode", photo)
    run("encode", photo, "--shard", photo.with_suffix(".vqts"))
    places = {
        "TOKENS": str(photo.with_suffix(".vqt")),
        "SHARD": str(photo.with_suffix(".vqts")),
        "MODEL": str(image_model),
    }
    arguments = [places.get(argument, argument) for argument in arguments]
    code = (
        "import sys, json, pathlib, vqtok.__main__, vqtok.models.registry\n"
        f"vqtok.models.registry.BUNDLED = pathlib.Path({str(bundled)!r})\n"
        f"sys.argv = {['vqtok', *arguments]!r}\n"
        "try: vqtok.__main__.main()\n"
        "except SystemExit as end: status = end.code\n"
        "print(json.dumps([status, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, loaded = json.loads(result.stdout.splitlines()[-1])
    assert not status
    assert len(result.stdout.splitlines()) > 5  # It has told something.
    assert HEAVY & set(loaded) == set()


def test_the_top_level_holds_nothing_else() -> None:
    """Tests that write where they should not have left files there before, which were committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"vqtok", "tests", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert {name for name in names if not name.startswith(".")} == allowed
