#!/usr/bin/env bash
# Pillow shows the header of a sparse TIFF as its pixels.
#
# Version: Pillow 13.0.0 (12.3.0 alike) with numpy 2.3.5; the file is of rasterio 1.4.4 (GDAL 3.10.3).
# Behaviour: GDAL's option SPARSE_OK leaves out blocks of nothing but "no data" or 0; their offset and length are 0.
# Pillow reads as many bytes as such a block would have from offset 0 on, and so gives "II*", the tags and what follows
# as numbers, without a warning, unless the file is shorter than the block: then it calls the file truncated.
# What to do: look for 0 among the offsets (tags 273 and 324), and read such files with GDAL.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet pillow==13.0.0 numpy==2.3.5 rasterio==1.4.4

cat > show.py <<'CODE'
import numpy as np
import rasterio
from PIL import Image

ids = np.zeros((32, 64), np.uint8)
ids[:, 32:] = 1  # two tiles of 32x32, the left one empty
options = {"sparse_ok": True, "tiled": True, "blockxsize": 32, "blockysize": 32}
with rasterio.open("m.tif", "w", "GTiff", 64, 32, 1, dtype="uint8", **options) as file:
    file.write(ids, 1)
with rasterio.open("m.tif") as file:
    assert np.array_equal(file.read(1), ids)
with Image.open("m.tif") as image:
    offsets, found = image.tag_v2[324], np.asarray(image)
print("offset of the left tile:", offsets[0])
print("GDAL: left tile", ids[0, :4].tolist())
print("Pillow: left tile", found[0, :4].tolist())
print("Pillow's right tile is right:", np.array_equal(found[:, 32:], ids[:, 32:]))
CODE
cat > expected <<'TEXT'
offset of the left tile: 0
GDAL: left tile [0, 0, 0, 0]
Pillow: left tile [73, 73, 42, 0]
Pillow's right tile is right: True
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
