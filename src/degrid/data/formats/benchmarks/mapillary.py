"""Mapillary Vistas, whose classes are in its config.json."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.common import benchmark
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.pairs import pair_folders
from degrid.files import blaming, parse_json, read_text
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# The folder of the labels, and the file of their classes. Most published scores are on the classes of v1.2.
_VERSIONS = (
    ("v1.2/labels", ("config_v1.2.json", "config.json")),
    ("v2.0/labels", ("config_v2.0.json", "config.json")),
    ("labels", ("config.json", "config_v1.2.json")),
)


class Mapillary(DataFormat):
    """training/images and training/v1.2/labels (or v2.0, or labels), with config_v1.2.json (or another).

    Classes that the file excludes from the evaluation are void.
    """

    wanted = "training/images, training/v1.2/labels and config_v1.2.json (Mapillary Vistas)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the file of the classes is missing or of another form.
        """
        places = {"train": path / "training", "val": path / "validation"}
        have = [row for row in _VERSIONS if any((place / row[0]).is_dir() for place in places.values())]
        if not have or not (path / "training" / "images").is_dir():
            return None
        labels_folder, configs = have[0]
        file = next((path / name for name in configs if (path / name).is_file()), None)
        if file is None and labels_folder == "labels":
            return None  # anyone's training/images and training/labels
        if file is None:
            raise UserError(
                f"{path} holds Mapillary Vistas without the classes: put {configs[0]} of the download there"
            )
        splits, _ = pair_folders({split: (place / "images", place / labels_folder) for split, place in places.items()})
        notes = [f"{labels_folder} is read, not {have[1][0]}: move one of them away to choose"] if len(have) > 1 else []
        return benchmark(f"training/{labels_folder} and {file.name}", path, splits, *_classes(file), notes)


def _classes(file: Path) -> tuple[LabelSpace, MaskRule]:
    """The classes in the order of their ids, and the rule that makes the others void."""
    with blaming(f"{file}: expected labels, each with name, color and evaluate"):
        rows = parse_json(read_text(file))["labels"]
        written = [str(row["name"]) for row in rows]
        readable = [str(row.get("readable", row["name"])) for row in rows]
        colors: list[Color] = [(int(r), int(g), int(b)) for r, g, b in (row["color"] for row in rows)]
        counted = [bool(row["evaluate"]) for row in rows]
    names = readable if len(set(readable)) == len(readable) else written
    kept = [raw for raw, counts in enumerate(counted) if counts]
    ids = dict.fromkeys([*range(len(rows)), IGNORE_INDEX], IGNORE_INDEX) | {raw: k for k, raw in enumerate(kept)}
    labels = LabelSpace(tuple(names[raw] for raw in kept), tuple(colors[raw] for raw in kept))
    return labels, MaskRule(ids, {color: ids[raw] for raw, color in enumerate(colors)}, file.name)
