"""Adapters that make models of other libraries a `Tokenizer`, with exactly the codes of the library."""
