"""Models: everything that turns media tensors into codes and back."""
