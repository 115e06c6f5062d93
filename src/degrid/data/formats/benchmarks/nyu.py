"""NYU Depth v2: rooms, with the 40 classes of Gupta et al. (CVPR 2013) or 13 classes."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.common import benchmark, from_one
from degrid.data.formats.benchmarks.nyu_matlab import MATLAB, read_nyu
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.pair_lists import is_pair_list, read_list, select, split_files
from degrid.data.formats.pairs import Pair, divided, pair_up
from degrid.types import LabelSpace, voc_palette

_FORTY = (
    "wall,floor,cabinet,bed,chair,sofa,table,door,window,bookshelf,picture,counter,blinds,desk,shelves,curtain,dresser,"
    "pillow,mirror,floor mat,clothes,ceiling,books,refrigerator,television,paper,towel,shower curtain,box,whiteboard,"
    "person,night stand,toilet,sink,lamp,bathtub,bag,otherstructure,otherfurniture,otherprop"
)
NYU40 = LabelSpace(tuple(_FORTY.split(",")), voc_palette(41)[1:])
_FOLDERS = (("RGB", "Label"), ("RGBFolder", "LabelFolder"), ("rgb", "label"), ("image", "label40"))


class NyuDepth(DataFormat):
    """RGB and Label (0 is void, 1 to 40 are the classes) beside HHA or Depth, with train.txt and test.txt.

    Or nyu_depth_v2_labeled.mat, see `read_nyu`.
    """

    wanted = "RGB, Label and HHA or Depth, or nyu_depth_v2_labeled.mat and classMapping40.mat (NYU Depth v2)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: see `read_nyu`.
        """
        for images, masks in _FOLDERS:
            third = any((path / name).is_dir() for name in ("HHA", "Depth", "depth", "hha"))
            if third and (path / images).is_dir() and (path / masks).is_dir():
                return self._read(path, path / images, path / masks)
        if path.name == MATLAB and path.is_file():
            return read_nyu(path)
        return read_nyu(path / MATLAB) if (path / MATLAB).is_file() else None

    def _read(self, path: Path, images: Path, masks: Path) -> Layout | None:
        pairs, orphans = pair_up(images, masks)
        lists = [file for file in sorted(path.glob("*.txt")) if is_pair_list(file)]
        splits: dict[str, list[Pair]] = {split_of(file.stem): read_list(file, path) for file in lists}
        splits = splits or {split: select(names, pairs, images, path) for split, names in split_files(path).items()}
        splits, notes = (splits, list[str]()) if splits else divided(pairs)
        rule = from_one(len(NYU40), "NYU Depth v2")
        reason = f"{images.name} and {masks.name}"
        return benchmark(reason, path, splits, NYU40, rule, notes, orphans)
