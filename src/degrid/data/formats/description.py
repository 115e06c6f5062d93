"""dataset.yaml: where the files are, and what the values in the masks mean."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.class_rows import ClassRow, labels_and_rule
from degrid.data.formats.class_text import written_color
from degrid.data.formats.classes import class_table
from degrid.data.formats.doubts import check_kinds
from degrid.data.formats.folder import pairs_by_name, with_masks
from degrid.data.formats.hugging_face.address import PREFIX, Address
from degrid.data.formats.hugging_face.format import open_hugging_face
from degrid.data.formats.layout import DataFormat, Layout, Wishes
from degrid.data.formats.masks import LARGEST_WHOLE, Color, MaskRule
from degrid.data.formats.pair_lists import LIST_SUFFIXES, is_pair_list, read_list
from degrid.data.formats.pairs import Pair, pair_up
from degrid.files import parse_yaml, read_text
from degrid.lookup import did_you_mean, some
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# Other toolkits' words for the same keys.
_ALIASES = {"names": "classes", "masks_dir": "masks", "label_mapping": "ids", "root": "path", "ignore_index": "void"}
_KEYS = (
    *("path", "format", "train", "val", "test", "masks", "classes", "void", "ids"),
    *("threshold", "nearest_color", "palette", "accept", "crowd"),
)
# lightly-train's word for classes that become void, and keys that only ultralytics needs.
_ALSO = ("ignore_classes", "nc", "download")
# Where a class lists its ids, or its colours in colour masks.
_ID_KEYS = ("ids", "labels", "values")


class Description(DataFormat):
    """A dataset.yaml, given itself or in the folder that is given.

    Keys: path (the root, relative to the file, or "hf:NAME_OR_FOLDER"), format (a row of `degrid.data.formats.table`,
    or "module:Format" of your own), train, val, test (a folder, a list file of "/image /mask" or of names, or {images,
    masks}), masks (the folder of all masks), classes (names in order, or {id: name}, or {id: {name, color, ids}}), void
    (raw ids or colours that are void), ids ({raw id: train id, or "void"}, or a list with the raw id of each class in
    order), threshold (a number: values below it are background), nearest_color (a distance: other colours become the
    nearest one of a class), palette (color or index: how palette images are read), accept (kinds of doubts that are
    intended), crowd (instance or void: what COCO's crowds are).
    Without splits the folder is recognised, or read in the format.
    """

    wanted = "dataset.yaml"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: not YAML, an unknown key, or values of another form.
        """
        places = (path,) if path.suffix in (".yaml", ".yml") else (path / "dataset.yaml", path / "dataset.yml")
        file = next((place for place in places if place.exists()), None)
        if file is None:
            return None
        given = _read(file)
        written = str(given.get("path", "."))
        root = file.parent / (written if (file.parent / written).is_dir() else _slashes(written))
        if written.startswith(PREFIX) and not root.exists():
            return _hugging_face(written, given, file)
        if not root.is_dir():
            raise UserError(f"{file}: path {root} is not a folder")
        layout = _with_splits(given, root, file) or _inside(given, root, file)
        if not any(layout.splits.values()):
            raise UserError(f"{file}: no image in {', '.join(layout.splits)}")
        return _with_words(layout, given, file)


def wishes_in(folder: Path) -> Wishes:
    """What dataset.yaml in a folder asks for; nothing where there is none.

    Raises:
        UserError: see `Description`.
    """
    file = folder / "dataset.yaml"
    return _wishes(_read(file), file) if file.is_file() else Wishes()


def described(address: Address) -> Layout:
    """A dataset of Hugging Face, as a dataset.yaml in its folder describes it, if there is one.

    Raises:
        UserError: see `Description` and `open_hugging_face`.
    """
    file = address.folder / "dataset.yaml" if address.folder else None
    if file is None or not file.is_file():
        return open_hugging_face(address)
    return _hugging_face(address.absolute(), _read(file), file)


def _with_words(layout: Layout, given: dict[str, Any], file: Path) -> Layout:
    """The layout with the classes and requests of the file."""
    layout.wishes = _wishes(given, file)
    if "classes" in given:
        layout.labels, layout.rule = _classes(given, file)
    elif isinstance(given.get("ids"), dict):
        raise UserError(
            f"{file}: a table of ids needs classes in the same file; without them give a list, such as [0, 255]"
        )
    _refuse_contradictions(given, layout, file)
    return layout


def _refuse_contradictions(given: dict[str, Any], layout: Layout, file: Path) -> None:
    """Refuse another number of classes than there are names, and void that is a class, where the file says both."""
    rows = given.get("classes", ())
    if rows and "nc" in given and given["nc"] != len(rows):
        raise UserError(f"{file}: nc says {given['nc']} classes, but {len(rows)} are named; correct one of them")
    said = _values_of_classes(layout.wishes, layout.rule if rows else None)
    for value in _void(given.get("void"), file):
        meant = said.get(value, IGNORE_INDEX)
        if meant != IGNORE_INDEX:
            name = f'"{layout.labels.names[meant]}"' if rows and layout.labels else meant
            numbers = "; or number the classes yourself: {1: .., 2: ..}" if isinstance(rows, list) else ""
            raise UserError(f"{file}: {value} is void, and also the class {name}; keep one of the two{numbers}")


def _values_of_classes(wishes: Wishes, rule: MaskRule | None) -> dict[int | Color, int]:
    """The class of each id and colour that a file names."""
    said: dict[int | Color, int] = {}
    if rule and not wishes.ids:
        said.update(rule.ids.items())
    if rule and not rule.default_colors:
        said.update(rule.colors.items())
    said.update((value, index) for index, value in enumerate(wishes.ids))
    return said


def _hugging_face(written: str, given: dict[str, Any], file: Path) -> Layout:
    """A dataset of Hugging Face, whose folder is relative to the file."""
    own = [key for key in ("format", "train", "val", "test", "masks") if key in given]
    if own:
        raise UserError(f"{file}: {written} brings its own splits and masks; leave out {', '.join(own)}")
    address = Address.parse(written.removeprefix(PREFIX))
    if (file.parent / address.name).is_dir():
        address = dataclasses.replace(address, name=str(file.parent / address.name))
    layout = open_hugging_face(address)
    return _with_words(dataclasses.replace(layout, reason=f"{file.name}, {layout.reason}"), given, file)


def _with_splits(given: dict[str, Any], root: Path, file: Path) -> Layout | None:
    """The splits that the file names, if it does; their classes are those of a table beside the data."""
    splits, orphans = {}, []
    for split in ("train", "val", "test"):
        if given.get(split):
            splits[split], lost = _split(given[split], root, given.get("masks"), file, split)
            orphans += lost
    if not splits:
        return None
    if "format" in given:
        raise UserError(f"{file}: a format brings its own splits; leave out {', '.join(splits)}")
    table = (None, None) if "classes" in given else class_table(root)
    return Layout(
        file.name, root, splits, *table, orphans=orphans, how_to_add=f'a line "{{split}}: FOLDER" to {file.name}'
    )


def _inside(given: dict[str, Any], root: Path, file: Path) -> Layout:
    """The content of the folder that a description without splits points to."""
    from degrid.data.formats.table import read_as, recognise  # the table has a row for this class, too

    if "masks" in given:
        found = with_masks(root, _folder(root, given["masks"], file)) if "format" not in given else None
        if found is None:
            raise UserError(f"{file}: masks says where the masks are; say where the images are, too: train: FOLDER")
        return dataclasses.replace(found, kind="folder", reason=f"{file.name}, {found.reason}")
    layout = read_as(str(given["format"]), root) if "format" in given else recognise(root, inside=True)
    return dataclasses.replace(layout, reason=f"{file.name}, {layout.reason}")


def _read(file: Path) -> dict[str, Any]:
    """The values by key, with the words of other toolkits translated."""
    text = read_text(file)
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys such as path, train, val and classes")
    given: dict[str, Any] = {}
    for written, value in values.items():
        key = _ALIASES.get(str(written), str(written))
        if key not in (*_KEYS, *_ALSO):
            known = [*_KEYS, *_ALIASES]
            raise UserError(f'{file}: unknown key "{key}".{did_you_mean(key, known)} Known: {", ".join(_KEYS)}')
        if key in given:
            raise UserError(f'{file}: "{written}" is another word for "{key}", which is also given; keep one')
        given[key] = value
    return given


def _split(value: Any, root: Path, masks: Any, file: Path, split: str) -> tuple[list[Pair], list[Path]]:
    """The pairs of a split, and the masks without an image."""
    if isinstance(value, dict) and set(value) == {"images", "masks"}:
        return pair_up(_folder(root, value["images"], file), _folder(root, value["masks"], file))
    if not isinstance(value, str):
        raise UserError(f"{file}: {split} must be a folder, a list file or {{images: .., masks: ..}}, got {value!r}")
    if value.lower().endswith(LIST_SUFFIXES):
        value = _slashes(value)
        by_name = (root / value).is_file() and not is_pair_list(root / value)
        pairs = pairs_by_name(root, root / value) if by_name else None
        return (read_list(root / value, root) if pairs is None else pairs), []
    return _pairs_of_folder(value, root, masks, file, split)


def _pairs_of_folder(value: str, root: Path, masks: Any, file: Path, split: str) -> tuple[list[Pair], list[Path]]:
    images = _folder(root, value, file)
    if masks is not None:
        # masks/train beside images/train, or one folder for all splits.
        inside = root / str(masks) / images.name
        pairs, lost = pair_up(images, inside if inside.is_dir() else _folder(root, masks, file))
        return pairs, lost if inside.is_dir() else []
    for name in ("masks", "labels", "annotations"):
        parts = [name if part in ("images", "imgs", "img") else part for part in Path(value).parts]
        if tuple(parts) != Path(value).parts and root.joinpath(*parts).is_dir():
            return pair_up(images, root.joinpath(*parts))
    raise UserError(f"{file}: where are the masks for {split}: {value}? Add masks: FOLDER")


def _folder(root: Path, value: Any, file: Path) -> Path:
    place = next((place for written in (str(value), _slashes(value)) if (place := root / written).is_dir()), None)
    if place is None:
        raise UserError(f"{file}: {root / str(value)} is not a folder")
    return place


def _slashes(value: Any) -> str:
    """A path as written on Windows, or anywhere."""
    return str(value).replace("\\", "/")


def _classes(given: dict[str, Any], file: Path) -> tuple[LabelSpace, MaskRule]:
    rows, in_order = _numbered(given["classes"])
    if not rows:
        raise UserError(f"{file}: classes must be a list of names, or a table from ids, 0 to 255, to names")
    # With a table of ids, that table says everything.
    table = given.get("ids") if isinstance(given.get("ids"), dict) else {}
    read = [_class(number, row, bool(table), file) for number, row in rows.items()]
    labels, rule = labels_and_rule(read, file.name, file, in_order)
    if not table:
        return labels, rule
    numbers = sorted(row.number for row in read if not row.void)
    ids = {IGNORE_INDEX: IGNORE_INDEX, **_id_table(table, numbers, file)}
    return labels, dataclasses.replace(rule, ids=ids, exact=True)


def _numbered(rows: Any) -> tuple[dict[int, Any], bool]:
    """The entry of each class by its number, and whether that is its position in a list; None for other forms."""
    if isinstance(rows, dict):
        return _by_number(list(rows), list(rows.values())), False
    if not isinstance(rows, list):
        return {}, False
    with_ids = [row["id"] for row in rows if isinstance(row, dict) and "id" in row]
    return _by_number(with_ids or [*range(len(rows))], rows), not with_ids


def _by_number(numbers: list[Any], rows: list[Any]) -> dict[int, Any]:
    numbers = [int(number) if str(number).isdecimal() else number for number in numbers]
    if not all(_is_id(number) and 0 <= number <= IGNORE_INDEX for number in numbers):
        return {}
    return dict(zip(numbers, rows, strict=True)) if len({*numbers}) == len(rows) else {}


def _class(number: int, row: Any, in_table: bool, file: Path) -> ClassRow:
    """One class.

    Args:
        in_table: a table of ids says which ids a class has that does not say so itself.
    """
    row = row if isinstance(row, dict) else {"name": row}
    if set(row) - {"id", "name", "color", "colors", *_ID_KEYS} or "name" not in row:
        got = ", ".join(map(str, row))
        raise UserError(f"{file}: class {number}: expected name, and optionally color and ids; got {got}")
    listed = [value for key in _ID_KEYS if key in row for value in _listed(row[key])]
    ids = tuple(value for value in listed if not isinstance(value, list))
    if not all(_is_id(value) for value in ids):
        raise UserError(f"{file}: class {number}: ids are whole numbers, such as [26, 27]; got {listed}")
    colors = [*_colors(row.get("color"), file), *_colors(row.get("colors"), file)]
    colors += _colors([value for value in listed if isinstance(value, list)], file)
    return ClassRow(number, _class_name(row["name"], number, file), tuple(colors), ids or (() if in_table else None))


def _class_name(value: Any, number: int, file: Path) -> str:
    if value is None or isinstance(value, bool | list | dict):
        raise UserError(
            f"{file}: class {number}: YAML reads the name as {value!r}; write names such as no and null in quotes"
        )
    return str(value)


def _colors(value: Any, file: Path) -> list[Color]:
    """None, one colour, or a list of them."""
    several = isinstance(value, list) and all(isinstance(each, list) or str(each).startswith("#") for each in value)
    return [] if value is None else [_color(each, file) for each in (value if several else [value])]


def _wishes(given: dict[str, Any], file: Path) -> Wishes:
    """The requests other than the classes."""
    void = (*_void(given.get("void"), file), *_void(given.get("ignore_classes"), file))
    ids = given.get("ids") or []
    if not isinstance(ids, dict | list):
        raise UserError(
            f"{file}: ids must be a table from raw ids to classes, such as {{7: 0, 19: void}}, or the list of the "
            f"classes' ids; got {ids!r}"
        )
    ids = [] if isinstance(ids, dict) else ids
    accept = tuple(map(str, _listed(given.get("accept") or [])))
    if not all(_is_id(value) for value in ids) or len(set(ids)) != len(ids):
        raise UserError(f"{file}: ids: expected different whole numbers, one for each class, got {ids}")
    check_kinds(accept, f"{file}: accept")
    return Wishes(
        void,
        tuple(ids),
        _number(given, "threshold", file),
        _number(given, "nearest_color", file),
        _word(given, "palette", ("color", "index"), file),
        accept,
        _word(given, "crowd", ("instance", "void"), file),
        str(file),
    )


def _void(value: Any, file: Path) -> tuple[int | Color, ...]:
    """Ids and colours, or one of them; without NaN and numbers that no id can have, which are void in any mask."""
    void: list[int | Color] = []
    for each in [] if value is None else _listed(value):
        number = _whole_number(each)
        if number is None and not isinstance(each, list) and written_color(str(each)) is None:
            raise UserError(f"{file}: void lists raw ids and colours, such as [0, [128, 64, 128]]; got {each!r}")
        if number is None:
            void.append(_color(each, file))
        elif abs(number) < LARGEST_WHOLE:
            void += {int(number), int(np.float32(number))}  # as float masks store it
    return tuple(void)


def _whole_number(value: Any) -> float | None:
    """A number as it is or in a text, such as -3.4e38, which YAML takes for one; None for fractions and colours."""
    with contextlib.suppress(ValueError, TypeError):
        is_color = isinstance(value, bool) or (isinstance(value, str) and written_color(value))
        number = 0.5 if is_color else float(value)
        return number if number.is_integer() or not abs(number) < LARGEST_WHOLE else None
    return None


def _word(given: dict[str, Any], key: str, words: tuple[str, ...], file: Path) -> str:
    value = given.get(key, "")
    if value not in ("", *words):
        raise UserError(f"{file}: {key}: expected {' or '.join(words)}, got {value!r}")
    return str(value)


def _number(given: dict[str, Any], key: str, file: Path) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"{file}: {key}: expected a number of at least 0, got {value!r}")
    return float(value)


def _id_table(table: dict[Any, Any], numbers: list[int], file: Path) -> dict[int, int]:
    """Raw id -> train id or IGNORE_INDEX.

    Args:
        numbers: of the classes, as the file gives them.
    """
    mapped = {}
    for raw, number in table.items():
        is_void = number in ("void", "ignore", "ignore_label", IGNORE_INDEX, -1)
        if not _is_id(raw) or not (is_void or (_is_id(number) and number in numbers)):
            raise UserError(f"{file}: ids: {raw}: {number}: expected a raw id and a class {_range(numbers)} or void")
        mapped[raw] = IGNORE_INDEX if is_void else numbers.index(number)
    return mapped


def _range(numbers: list[int]) -> str:
    whole = numbers == list(range(len(numbers)))
    return f"0 to {len(numbers) - 1}" if whole else f"({some(numbers)})"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _color(value: Any, file: Path) -> Color:
    if isinstance(value, list) and len(value) == 3 and all(_is_id(v) and 0 <= v <= 255 for v in value):
        return (value[0], value[1], value[2])
    color = written_color(value) if isinstance(value, str) else None
    if color is None:
        raise UserError(f"{file}: a colour is three whole numbers from 0 to 255, such as [128, 64, 128]; got {value!r}")
    return color
