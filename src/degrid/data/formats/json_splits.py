"""Splits defined in a JSON file, in the forms that programs and people write."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from degrid.data.formats.layout import splits_of
from degrid.files import parse_json, read_text

_FILES = re.compile(
    r"(.*[-_. ])?(splits?|datasets?|datalist|data|lists?|partitions?|train_?val(_?test)?|folds?)(_final)?\d*\.json",
    re.I,
)
_LARGEST = 1 << 26
"""Bytes."""
_IMAGE_KEYS = ("image", "img", "image_path", "file_name", "filename", "file", "path", "name", "fpath_img")


def json_splits(folder: Path) -> tuple[dict[str, list[str]], str]:
    """The image names of each split in a file such as splits.json, or MONAI's dataset.json; and the file's name.

    The file holds a table from splits to lists of names, or of tables with the image's; or a list of such tables, one
    for each fold, as nnU-Net's splits_final.json. Or there is a file for each split with such a table in each line, as
    train.jsonl and training.odgt. Nothing where there is none.
    """
    by_line, name = _of_lines(folder)
    if by_line:
        return by_line, name
    for file in sorted(folder.glob("*.json")):
        if _FILES.fullmatch(file.name) and file.stat().st_size <= _LARGEST:
            with contextlib.suppress(ValueError):
                value = parse_json(read_text(file))
                folds = value if isinstance(value, list) else [value]
                if found := _splits(folds[0]):
                    return found, file.name + (
                        f", of which the first of {len(folds)} folds counts" if folds[1:] else ""
                    )
    return {}, ""


def _of_lines(folder: Path) -> tuple[dict[str, list[str]], str]:
    files = {file.stem: file for file in sorted([*folder.glob("*.jsonl"), *folder.glob("*.odgt")])}
    found: dict[str, list[str]] = {}
    for stem, split in splits_of(files).items():
        with contextlib.suppress(ValueError):
            found[split] = [_name(parse_json(line)) for line in read_text(files[stem]).splitlines() if line.strip()]
    named = all(all(names) for names in found.values())
    return (found, " and ".join(file.name for file in files.values())) if found.get("train") and named else ({}, "")


def _splits(value: Any) -> dict[str, list[str]]:
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list)} if isinstance(value, Mapping) else {}
    found: dict[str, list[str]] = {}
    for key, split in splits_of(lists).items():
        names = [_name(row) for row in lists[key]]
        if not all(names):
            return {}
        found.setdefault(split, []).extend(names)
    return found if found.get("train") and len(found) > 1 else {}


def _name(row: Any) -> str:
    written = next((row[key] for key in _IMAGE_KEYS if row.get(key)), "") if isinstance(row, Mapping) else row
    return written if isinstance(written, str) else ""
