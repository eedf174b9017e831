"""vqtok: train vector-quantised tokenizers, and turn media into compact token files and back."""

__version__ = "0.1.0"
