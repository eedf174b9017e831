"""`vqtok`, and `python -m vqtok`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line; an interrupt while it is being loaded is one like any other."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from vqtok.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
