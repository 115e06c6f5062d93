"""python -m degrid, and the `degrid` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from degrid.cli import run

    run()


if __name__ == "__main__":
    main()
