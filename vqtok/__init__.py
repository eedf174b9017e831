"""vqtok: trains vector-quantized tokenizers, encodes media to compact token files and decodes them.

tokens = vqtok.encode("photo.jpg")          # Tokens: codes, sizes, model identity; also of bytes, arrays, tensors
media = vqtok.decode(tokens)                # Media: float32 pixels or samples in [-1, 1]
media.save("copy.png")                      # vqtok.write(tokens, "photo.vqt"), vqtok.read("photo.vqt")
facts = vqtok.inspect("photo.vqt")          # a dict, as `vqtok inspect --json` prints it
vqtok.export("tokens", "train.bin", "megatron")    # for training a language model; vqtok.read_export reads it
vqtok.train("photos", "model.safetensors", minutes=30)
tokenizer = vqtok.load("image")             # on tensors: tokenizer.encode(x) -> codes, tokenizer.decode(codes) -> x_hat
vqtok.generate("generator.safetensors", 16, text="seven")   # a list of Media
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded when first used: torch alone takes over a second.
_HOMES = {
    "Codec": "vqtok.codec.codec",
    "CodecOptions": "vqtok.codec.options",
    "Encoder": "vqtok.codec.batch_encoder",
    "Generation": "vqtok.generation.generate",
    "Media": "vqtok.media.media",
    "Tokenizer": "vqtok.models.tokenizer",
    "Tokens": "vqtok.tokens.tokens",
    "convert": "vqtok.jobs.convert",
    "decode": "vqtok.codec.files",
    "encode": "vqtok.codec.files",
    "export": "vqtok.jobs.export",
    "generate": "vqtok.generation.generate",
    "import_checkpoint": "vqtok.models.importers.import_checkpoint",
    "inspect": "vqtok.inspection",
    "load": "vqtok.models.registry",
    "load_model": "vqtok.models.model_file",
    "merge": "vqtok.tokens.shard.writer",
    "open_shard": "vqtok.models.token_reader",
    "publish": "vqtok.jobs.publish",
    "read": "vqtok.models.token_files",
    "read_export": "vqtok.tokens.export.export",
    "register": "vqtok.models.registry",
    "tokens_from_ids": "vqtok.tokens.export.mend",
    "train": "vqtok.training.train",
    "train_generator": "vqtok.generation.train",
    "write": "vqtok.models.token_files",
    "write_shard": "vqtok.tokens.shard.writer",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vqtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
