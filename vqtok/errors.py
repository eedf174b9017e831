"""The errors a user can cause, each with the exit code the command line ends with.

VqtokError                      1  some item failed
├── MediaError                  1  a picture or sound that cannot be read, used or written
├── OutputError                 1  an output that exists, collides or cannot be written
│   └── DiskError               1  no output can be written: the disk is full or read-only
├── TrainingError               1  training that cannot start or go on
├── UsageError                  2  options or configuration that make no sense
├── ModelError                  3  a model file that is missing, foreign or not the one asked for
│   └── WrongModelError         3  tokens made by another model than the one given
├── UnsupportedVersionError     3  a file from a future version of the format
└── CorruptFileError            4  a token or model file that is damaged

Every message is one line: what, where, what to do.
"""


class VqtokError(Exception):
    """Base of all errors that are the input's or the user's, not a bug."""

    exit_code = 1


class MediaError(VqtokError):
    """A picture or sound cannot be read, used or written."""


class OutputError(VqtokError):
    """An output exists already, collides with another, or cannot be written."""


class DiskError(OutputError):
    """No output can be written any more: the disk is full or read-only."""


class TrainingError(VqtokError):
    """Training cannot start or go on."""


class UsageError(VqtokError):
    """Options or configuration values that make no sense."""

    exit_code = 2


class ModelError(VqtokError):
    """A model file is missing, not a vqtok model, or does not fit the task."""

    exit_code = 3


class WrongModelError(ModelError):
    """Tokens were made by another model than the one given."""


class UnsupportedVersionError(VqtokError):
    """A file was written by a newer, incompatible version of the format."""

    exit_code = 3


class CorruptFileError(VqtokError):
    """A file is damaged: truncated, altered, or never whole."""

    exit_code = 4
