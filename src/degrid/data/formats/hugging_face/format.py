"""Opening Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from degrid.data.formats.classes import class_table
from degrid.data.formats.hugging_face.address import Address
from degrid.data.formats.hugging_face.columns import find_columns, inside
from degrid.data.formats.hugging_face.rows import rows_of
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import divided
from degrid.data.formats.tools.label_files import LabelRow, labels_of
from degrid.files import blaming, parse_json, read_text
from degrid.lookup import counted, in_a_line
from degrid.types import LabelSpace, UserError

# Files that `save_to_disk` writes: for several splits, or for one.
_SAVED = ("dataset_dict.json", "state.json")
_NAMES_FILE = "id2label.json"


class HuggingFace(DataFormat):
    """What `save_to_disk` of `datasets` leaves. Everything else that the library opens is asked for with "hf:"."""

    wanted = (
        "a folder that save_to_disk of Hugging Face's datasets wrote (any other of its datasets: hf:NAME_OR_FOLDER)"
    )

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        return open_hugging_face(Address(str(path), {})) if _is_saved(path) else None


def open_hugging_face(address: Address) -> Layout:
    """What is in a dataset of Hugging Face. A single split is divided, since there a dataset without splits is "train".

    Raises:
        UserError: `datasets` is not installed or cannot open it, or there are no columns of images and masks.
    """
    splits = _load(address)
    if not splits:
        raise UserError(f"{address} has no split; save it again, or download it again")
    features = _features(next(iter(splits.values())), address)
    columns, note = find_columns(features, address.options, address)
    notes = [note] if note else []
    first = int(address.options["streaming"]) if "streaming" in address.options else None
    rows = {split: rows_of(data, columns, str(address), split, first) for split, data in splits.items()}
    if len(rows) == 1:
        rows, of_division = divided(next(iter(rows.values())))
        notes += of_division
    labels, rule = _classes(features[columns[1]], address)
    if first is not None:
        notes.append(f"only the first {counted(first, 'row')} of each split were fetched")
    return Layout(
        f"columns {columns[0]} and {columns[1]}",
        address.folder or Path(address.name),
        {split_of(split): sources for split, sources in rows.items()},
        labels,
        rule,
        notes=notes,
        how_to_add="such a split to the dataset",
        kind="Hugging Face",
    )


def _is_saved(folder: Path) -> bool:
    return (folder / _SAVED[0]).is_file() or all((folder / name).is_file() for name in _SAVED[1:])


def _load(address: Address) -> dict[str, Any]:
    """A `Dataset` for each split, or an `IterableDataset` where it is streamed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{address} needs the library datasets, which is not installed: pip install degrid[hf]"
        ) from error
    options = address.options
    try:
        if address.folder and _is_saved(address.folder):
            found: Any = datasets.load_from_disk(str(address.folder))
        else:
            found = datasets.load_dataset(
                str(address.folder or address.name),
                options.get("config"),
                revision=options.get("revision"),
                streaming="streaming" in options,
            )
    except Exception as error:  # of a dozen kinds
        raise UserError(
            f"{address}: datasets cannot open it ({in_a_line(error)}); expected a name on the hub, which "
            "needs a connection unless it was fetched before, or a folder that save_to_disk or to_parquet wrote"
        ) from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _features(data: Any, address: Address) -> Mapping[str, Any]:
    """The kind of each column."""
    features = data.features or data._resolve_features().features  # a streamed table may not say what it holds
    if not features:
        raise UserError(f"{address} has no columns that datasets can name")
    return dict(features)


def _classes(mask: Any, address: Address) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes by a table of the user's in the folder, by id2label.json, or by the type of the masks' column."""
    found = class_table(address.folder) if address.folder else (None, None)
    if found[0] is not None:
        return found
    file = _names_file(address)
    if file:
        return labels_of(_read_names(file), file)
    names = getattr(inside(inside(mask)), "names", None)
    if names:
        return labels_of([LabelRow(name, None, value) for value, name in enumerate(names)], Path(address.name))
    return None, None


def _names_file(address: Address) -> Path | None:
    if address.folder:
        file = address.folder / _NAMES_FILE
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        revision = address.options.get("revision")
        return Path(hf_hub_download(address.name, _NAMES_FILE, repo_type="dataset", revision=revision))
    except EntryNotFoundError:  # most datasets have none
        return None
    except Exception as error:  # of a dozen kinds; without the names the classes would be numbered
        raise UserError(f"{address}: cannot ask the hub for {_NAMES_FILE} ({error}); try again") from error


def _read_names(file: Path) -> list[LabelRow]:
    """id2label.json: {"0": "wall", "1": "floor", ..}, as the hub's own examples write it."""
    with blaming(f'{file}: expected names by id, such as {{"0": "wall", "1": "floor"}}'):
        names = {int(value): str(name) for value, name in parse_json(read_text(file)).items()}
    return [LabelRow(names[value], None, value) for value in sorted(names)]
