"""What a dataset format is: a class that recognises its datasets and says what is in them."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from degrid.data.formats.class_rows import VOID_NAMES
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.source import Source
from degrid.data.formats.values import Survey
from degrid.types import LabelSpace


def _plain(name: str) -> str:
    """A name in lower case without accents, however these are stored."""
    return "".join(
        letter for letter in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(letter)
    )


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "validating": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}


_SHORT = {
    "train": (
        "trainval train_val trainaug train_aug "
        "tr trn tra learn entrenamiento entrainement apprentissage treino treinamento addestramento "
        "训练 訓練"
    ),
    "val": "va vl vld vali validierung validacion validacao validazione 验证 驗證 検証",
    "test": "te ts tst prueba pruebas teste prova тест 测试 測試 テスト",
}
_OTHER_NAMES = {_plain(word): split for split, words in _SHORT.items() for word in words.split()}
"""Names of splits that count only beside those of other splits, since they may mean something else."""


def split_of(name: str) -> str:
    """The split named by a file, a folder or a table: "Validation" and "Val." are "val"; any other name is a split of
    that name."""
    return SPLIT_NAMES.get(name.lower().strip(" .:_-"), name)


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """The split that each folder or file stands for; only for names of splits.

    A year or a word such as "set" at the end is passed over ("train2017", "val_2012", "TrainDataset"), and so is a
    number at the beginning ("01_train"), unless there are several such names of one split. Short and foreign names
    ("tr", "validación") count beside each other, and so does "trainval" where there is no "train". If no
    name fits, "city_train" and "city_val" count, or "traincrop" and "valcrop".
    """
    around = re.compile(r"^\d+[-_. ]+|[-_]?((19|20)\d\d|data|set|dataset|s?daten|集)$")
    bare = {name: around.sub("", name.lower()) for name in names}
    found = _by_whole_names(bare) or _behind_one_word(bare) or _before_one_ending(bare)
    years = Counter(split for name, split in found.items() if bare[name] != name.lower())
    return {name: split if bare[name] == name.lower() or years[split] == 1 else name for name, split in found.items()}


def _by_whole_names(bare: Mapping[str, str]) -> dict[str, str]:
    """The splits of names without years and the like; short and foreign ones count beside each other."""
    found = {name: SPLIT_NAMES[word] for name, word in bare.items() if word in SPLIT_NAMES}
    split_by_others = ((name, _OTHER_NAMES.get(_plain(word))) for name, word in bare.items())
    if len({*found.values()}) < len(found) and "test" not in found.values():  # dev and eval are two splits
        found.update((name, "test") for name in found if bare[name] in ("eval", "evaluation"))
    others = {name: split for name, split in split_by_others if split and split not in found.values()}
    if "train" in (both := {*found.values(), *others.values()}) and len(both) > 1:
        found.update(others)
    return found


def _behind_one_word(bare: Mapping[str, str]) -> dict[str, str]:
    """The splits of names that begin alike and end in those of splits, as "uavid_train" and "uavid_val"; none where
    several beginnings would do."""
    found: dict[str, dict[str, str]] = {}
    for names in (SPLIT_NAMES, _OTHER_NAMES):
        for name, word in bare.items():
            start, _, end = re.sub(r"[-. ]", "_", word).rpartition("_")
            split = names.get(_plain(end))
            if start and split and (names is SPLIT_NAMES or split not in found.get(start, {}).values()):
                found.setdefault(start, {})[name] = split
    several = [splits for splits in found.values() if "train" in splits.values() and len({*splits.values()}) > 1]
    return several[0] if len(several) == 1 else {}


def _before_one_ending(bare: Mapping[str, str]) -> dict[str, str]:
    """The splits of names that begin with those of splits and end alike, as "traincrop" and "valcrop"; none where
    several endings would do, as in "train_images" and "train_masks". Other numbers are further parts: "train2" beside
    "train1" and "val1"."""
    begins = re.compile(f"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(.+)")
    found: dict[str, dict[str, str]] = {}
    for name, word in bare.items():
        if parts := begins.fullmatch(word):
            found.setdefault(parts[2], {})[name] = SPLIT_NAMES[parts[1]]
    several = [end for end, splits in found.items() if "train" in splits.values() and len({*splits.values()}) > 1]
    if len(several) != 1:
        return {}
    number = re.compile(r"(\D*)\d+")
    same = number.fullmatch(several[0])
    alike = [end for end in found if same and (other := number.fullmatch(end)) and other[1] == same[1]]
    return {name: split for end in alike or several for name, split in found[end].items()}


@dataclass(frozen=True)
class Wishes:
    """How the user wants masks to be read, whatever classes they have.

    Attributes:
        void: ids and colours that are void.
        ids: the raw id of each class in order; empty where they are not listed.
        threshold, nearest: see `MaskRule`.
        palette: "color" or "index": how palette images are read; empty: as fits the classes.
        accept: the kinds of doubts that are accepted; see `degrid.data.formats.doubts`.
        crowd: "instance" or "void": what COCO's annotations call crowds; empty: not said.
        file: where the wishes are written, for messages.
    """

    void: tuple[int | Color, ...] = ()
    ids: tuple[int, ...] = ()
    threshold: float | None = None
    nearest: float | None = None
    palette: str = ""
    accept: tuple[str, ...] = ()
    crowd: str = ""
    file: str = ""


class Crowds(NamedTuple):
    """How many annotations are called crowds, how many there are, and the classes that have no others."""

    number: int
    drawn: int
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, annotations: Iterable[tuple[str, bool]]) -> Crowds:
        """Count them.

        Args:
            annotations: the class of each, and whether it is called a crowd. A class of few says nothing.
        """
        count = Counter(annotations)
        number = sum(found for (_, crowd), found in count.items() if crowd)
        alone = (name for (name, crowd), found in count.items() if crowd and not count[name, False] and found >= _FEW)
        return cls(number, count.total(), tuple(name for name in alone if name.lower() not in VOID_NAMES))


_FEW = 3
BY_NAME = "a folder {split}/ or a list {split}.txt"
"""How to add a split of this name to data in folders; empty if it is not the name of a split."""


@dataclass
class Layout:
    """What is in a dataset.

    Attributes:
        reason: why the data were taken for this format, such as "images and masks".
        root: the folder that messages name.
        splits: the samples of each split.
        labels: the classes; None where the masks must be scanned to find them.
        rule: how label values become train ids; None: as they are.
        orphans: masks without an image.
        notes: what was decided for the user, one sentence each.
        how_to_add: what the user can add to make another split, with {split} in place of its name.
        kind: the format's name, filled in by `degrid.data.formats.table`.
        wishes: how the user wants masks to be read.
        guessed: the classes were found by looking at the masks.
        crowds: what COCO's annotations call crowds; None where they cannot.
        surveys: of each split, what values a sample of its masks holds; filled in by `degrid.data.formats.scan`.
    """

    reason: str
    root: Path
    splits: Mapping[str, Sequence[Source]]
    labels: LabelSpace | None = None
    rule: MaskRule | None = None
    orphans: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    how_to_add: str = BY_NAME
    kind: str = ""
    wishes: Wishes = field(default_factory=Wishes)
    guessed: bool = False
    crowds: Crowds | None = None
    surveys: Mapping[str, Survey] = field(default_factory=dict)


class DataFormat(ABC):
    """A way in which datasets are stored. Your own format derives from this class; use it as "my_module:MyFormat=PATH".

    Args:
        root: for lists of files: the folder that the leading slash of their paths stands for; None: search for it.
    Attributes:
        wanted: what such a dataset consists of, for the message that no format fits.
    """

    wanted: ClassVar[str] = ""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    @abstractmethod
    def find(self, path: Path) -> Layout | None:
        """What is in the folder or file; None where it is not of this format.

        A layout without a single sample counts as None.

        Raises:
            UserError: the data are of this format but cannot be used.
        """
