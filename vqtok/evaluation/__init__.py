"""Compare tokenizers with each other and with classical codecs, on the user's own media."""
