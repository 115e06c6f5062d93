"""Folders of images and masks whose file names say what belongs together."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from degrid.data.formats.classes import class_table, table_by_content, table_of
from degrid.data.formats.folder_names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    by_split_words,
    called,
    folders_in,
    image_and_mask_folders,
)
from degrid.data.formats.folds import folds_of_folders, named_folds
from degrid.data.formats.json_splits import json_splits
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, splits_of
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.matching import is_for_masks, masks_among, picture_beside, without_image
from degrid.data.formats.pair_lists import (
    elsewhere_note,
    names_alone,
    select,
    split_files,
    split_table,
    tables_of_splits,
)
from degrid.data.formats.pairs import (
    NO_SPLITS,
    ONE_LIST,
    Pair,
    any_mask,
    by_chance,
    divided,
    images_in,
    masks_in,
    match_names,
    no_images,
    pair_up,
    unread_note,
    with_val,
)
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import counted, some
from degrid.types import LabelSpace, UserError

# Endings of a mask folder beside the image folder: train and trainannot, train and train_labels.
_FOLDER_ENDINGS = ("_labels", "_label", "_masks", "_mask", "annot", "_annot", "_annotations", "_gt", "_segmentation")
# Names that look like lists of splits but are not read.
_LIKE_SPLITS = re.compile(
    r"((.*[-_. ])?(splits?|folds?|partitions?)|(train|val|valid|validation|test)"
    r"(_?(anno_list|list|ids|set|files|images))?)"
    r"\.(jsonl?|csv|tsv|ya?ml|txt|lst|xml|npy|pkl)",
    re.IGNORECASE,
)
UNREAD_SPLITS = "is not read: train.txt and val.txt, with one name per line, name them"
"""The note about files that seem to divide the images."""
SEVERAL_MASKS = "has several masks"
"""The note about an image whose masks are not read because there are several."""
DRAWN = "drawn"
"""The folder, inside that of the data, to which `degrid data prepare polygons` writes masks."""
# Where lists of names may lie, below the folder of the data.
_LIST_FOLDERS = (".", "splits", "lists", "ImageSets/Segmentation", "ImageSets")
# Another folder with one of these holds lists, too.
_LISTS = ("train.txt", "train_list.txt", "train_ids.txt", "train_images.txt", "train_files.txt", "trainval.txt")


class SplitFolders(DataFormat):
    """train/images and train/masks, train and train_labels, train_images and train_masks, and so on."""

    wanted = "train/images and train/masks, or train and train_labels, or train_images and train_masks"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        found = _split_folders(path)
        splits, orphans = _pairs_of_splits(found)
        if not any(splits.values()) or _is_of_objects(found, splits):
            return None
        lists, of_folder = _lists(path)
        splits, notes = _listed_or_in_folders(path, lists, splits, orphans)
        for _, images, masks in found:
            notes += _not_read(masks, called(masks.parent, MASK_FOLDERS)) if images.parent == masks.parent else []
        read = {place for _, *both in found for place in both}
        notes += _left_out(path, read.union(pair.image.parent for pairs in splits.values() for pair in pairs))
        notes = [*of_folder, *dict.fromkeys(notes), *unread_note(*(images for _, images, _ in found))]
        reason = ", ".join(" and ".join(folder.relative_to(path).as_posix() for folder in both) for _, *both in found)
        near = classes_beside(path, (masks for _, _, masks in found))
        return Layout(reason, path, splits, *near, orphans, notes)


def _is_of_objects(found: Sequence[tuple[str, Path, Path]], splits: Mapping[str, Sequence[Pair]]) -> bool:
    """Whether each of these folders holds one image, with masks named differently; see `scenes.Objects`."""
    pairs = list(itertools.chain.from_iterable(splits.values()))
    return 1 < len(pairs) == len(found) and not any(pair.mask for pair in pairs)


def _listed_or_in_folders(
    path: Path, lists: Mapping[str, list[str]], splits: dict[str, list[Pair]], orphans: list[Path]
) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits that lists name; else those of the folders, and where none is val, a part of train. And the notes."""
    if lists:
        return {split: select(names, splits.get(split, []), path, path) for split, names in lists.items()}, []
    alone = _images_alone(path, splits, orphans)
    only_train = set(splits) == {"train"} and "val" not in alone
    splits, notes = with_val(splits) if only_train else (splits, [])
    return {**splits, **alone}, notes


def _pairs_of_splits(found: list[tuple[str, Path, Path]]) -> tuple[dict[str, list[Pair]], list[Path]]:
    """The pairs of each split, and the masks left over; names begin with a folder's where a split has several."""
    splits: dict[str, list[Pair]] = {}
    orphans: list[Path] = []
    count = Counter(split for split, *_ in found)
    for split, images, masks in found:
        pairs, lost = pair_up(images, masks)
        if count[split] > 1:
            pairs = [dataclasses.replace(pair, name=f"{images.parent.name}/{pair.name}") for pair in pairs]
        splits.setdefault(split, []).extend(pairs)
        orphans += lost
    used = {pair.mask for pairs in splits.values() for pair in pairs}  # several splits may have one folder of masks
    return splits, [mask for mask in dict.fromkeys(orphans) if mask not in used]


def _split_folders(path: Path) -> list[tuple[str, Path, Path]]:
    """Splits, each with its folder of images and its folder of masks."""
    named = folders_in(path)
    count = Counter(map(str.lower, named))  # Train and train may lie beside each other
    folders = {name if count[name.lower()] > 1 else name.lower(): folder for name, folder in named.items()}
    found = []
    for folder, split in [(folders[name], split) for name, split in splits_of(folders).items()]:
        beside = _masks_beside(folder, folders)
        both = image_and_mask_folders(folder) or (beside and (folder, beside))
        parts = [both] if both else map(image_and_mask_folders, folders_in(folder).values())  # test/easy and test/hard
        found += [(split, *part) for part in parts if part]
    found += _split_by_name(path) if len(folders) > 1 else []
    return found or _pot(path, folders) or by_split_words(path)


def _images_alone(path: Path, known: Iterable[str], orphans: list[Path]) -> dict[str, list[Pair]]:
    """The images of other splits than the known ones, whose folders hold no masks; each with the mask that is missing.

    What the user calls val is not replaced by a part of train.

    Raises:
        UserError: their masks lie among those of another split, `orphans`; or a split has masks and no images.
    """
    alone, folders = {}, folders_in(path)
    for name, split in splits_of(folders).items():
        if split in known:
            continue
        inside = called(folders[name], IMAGE_FOLDERS)
        place, masks = (inside[0], folders[name] / "masks") if inside else (folders[name], path / f"{name}_masks")
        labels = [] if inside else list(filter(any_mask, called(folders[name], MASK_FOLDERS)))
        if labels and split != "test":
            raise no_images(labels[0], folders[name] / "images")
        images = [] if labels else images_in(place)
        _refuse_masks_elsewhere(path, split, images, place, masks, orphans)
        if images:
            pairs, _ = match_names(images, place, [], place)
            alone[split] = [dataclasses.replace(pair, mask=masks / f"{pair.name}.png") for pair in pairs]
    return alone


def _refuse_masks_elsewhere(
    path: Path, split: str, images: list[Path], place: Path, masks: Path, orphans: list[Path]
) -> None:
    """Refuse images whose masks lie among those of another split.

    Raises:
        UserError: there are some.
    """
    around = Path(os.path.commonpath([orphan.parent for orphan in orphans])) if orphans else path
    found = next((pair for pair in match_names(images, place, orphans, around)[0] if pair.mask), None)
    if found and found.mask:
        images_at, masks_at = (folder.relative_to(path).as_posix() for folder in (place, found.mask.parent))
        raise UserError(
            f"{found.image} is in {split}, but its mask {found.mask} is among those of another split: move such masks "
            f'to {masks}, or write "{split}: {images_at}" and "masks: {masks_at}" in {path / "dataset.yaml"}, with a '
            "line for each other split"
        )


def _pot(path: Path, folders: Mapping[str, Path]) -> list[tuple[str, Path, Path]]:
    """Folders of images of several splits, each with the one folder of all masks: train/, val/ and masks/.

    None where a name occurs in several of them, so that a mask may belong to either image.
    """
    masks = next(filter(any_mask, called(path, MASK_FOLDERS)), None)
    if not masks or called(path, IMAGE_FOLDERS):
        return []
    images = {split: images_in(folders[name]) for name, split in splits_of(folders).items()}
    count = Counter(file.stem.lower() for files in images.values() for file in files)
    found = [(split, folders[name], masks) for name, split in splits_of(folders).items() if images[split]]
    return found if len(found) > 1 and max(count.values()) == 1 else []


def _masks_beside(folder: Path, folders: Mapping[str, Path]) -> Path | None:
    """The folder of masks for a split's folder of images: train_labels beside train, or labels/train."""
    named = (folders.get(f"{folder.name.lower()}{ending}") for ending in _FOLDER_ENDINGS)
    inside = (place for name in MASK_FOLDERS if (place := folder.parent / name / folder.name).is_dir())
    return next((place for place in (*filter(None, named), *inside) if any_mask(place)), None)


def _left_out(path: Path, read: set[Path]) -> list[str]:
    """A sentence on the folders beside those of the splits that hold images; none where there are none."""
    used = {*read, *(above for place in read for above in place.parents)}
    others = [folder for folder in folders_in(path).values() if folder not in used and not folder.name.startswith(".")]
    # Folders of masks for all splits hold those that are read.
    others = [folder for folder in others if folder.name.lower() not in MASK_FOLDERS and folder.name != DRAWN]
    names = [folder.name for folder in others if images_in(folder)]
    return [f"{some(names, 4)} beside them is not read: no split, or without masks"] if names else []


def _split_by_name(path: Path) -> list[tuple[str, Path, Path]]:
    """train_images and train_masks, and the like."""
    found = []
    for word, split in (*SPLIT_NAMES.items(), ("tr", "train"), ("ts", "test")):  # the last two are nnU-Net's
        for form in (f"{word}_{{}}", f"{word}-{{}}", f"{word}{{}}", f"{{}}_{word}", f"{{}}-{word}", f"{{}}{word}"):
            both = image_and_mask_folders(path, form)
            if both:
                found.append((split, *both))
    return found


class Folders(DataFormat):
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all."""

    wanted = "images/ and masks/ (or labels/, annotations/, img_dir/ and ann_dir/) with files of the same names"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        folders = image_and_mask_folders(path)
        return _of_folders(path, *folders) if folders else None


def with_masks(path: Path, masks: Path) -> Layout | None:
    """What `Folders` finds, with masks in a folder of another name; None if there is no folder of images."""
    images = called(path, IMAGE_FOLDERS)
    return _of_folders(path, images[0], masks) if images else None


def _of_folders(path: Path, images: Path, masks: Path) -> Layout:
    pairs, orphans = pair_up(images, masks)
    splits, notes = dict[str, list[Pair]](), list[str]()
    if not any(pair.mask for pair in pairs) and not _named_splits(path)[0]:
        splits, orphans = _by_folders_of_masks(images, masks, orphans)
        splits, notes = with_val(splits)
        notes += _in_none(pairs, splits, "splits")
    if not splits:
        splits, notes = divide(path, pairs, images)
    others = [folder for folder in folders_in(path).values() if folder != images and is_for_masks(folder.name)]
    notes += [*_not_read(masks, [*called(path, MASK_FOLDERS), *others]), *_color_note(pairs), *unread_note(images)]
    notes += _several_note(pairs, orphans, masks)
    reason = f"{images.name} and {masks.name}"
    return Layout(reason, path, splits, *classes_beside(path, [masks]), orphans, notes)


def _by_folders_of_masks(images: Path, masks: Path, orphans: list[Path]) -> tuple[dict[str, list[Pair]], list[Path]]:
    """The splits where only the masks lie in folders called so, and the masks without an image; else none."""
    folders = folders_in(masks)
    names = splits_of(folders)
    found = {split: pair_up(images, folders[name]) for name, split in names.items()}
    splits = {split: [pair for pair in pairs if pair.mask] for split, (pairs, _) in found.items()}
    if not names or len(names) < len(folders) or len(splits) < len(names) or not all(splits.values()):
        return {}, orphans
    return splits, [orphan for _, left in found.values() for orphan in left]


def _color_note(pairs: list[Pair]) -> list[str]:
    """A sentence on pictures of the masks in colours that lie beside them; none where there are none."""
    mask = next((pair.mask for pair in pairs if pair.mask), None)
    picture = picture_beside(mask) if mask else None
    if not mask or not picture:
        return []
    return [
        f"the labels are those of {mask.name} and the like; their pictures in colours ({picture.name}) are not read"
    ]


def _several_note(pairs: list[Pair], orphans: list[Path], masks: Path) -> list[str]:
    """A sentence on images that have several masks each, such as one for each class; none where there are none."""
    left = {os.path.basename(pair.name) for pair in pairs if pair.mask is None}
    several: dict[str, list[str]] = {}
    for orphan in orphans if left else ():
        starts = [orphan.stem, *(orphan.stem[: cut.start()] for cut in re.finditer(r"[-_. ]", orphan.stem))]
        starts.append(orphan.parent.name)  # masks/IMAGE/CLASS.png
        image = next((start for start in starts if start in left), None)
        if image is not None:
            several.setdefault(image, []).append(orphan.relative_to(masks).as_posix())
    image, files = max(several.items(), key=lambda item: len(item[1]), default=("", []))
    if len(files) < 2:
        return []
    return [
        f"{image} {SEVERAL_MASKS} ({some(files, 3)}): if there is one for each class, join them into one mask of ids, "
        "such as ids[mask_of_crack > 127] = 1, and name the classes in classes.txt; if each is by somebody else, keep "
        "one"
    ]


class SideBySide(DataFormat):
    """NAME.jpg beside NAME_mask.png, divided by folders named like splits (as Roboflow's masks are) or not at all.

    Also image_01.jpg beside mask_01.png or label_01.png, NAME.jpg beside NAME.jpg.png or NAME.png, and others that
    `matching` knows.
    """

    wanted = "NAME.jpg beside NAME_mask.png, NAME.jpg.png or NAME.png"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        files = {file.relative_to(path).as_posix(): file for file in masks_in(path)} if path.is_dir() else {}
        masks = masks_among(files)
        images = [file for name, file in files.items() if name not in masks and file.suffix.lower() in IMAGE_SUFFIXES]
        pairs, orphans = match_names(images, path, [files[name] for name in sorted(masks)], path)
        pairs = _without_further_files(pairs, {file: name for name, file in files.items()})
        matched = [(pair.image.name, pair.mask.name) for pair in pairs if pair.mask]
        if not matched or 2 * len(matched) < len(pairs):
            return None  # a few names that happen to match are not a dataset
        splits, notes = divide(path, pairs, path)
        labels, rule = classes_beside(path, [near := path / _around(pairs)])
        if labels is None:
            labels, rule = classes_beside(near)
        notes += [*_color_note(pairs), *unread_note(path)]
        return Layout(" beside ".join(matched[0]), path, splits, labels, rule, orphans, notes)


def _without_further_files(pairs: list[Pair], names: Mapping[Path, str]) -> list[Pair]:
    """The pairs without further files of other images, such as a second observer's mask, that look like images."""
    masks = {names[pair.image]: names[pair.mask] for pair in pairs if pair.mask}
    alone = {*without_image([names[pair.image] for pair in pairs if not pair.mask], masks)}
    return [pair for pair in pairs if pair.mask or names[pair.image] in alone]


def refuse_images_alone(layout: Layout, path: Path) -> None:
    """Refuse data that were divided by chance, though a folder is called as if it held the images of val.

    Raises:
        UserError: there is one, whose images have no labels.
    """
    sources = list(itertools.chain.from_iterable(layout.splits.values())) if by_chance(layout.notes) else []
    used = {source.image for source in sources if isinstance(source, Pair)}
    places = [path, *called(path, IMAGE_FOLDERS)] if used else []
    for folders in map(folders_in, places):
        for name in (name for name, split in splits_of(folders).items() if split == "val"):
            images = images_in(folders[name])
            if images and used.isdisjoint(images):
                raise UserError(
                    f"{folders[name]} holds {counted(len(images), 'image')} that no label belongs to, such as "
                    f"{images[0].name}, and val would be a part of train instead: add the labels, or take that folder "
                    "away"
                )


def divide(
    path: Path, pairs: list[Pair], images: Path, root: Path | None = None
) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs by lists of names, else by folders called as splits, by such words in all names, or by chance; and the
    notes on that.

    Args:
        images: the folder of the images.
        root: lists may name images by their paths below this folder; by default `path`.
    """
    lists, said = _named_splits(path)
    listed = {split: select(names, pairs, images, root or path) for split, names in lists.items()}
    splits, of_val = (listed, []) if listed else with_val(_by_top_folder(pairs))
    if not splits:
        return _by_names_or_chance(path, pairs)
    if listed and "val" in splits and {*splits} <= {"val", "test"}:
        splits, of_val = _with_train(splits, pairs)
    return splits, [*of_val, *said, *elsewhere_note(lists), *_in_none(pairs, splits, "lists" if listed else "splits")]


def _with_train(splits: dict[str, list[Pair]], pairs: Sequence[Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits of lists without "train", with the images there that no list has, as valid.txt of fastai's CamVid
    means it; and a note on that."""
    used = {pair.name for split in splits.values() for pair in split}
    rest = [pair for pair in pairs if pair.mask and pair.name not in used]
    note = f"no list is called train: {counted(len(rest), 'image', 'are')} in none of the lists, and trained on"
    return ({"train": rest, **splits}, [note]) if rest else (splits, [])


def _in_none(pairs: Sequence[Pair], splits: Mapping[str, Sequence[Pair]], where: str) -> list[str]:
    """A sentence on the images that no split has; none where each is in one."""
    used = {pair.name for split in splits.values() for pair in split}
    number = sum(pair.name not in used for pair in pairs)
    return [f"{counted(number, 'image', 'are')} in none of the {where}"] if number else []


def redivided(layout: Layout, path: Path) -> Layout:
    """A layout of a tool's files that was divided by chance, divided as `divide` does if anything names the splits."""
    chance = next((note for note in layout.notes if note.startswith((NO_SPLITS, ONE_LIST))), "")
    sources = list(itertools.chain.from_iterable(layout.splits.values())) if chance else []
    pairs = [source for source in sources if isinstance(source, Pair)]
    if not pairs or UNREAD_SPLITS in chance:
        return layout
    folder = path if path.is_dir() else path.parent
    splits, notes = _divided_again(folder, pairs)
    more = (said for said in (_unread(folder), _folders_note(pairs)) if said not in chance)
    others = [note for note in layout.notes if note != chance]
    notes = [*(notes if splits else [chance + "".join(more)]), *others]
    return dataclasses.replace(layout, splits=splits or layout.splits, notes=notes)


def _divided_again(folder: Path, pairs: list[Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits that lists in a folder, or the images' folders or names, say, and notes on that; else nothing."""
    images = Path(os.path.commonpath([pair.image.parent for pair in pairs]))
    lists, _ = _named_splits(folder)
    named = itertools.chain.from_iterable(select(names, pairs, images, images) for names in lists.values())
    if lists and {*map(id, pairs)}.isdisjoint(map(id, named)):
        return {}, []
    splits, notes = divide(folder, pairs, images, images)
    if "train" not in splits or any(note.startswith(NO_SPLITS) for note in notes):
        return {}, []
    said = "lists or tables in the folder name" if lists else "the folders or the names of the images say"
    return splits, [f"the splits are those that {said}", *notes]


def _by_names_or_chance(path: Path, pairs: list[Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    """As `divide`, where nothing but numbered folders or the names of the images may say what the splits are."""
    splits, said = folds_of_folders(pairs, _around(pairs))
    if splits:
        return splits, [said]
    splits = _by_word(pairs)
    if splits:
        shown = ", ".join(os.path.basename(found[0].name) for found in splits.values())
        return splits, [f"the splits are those that the images' names say ({shown})"]
    splits, notes = divided(pairs)
    return splits, [f"{notes[0]}{_unread(path)}{_folders_note(pairs)}"]


def _unread(path: Path) -> str:
    """The addition to a note if files seem to name the splits but are not read."""
    like = [file.name for file in path.glob("*") if _LIKE_SPLITS.fullmatch(file.name)]
    unread = sorted({*like, *tables_of_splits(path)})
    return f"; {some(unread, 3)} {UNREAD_SPLITS}" if unread else ""


_MOST_SPLITS = 5
"""Folders beside each other that may be meant as splits; more are scenes."""


def _folders_note(pairs: list[Pair]) -> str:
    """What to do if the folders in which the pairs lie are splits under names that are not known."""
    around = _around(pairs)
    folders = {pair.name.removeprefix(around).partition("/")[0] for pair in pairs if "/" in pair.name[len(around) :]}
    if not 1 < len(folders) <= _MOST_SPLITS:
        return ""
    return f"; if the folders {some(sorted(folders))} are splits, call them train, val and test"


def _named_splits(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the images of each split in lists, tables or folds; and sentences on where they are from."""
    lists, said = _lists(path)
    for read in (split_table, json_splits):
        if not lists:
            lists, table = read(path)
            said = [f"the splits are those of {table}"] if table else said
    if not lists:
        lists, sentence = named_folds(path)
        said = [sentence] if sentence else []
    return lists, said


def _lists(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The names in each list, those of the first folder that holds any; and a sentence on the others."""
    below = [*folders_in(path).values(), *folders_in(path / "ImageSets").values()]
    others = [folder for folder in below if any((folder / name).is_file() for name in _LISTS)]
    for folder in [*(path / name for name in _LIST_FOLDERS), *others]:
        if found := split_files(folder):
            several = [place.relative_to(path).as_posix() for place in others] if folder in others else []
            said = f"the lists are those of {folder.name}, not of {some(several[1:])}" if several[1:] else ""
            return found, [f"{said}: dataset.yaml can name them (train: .., val: ..)"] if said else []
    return {}, []


def _by_top_folder(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """The pairs in folders named like splits, below the folder in which all of them lie.

    Also those of a folder for each scene, in which there are the same splits.
    """
    around = _around(pairs)
    folders = {pair.name: pair.name.removeprefix(around).split("/")[:-1] for pair in pairs}
    for depth in range(max(map(len, folders.values()), default=0)):
        called = splits_of({parts[depth] for parts in folders.values() if len(parts) > depth})
        splits: dict[str, list[Pair]] = {}
        for pair in pairs:
            part = folders[pair.name][depth : depth + 1]
            if part and part[0] in called:
                splits.setdefault(called[part[0]], []).append(pair)
        if splits and (depth == 0 or len(splits) > 1):
            return splits
    return {}


def _by_word(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """The pairs by the word of their names that is a split in all of them, such as train_01 and val_02; none without
    one."""
    words = [re.findall(r"[^\W\d_]+", os.path.basename(pair.name).lower()) for pair in pairs]
    for column in zip(*words, strict=False):
        if "train" in (called := {_split_word(word) for word in column}) and "" not in called and len(called) > 1:
            splits: dict[str, list[Pair]] = {}
            for word, pair in zip(column, pairs, strict=True):
                splits.setdefault(_split_word(word), []).append(pair)
            return splits
    return {}


def _split_word(word: str) -> str:
    """The split that a word names, also with a letter behind it, as "testa" and "testb" of GlaS; empty for others."""
    return SPLIT_NAMES.get(word) or SPLIT_NAMES.get(word[:-1], "")


def _around(pairs: list[Pair]) -> str:
    """The folder in which all pairs lie, as "export/", where an archive was unpacked into one; never one of a split."""
    folders = [pair.name.split("/")[:-1] for pair in pairs] or [[]]
    # What the first and the last in sorted order share, all share.
    shared = itertools.takewhile(lambda both: both[0] == both[1], zip(min(folders), max(folders), strict=False))
    parts = itertools.takewhile(lambda part: not splits_of([part]), (part for part, _ in shared))
    return "".join(f"{part}/" for part in parts)


def classes_beside(path: Path, folders: Iterable[Path] = ()) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes that a table in the folder names, or one in each folder of a split, as Roboflow's _classes.csv.

    Args:
        folders: those of masks. Tables in these, and in those around them below `path`, count where there is no other.
    Raises:
        UserError: see `class_table`; or the splits' tables name other classes.
    """
    labels, rule = class_table(path)
    below = folders_in(path)
    places = [] if labels else [place for name in splits_of(below) if (place := table_of(below[name]))]
    if places or labels:
        return _that_agree(places) if places else (labels, rule)
    near = dict.fromkeys(place for folder in folders for place in (folder, *folder.parents) if path in place.parents)
    places = [place for folder in near if (place := table_of(folder))]
    return _that_agree(places or [place for folder in near if (place := table_by_content(folder))], path)


def _that_agree(tables: list[Path], path: Path | None = None) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes that all tables name; a note says so where they lie in unusual places below `path`."""
    found = [class_table(place.parent) for place in tables]
    other = next((place for place, classes in zip(tables, found, strict=True) if classes != found[0]), None)
    if other:
        raise UserError(f"{tables[0]} and {other} name different classes; the splits of one dataset need the same")
    labels, rule = found[0] if found else (None, None)
    if rule and path:
        own = "the classes are those of "
        said = f"{own}{tables[0].relative_to(path).as_posix()}"
        rule = dataclasses.replace(rule, notes=(said, *(note for note in rule.notes if not note.startswith(own))))
    return labels, rule


def holds_masks(path: Path) -> bool:
    """Whether a folder, or one in it, has a folder of masks; those that were drawn of polygons do not count."""
    places = [path, *folders_in(path).values()]
    folders = [folder for place in places for name, folder in folders_in(place).items() if name in MASK_FOLDERS]
    return any(any_mask(folder) for folder in folders if folder.parent.name != DRAWN)


def pairs_by_name(root: Path, file: Path) -> list[Pair] | None:
    """The pairs that a list of bare names selects from the image and mask folders of `root`; None without those."""
    folders = image_and_mask_folders(root)
    return select(names_alone(file), pair_up(*folders)[0], folders[0], root) if folders else None


def _not_read(masks: Path, folders: Iterable[Path]) -> list[str]:
    """A sentence on those of the folders that hold other masks; none where there are none."""
    left = [folder for folder in dict.fromkeys(folders) if folder not in (masks, *masks.parents)]
    others = [folder.name for folder in left if folder.name != DRAWN and any_mask(folder)]
    return [f"the labels are those of {masks.name}; {', '.join(others)} is not read"] if others else []
