"""The codec: media to tokens and back."""
