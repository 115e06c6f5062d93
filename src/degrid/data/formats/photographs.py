"""Which images are, by their names, altered copies of one photograph, such as augmentation writes to disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_FLIP = r"(?:(?:h|v|hv|lr|ud|x|y|horizontal|vertical)[-_ ]?)?(?:flip|flipped|flop|mirror|mirrored)"
_FLIP += r"(?:[-_ ]?(?:h|v|hv|lr|ud|x|y|horizontal|vertical|horizontally|vertically))?"
_CHANGE = (
    rf"(?:{_FLIP}|aug|augm|augment|augmented|augmentation|rot|rotate|rotated|rotation|r(?=90|180|270)|crop|cropped|zoom|"
    "zoomed|scale|scaled|shift|shifted|shear|elastic|distorted|blur|blurred|noise|noisy|bright|brightness|contrast|"
    r"gamma|hue|jitter|clahe|sharpen|copy|kopie|copie|lr|ud|hv)\d*(?:[-_. ]+\(?\d+\)?)*"
)
_END = re.compile(rf"[-_. ]+{_CHANGE}$", re.IGNORECASE)
_START = re.compile(rf"{_CHANGE}[-_. ]+", re.IGNORECASE)
_FOLDER = re.compile(_CHANGE, re.IGNORECASE)
# These mean nothing else: copies belong together even without the photograph.
_TURNED = re.compile(rf"[-_. ]+(?:{_FLIP}|(?:r|rot|rotated)[-_ ]?(?:90|180|270))$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"\.rf\.[0-9A-Za-z]{16,}")


def photographs(names: Sequence[str]) -> list[str]:
    """The name of the image that each image was made of; its own for all that are no changed copies.

    "a_flip", "a_rot90", "a_aug_3", "aug_a" and "augmented/a" are copies of "a", where there is such an image: a word
    alone may mean something else. Of Roboflow's changed copies ("a_jpg.rf.0c4f..") nothing but the name is left.

    Args:
        names: paths of all images below one folder, with "/" and without suffix.
    """
    known = {name for name in names if not _is_changed(name.rpartition("/")[0])} or {*names}
    count = Counter(name.rpartition("/")[2] for name in known)
    alone = {stem: name for name in known if count[stem := name.rpartition("/")[2]] == 1}
    return [_made_of(name, known, alone) for name in names]


def _made_of(name: str, known: set[str], alone: dict[str, str]) -> str:
    """See `photographs`; those that are known lie in no folder of changed copies, and are alone by their last part."""
    folder, slash, stem = name.rpartition("/")
    end, start = _cut(_END, stem), _cut(_START, stem)
    if end != stem or start != stem or _is_changed(folder):
        for bare in (end, start, _cut(_START, end), stem):
            here = f"{folder}{slash}{bare}"
            origin = here if here in known else alone.get(bare, name)
            if origin != name:
                return origin
    return f"{folder}{slash}{_TURNED.sub('', _ROBOFLOW.sub('', stem))}"


def _cut(pattern: re.Pattern[str], stem: str) -> str:
    """A name without the words at its end or beginning that describe changes."""
    while found := pattern.match(stem) if pattern is _START else pattern.search(stem):
        stem = stem[: found.start()] + stem[found.end() :]
    return stem


def _is_changed(folder: str) -> bool:
    return any(_FOLDER.fullmatch(part) for part in folder.split("/"))
