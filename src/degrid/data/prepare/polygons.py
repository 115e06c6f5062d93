"""Draw the polygons and run-length codes of an annotation tool as masks, once and for all."""

from __future__ import annotations

import os
from pathlib import Path

from degrid.data.formats.classes import table_in
from degrid.data.formats.description import wishes_in
from degrid.data.formats.doubts import many_crowds
from degrid.data.formats.folder import DRAWN
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair
from degrid.data.formats.scan import read_crowds
from degrid.data.formats.table import POLYGON_FORMATS, recognise
from degrid.data.prepare.listing import WORK, ListWriter, save_ids
from degrid.lookup import counted
from degrid.types import OnProgress, Progress, UserError


def prepare_polygons(path: str | Path, progress: OnProgress | None = None, out: Path | None = None) -> list[str]:
    """Draw a mask for each image, and write a list per split and classes.csv.

    Existing masks are kept, so that an interrupted run can be continued.

    Args:
        path: a folder or file of a format that `degrid.data.formats.table` calls one of polygons.
        progress: told how many masks are made.
        out: the folder to write to; by default "drawn" in the data's folder.
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: there are no polygons, a shape is damaged, many are called crowds, or the place cannot be written to.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"no data at {place}")
    layout = recognise(place, among=POLYGON_FORMATS)
    layout.wishes = wishes_in(layout.root)
    read_crowds(layout)
    assert layout.labels is not None
    if "many-crowds" not in layout.wishes.accept and (sentence := many_crowds(layout)):
        raise UserError(sentence)
    folder = (out or layout.root / DRAWN).absolute()
    splits = {split: [each for each in found if isinstance(each, Pair)] for split, found in layout.splits.items()}
    lists = ListWriter(_common_root(layout, folder, splits), layout.labels, {}, folder)
    lists.report += [f"{layout.kind}: {layout.reason}", *layout.notes]
    table_in(folder, layout.labels)  # before the long work
    total = sum(map(len, splits.values()))
    steps = (Progress(WORK, done, total) for done in range(1, total + 1))
    for split, pairs in splits.items():
        masks = {pair.name: folder / "masks" / split / f"{pair.name}.png" for pair in pairs}
        made = 0
        for pair in pairs:
            made += _draw(pair, layout, masks[pair.name])
            if progress:
                progress(next(steps))
        there = f"{counted(made, 'mask')} made in {folder / 'masks' / split}, {len(pairs) - made:,} already there"
        lists.report.append(f"{split}: {there}")
        lists.write(split, [(pair.image.absolute(), masks[pair.name]) for pair in pairs])
    return lists.finish()


def _common_root(layout: Layout, folder: Path, splits: dict[str, list[Pair]]) -> Path:
    """The folder above the images and what is written.

    Raises:
        UserError: an image is not there.
    """
    images = [pair.image for pairs in splits.values() for pair in pairs]
    lost = [image for image in images if not image.is_file()]
    if lost:
        raise UserError(f"{layout.reason} names {len(lost):,} images that are missing, {lost[0]} among them")
    return Path(os.path.commonpath([folder, *(image.absolute().parent for image in images)]))


def _draw(pair: Pair, layout: Layout, mask: Path) -> bool:
    """Write the mask of an image; whether it was not there yet."""
    if mask.exists():
        return False
    assert layout.labels is not None
    rule = layout.rule or MaskRule.plain(layout.labels)
    save_ids(rule.apply(pair.read_label())[0], mask, layout.labels)
    return True
