#!/usr/bin/env bash
# Label Studio's COCO export of brush masks fills holes, drops thin strokes and takes a pixel off every object.
#
# Version: label-studio-sdk 2.1.2 (its converter), drawn by pycocotools 2.0.11.
# Behaviour: the converter writes the outer outline of each connected part only, through the centres of its outermost
# pixels. Readers of COCO draw polygons by area, so that an object comes back one pixel narrower and lower, without its
# holes; a stroke whose outline has fewer than three corners (one pixel wide and straight) is left out without a word.
# What to do: export brush masks as PNG or NPY, which keep every pixel.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet label-studio-sdk==2.1.2 pycocotools==2.0.11

cat > export.py <<'CODE'
import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.converter.exports.brush_to_coco import generate_contour_from_rle
from pycocotools import mask as coco

square, stroke = np.zeros((2, 12, 12), np.uint8)
square[2:10, 2:10] = 1
ring = square.copy()
ring[4:8, 4:8] = 0
stroke[5, 2:10] = 1
for name, painted in (("square", square), ("ring", ring), ("stroke", stroke)):
    outlines, _, _ = generate_contour_from_rle(brush.mask2rle(painted * 255), 12, 12)
    drawn = coco.decode(coco.frPyObjects(outlines, 12, 12)).sum() if outlines else 0
    print(name, "painted", painted.sum(), "outlines", outlines, "drawn", drawn)
CODE
cat > expected <<'TEXT'
square painted 64 outlines [[2, 2, 2, 9, 9, 9, 9, 2]] drawn 49
ring painted 48 outlines [[2, 2, 2, 9, 9, 9, 9, 2]] drawn 49
stroke painted 8 outlines [] drawn 0
TEXT
env/bin/python export.py | tee found
diff expected found
echo "as described"
