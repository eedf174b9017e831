"""Shards (`.vqts`): the tokens of many items in one file."""
