#!/usr/bin/env bash
# Datumaro's exporters of segmentation layouts leave out every polygon, without a word.
#
# Version: datumaro 1.13.12.
# Behaviour: exporting to VOC, CamVid, Cityscapes, KITTI and panoptic COCO paints masks only. Polygons, which are what
# most annotation tools store, are left out, and the export succeeds silently: an image that has only polygons gets no
# mask at all, and in one that has both the polygons' pixels are background. After
# transform("polygons_to_masks") the same export has them.
# What to do: transform before exporting; suspect a Datumaro export whose objects are missing.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet datumaro==1.13.12

cat > export.py <<'CODE'
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, LabelCategories, Polygon
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image as Picture
from PIL import Image

FORMATS = {
    "voc_segmentation": "SegmentationClass/*.png",
    "camvid": "trainannot/*.png",
    "cityscapes": "gtFine/**/*_color.png",
    "kitti_segmentation": "**/semantic_rgb/*.png",
    "coco_panoptic": "annotations/**/*.png",
}
labels = LabelCategories.from_iterable(["background", "thing"])
for transformed in (False, True):
    for name, pattern in FORMATS.items():
        square = Polygon([2, 2, 8, 2, 8, 8, 2, 8], label=1, id=1, group=1)
        image = Picture.from_numpy(np.zeros((10, 10, 3), np.uint8), ext=".png")
        item = DatasetItem("photo", subset="train", media=image, annotations=[square])
        data = Dataset.from_iterable([item], categories={AnnotationType.label: labels}, media_type=Picture)
        if transformed:
            data.transform("polygons_to_masks")
        out = Path(f"{name}_{transformed}")
        data.export(str(out), name, save_media=True)
        masks = sorted(out.glob(pattern))
        painted = [int(np.asarray(Image.open(mask).convert("RGB")).any(-1).sum()) for mask in masks]
        print("RESULT", "transformed" if transformed else "as it is", name, "painted pixels of 36:", painted)
CODE

cat > expected <<'TEXT'
RESULT as it is voc_segmentation painted pixels of 36: []
RESULT as it is camvid painted pixels of 36: []
RESULT as it is cityscapes painted pixels of 36: []
RESULT as it is kitti_segmentation painted pixels of 36: []
RESULT as it is coco_panoptic painted pixels of 36: []
RESULT transformed voc_segmentation painted pixels of 36: [36]
RESULT transformed camvid painted pixels of 36: [36]
RESULT transformed cityscapes painted pixels of 36: [36]
RESULT transformed kitti_segmentation painted pixels of 36: [36]
RESULT transformed coco_panoptic painted pixels of 36: [36]
TEXT
env/bin/python -W ignore export.py 2> log.txt > all.txt || { cat log.txt; exit 1; }
grep "^RESULT" all.txt | tee found
diff expected found
echo "as described"
