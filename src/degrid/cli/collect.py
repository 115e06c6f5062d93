"""degrid collect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.types import UserError

PATTERNS = ("*.json", "log.txt", "metrics.jsonl", "log/*/events.out.tfevents.*")
"""What is worth keeping of a run folder: settings and scores, records for people, for programs and TensorBoard."""


def collect(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The archive to write, .tar.gz or .tgz.")],
    weights: Annotated[bool, typer.Option("--weights", help="Also the trained model/; no training states.")] = False,
) -> None:
    """Pack what is worth keeping of runs: settings, logs, curves, scores; with --weights the models too.

    \b
    degrid collect runs/my_photos -o my_photos.tar.gz
    degrid collect runs/a runs/b -o results.tar.gz --weights
    """
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise UserError(f"expected an archive name that ends in .tar.gz or .tgz, got {out}")
    if out.is_dir():
        raise UserError(f"cannot write the archive {out}: it is a folder")
    members, links = _members(runs, weights)
    _pack(members, out)
    for link in links:
        print(f"left out, a symbolic link: {link}")
    print(f"{out}: {len(members)} files of {len(runs)} run{'s' * (len(runs) > 1)}, {_size(out.stat().st_size)}")


def _members(runs: list[Path], weights: bool) -> tuple[list[tuple[str, Path]], list[Path]]:
    """Names inside the archive with their files, in order; and the symbolic links that are left out."""
    import os

    from degrid.analysis.curves import distinct

    # abspath gives "." and ".." a name, and keeps the one by which a linked folder was given.
    prefixes = distinct(Path(os.path.abspath(run)).name or "run" for run in runs)
    members: list[tuple[str, Path]] = []
    links: list[Path] = []
    for run, prefix in zip(runs, prefixes, strict=True):
        for file in _files(run, weights):
            if file.is_symlink():
                links.append(file)
            elif file.is_file():
                members.append((f"{prefix}/{file.relative_to(run).as_posix()}", file))
    return members, links


def _files(run: Path, weights: bool) -> list[Path]:
    if not run.is_dir():
        raise UserError(f"no run folder {run}")
    found = {file for pattern in PATTERNS for file in run.glob(pattern) if not file.name.startswith(".")}
    if not {"run.json", "metrics.jsonl", "log.txt"} & {file.name for file in found}:
        raise UserError(f"{run} holds no run: expected run.json, metrics.jsonl or log.txt in it")
    model = run / "model"
    if weights:
        if not model.is_dir():
            raise UserError(f"{run} holds no trained model yet: expected the folder {model}; try without --weights")
        found |= {model} if model.is_symlink() else _tree(model)
    return sorted(found)


def _tree(folder: Path) -> set[Path]:
    """Everything below a folder; links to folders are not entered, hidden files are half-written ones."""
    import os

    found = set()
    for parent, folders, files in os.walk(folder, followlinks=False):
        found |= {Path(parent, name) for name in files if not name.startswith(".")}
        found |= {Path(parent, name) for name in folders if Path(parent, name).is_symlink()}
    return found


def _pack(members: list[tuple[str, Path]], out: Path) -> None:
    import tarfile

    from degrid.files import atomic_write

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        """Who owned a file here is nobody's business elsewhere."""
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    # Links are sorted out already; to follow them here stores hard-linked files whole, so that each can be taken out.
    with (
        atomic_write(out) as temporary,
        tarfile.open(temporary, "w:gz", compresslevel=6, dereference=True) as archive,
    ):
        for name, file in members:
            archive.add(file, name, recursive=False, filter=anonymous)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
