"""Models by name or path, and the defaults that come with vqtok."""

from __future__ import annotations

from pathlib import Path

from vqtok.errors import ModelError

BUNDLED = Path(__file__).parent.parent / "bundled"


def bundled_models() -> dict[str, Path]:
    """Give the models that come with vqtok, by name; the default of a modality is named after it."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(name: str) -> Path:
    """Resolve a model by the name of a bundled one, else by path: `./image` is a file, `image` the bundled model.

    Raises:
        ModelError: there is none.
    """
    models = bundled_models()
    if name in models:
        return models[name]
    path = Path(name)
    if path.is_file():
        return path
    raise ModelError(f"no model {name!r}: neither a file nor a bundled model ({', '.join(models) or 'there is none'})")
