"""What a prediction leaves on disk."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degrid.engine.inference.predictor import Prediction
from degrid.files import atomic_write, write_json
from degrid.image import IMAGE_SUFFIXES, overlay_classes, palette_image
from degrid.types import LabelSpace, UserError


def find_images(patterns: Iterable[str], exclude: Path | None = None) -> dict[str, Path]:
    """Images by the name their results get: the path below the folder (or below the fixed part of the pattern)
    without extension; with the extension where two images would share a name.

    Args:
        patterns: files, folders (searched through with sub-folders) or glob patterns.
        exclude: a folder whose files do not count, such as the one results are written to.
    Raises:
        UserError: a pattern that finds no image.
    """
    found: list[tuple[Path, Path]] = []
    barred = exclude.resolve() if exclude is not None else None
    for pattern in patterns:
        base, files = _expand(pattern)
        images = [
            (file.relative_to(base), file)
            for file in files
            if file.suffix.lower() in IMAGE_SUFFIXES and not (barred and barred in file.resolve().parents)
        ]
        if not images:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            what = "the folder holds" if Path(pattern).is_dir() else "there is" if not files else "the pattern finds"
            raise UserError(f'"{pattern}": {what} no image; known kinds: {suffixes}')
        found += images
    stems = Counter(relative.with_suffix("") for relative, _ in dict(found).items())
    return {
        (relative if stems[relative.with_suffix("")] > 1 else relative.with_suffix("")).as_posix(): file
        for relative, file in found
    }


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    path = Path(pattern)
    if path.is_dir():
        return path, sorted(file for file in path.rglob("*") if file.is_file())
    if path.is_file():
        return path.parent, [path]
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    fixed: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed), files


def write_prediction(
    prediction: Prediction,
    labels: LabelSpace,
    out: Path,
    name: str,
    *,
    overlay: bool = True,
    logits: bool = False,
) -> dict[str, Any]:
    """Write one image's results below `out`, each file atomically, and give its row of the summary.

    NAME.png: 8-bit ids with the classes' palette; NAME.overlay.jpg; NAME.logits.npy.
    """
    with atomic_write(out / f"{name}.png") as temporary:
        palette_image(prediction.ids, labels).save(temporary, format="PNG")
    if overlay:
        with atomic_write(out / f"{name}.overlay.jpg") as temporary:
            picture = overlay_classes(prediction.image, prediction.ids, labels)
            Image.fromarray(picture).save(temporary, format="JPEG", quality=92)
    if logits and prediction.logits is not None:
        with atomic_write(out / f"{name}.logits.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, prediction.logits)
    counts = np.bincount(prediction.ids.ravel(), minlength=len(labels))
    height, width = prediction.ids.shape
    pixels = {class_name: int(n) for class_name, n in zip(labels.names, counts, strict=True) if n}
    return {"width": width, "height": height, "pixels": pixels}


def write_summary(rows: dict[str, dict[str, Any]], labels: LabelSpace, out: Path) -> None:
    """Write summary.json: pixels per class, for each image and in total."""
    total: Counter[str] = Counter()
    for row in rows.values():
        total.update(row["pixels"])
    write_json(
        out / "summary.json",
        {
            "classes": list(labels.names),
            "num_images": len(rows),
            "pixels": {name: total[name] for name in labels.names},
            "images": rows,
        },
    )
