"""Token files (`.vqt`)."""
