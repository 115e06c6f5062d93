#!/usr/bin/env bash
# ultralytics' converter from masks to YOLO polygons fills holes, leaves out lines that are one pixel wide, and shrinks the rest.
#
# Version: ultralytics 8.4.190 (convert_segment_masks_to_yolo_seg), opencv-python 5.0.0.93, torch 2.15.0.
# Behaviour: only outer contours are looked for, so that a ring becomes a filled square: a region of 300 pixels turns into one
# of 361. Contours run through the centres of the outermost pixels, while the coordinates are divided by the side of the image
# as if they were edges: a square of 20x20 pixels is written as one of 19x19. Contours of fewer than three points are left out
# silently, and a line that is one pixel wide has two: its class is absent from the file.
# What to do: write such masks as RLE (COCO), or cut a ring into parts; count the pixels of each class before and after.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet ultralytics==8.4.190 opencv-python==5.0.0.93 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6

export YOLO_CONFIG_DIR=$PWD
cat > convert.py <<'CODE'
from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics.data.converter import convert_segment_masks_to_yolo_seg

mask = np.zeros((40, 40), np.uint8)
mask[10:30, 10:30] = 1
mask[15:25, 15:25] = 0  # a ring
mask[2:8, 2:8] = 2  # a square
mask[35, 5:35] = 3  # a line
Path("masks").mkdir()
Path("labels").mkdir()
Image.fromarray(mask).save("masks/a.png")
convert_segment_masks_to_yolo_seg("masks", "labels", classes=3)

areas = {}
for line in Path("labels/a.txt").read_text().splitlines():
    name, *numbers = line.split()
    points = np.array(numbers, float).reshape(-1, 2) * 40
    x, y = points.T
    areas[int(name) + 1] = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
with open("found", "w") as found:
    for name in (1, 2, 3):
        written = f"polygon of {areas[name]:.0f}" if name in areas else "no polygon"
        print(f"class {name}: {(mask == name).sum()} pixels, {written}", file=found)
CODE
env/bin/python convert.py > log
cat found
cat > expected <<'TEXT'
class 1: 300 pixels, polygon of 361
class 2: 36 pixels, polygon of 25
class 3: 30 pixels, no polygon
TEXT
diff expected found
echo "as described"
