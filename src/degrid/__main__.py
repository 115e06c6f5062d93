"""python -m degrid, and the `degrid` command."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line."""
    # Imports make many objects and no garbage: looked through at every 700th, as usual, they take a tenth longer.
    gc.set_threshold(10_000)
    try:
        from degrid.cli import run

        run()
    except KeyboardInterrupt:  # before the command line was ready to say so
        print("degrid: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
