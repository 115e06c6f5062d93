#!/usr/bin/env bash
# Darwin's (V7's) grey semantic masks give two classes one value as soon as there are 17 classes.
#
# Version: darwin-py 3.6.3.
# Behaviour: export(.., mode="grey") in darwin/exporter/formats/mask.py maps ids to grey values one after the other, on
# the same array: with 17 classes (background among them), id 1 becomes 15, and a moment later every 15 becomes 239, the
# value of id 15. class_mapping.csv says 15 for the class with id 1, a value that is in no mask. With fewer classes, no
# value is also a later id, and all is well. The exports of ids and colours are not affected.
# What to do: export ids (semantic_mask_index) or colours (semantic_mask).
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet darwin-py==3.6.3 pillow==12.3.0

cat > export.py <<'CODE'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import darwin.datatypes as dt
from darwin.exporter.formats import semantic_mask_grey

classes = int(sys.argv[1])  # with background
labelled = range(1, classes)
kinds = {k: dt.AnnotationClass(f"class {k:02d}", "mask") for k in labelled}
objects = [dt.Annotation(kinds[k], {"sparse_rle": None}, [], ["0"], id=str(k)) for k in labelled]
layer = dt.AnnotationClass("__raster_layer__", "raster_layer")
runs = [number for k in range(classes) for number in (k, 1)]  # one pixel of each class in a row
pixels = {"dense_rle": runs, "mask_annotation_ids_mapping": {str(k): k for k in labelled}, "total_pixels": classes}
image = dt.AnnotationFile(
    path=Path("a.json"), filename="a.png", annotation_classes=set(kinds.values()),
    annotations=[*objects, dt.Annotation(layer, pixels, [], ["0"], id="r")],
    image_width=classes, image_height=1, remote_path="/",
)
semantic_mask_grey.export([image], Path(f"out{classes}"))
mask = np.asarray(Image.open(f"out{classes}/masks/a.png"))[0]
said = [int(line.rpartition(",")[2]) for line in Path(f"out{classes}/class_mapping.csv").read_text().split("\n")[1:-1]]
print(classes, "classes:", "as class_mapping.csv says" if mask.tolist() == said else f"id 1 is {mask[1]}, not {said[1]}")
print("values:", len(set(mask.tolist())))
CODE

env/bin/python export.py 16 | tee out16.txt
grep -qx "16 classes: as class_mapping.csv says" out16.txt
env/bin/python export.py 17 | tee out17.txt
grep -qx "17 classes: id 1 is 239, not 15" out17.txt
grep -qx "values: 16" out17.txt
echo "as described"
