"""degrid.collect: pack the parts of runs that are worth keeping."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from degrid.analysis.curves import distinct
from degrid.arguments import checked
from degrid.files import atomic_write
from degrid.types import UserError

PATTERNS = ("*.json", "log.txt", "metrics.jsonl", "log/*/events.out.tfevents.*")
"""The files of a run folder worth keeping: settings, scores, and records for people, programs and TensorBoard."""
Runs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A run folder, or several."""


@dataclass(frozen=True)
class Archive:
    """What `collect` wrote: the archive, the names inside it, and the symbolic links that it left out."""

    path: Path
    files: tuple[str, ...]
    left_out: tuple[Path, ...]


@checked
def collect(runs: Runs, out: str | os.PathLike[str] = "runs.tar.gz", *, weights: bool = False) -> Archive:
    """Pack settings, logs, curves and scores of runs into one archive, as `degrid collect` does.

    Args:
        runs: run folders.
        out: the archive to write, .tar.gz or .tgz; an existing one stays until the new one is complete.
        weights: also the trained models; training states are never packed.
    Raises:
        UserError: no runs; a folder without a run or, with `weights`, without a model; or another kind of archive.
    """
    out = Path(out)
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise UserError(f"expected an archive name that ends in .tar.gz or .tgz, got {out}")
    if out.is_dir():
        raise UserError(f"cannot write the archive {out}: it is a folder")
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not folders:
        raise UserError("no runs: expected one run folder or more, got none; name those to pack")
    members, links = _members(folders, weights)
    # Symbolic links are sorted out already; following links stores hard-linked files whole, each by itself.
    with atomic_write(out) as place, tarfile.open(place, "w:gz", compresslevel=6, dereference=True) as archive:
        for name, file in members:
            archive.add(file, name, recursive=False, filter=_anonymous)
    return Archive(out, tuple(name for name, _ in members), tuple(links))


def _members(runs: list[Path], weights: bool) -> tuple[list[tuple[str, Path]], list[Path]]:
    """Names inside the archive with their files, in order; and the symbolic links that are left out."""
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
            raise UserError(
                f"{run} holds no trained model yet: expected the folder {model}; try without --weights (weights=False)"
            )
        found |= {model} if model.is_symlink() else _tree(model)
    return sorted(found)


def _tree(folder: Path) -> set[Path]:
    """Everything below a folder, except hidden files, which are half-written; links to folders are not entered."""
    found = set()
    for parent, folders, files in os.walk(folder, followlinks=False):
        found |= {Path(parent, name) for name in files if not name.startswith(".")}
        found |= {Path(parent, name) for name in folders if Path(parent, name).is_symlink()}
    return found


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry without its owner's name, which does not concern anyone elsewhere."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
