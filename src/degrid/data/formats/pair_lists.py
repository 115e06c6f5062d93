"""Lists that name images and masks, or divide them into splits."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from degrid.data.formats.layout import SPLIT_NAMES, split_of, splits_of
from degrid.data.formats.matching import folded, is_for_images, is_for_masks
from degrid.data.formats.pairs import MASK_SUFFIXES, Pair
from degrid.files import read_text
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import counted, grouped
from degrid.types import UserError

LIST_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")
"""Endings of the files that may be lists, in lower case."""


def read_names(file: Path) -> list[str]:
    """The lines of a list, without empty ones, comments, which begin with "# ", and quotes around whole lines."""
    lines = (line.strip() for line in read_text(file).splitlines())
    return [re.sub(r"""^(["'])([^"']*)\1$""", r"\2", line) for line in lines if line and not line.startswith("# ")]


def read_list(file: Path, root: Path | None = None, notes: list[str] | None = None) -> list[Pair]:
    """Read pairs from lines of "/image /mask", with paths below `root`; a line with only an image has no mask.

    The slashes may be missing, and the separator may be another one, as in the lists of PaddleSeg and PaddleX. Paths of
    another computer are found by their ends.

    Args:
        root: the folder that the leading slash stands for; by default the nearest one, from the list's folder upwards,
            in which the first image exists.
        notes: where to add what was decided.
    Raises:
        UserError: the list is missing, empty or malformed, or no folder holds the first image.
    """
    if not file.is_file():
        raise UserError(f"no list file at {file}")
    lines = read_names(file)
    if not lines:
        raise UserError(f"the list {file} is empty")
    lines = lines[1:] if _HEADER.fullmatch(lines[0]) and len(lines) > 1 else lines
    entries = _columns(file) or [_entry(line, file, number) for number, line in enumerate(lines, 1)]
    _refuse_masks_first(*entries[0], file)
    return _pairs_of(entries, file, root, [] if notes is None else notes)


def _pairs_of(entries: list[tuple[str, str | None]], file: Path, root: Path | None, notes: list[str]) -> list[Pair]:
    """The pairs of images and masks that a list names; see `read_list`."""
    entries = _with_slashes(entries, [root] if root else file.resolve().parents)
    root, entries = _placed(entries, file, root, notes)
    return [
        # The test lists of the original code name each image as its own mask.
        Pair(
            Path(image).with_suffix("").as_posix(),
            _there(root, image),
            _there(root, mask) if mask and mask != image else None,
        )
        for image, mask in entries
    ]


def _columns(file: Path) -> list[tuple[str, str | None]]:
    """The images and masks in a table whose header names both among other columns, such as pandas' numbers of rows."""
    rows = _rows(file)
    if _says_splits(file, rows):
        return []  # see `pair_table`
    found = [pair for _, pair in _paired(rows)]
    named = len(found) == len(rows) and all(
        _is_image_name(image) and _is_mask_name(mask or "") for image, mask in found
    )
    return found if named else []


def _says_splits(file: Path, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether a column of a table says the splits, and not the table's name."""
    columns = _columns_of_splits(rows)
    return any(_split_in(row, columns) for row in rows) and split_of(list_word(file)) not in SPLIT_NAMES.values()


def _entry(line: str, file: Path, number: int) -> tuple[str, str | None]:
    """The image and the mask in a line, whose names may hold spaces; None where there is an image only.

    Between them is any separator: spaces, a tab, a comma, a semicolon, a colon, a bar or an arrow. Names may stand in
    double quotes.
    """
    cuts = [(line[: cut.start()], line[cut.end() :]) for cut in _BETWEEN.finditer(line)]
    pairs = [cut for cut in cuts if _is_image_name(cut[0].strip('"')) and _is_mask_name(cut[1].strip('"'))]
    # Where there are several, the slash marks the beginning of the mask's path.
    parts = [cut for cut in pairs if cut[1].startswith("/")] if len(pairs) > 1 else pairs
    if not pairs and _is_image_name(line.strip('"')) and " /" not in line:
        return _relative(line), None
    if len(parts) != 1:
        third = _behind_pair(line)
        raise UserError(
            f'{file}, line {number}: expected "/image /mask", got "{line}"'
            + (f"; {_said_of_third(third, 'the mask')}" if third else "")
        )
    return _relative(parts[0][0]), _relative(parts[0][1])


_BETWEEN = re.compile(r"\s*(?:[-=]>|[\s,;:|])\s*")


def _behind_pair(line: str) -> str:
    """The rest of a line after the image and the mask; empty if there is none, or if these are missing."""
    for one, other in itertools.combinations(_BETWEEN.finditer(line), 2):
        image, mask = (part.strip('"') for part in (line[: one.start()], line[one.end() : other.start()]))
        if _is_image_name(image) and _is_mask_name(mask):
            return line[other.end() :]
    return ""


def _said_of_third(third: str, what: str) -> str:
    return (
        f'what follows {what} ("{third}") is not read: leave it out, or write a .csv whose first line names the '
        "columns (image,mask,split and any others)"
    )


# The first line of a table of images and masks.
_HEADER = re.compile(
    r"\W*(images?|img|filename|file|path)[\w ]*\W+(masks?|labels?|annotations?|gt|segm?)[\w ]*\W*", re.I
)


def _relative(written: str) -> str:
    """A path in a list without quotes and leading slash, and without the backslashes of Windows."""
    bare = written.strip('"')
    return (bare if "/" in bare else bare.replace("\\", "/")).lstrip("/")


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in {*IMAGE_SUFFIXES, ".npy"}


def _is_mask_name(name: str) -> bool:
    return Path(name).suffix.lower() in MASK_SUFFIXES


def _placed(
    entries: list[tuple[str, str | None]], file: Path, root: Path | None, notes: list[str]
) -> tuple[Path, list[tuple[str, str | None]]]:
    """The root of a list, and its images and masks below that, without the folders of another computer before them."""
    image, mask = entries[0]
    found = _by_end(image, [root] if root else file.resolve().parents)
    if found is None and root:
        return root, entries  # each is missing
    if found is None:
        folders = Path(image).parent
        which = f"; if its paths are another computer's (/{folders}/..), give" if len(folders.parts) > 1 else "; give"
        raise UserError(f"{file}: {image} is in none of the folders above the list{which} the root in dataset.yaml")
    place, before = found
    of_mask = _by_end(mask, [place]) if mask else None
    all_before = tuple({start for start in (before, of_mask[1] if of_mask else "") if start})
    if all_before:
        said = " and ".join(f'"{start}"' for start in sorted(all_before))
        notes.append(f"{file.name}: paths begin with {said}, which is not here; what follows is read from {place}")

    def below(written: str) -> str:
        return next((written.removeprefix(start) for start in all_before if written.startswith(start)), written)

    return place, [(below(image), mask and below(mask)) for image, mask in entries]


def _with_slashes(entries: list[tuple[str, str | None]], places: Sequence[Path]) -> list[tuple[str, str | None]]:
    """The entries, where Python on Windows wrote both kinds of slashes (C:/photos\\a.jpg), with one."""
    if "\\" not in entries[0][0] or _by_end(entries[0][0], places):
        return entries
    return [(image.replace("\\", "/"), mask and mask.replace("\\", "/")) for image, mask in entries]


def _refuse_masks_first(image: str, mask: str | None, file: Path) -> None:
    """Refuse lists whose first column is called masks, and the second images."""
    folders = [Path(name.replace("\\", "/")).parent.name for name in (image, mask or "")]
    if is_for_masks(folders[0]) and is_for_images(folders[1]):
        raise UserError(f"{file}: the first column ({image}) seems to be masks, the second ({mask}) images: swap them")


def _by_end(written: str, places: Sequence[Path]) -> tuple[Path, str] | None:
    """The folder below which the longest end of a path lies, and what stands before that; None where there is none."""
    parts = Path(written).parts
    for cut in range(len(parts)):
        for place in places:
            if _there(place, "/".join(parts[cut:])).exists():
                return place, "".join(f"{part}/" for part in parts[:cut])
    return None


def is_pair_list(file: Path) -> bool:
    """Whether a list begins with "/image /mask" rather than a bare name."""
    try:
        if _columns(file):
            return True
        if _says_splits(file, _rows(file)):
            return False
        lines = read_names(file)[:2]
        first = lines[-1:] if lines and _HEADER.fullmatch(lines[0]) else lines[:1]
        return any(_behind_pair(line) or _entry(line, file, 1)[1] is not None for line in first)
    except UserError:
        return False


def _not_named_aug(files: Sequence[Path]) -> list[str]:
    """The words of lists but VOC's trainaug, which recipes ask for by its own name, with or without a train."""
    return [word for word in map(list_word, files) if not word.endswith("aug")]


def split_files(folder: Path, any_name: bool = False) -> dict[str, list[str]]:
    """Read image names from train.txt, val.txt, ..., one per line.

    Args:
        any_name: take files with other names, such as trainaug.txt, as splits too.
    Raises:
        UserError: the list of a split is empty.
    """
    found = {}
    files = list_files(folder)
    splits = splits_of(_not_named_aug(files) if any_name else map(list_word, files))
    for file in files:
        word = list_word(file)
        wanted = word in splits or (any_name and file.suffix == ".txt")
        if not wanted or is_pair_list(file) or (file.suffix.lower() != ".txt" and _is_table(file)):
            continue
        split = splits.get(word, word)
        if split in found:  # train.txt comes before train_ids.txt
            continue
        names = names_alone(file)
        if split == "test" and not names:  # as programs write if there is no test split
            continue
        found[split] = names
        if not names:
            raise UserError(f"the list {file} is empty; fill it, or delete it")
        first = found[split][0]
        if not _is_image_name(first) and _is_image_name(first.split()[0]):
            third = _said_of_third(first.partition(" ")[2], "the name")
            raise UserError(f'{file}, line 1: expected a name, or "/image /mask", got "{first}"; {third}')
    return found


def names_alone(file: Path) -> list[str]:
    """The names in a list, or in a table of one column without what that is called."""
    names = read_names(file)
    headed = file.suffix.lower() != ".txt" and len(names) > 1 and names[0].strip('"').lower() in _IMAGE_COLUMNS
    return [name.strip('"') for name in names[1:]] if headed else names


_SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold", "phase", "usage")
_IMAGE_COLUMNS = (
    *("image", "image_path", "file_name", "filename", "file", "path", "img", "image_name", "image_file", "img_path"),
    *("img_name", "filepath", "file_path", "fname", "name", "image_id", "imageid", "id"),
)


def split_table(folder: Path) -> tuple[dict[str, list[str]], str]:
    """The image names of each split in a table with a column that says the split, such as metadata.csv; and its name.

    Nothing where there is none, or no split is train. Others may have any name in a column such as "split"; another
    column counts where all its values are words for splits. A column such as is_valid (fastai's) says yes or no.
    """
    for file in list_files(folder):
        rows = _rows(file)
        image, columns = _column_of_images(rows), _columns_of_splits(rows)
        found = grouped((split, row[image]) for row in rows if row.get(image) and (split := _split_in(row, columns)))
        if "train" in found and 1 < len(found) <= _MOST_SPLITS:
            return found, file.name
    return {}, ""


def tables_of_splits(folder: Path) -> list[str]:
    """The tables with a column of few values that is called as if it said the split."""
    tables = ((file, rows) for file in list_files(folder) if (rows := _rows(file)))
    return [
        f'the column "{column}" of splits in {file.name}'
        for file, rows in tables
        for column in [_column_of(rows, [*_columns_of_splits(rows), *_YES_OR_NO])]
        if column and 1 < len({row.get(column, "") for row in rows}) <= _MOST_SPLITS
    ]


_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
_YES_OR_NO = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), "val"),
    **dict.fromkeys(("is_train", "is_training", "is_training_image"), "train"),
    "is_test": "test",
}
_MOST_SPLITS = 6
"""A column with more values means something else."""


def _columns_of_splits(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that say the split, the likeliest first."""
    values = {column: {row.get(column, "").lower() for row in rows} for column in (rows[0] if rows else ())}
    by_words = [column for column, said in values.items() if len(said) > 1 and said <= {*SPLIT_NAMES}]
    return [*_SPLIT_COLUMNS, *by_words]


def _split_in(row: Mapping[str, str], columns: Sequence[str]) -> str:
    """The split that a row of a table says; empty where none is said."""
    said = next((split_of(row[column]) for column in columns if row.get(column)), "")
    answers = {split: row[column].lower() for column, split in _YES_OR_NO.items() if row.get(column)}
    answers = {split: answer for split, answer in answers.items() if answer in (*_YES, *_NO)}
    left = [split for split in ("train", "test", "val") if answers and split not in answers]
    return said or [*(split for split, answer in answers.items() if answer in _YES), *left, ""][0]


def named_in_column(file: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """The image names of a table by the values of the first of these columns; nothing for other files."""
    rows = _rows(file)
    value, image = _column_of(rows, columns), _column_of_images(rows)
    return grouped((row.get(value, ""), row[image]) for row in rows if value and image and row.get(image))


_MASK_COLUMNS = (
    "mask",
    "mask_path",
    "mask_file",
    "label",
    "label_path",
    "annotation",
    "annotation_path",
    "segmentation",
)


def pair_table(
    folder: Path, root: Path | None = None, notes: list[str] | None = None
) -> tuple[dict[str, list[Pair]], str]:
    """The pairs of each split in a table with columns of images, masks and splits; and its name.

    Nothing where there is none, or its first image or mask to train on is not there. See `split_table`.
    """
    for file in list_files(folder):
        every = _paired(_rows(file))
        found = grouped((split, pair) for split, pair in every if split)
        places = [root] if root else file.resolve().parents
        first = next(iter(found.get("train", [])), ("", None))
        if len(found) <= _MOST_SPLITS and all(name and _by_end(name, places) for name in first):
            said = [] if notes is None else notes
            if lost := sum(not split for split, _ in every):
                said.append(f"{file.name}: {counted(lost, 'row', 'name')} no split: left out")
            return {part: _pairs_of(entries, file, root, said) for part, entries in found.items()}, file.name
    return {}, ""


def _paired(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, tuple[str, str | None]]]:
    """The split, the image and the mask of each row that names both."""
    image, mask = _column_of_images(rows), _column_of(rows, _MASK_COLUMNS)
    named = [row for row in rows if image and mask and row.get(image) and row.get(mask)]
    columns = _columns_of_splits(rows)
    return [(_split_in(row, columns), (_relative(row[image]), _relative(row[mask]))) for row in named]


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table by column, in small letters; of other files see `_rows_of_words`."""
    lines = read_text(file).splitlines() if file.suffix.lower() in LIST_SUFFIXES else []
    if not lines:
        return []
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count), skipinitialspace=True)
    head = [cell.strip().lower() for cell in next(reader, [])]
    if file.suffix.lower() not in (".csv", ".tsv"):
        return _rows_of_words(read_names(file))
    rows = [] if {*head} & {*_IMAGE_COLUMNS} else _rows_of_words(read_names(file))
    return rows or [dict(zip(head, map(str.strip, row), strict=False)) for row in reader]


_LAST_WORD = re.compile(r"""(.+?)\s*[\s,;:|]\s*["']?(\w+)["']?""")


def _rows_of_words(lines: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table whose columns have no names: an image, perhaps its mask, and a word for its split.

    None where a line does not end in such a word, or all in the same.
    """
    parts = [part for line in lines if (part := _LAST_WORD.fullmatch(line))]
    parts = parts[1:] if parts and parts[0][2].lower() in _SPLIT_COLUMNS else parts
    words = {part[2].lower() for part in parts}
    if len(words) < 2 or not words <= {*SPLIT_NAMES} or len(parts) < len(lines) - 1:
        return []
    rows = []
    for part in parts:
        named: tuple[str, str | None] = part[1].strip("\"'"), None
        with contextlib.suppress(UserError):
            named = _entry(part[1], Path(), 0)
        rows.append({"image": named[0], "mask": named[1] or "", "split": part[2]})
    return rows


def _column_of(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    return next((name for name in names if rows and name in rows[0]), "")


def _column_of_images(rows: Sequence[Mapping[str, str]]) -> str:
    """The column of images: the first that holds only names of image files, or else one with a usual name for it."""
    called = _column_of(rows, _IMAGE_COLUMNS)
    others = (column for column in (rows[0] if rows else ()) if not _OF_MASKS.search(column))
    of_images = (column for column in (called, *others) if all(_is_image_name(row.get(column) or "") for row in rows))
    return next(of_images, "") or called


_OF_MASKS = re.compile("mask|label|seg|annot|truth|gt")


def list_files(folder: Path) -> list[Path]:
    """The files of a folder that may be lists, sorted."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in LIST_SUFFIXES)


def list_word(file: Path) -> str:
    """The name of a list without suffix, and without what says that it is one: "train" of "train_list", "train_ids"."""
    return _OF_LISTS.sub("", file.stem)


_OF_LISTS = re.compile(r"[-_]((?:anno[-_])?list|ids|names|files|filenames|images|split|samples)$", re.IGNORECASE)


def _is_table(file: Path) -> bool:
    """Whether a file that could be a list of names holds columns of something else."""
    with contextlib.suppress(UserError):
        return any(re.search(r"[,;\t]", line) for line in read_names(file)[:5])
    return True


def select(names: list[str], pairs: list[Pair], folder: Path, root: Path | None = None) -> list[Pair]:
    """The pairs named by a list, in the order of the list.

    Args:
        names: as in Pair.name, or as paths, with or without suffix and the folder in front; or the names of their
            masks, or of the folders, such as videos, in which they lie. Numbers may follow, as in VOC's lists of a
            class.
        folder: the folder of the images. A name without an image gives a pair whose image is missing from it.
        root: names may be paths below this folder, too.
    """
    known = {pair.image.relative_to(root).with_suffix("").as_posix(): pair for pair in pairs} if root else {}
    known.update((str(pair.image.absolute()), pair) for pair in pairs)
    known.update((pair.name, pair) for pair in pairs)
    further: _Further | None = None
    chosen: list[Pair] = []
    for written in names:
        name = written if "/" in written else written.replace("\\", "/")
        below = name.removeprefix("./").lstrip("/")
        bare = below.removeprefix(f"{folder.name}/")
        file = bare if _is_image_name(bare) else f"{bare}.jpg"
        stem = Path(file).with_suffix("").as_posix()
        tried = [name, bare, stem, below, Path(below).with_suffix("").as_posix()]
        found = next((known[each] for each in tried if each in known), None)
        if found is None:
            further = further or _Further(known, pairs)
            forward = Path(name.replace("\\", "/")).with_suffix("").as_posix()  # C:/photos\a.jpg, of Python on Windows
            ends = [*tried, *_ends(name), forward, *_ends(forward), re.sub(r"(\s+-?\d+(\.\d+)?)+$", "", name)]
            chosen += further.find(ends) or [Pair(stem, folder / file, None)]
        else:
            chosen.append(found)
    return chosen


class _Further:
    """The pairs by the other forms in which lists may name them."""

    def __init__(self, known: Mapping[str, Pair], pairs: Sequence[Pair]) -> None:
        self._names = _alike(known)
        self._masks = _alike({pair.mask.stem: pair for pair in reversed(pairs) if pair.mask})
        if len(self._masks) < len(pairs):  # masks of one name in several folders
            self._masks = {}
        self._folders: dict[str, list[Pair]] = {}
        for pair in pairs:
            parts = pair.name.split("/")[:-1]
            for end in range(len(parts)):
                for start in range(end + 1):
                    self._folders.setdefault("/".join(parts[start : end + 1]), []).append(pair)

    def find(self, tried: Sequence[str]) -> list[Pair]:
        """The pair with one of these names, or the pairs in the folder with one of them; none if neither exists."""
        file_names = [Path(each).stem for each in tried]
        for names, all_tried in ((self._names, tried), (self._masks, file_names)):
            if found := next((names[name] for each in all_tried if (name := folded(each)) in names), None):
                return [found]
        return next((self._folders[each] for each in tried if each in self._folders), [])


def elsewhere_note(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence on the lists that name images by paths of another computer; none where they do not."""
    first = (names[0].replace("\\", "/") for names in lists.values() if names)
    there = next((name for name in first if _ends(name) and not os.path.exists(name)), None)
    return [f"the lists hold paths that are not here, such as {there}: images are found by the ends"] if there else []


def _ends(name: str) -> list[str]:
    """The ends of an absolute path, which may be another computer's, without suffix; the longest first."""
    parts = Path(name).with_suffix("").parts
    absolute = name.startswith("/") or re.match("[A-Za-z]:", name)
    return ["/".join(parts[cut:]) for cut in range(1, len(parts))] if absolute else []


def _alike(known: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs by their `folded` names, without those that have the same."""
    images: dict[str, set[Path]] = {}
    for name, pair in known.items():
        images.setdefault(folded(name), set()).add(pair.image)
    return {folded(name): pair for name, pair in known.items() if len(images[folded(name)]) == 1}


def _there(root: Path, written: str) -> Path:
    """A path in a list, with its accents stored as those of the file are."""
    place = root / written
    if written.isascii() or place.exists():
        return place
    forms = (root / unicodedata.normalize(form, written) for form in ("NFC", "NFD"))
    return next((other for other in forms if other.exists()), place)
