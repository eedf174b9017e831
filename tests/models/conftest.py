"""Models of other libraries, created by them with small random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

SAVED = Callable[[str], tuple[Any, str]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary cache for the hashes of weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def saving(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Callable[[], Any]]], SAVED]:
    """Return a function that takes functions that create models, by name.

    It returns another function, which creates the model of a name once and returns it with the folder it is saved in.
    """

    def of(makers: Mapping[str, Callable[[], Any]]) -> SAVED:
        import torch

        made: dict[str, tuple[Any, str]] = {}

        def get(name: str) -> tuple[Any, str]:
            if name not in made:
                with torch.random.fork_rng(), torch.no_grad():
                    torch.manual_seed(0)
                    folder = tmp_path_factory.mktemp(name)
                    model = makers[name]().eval()
                    model.save_pretrained(folder)
                made[name] = model.requires_grad_(False), str(folder)
            return made[name]

        return get

    return of
