"""degrid data check, degrid data preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at a dataset before training on it.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def check(
    path: Annotated[str, typer.Argument(help="A folder, dataset.yaml or list file.")],
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Read every file: counts, sizes, class histogram, and each problem with its fix.

    Ends with exit code 2 if a problem was found.

    \b
    degrid data check my_photos
    """
    import json

    from degrid.cli.progress import progress
    from degrid.data import check as check_data

    with progress("checking") as advance:
        report = check_data(path, advance)
    print(json.dumps(report.to_dict(), indent=2) if json_output else report)
    if not report.ok:
        sys.exit(2)


@app.command()
def preview(
    path: Annotated[str, typer.Argument(help="A folder, dataset.yaml or list file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to write.")] = Path("preview.png"),
    split: Annotated[str, typer.Option(help="Split to show.")] = "train",
    num: Annotated[int, typer.Option("-n", help="Number of images.")] = 12,
) -> None:
    """Write a contact sheet: images with their labels laid over.

    \b
    degrid data preview my_photos -o preview.png
    """
    from degrid.data import open_dataset
    from degrid.data import preview as write_preview

    write_preview(open_dataset(path, split), out, num)
    print(f"preview: {out}")
