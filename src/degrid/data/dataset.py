"""Datasets of files, and the one way to open them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from degrid.arguments import checked
from degrid.bands import find_bands, thinned, without_data
from degrid.data.formats.doubts import stop_at_doubts
from degrid.data.formats.folder import SEVERAL_MASKS
from degrid.data.formats.hugging_face.address import PREFIX, Address
from degrid.data.formats.layout import BY_NAME, SPLIT_NAMES, DataFormat, Layout
from degrid.data.formats.masks import MaskRule, unknown_message
from degrid.data.formats.scan import BINARY_LABELS, resolve_classes
from degrid.data.formats.source import BrokenSource, Source
from degrid.data.formats.table import FORMATS, read_as, recognise
from degrid.data.shards.format import open_shards, without_bad_shards
from degrid.data.shards.places import is_address
from degrid.data.synthetic import SyntheticScenes
from degrid.lookup import counted, file_meant, lookup, some
from degrid.types import IGNORE_INDEX, RGB, ArraySample, Bands, Dataset, LabelSpace, Sample, UserError

FOUND = Bands(0, "auto")
"""Bands that are found in the images."""
_LOOKED_AT = 31


class SourceDataset:
    """Samples read from their sources, with labels as train ids.

    Args:
        sources: where the samples come from.
        labels: the classes.
        rule: how the labels' values become train ids.
        notes: what was decided for the user when the dataset was opened, one sentence each.
        bands: how the images are read.
        splits: the names of all splits of the data that this is one of; empty where they are not known.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        labels: LabelSpace,
        rule: MaskRule,
        notes: Sequence[str] = (),
        bands: Bands = RGB,
        splits: Sequence[str] = (),
    ) -> None:
        self.sources, self.labels, self.rule, self.notes = list(sources), labels, rule, list(notes)
        self.bands, self.splits = bands, tuple(splits)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample: image uint8 [C,H,W], label uint8 [H,W].

        Raises:
            UserError: something is missing or damaged, image and label differ in size, or an unknown id or colour.
        """
        import torch  # imported here: listing and checking files do not need it

        sample = self.arrays(index)
        return Sample(torch.from_numpy(sample.image), torch.from_numpy(sample.label), sample.name)

    def arrays(self, index: int) -> ArraySample:
        """The same sample, without torch."""
        name, image, ids = read_with_ids(self.sources[index], self.rule, self.bands)
        return ArraySample(image.transpose(2, 0, 1), ids, name)


class Arrays:
    """A dataset whose samples hold arrays; those of files are read without torch."""

    def __init__(self, dataset: Dataset) -> None:
        self.labels, self._dataset = dataset.labels, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> ArraySample:
        """Sample `index`."""
        if isinstance(self._dataset, SourceDataset):
            return self._dataset.arrays(index)
        sample = self._dataset[index]
        return ArraySample(sample.image.numpy(), sample.label.numpy(), sample.name)


def read_ids(source: Source, rule: MaskRule, bands: Bands) -> np.ndarray:
    """The label that a `SourceDataset` gives of a source, uint8 [H,W].

    The image is read only where pixels of it without data may make the label void.

    Raises:
        UserError: see `SourceDataset`.
    """
    if bands == RGB and source.no_data() is None:
        return _train_ids(source, rule, source.read_label(), None)
    return read_with_ids(source, rule, bands)[2]


def read_with_ids(source: Source, rule: MaskRule, bands: Bands) -> tuple[str, np.ndarray, np.ndarray]:
    """The name, the image uint8 [H,W,C] and the label uint8 [H,W] that a `SourceDataset` gives of a source.

    Raises:
        UserError: see `SourceDataset`.
    """
    name, image, raw, empty = source.read() if bands == RGB else source.read(bands)
    return name, image, _train_ids(source, rule, raw, empty)


def _train_ids(source: Source, rule: MaskRule, raw: np.ndarray, empty: np.ndarray | None) -> np.ndarray:
    ids, unknown = rule.apply(raw)
    if empty is not None:
        ids[empty] = IGNORE_INDEX
    if unknown:
        raise UserError(unknown_message(source.places()[1], unknown, rule, np.unique(raw).tolist()))
    return ids


def open_layout(path: str | Path, root: str | Path | None = None) -> Layout:
    """What is in a dataset, with its classes.

    Args:
        path, root: see `find_layout`.
    Raises:
        UserError: missing, or not recognised.
    """
    return resolve_classes(find_layout(path, root))


def find_layout(path: str | Path, root: str | Path | None = None) -> Layout:
    """What is in a dataset. Its classes are those that the data name; the masks are not read.

    Args:
        path: a folder, dataset.yaml, list file or TFRecord file; FORMAT=PATH, where FORMAT is a row of
            `degrid.data.formats.table` or "module:Format" of your own; or "hf:NAME_OR_FOLDER".
        root: for a list file: where the leading slash of its paths points.
    Raises:
        UserError: missing, or not recognised.
    """
    if _is_hugging_face(path):
        from degrid.data.formats.description import described  # imported here: most data are files

        return described(Address.parse(str(path).removeprefix(PREFIX)))
    if is_address(path):
        return open_shards(str(path))
    kind, written = _format_and_place(path)
    place = Path(written).expanduser()
    if kind:
        return read_as(kind, place)
    if not place.exists():
        raise UserError(
            f"no data at {place}.{file_meant(place)} Give a folder, dataset.yaml, list or TFRecord file, or 'synthetic'"
        )
    return recognise(place, None if root is None else Path(root))


def _is_hugging_face(path: str | Path) -> bool:
    return str(path).startswith(PREFIX) and not Path(path).exists()


def _format_and_place(path: str | Path) -> tuple[str, str]:
    """ "module:Format=PATH" in its two parts; no format where the path is one as it is."""
    kind, equals, place = str(path).partition("=")
    named = bool(equals) and (":" in kind or kind in FORMATS) and not Path(path).exists()
    return (kind, place) if named else ("", str(path))


def absolute(path: str | Path) -> str:
    """The same dataset, named so that it can be opened from any working directory."""
    if _is_hugging_face(path):
        return Address.parse(str(path).removeprefix(PREFIX)).absolute()
    if is_address(path):
        return str(path)
    kind, place = _format_and_place(path)
    full = str(Path(place).expanduser().absolute()) if Path(place).expanduser().exists() else place
    return f"{kind}={full}" if kind else full


@checked
def open_dataset(
    path: str | Path,
    split: str = "train",
    labels: LabelSpace | None = None,
    *,
    root: str | Path | None = None,
    accept: Sequence[str] | None = None,
    bands: Bands = FOUND,
    skip_bad_shards: bool = False,
) -> Dataset:
    """Open one split of a dataset.

    Args:
        path: a folder (images and masks by name, VOC, Cityscapes, CamVid, ADE20K, COCO as `degrid data prepare` leaves
            it, exports of annotation tools, list files, TFRecord files, shards), the address of a folder of shards, a
            dataset.yaml, a list file, a TFRecord file, "synthetic" for the built-in scenes ("synthetic:50" for 50 per
            split), "hf:NAME_OR_FOLDER" for a Hugging Face dataset, "module:Format=PATH" for a `DataFormat` of your
            own, or "module:Dataset" of your own (called with the split).
        split: train, val, test, or another name the dataset has.
        labels: the classes expected, such as those of a trained model; needed where the data do not name them.
        root: for a list file: where the leading slash of its paths points; by default its folder or one above it.
        accept: refuse data whose meaning is in doubt, except for these kinds of doubts (see
            `degrid.data.formats.doubts`); None: do not look for any.
        bands: how the images are read, such as those of a trained model; by default found in the split's images.
        skip_bad_shards: leave out shards that are missing, truncated or damaged, with a note; each is read completely
            before it is used.
    Raises:
        UserError: not there, not recognised, no such split, images without masks, other classes than expected, or a
            doubt.
    """
    name = str(path)
    if not is_by_name(path):
        layout = open_layout(path, root)
        found: Dataset = _open_split(layout, split, path, bands, skip_bad_shards)
        if accept is not None:
            stop_at_doubts(layout, accept)
    elif is_built_in(name):
        found = SyntheticScenes(split, _number_of_scenes(name))
    else:
        found = _own_dataset(name, split)
    if labels is not None and labels.names != found.labels.names:
        found = _as_expected(found, labels, name)
    return found


def notes_of(dataset: Dataset) -> list[str]:
    """What was decided for the user when a dataset was opened, one sentence each; none for a dataset of their own."""
    return list(dataset.notes) if isinstance(dataset, SourceDataset) else []


def bands_in(dataset: Dataset) -> Bands:
    """How the images of a dataset are read; as always for a dataset of the user's own that has no attribute bands."""
    bands = getattr(dataset, "bands", RGB)
    return bands if isinstance(bands, Bands) else RGB


def is_built_in(path: str | Path | None) -> bool:
    """Whether a dataset is "synthetic", or "synthetic:50" for 50 scenes."""
    return str(path).partition(":")[0] == "synthetic"


def is_by_name(path: str | Path) -> bool:
    """Whether a dataset is "synthetic" or "module:Dataset", and no place on the disk."""
    name = str(path)
    if _is_hugging_face(name) or is_address(name):
        return False
    return name == "synthetic" or (":" in name and not _format_and_place(name)[0] and not Path(name).exists())


def _own_dataset(name: str, split: str) -> Dataset:
    made: Any = lookup({}, name, "dataset")
    if isinstance(made, type) and issubclass(made, DataFormat):
        raise UserError(f'"{name}" is a data format; say where its data are: {name}=FOLDER')
    return cast(Dataset, made(split))


def _open_split(layout: Layout, split: str, path: str | Path, bands: Bands, skip: bool = False) -> SourceDataset:
    assert layout.labels is not None
    assert layout.rule is not None
    if split not in layout.splits:
        raise UserError(
            f'{path} has no split "{split}"; it has: {", ".join(layout.splits)}. Choose one of these, or '
            f"{_how_to_add(layout, split)}"
        )
    sources, left_out = layout.splits[split], list[str]()
    if skip:
        sources, left_out = without_bad_shards(sources)
    if not len(sources):
        raise UserError(f'the split "{split}" of {path} is empty')
    parts = [source.missing() for source in sources]
    if "image" in parts:
        raise UserError(
            f'{parts.count("image")} of {len(parts)} images in the split "{split}" of {path} are missing, '
            f"{sources[parts.index('image')].places()[0]} among them; add them, or remove them from the list (degrid "
            "data check lists them)"
        )
    if "label" in parts:
        image, mask = sources[parts.index("label")].places()
        several = next((note for note in layout.notes if SEVERAL_MASKS in note), "")
        raise UserError(
            f'{parts.count("label")} of {len(parts)} images in the split "{split}" of {path} have no mask, {image} '
            f"among them{f' (expected {mask})' if mask else ''}; {several or 'add the masks or take the images away'} "
            "(degrid data check lists them)"
        )
    clashes, again = repeated(sources)
    if clashes:
        raise UserError(
            f'{counted(len(clashes), "name")} of different samples in the split "{split}" of {path}, such as '
            f'"{clashes[0]}", which cannot be told apart: rename or remove one of each (degrid data check lists them)'
        )
    bands, notes = bands_found(sources, bands)
    if again:
        notes.append(f"{counted(len(again), 'image', 'come')} more than once in {split}: {some(again, 3)}")
    return SourceDataset(
        sources, layout.labels, layout.rule, [*layout.notes, *left_out, *notes], bands, tuple(layout.splits)
    )


def _how_to_add(layout: Layout, split: str) -> str:
    """How to give a dataset a split of this name."""
    if (layout.root / f"{split}.txt").is_file():  # not read because its name is not that of a split
        return f"name the list in a dataset.yaml with its classes (train: {split}.txt)"
    if layout.how_to_add == BY_NAME and split not in SPLIT_NAMES.values():
        return (
            "name its folder or list in a dataset.yaml (train: .., val: ..): only those called train, val or test are "
            "splits by themselves"
        )
    return f"add {layout.how_to_add.format(split=split)}"


def repeated(sources: Sequence[Source]) -> tuple[list[str], list[str]]:
    """The names that different samples share, and those of samples that occur more than once, as in a list."""
    first: dict[str, Source] = {}
    clashes: dict[str, None] = {}
    again: dict[str, None] = {}
    for source in sources:
        with contextlib.suppress(UserError):  # a damaged record has no name; reading it says what is wrong
            name = source.name
            if not isinstance(source, BrokenSource) and first.setdefault(name, source) is not source:
                (again if first[name] == source else clashes)[name] = None
    return list(clashes), list(again)


def bands_found(sources: Sequence[Source], wanted: Bands) -> tuple[Bands, list[str]]:
    """What is not said about the bands of images, and sentences on what was found.

    Looks at the beginning of some files, and only reads some where one holds more than bytes.

    Raises:
        UserError: see `degrid.bands.find_bands`.
    """
    if wanted.count and wanted.range != "auto":
        return wanted, []
    some_of = [
        sources[index]
        for index in sorted({round(at * (len(sources) - 1) / _LOOKED_AT) for at in range(_LOOKED_AT + 1)})
    ]
    pictures = []
    if not all(source.is_plain() for source in some_of):
        for source in some_of:
            with contextlib.suppress(UserError):  # unreadable ones are reported when all are read
                values, no_data = thinned(source.read_values()), source.no_data()
                pictures.append(values if no_data is None else values[~without_data(values, no_data)][None])
    if not pictures:
        return Bands(wanted.count or 3, "bytes" if wanted.range == "auto" else wanted.range), []
    bands, note = find_bands(pictures, wanted)
    return bands, [note] if note else []


def _number_of_scenes(name: str) -> int | None:
    count = name.partition(":")[2]
    if name != "synthetic" and not (count.isdecimal() and int(count) > 0):
        raise UserError(f'expected "synthetic" or a number of scenes, as in "synthetic:50"; got "{name}"')
    return int(count) if count else None


def _as_expected(found: Dataset, labels: LabelSpace, name: str) -> Dataset:
    """Data whose classes were guessed from the masks take the model's; other disagreements are the user's."""
    if isinstance(found, SourceDataset):
        numbered = found.labels.names == LabelSpace.of_size(len(found.labels)).names
        if numbered and len(found.labels) <= len(labels):
            # Ids that the user lists are kept.
            return _relabelled(found, labels, found.rule if found.rule.said else MaskRule.plain(labels))
        if found.labels == BINARY_LABELS and len(labels) == 2:
            return _relabelled(found, labels, found.rule)
    raise UserError(
        f"{name} has {len(found.labels)} classes ({some(found.labels.names, 6)}); expected {len(labels)} "
        f"({some(labels.names, 6)})"
    )


def _relabelled(found: SourceDataset, labels: LabelSpace, rule: MaskRule) -> Dataset:
    changed = copy.copy(found)
    changed.labels, changed.rule = labels, rule
    return changed
