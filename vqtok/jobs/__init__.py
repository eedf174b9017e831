"""Batch jobs: planning, running and reporting work on many files."""
