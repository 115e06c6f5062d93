#!/usr/bin/env bash
# Darwin's (V7's) YOLO segments lack every object with a hole or of two parts, and have a rectangle for every box.
#
# Version: darwin-py 3.6.3.
# Behaviour: darwin/exporter/formats/yolo_segmented.py writes polygons of one path only. An object with more paths, which
# is how Darwin stores holes and parts, is logged as an unexpected error without its name, and left out of the text file;
# the export succeeds. Bounding boxes, which many projects have beside polygons, are written as four corners, which a
# reader cannot tell from the outline of an object.
# What to do: export Darwin JSON or semantic masks; suspect missing objects and exact rectangles in YOLO segments.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet darwin-py==3.6.3

cat > export.py <<'CODE'
from pathlib import Path

import darwin.datatypes as dt
from darwin.exporter.formats import yolo_segmented


def ring(low, high):
    return [{"x": x, "y": y} for x, y in ((low, low), (high, low), (high, high), (low, high))]


def polygon(name, *paths):
    return dt.Annotation(dt.AnnotationClass(name, "polygon"), {"paths": list(paths)}, [], ["0"], id=name)


box = dt.Annotation(dt.AnnotationClass("boxed", "bounding_box"), {"x": 0, "y": 0, "w": 5, "h": 5}, [], ["0"], id="box")
objects = [polygon("plain", ring(1, 4)), polygon("holed", ring(0, 8), ring(2, 4)), box]
classes = {each.annotation_class for each in objects}
image = dt.AnnotationFile(
    path=Path("a.json"), filename="a.png", annotation_classes=classes, annotations=objects,
    image_width=10, image_height=10, remote_path="/",
)
yolo_segmented.export([image], Path("out"))
names = Path("out/darknet.labels").read_text().split()
(text,) = (file for file in Path("out").rglob("a.txt"))
for line in text.read_text().splitlines():
    number, *numbers = line.split()
    print(names[int(number)], numbers)
CODE
env/bin/python export.py 2> log | tee found
cat > expected <<'TEXT'
plain ['0.1', '0.1', '0.4', '0.1', '0.4', '0.4', '0.1', '0.4']
boxed ['0.0', '0.0', '0.5', '0.0', '0.5', '0.5', '0.0', '0.5']
TEXT
diff expected found
grep -q "unexpected error" log
! grep -q "holed" log
echo "as described"
