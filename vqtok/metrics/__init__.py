"""Metrics of the quality of reconstructions: vqtok's own and those of reference packages."""
