"""`vqtok`, and `python -m vqtok`."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings

QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # of TensorBoard
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment variables that keep libraries from writing to stderr."""


def main() -> None:
    """Run the command line.

    SIGTERM acts like Ctrl-C from the first line on, also while the command line itself is being imported.
    """
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        silence_libraries()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # Not every stdout can show every file name.
        from vqtok.cli.process import set_up_process

        set_up_process()
        from vqtok.cli.app import app

        app()
    except KeyboardInterrupt:  # outside of a command
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        # Typer exits silently when it is interrupted outside of a command, for example while it reads the arguments.
        if end.__context__ and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            print("error: interrupted", file=sys.stderr)
        raise
    finally:  # The work is done: an interrupt during Python's own shutdown would only look like a crash.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def silence_libraries() -> None:
    """Keep the messages and Python warnings of libraries off stderr, unless the user has asked for them."""
    if os.environ.get("VQTOK_DEBUG"):
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
