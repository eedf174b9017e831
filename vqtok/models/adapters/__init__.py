"""Other libraries' models, each seen as a `Tokenizer` that gives exactly that library's codes."""
