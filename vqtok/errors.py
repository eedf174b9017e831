"""Errors that a user can cause, with the exit codes of the command line.

VqtokError                      1  some item failed
├── MediaError                  1  media that cannot be read, used or written
├── OutputError                 1  an output that exists, collides or cannot be written
│   └── DiskError               1  no output can be written: the disk is full or read-only
├── TrainingError               1  training that cannot start or continue
├── UsageError                  2  invalid options or configuration
├── ModelError                  3  a model that is missing, foreign or unsuitable
│   └── WrongModelError         3  tokens made by another model than the one given
├── UnsupportedVersionError     3  a file from a future version of the format
└── CorruptFileError            4  a token or model file that is damaged

Every message is one line: what, where, what to do. It names arguments of Python functions in backticks, which the
command line replaces by its options.
"""


class VqtokError(Exception):
    """Base of all errors that are caused by inputs or users, not by bugs."""

    exit_code = 1


class MediaError(VqtokError):
    """An image or audio cannot be read, used or written."""


class OutputError(VqtokError):
    """An output exists, collides with another, or cannot be written."""


class DiskError(OutputError):
    """No output can be written: the disk is full or read-only."""


class TrainingError(VqtokError):
    """Training cannot start or continue."""


class UsageError(VqtokError):
    """Options or configuration values are not valid."""

    exit_code = 2


class ModelError(VqtokError):
    """A model is missing, not a vqtok model, or does not fit the task."""

    exit_code = 3


class WrongModelError(ModelError):
    """Tokens were made by another model than the given one."""


class UnsupportedVersionError(VqtokError):
    """A file was written by a newer, incompatible version of the format."""

    exit_code = 3


class CorruptFileError(VqtokError):
    """A file is damaged: truncated, altered, or incomplete."""

    exit_code = 4
