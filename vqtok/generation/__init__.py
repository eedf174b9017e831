"""Generators: models of the tokens of images, audio and captions; their training, sampling and uses."""
