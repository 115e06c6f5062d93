"""MVTec AD: one kind of industrial product and its defects."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair, divided, images_in
from degrid.data.formats.shapes.drawn import Drawn
from degrid.data.formats.tools.joined import JoinedMasks, named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.lookup import counted

_GOOD, _ENDING = "good", "_mask"


class MvtecAd(DataFormat):
    """One category: test/DEFECT/000.png, ground_truth/DEFECT/000_mask.png (black and white), and test/good without.

    The classes are background and the defects. Its split is made for methods that learn from good images alone, so
    that the images of test are divided, and those of train/good are left out.

    Source: Bergmann et al., "MVTec AD", CVPR 2019.
    """

    wanted = "test/DEFECT and ground_truth/DEFECT/NAME_mask.png (MVTec AD)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        test, truth = path / "test", path / "ground_truth"
        if not (test.is_dir() and truth.is_dir()):
            return None
        masks = {
            (mask.parent.name, mask.stem.removesuffix(_ENDING)): mask
            for mask in images_in(truth)
            if mask.stem.endswith(_ENDING)
        }
        defects = sorted({defect for defect, _ in masks})
        rows = [LabelRow(defect, None, 0) for defect in defects]
        labels, rule, ids = named_classes(rows, path, f"{truth.name}/{defects[0]}") if defects else (None, None, {})
        pairs: list[Pair] = []
        for image in images_in(test):
            defect, name = image.parent.name, image.relative_to(path).with_suffix("").as_posix()
            if mask := masks.get((defect, image.stem)):
                pairs.append(JoinedMasks(name, image, mask, ((ids[defect], mask),), ids[""]))
            elif defect == _GOOD:
                pairs.append(Drawn(name, image, image, rest=ids.get("", 0)))
        if not defects:
            return None
        splits, notes = divided(pairs)
        if good := len(images_in(path / "train")):
            notes.append(f"{counted(good, 'image')} of train, all without defects, are left out")
        return Layout("test and ground_truth", path, splits, labels, rule, notes=notes)
