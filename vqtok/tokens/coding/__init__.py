"""Lossless coding of codes: integers to bytes and back."""
