"""Paths, folders, and atomic writing."""
