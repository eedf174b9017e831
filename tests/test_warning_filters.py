"""Warnings: in tests vqtok's own are errors and those of other libraries shown, on the command line neither is."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest


def raised(message: str, category: type[Warning], module: str) -> bool:
    """Return whether a warning attributed to a module is an error; if it is not, check that it is shown."""
    with warnings.catch_warnings(record=True) as shown:
        try:
            warnings.warn_explicit(message, category, f"{module}.py", 1, module)
        except category:
            return True
    assert [str(warning.message) for warning in shown] == [message]
    return False


@pytest.mark.parametrize("module", ["vqtok", "vqtok.codec.codec", "vqtok.media.image", "test_codec", "conftest"])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, ResourceWarning, SyntaxWarning])
def test_own_warnings_are_errors(module: str, category: type[Warning]) -> None:
    assert raised("invalid value encountered in divide", category, module)


@pytest.mark.parametrize("module", ["transformers.utils", "torch.nn.modules.module", "vqtokens", "numpy"])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, DeprecationWarning, FutureWarning])
def test_warnings_of_others_are_shown(module: str, category: type[Warning]) -> None:
    assert not raised("`x` is deprecated", category, module)
    assert not raised("invalid value", category, module)


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning])
def test_what_others_deprecate_is_shown_where_it_is_attributed_to_the_caller(category: type[Warning]) -> None:
    """By `stacklevel=2`, where vqtok passes an argument that another library deprecates."""
    assert not raised("The argument `x`\nis Deprecated and will be removed", category, "vqtok.models.adapters.mimi")


def test_what_fails_out_of_sight_is_an_error() -> None:
    for category in (pytest.PytestUnraisableExceptionWarning, pytest.PytestUnhandledThreadExceptionWarning):
        assert raised("exception ignored in __del__", category, "_pytest.unraisableexception")


@pytest.mark.parametrize(("options", "debug", "shown"), [([], "", False), ([], "1", True), (["-Wdefault"], "", True)])
def test_the_command_line_shows_no_warnings_of_libraries(options: list[str], debug: str, shown: bool) -> None:
    script = """
import os, warnings
import vqtok.__main__, vqtok.cli.app
def app():
    warnings.warn("an argument is deprecated", FutureWarning)
    print(os.environ.get("TORCH_CPP_LOG_LEVEL"))
vqtok.cli.app.app = app
vqtok.__main__.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, *options, "-c", script],
        env=environment | {"VQTOK_DEBUG": debug},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("an argument is deprecated" in done.stderr) is shown
    assert shown or not done.stderr
    assert done.stdout.strip() == ("None" if debug else "ERROR")
