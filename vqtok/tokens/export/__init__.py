"""Exports: token ids in the formats that trainers of language models read."""
