"""degrid study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Protocol = Annotated[Path, typer.Argument(help="A YAML file that says what to run, see docs/study.md.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the study; by default studies/NAME.")]
Data = Annotated[str | None, typer.Option(help="The data, if not the file's.")]
Devices = Annotated[
    str,
    typer.Option(help="Where to train, a run at a time on each: cuda:0,cuda:1; or cpu,cpu for two at once."),
]
Retry = Annotated[bool, typer.Option("--retry", help="Run again what failed.")]
Look = Annotated[bool, typer.Option("--look", help="Run nothing; show what the runs so far give.")]


def study(
    protocol: Protocol,
    out: Out = None,
    data: Data = None,
    devices: Devices = "auto",
    retry: Retry = False,
    look: Look = False,
) -> None:
    """Train several operators with many seeds, and compare them: means, intervals over seeds, cost.

    Stopped, it continues with the same command; started several times, on several machines, the runs are shared.

    \b
    degrid study smoothing.yaml --data CamVid
    degrid study smoothing.yaml --data CamVid --devices cuda:0,cuda:1
    degrid study smoothing.yaml --data CamVid --look         the results so far
    """
    import degrid
    from degrid.cli.progress import progress_bar

    try:
        with progress_bar(lines=True) as bar:
            found = degrid.study(
                protocol,
                out,
                data=data,
                devices=[name.strip() for name in devices.split(",") if name.strip()],
                retry=retry,
                look=look,
                progress=bar,
                tell=bar.tell,
            )
    except degrid.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    if found.runs:
        print(found.markdown())
    print(found)
