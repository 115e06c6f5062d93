"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from degrid.lookup import grouped

_IN_COLOR = ("_train_color", "_label_color", "_mask_color", "_color_mask", "_color", "_colors", "_colour", "_colored")
MASK_ENDINGS = (
    "",
    *("_mask", "_masks", "_label", "_labels", "_lab", "_gt", "_seg", "_segmentation", "-mask", "-label", "_L"),
    *("_gt_labelTrainIds", "_gt_labelIds", "_labelTrainIds", "_gtFine_labelTrainIds", "_gtCoarse_labelTrainIds"),
    *("_train_id", "_gtFine_labelIds", "_gtCoarse_labelIds"),
    *("_manual1", "_1stHO", ".ah"),  # the first observer's in DRIVE, CHASE-DB1 and STARE
    *("_labelIds", "_label_id", "_label_ids", "_id", "_ids", "_semantic", "_sem", "_semseg", "-labelled", "_labelled"),
    # ApolloScape's, PH2's, SuperAnnotate's, ilastik's and Cellpose's.
    *("_bin", "_lesion", "___fuse", "_Simple Segmentation", "_cp_masks"),
    *("_class", "_classes", "_annotation", "_annotated", "_truth", "_groundtruth"),
    *_IN_COLOR,  # where there are no ids beside
)
"""What the name of a mask adds to that of its image; the first that exists is used."""
_IMAGE_ENDINGS = ("_image", "_img", "_rgb", "_RGB", "_sat", "_leftImg8bit", "_rgb_anon", "_training", "_test", "_0000")
# Files beside masks that are not masks; they are not reported if their image has a mask.
_COMPANIONS = (
    *_IN_COLOR,
    "_instanceIds",
    "_instance",
    "_instances",
    "_panoptic",
    "_depth",
    "_labelIds",
    "_labelTrainIds",
    "_manual2",
    "_2ndHO",
    ".vk",
    "___save",
    *("_overlay", "_vis", "_preview"),
)
_CITYSCAPES = ("_gtFine", "_gtCoarse")

_OF_IMAGES = (
    "image images img imgs im rgb color colour sat photo photos pic pics picture pictures frame frames input inputs "
    "raw original originals org orig origin src source bild bilder foto fotos imagen imagenes imágenes imagem imagens "
    "immagine immagini afbeelding afbeeldingen 图像 图片 影像 原图 画像 изображение изображения снимки 이미지"
)
_OF_MASKS = (
    "mask masks label labels labelled labeled lbl gt gts seg segm segmentation segmentations semantic semantics "
    "annotation annotations anno annot target trimap trimaps maske masken masque masques mascara mascaras máscara "
    "máscaras maschera maschere masker maskers etiqueta etiquetas 标签 标注 掩码 掩膜 マスク ラベル маска маски "
    "разметка 마스크 라벨"
)
_IMAGE_WORDS, _MASK_WORDS = frozenset(_OF_IMAGES.split()), frozenset(_OF_MASKS.split())
_MASK_FOLDER_WORDS = _MASK_WORDS | {"groundtruth", "truth", "lab", "manual", "lesion", "parsing"}
_AGAIN = re.compile(r"[-_ ]\(?\d+\)?$")  # endings of the names of an image's further masks
_PARTS = re.compile(r"[^\W\d_]+|\d+")
_PHOTOGRAPHS = (".jpg", ".jpeg")


def matched(images: Iterable[str], masks: Iterable[str]) -> dict[str, str]:
    """The mask of each image that has one.

    A mask is named like its image, with one of `MASK_ENDINGS` or not; or like the whole file (a.jpg.png for a.jpg); or
    like its image but for the word that says what it is (image_01 and mask_01), for capitals, or for how accents are
    stored, if no other file has that name. Masks in one folder may belong to images in several.

    Args:
        images: paths below a folder, with "/" and with suffix.
        masks: likewise, below the same folder or another one.
    """
    masks = list(masks)
    by_name = {_stem(mask): mask for mask in masks}
    found, left = {}, []
    for image in images:
        mask = next((by_name[candidate] for candidate in _candidates(image) if candidate in by_name), None)
        if mask is None:
            left.append(image)
        else:
            found[image] = mask
    if len(found) < len(masks):
        used = set(found.values())
        found.update(_nearly_matched(left, [mask for mask in masks if mask not in used]))
    if not found:
        found = _by_one_ending(left, by_name)
    if len(found) < min(len(left), len(masks)) and not any("/" in mask for mask in masks):
        found.update(_in_one_folder([image for image in left if image not in found], masks))
    return found


def _by_one_ending(images: list[str], by_name: Mapping[str, str]) -> dict[str, str]:
    """The masks, if all have the same additional ending, such as "_P"; none if there are several such endings."""
    stems = [_stem(image) for image in images]
    beyond = (name.removeprefix(stems[0]) for name in by_name if stems and name.startswith(stems[0]))
    endings = {ending for ending in beyond if ending[:1] in (*"-_. ",)}
    fitting = [ending for ending in endings if all(stem + ending in by_name for stem in stems)]
    return {image: by_name[_stem(image) + fitting[0]] for image in images} if len(fitting) == 1 else {}


def _in_one_folder(images: list[str], masks: list[str]) -> dict[str, str]:
    """The masks of images in folders, such as train and val, that lie in one folder; by names that occur only once."""
    names = Counter(image.rpartition("/")[2] for image in images)
    alone = {name: image for image in images if names[name := image.rpartition("/")[2]] == 1 and "/" in image}
    return {alone[name]: mask for name, mask in matched(alone, masks).items()} if alone else {}


def folded(name: str) -> str:
    """A name without what archives and systems change: how accents are stored (NFC, NFD), and capitals."""
    return unicodedata.normalize("NFC", name).casefold()


def _candidates(image: str) -> Iterator[str]:
    """The names that an image's mask may have, without suffix."""
    name = _stem(image)
    base = next((name.removesuffix(ending) for ending in _IMAGE_ENDINGS if name.endswith(ending)), name)
    return (start + ending for start in dict.fromkeys((name, base, image)) for ending in MASK_ENDINGS)


def _nearly_matched(images: list[str], masks: list[str]) -> dict[str, str]:
    """As `matched`, by `folded` names or by words, if they fit only one image and one mask."""
    found = _by_folded_names(images, masks)
    used = set(found.values())
    by_words = _by_words([mask for mask in masks if mask not in used], _MASK_WORDS)
    of_images = _by_words([image for image in images if image not in found], _IMAGE_WORDS)
    found.update((image, by_words[key]) for key, image in of_images.items() if key in by_words)
    used = set(found.values())
    as_they_are = _by_words([image for image in images if image not in found], frozenset())  # frame_1 and gt_frame_1
    whole = ((image, by_words[key]) for key, image in as_they_are.items() if key in by_words)
    found.update((image, mask) for image, mask in whole if mask not in used)
    return found


def _by_folded_names(images: list[str], masks: list[str]) -> dict[str, str]:
    by_name = grouped((folded(_stem(mask)), mask) for mask in masks)
    count = Counter(folded(_stem(image)) for image in images)
    found = {}
    for image in images:
        candidates = [by_name[name] for each in _candidates(image) if (name := folded(each)) in by_name]
        if candidates and len(candidates[0]) == count[folded(_stem(image))] == 1:
            found[image] = candidates[0][0]
    return found


def without_image(masks: Iterable[str], found: dict[str, str]) -> list[str]:
    """The masks that belong to no image; not the further files of one, such as a_gtFine_color.png.

    Args:
        masks: as in `matched`.
        found: what it returned.
    """
    used = set(found.values())
    bases = {_cut(_cut(_stem(mask), MASK_ENDINGS[1:]), _CITYSCAPES) for mask in used}
    return [
        mask
        for mask in masks
        if mask not in used
        and not (_stem(mask).endswith(_COMPANIONS) and _cut(_cut(_stem(mask), _COMPANIONS), _CITYSCAPES) in bases)
    ]


def picture_beside(mask: Path) -> Path | None:
    """The picture in colours, such as a_color.png, that lies beside a mask of ids; None where there is none."""
    base = _cut(mask.stem, MASK_ENDINGS[1:])
    places = (mask.with_name(f"{base}{ending}{mask.suffix}") for ending in _IN_COLOR)
    return next((place for place in places if place != mask and place.is_file()), None)


def masks_among(files: Iterable[str]) -> set[str]:
    """Which files of one folder are the masks of others in it.

    Args:
        files: paths below the folder, with "/" and with suffix.
    """
    files = list(files)
    names = set(files)
    both = names | {_stem(file) for file in files}
    photographs = {_stem(file) for file in files if file.lower().endswith(_PHOTOGRAPHS)}
    keys = {file: (_key(file, _MASK_WORDS), _key(file, frozenset())) for file in files}
    image_keys = {_key(file, _IMAGE_WORDS) for file, (bare, whole) in keys.items() if bare == whole}

    def is_mask(file: str) -> bool:
        stem = _stem(file)
        bare, whole = keys[file]
        return (
            any(
                ending and name.endswith(ending) and name.removesuffix(ending) in both
                for name in (stem, without_number(stem))
                for ending in MASK_ENDINGS
            )
            or stem in names
            or (stem in photographs and not file.lower().endswith(_PHOTOGRAPHS))
            or (bare != whole and bare in image_keys)
        )

    return {file for file in files if is_mask(file)}


def without_number(name: str) -> str:
    """A name without a number at its end, as the further masks of an image have one: "a_mask" of "a_mask_1"."""
    return _AGAIN.sub("", name)


def is_for_masks(folder: str) -> bool:
    """Whether the name of a folder has a word for masks: not "frames-with-annotations"."""
    return _has_word(re.split(r"[-_ ]with[-_ ]", folder.lower())[0], _MASK_FOLDER_WORDS)


def is_for_images(folder: str) -> bool:
    """Whether the name of a folder has a word for images, and none for masks."""
    return _has_word(folder, _IMAGE_WORDS) and not is_for_masks(folder)


def is_called_images(folder: str) -> bool:
    """Whether the name of a folder is nothing but a word for images."""
    return folder.lower() in _IMAGE_WORDS


def _has_word(name: str, words: frozenset[str]) -> bool:
    return any(part.lower() in words for part in _PARTS.findall(unicodedata.normalize("NFC", name).replace("_", " ")))


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _cut(name: str, endings: Iterable[str]) -> str:
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)


def _key(path: str, words: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The folder of a file, and the words and numbers of its name but for some; 007 is 7."""
    folder, _, name = _stem(path).rpartition("/")
    parts = _PARTS.findall(name)
    kept = (part.lstrip("0") or "0" if part.isdigit() else part for part in parts if part.lower() not in words)
    return folder, tuple(kept)


def _by_words(files: list[str], words: frozenset[str]) -> dict[tuple[str, tuple[str, ...]], str]:
    """The files by the rest of their names, without those that have no rest or the same as others."""
    keys = {file: _key(file, words) for file in files}
    count = Counter(keys.values())
    return {key: file for file, key in keys.items() if key[1] and count[key] == 1}
