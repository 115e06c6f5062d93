#!/usr/bin/env bash
# The run lengths of masks in CVAT's own XML go row by row within the mask's box, and COCO's go column by column.
#
# Version: datumaro 1.13.12, which reads and writes "CVAT for images 1.1" as CVAT does; pycocotools 2.0.11.
# Behaviour: both formats call them RLE, count background first, and come out of the same CVAT dialogue. The counts that
# Datumaro writes into <mask rle=".." width=".." height=".."> for a mask of one row are three runs; pycocotools' are one
# more for each column. Given to pycocotools with the XML's height and width they are decoded without complaint into a
# mask of the same area and another shape; with "size" turned round, and the result transposed, they are right.
# What to do: np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width), placed at (top, left).
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet datumaro==1.13.12 pycocotools==2.0.11

cat > export.py <<'CODE'
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from datumaro.components.annotation import Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from pycocotools import mask as coco

shape = np.zeros((3, 4), np.uint8)
shape[1, 0:3] = 1
item = DatasetItem("a", media=Image.from_numpy(np.zeros((3, 4, 3), np.uint8)), annotations=[Mask(shape, label=0)])
Dataset.from_iterable([item], categories=["x"]).export("out", "cvat", save_media=True)
written = ElementTree.parse(next(Path("out").glob("*.xml"))).find("image/mask").attrib
counts = [int(count) for count in written["rle"].split(",")]
height, width = int(written["height"]), int(written["width"])
print("CVAT:", counts)


def decoded(size):
    return coco.decode(coco.frPyObjects({"size": size, "counts": counts}, *size))


print("as COCO's:", decoded([height, width]).tolist())
print("turned round:", decoded([width, height]).T.tolist())
CODE

env/bin/python -W ignore export.py 2> log.txt | tee out.txt || { cat log.txt; exit 1; }
grep -qx "CVAT: \[4, 3, 5\]" out.txt
grep -qx "as COCO's: \[\[0, 0, 1, 0\], \[0, 1, 0, 0\], \[0, 1, 0, 0\]\]" out.txt
grep -qx "turned round: \[\[0, 0, 0, 0\], \[1, 1, 1, 0\], \[0, 0, 0, 0\]\]" out.txt
echo "as described"
