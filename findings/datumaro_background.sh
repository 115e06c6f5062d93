#!/usr/bin/env bash
# Datumaro gives pixels without a label to a class: the first one of the label map, which need not be background.
#
# Version: datumaro 1.13.12.
# Behaviour: the exporters of VOC's, Cityscapes' and KITTI's layouts sort a label map given as a dictionary by name, and
# paint pixels without a mask with id 0. With {"background": .., "asphalt": ..} that is asphalt: no pixel of the export
# is background, and nothing is said. Exporting to KITTI with the source's own classes does the same in any order, since
# no background is added there. CamVid's exporter, and all four in CVAT's fork of Datumaro, move background to the front
# or look for it by name, so that they are right. In the other direction, CamVid's and Cityscapes' exporters add a
# background and then leave it out of label_colors.txt, so that the ids count from 1 on in that file.
# What to do: leave label_map out and name a first class "background" for VOC and KITTI; check that its pixels are there.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet datumaro==1.13.12

cat > export.py <<'CODE'
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, LabelCategories, Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image as Picture
from PIL import Image

BLACK, BLUE = (0, 0, 0), (0, 0, 255)
left = np.array([[True, False]])
item = DatasetItem("a", media=Picture.from_numpy(np.zeros((1, 2, 3), np.uint8)), annotations=[Mask(left, label=0)])
classes = {AnnotationType.label: LabelCategories.from_iterable(["asphalt"])}


def pixels(kind, file, **options):
    data = Dataset.from_iterable([item], categories=classes, media_type=Picture)
    folder = Path(f"{kind}{len(options)}")
    data.export(str(folder), kind, save_media=True, **options)
    return np.asarray(Image.open(folder / file))[0].tolist()


voc = pixels("voc_segmentation", "SegmentationClass/a.png",
             label_map={"background": [BLACK, [], []], "asphalt": [BLUE, [], []]})
print("VOC:", voc)
colors = {"background": BLACK, "asphalt": BLUE}
print("CamVid:", pixels("camvid", "defaultannot/a.png", label_map=colors))
print("Cityscapes:", pixels("cityscapes", "gtFine/default/a_gtFine_labelIds.png", label_map=colors))
print("KITTI:", pixels("kitti", "default/semantic/a.png", label_map=colors))
print("KITTI, own classes:", pixels("kitti", "default/semantic/a.png"))
print("Cityscapes, own classes:", pixels("cityscapes", "gtFine/default/a_gtFine_labelIds.png"))
print("in label_colors.txt:", Path("cityscapes0/label_colors.txt").read_text().split())
CODE

env/bin/python export.py 2> log.txt | tee out.txt || { cat log.txt; exit 1; }
# Two pixels: asphalt, and no label.
grep -qx "VOC: \[\[0, 0, 255\], \[0, 0, 255\]\]" out.txt
grep -qx "CamVid: \[\[0, 0, 255\], \[0, 0, 0\]\]" out.txt
grep -qx "Cityscapes: \[0, 0\]" out.txt
grep -qx "KITTI: \[0, 0\]" out.txt
grep -qx "KITTI, own classes: \[0, 0\]" out.txt
grep -qx "Cityscapes, own classes: \[1, 0\]" out.txt
grep -qx "in label_colors.txt: \['asphalt'\]" out.txt
echo "as described"
