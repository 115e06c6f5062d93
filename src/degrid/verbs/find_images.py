"""Which images are to be segmented, by which model, and what their results are called."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from degrid.camera import is_source
from degrid.exporters.table import find_exported
from degrid.files import read_json, walk
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import some
from degrid.model_places import CARD, SHIPPED, is_named, shipped_folder
from degrid.types import UserError
from degrid.verbs.open_network import AnyModel, name_of
from degrid.video import VIDEO_SUFFIXES, is_result_video, is_video, reads_videos

IMAGE, RESULTS = "image", "results of earlier runs"
RESULT_ENDINGS = (".logits.npy", "summary.json", "results.tgz")
"""Endings of what is written beside pictures."""
_LONGEST_ENDING = ".overlay.jpg"
_LONGEST_NAME = 255  # bytes, on most systems
RESULT_MARK = "result of degrid predict"
"""Written into pictures, so that they are not taken for images when their folder is predicted again."""
ARRAYS = frozenset({".npy"})
"""Endings that count as images if nothing else in a folder does, as for training."""
KINDS = ", ".join(sorted(IMAGE_SUFFIXES | ARRAYS))


@dataclass(frozen=True)
class FoundImages:
    """Images by the name of their results, and how many other files were skipped, by kind."""

    images: dict[str, Path]
    left_out: dict[str, int]


def find_images(patterns: Iterable[str], out: Path | None = None, videos: bool = False) -> FoundImages:
    """Images by the name their results get: the path below the folder (or below the fixed part of the pattern)
    without extension.

    Where images of different folders would share a name, all names begin with as much of the folders as tells them
    apart: left/frame and right/frame. Where images of one folder would share a name, theirs keep the extension.

    Args:
        patterns: files, folders (searched through with sub-folders) or glob patterns. Results of `degrid predict` among
            them are no images, and hidden files in a folder are not either.
        out: the folder for the results; what it holds is left out if it lies in a folder that is searched.
        videos: these count as images; in folders only where they can be read.
    Raises:
        UserError: no patterns, or one that finds no image.
    """
    found: list[tuple[Path, Path]] = []
    left_out: Counter[str] = Counter()
    patterns = list(patterns)
    for pattern in patterns:
        base, files = _expand(pattern)
        results = _within(out, base) if out is not None else None
        wanted = IMAGE_SUFFIXES | ARRAYS
        if videos and (reads_videos() or Path(pattern).is_file()):
            wanted |= VIDEO_SUFFIXES
        kinds = _without_arrays({file: _kind(file, file.relative_to(base), results, wanted) for file in files})
        images = [(base, file) for file, kind in kinds.items() if kind == IMAGE]
        others = Counter(kind for kind in kinds.values() if kind != IMAGE)
        if not images and not Path(pattern).is_file():
            raise UserError(_nothing(pattern, files, others))
        found += images
        left_out += others
    if not found:
        came = f"got {said(left_out) or 'none'}"
        raise UserError(f"no images: expected files, folders or glob patterns, {came}; name those to segment ({KINDS})")
    return FoundImages(_named(found), dict(sorted(left_out.items())))


def _without_arrays(kinds: Mapping[Path, str]) -> dict[Path, str]:
    """The kinds of the files of one folder or pattern, where arrays are no images beside others."""
    others = any(kind == IMAGE and file.suffix.lower() not in ARRAYS for file, kind in kinds.items())
    return {
        file: file.suffix.lower() if others and kind == IMAGE and file.suffix.lower() in ARRAYS else kind
        for file, kind in kinds.items()
    }


def said(left_out: Mapping[str, int]) -> str:
    """Kinds of files with their numbers: ".heic (2), results of earlier runs (10)"."""
    return some((f"{kind} ({count})" for kind, count in left_out.items()), 8)


def is_result(picture: Path) -> bool:
    """Whether a file is a result of an earlier run: a picture that begins as these do, or a video that says so."""
    if is_video(picture):
        return reads_videos() and is_result_video(picture)
    with picture.open("rb") as stream:
        return RESULT_MARK.encode() in stream.read(4096)


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    path = Path(pattern)
    if path.is_dir():
        entries = (entry for _, files in walk(path, hidden=True) for entry in files)
        return path, sorted(Path(entry.path) for entry in entries)
    if path.is_file():
        return path.parent, [path]
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    straight = {folder: _is_straight(folder, base) for folder in {file.parent for file in files}}
    return base, [file for file in files if straight[file.parent]]


def _is_straight(folder: Path, base: Path) -> bool:
    """Whether no link between a folder and one below leads back to one above; "**" would follow it in circles."""
    below = folder.relative_to(base)
    places = [os.path.realpath(base / part) for part in (below, *below.parents)]
    return len(set(places)) == len(below.parts) + 1


def _kind(file: Path, below: Path, results: Path | None, wanted: frozenset[str]) -> str:
    """IMAGE, or the reason why a file is skipped.

    Args:
        below: its path below the folder that is searched. results: the path there of the folder for the results.
        wanted: endings of what counts.
    """
    if any(part.startswith(".") for part in below.parts):
        return "hidden"
    if not file.is_file():
        return "links to files that are not there"
    if file.name.endswith(RESULT_ENDINGS):
        return RESULTS
    if file.suffix.lower() not in wanted:
        return file.suffix.lower() or "without an extension"
    if is_result(file):
        return RESULTS
    return "in the folder for the results" if results is not None and results in below.parents else IMAGE


def _refuse_long(names: Iterable[Path]) -> None:
    """Refuse images whose results would have longer names than files can have.

    Raises:
        UserError: there is one.
    """
    most = _LONGEST_NAME - len(_LONGEST_ENDING)
    for name in names:
        if (length := len(os.fsencode(name.name))) > most:
            raise UserError(
                f"the name {name.name} has {length} bytes, and its results ({_LONGEST_ENDING}) may have "
                f"{_LONGEST_NAME}: give the image a name of at most {most} bytes"
            )


def _within(folder: Path, base: Path) -> Path | None:
    """The path of a folder that lies in another, below that; None if it does not."""
    inner, outer = folder.resolve(), base.resolve()
    return inner.relative_to(outer) if outer in inner.parents else None


def _named(found: Iterable[tuple[Path, Path]]) -> dict[str, Path]:
    """Files by name, of those found below their folders; a file found twice appears once."""
    files: dict[str, tuple[Path, Path]] = {}
    for base, file in found:
        files.setdefault(os.path.abspath(file), (base, file))
    places = {Path(file).with_suffix("") for file in files}
    for depth in itertools.count():
        paths = [Path(*_last(base, depth), file.relative_to(base)) for base, file in files.values()]
        stems = Counter(path.with_suffix("") for path in paths)
        if len(stems) == len(places):
            break
    names = [path if stems[path.with_suffix("")] > 1 else path.with_suffix("") for path in paths]
    _refuse_long(names)
    if len(set(names)) < len(names):  # such as a.jpg, which a.jpg, a.png and a.jpg.png give
        names = paths
    return {name.as_posix(): file for name, (_, file) in zip(names, files.values(), strict=True)}


def _last(folder: Path, count: int) -> tuple[str, ...]:
    """The last parts of a folder's absolute path, that of a drive among them."""
    drive, *parts = Path(os.path.abspath(folder)).parts
    parts = [drive.strip(":/\\"), *parts] if drive.strip("/") else parts
    return tuple(parts[len(parts) - min(count, len(parts)) :])


def _nothing(pattern: str, files: list[Path], others: Mapping[str, int]) -> str:
    if not files and not Path(pattern).is_dir():
        return f'no such file, folder or pattern: "{pattern}"; give images of the kinds {KINDS}'
    what = "the folder holds" if Path(pattern).is_dir() else "the pattern finds"
    return f'"{pattern}": {what} no image{", but " * bool(others)}{said(others)}; known kinds: {KINDS}'


_OF_MODELS = {"config.json", "run.json", "model.safetensors", "encoder.safetensors"}
"""Files that show that a folder is a model, or holds models."""
_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
AnyPath = str | os.PathLike[str]


def model_and_images(model: AnyModel, images: Iterable[AnyPath]) -> tuple[AnyModel, list[AnyPath], str]:
    """The model that is meant, all images, and a sentence on the model if nobody named one.

    Args:
        model: as given; it may be the first of the images.
        images: the others.
    Raises:
        UserError: there is a model, but no image; or it comes after the images.
    """
    images = list(images)
    if not isinstance(model, str | os.PathLike) or not are_images(model):
        if not images:
            raise UserError(
                f"{name_of(model)} is taken for the model, and no images come after it; give some, and for the model "
                f"that comes with degrid the name {SHIPPED}"
            )
        return model, images, ""
    late = next(filter(_is_model, images), None)
    if late is not None:
        raise UserError(f"{late} is a model, which comes first: degrid predict {late} {name_of(model)}")
    folder = shipped_folder()
    if folder is None:
        raise UserError(f"something here is called {SHIPPED} as the model that comes with degrid; name a model")
    names = ", ".join(row["name"] for row in read_json(folder / "config.json", "model config")["classes"])
    purpose = read_json(folder / CARD, "model card")["purpose"]
    told = f"by {SHIPPED}, which comes with degrid, for {purpose}: {names}"
    return SHIPPED, [model, *images], told


def _is_model(path: AnyPath) -> bool:
    """Whether a path or name is that of a model or run."""
    inside = any((Path(path) / name).is_file() for name in _OF_MODELS)
    return inside or is_named(path) or find_exported(path) is not None


def are_images(path: AnyPath) -> bool:
    """Whether the first word of `degrid predict` is what to segment, rather than what to segment it with.

    These are: names that end as images or videos do, cameras and addresses, patterns, and folders that hold images or
    videos, but nothing of a model or a run, at any depth. All else is a model.
    """
    place = Path(path)
    if _is_model(path):
        return False
    if is_source(os.fspath(path)):
        return True
    if place.is_dir():
        names = {entry.name for _, entries in walk(place) for entry in entries}
        return not names & _OF_MODELS and any(Path(name).suffix.lower() in _SUFFIXES for name in names)
    return place.suffix.lower() in _SUFFIXES or (glob.has_magic(os.fspath(path)) and not place.exists())
