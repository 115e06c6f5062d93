"""python -m degrid, and the `degrid` command."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line."""
    # Imports make many objects and no garbage: looked through at every 700th, as usual, they take a tenth longer.
    gc.set_threshold(10_000)
    from degrid.cli import run

    run()


if __name__ == "__main__":
    main()
