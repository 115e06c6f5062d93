#!/usr/bin/env bash
# The palette PNGs of Supervisely's to_segmentation_task count their colours anew in each file.
#
# Version: supervisely 6.74.51.
# Behaviour: Project.to_segmentation_task writes seg/NAME.png as palette images. The index of a colour is its place among
# the colours in this one file: 0 is one class here and another there, and background has another index wherever a class
# is missing. Read as ids, as palette masks are by most readers, classes are mixed up; read by colour, they are right.
# What to do: read these files by colour, or the bitmaps in ann/NAME.json beside them.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet supervisely==6.74.51

cat > export.py <<'CODE'
import numpy as np
import supervisely as sly
from PIL import Image

crack = sly.ObjClass("crack", sly.Bitmap, color=[255, 0, 0])
hole = sly.ObjClass("hole", sly.Bitmap, color=[0, 0, 255])
project = sly.Project("project", sly.OpenMode.CREATE)
project.set_meta(sly.ProjectMeta(obj_classes=[crack, hole]))
dataset = project.create_dataset("ds")
# Three pixels: of a crack, of a hole, and of neither.
for name, classes in (("both", (crack, hole)), ("cracks", (crack,)), ("holes", (hole,))):
    labels = [sly.Label(sly.Bitmap(np.arange(3)[None] == (kind is hole)), kind) for kind in classes]
    Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(f"{name}.png")
    dataset.add_item_file(f"{name}.png", f"{name}.png", ann=sly.Annotation((1, 3), labels))
sly.Project.to_segmentation_task("project", "masks", segmentation_type="semantic")
for name in ("both", "cracks", "holes"):
    mask = Image.open(f"masks/ds/seg/{name}.png.png")
    print("RESULT", name, mask.mode, np.asarray(mask)[0].tolist(), np.asarray(mask.convert("RGB"))[0].tolist())
CODE

env/bin/python export.py 2> log.txt > all.txt || { cat log.txt; exit 1; }
grep "^RESULT" all.txt | tee out.txt
grep -qxF "RESULT both P [0, 1, 2] [[255, 0, 0], [0, 0, 255], [0, 0, 0]]" out.txt
grep -qxF "RESULT cracks P [0, 1, 1] [[255, 0, 0], [0, 0, 0], [0, 0, 0]]" out.txt
grep -qxF "RESULT holes P [1, 0, 1] [[0, 0, 0], [0, 0, 255], [0, 0, 0]]" out.txt
echo "as described"
