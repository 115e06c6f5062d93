#!/usr/bin/env bash
# Pillow turns the numbers of a TIFF round where 0 is white: of 1 and 8 bits, but not of 16 or 32.
#
# Version: Pillow 13.0.0 (12.3.0 alike) with numpy 2.3.5; files of tifffile 2026.3.3 and rasterio 1.4.4 (GDAL 3.10.3).
# Behaviour: PhotometricInterpretation 0 (MINISWHITE) only says how to show a picture; tifffile and GDAL give the stored
# numbers. Pillow gives 255 - n for 8 bits, "not n" for 1 bit, and n for 16 bits. tifffile writes that tag for arrays of
# truth values unless told otherwise, and ImageJ for inverting tables, so that object and background of such a mask
# change places without a word. Values of 2 and 4 bits (GDAL's NBITS) are multiplied by 85 and 17 besides.
# What to do: where numbers are meant, as in label images, look at tag 262 and turn values of up to 8 bits back; divide
# by 85 or 17 where tag 258 is 2 or 4. Or read with tifffile or GDAL.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet pillow==13.0.0 numpy==2.3.5 tifffile==2026.3.3 rasterio==1.4.4

cat > show.py <<'CODE'
import numpy as np
import rasterio
import tifffile
from PIL import Image

ids = np.array([[0, 1, 1, 0]], np.uint8)


def values(file):
    with Image.open(file) as image:
        return np.asarray(image).astype(int).ravel().tolist()


for kind in (bool, np.uint8, np.uint16, np.float32):
    options = {} if kind is bool else {"photometric": "miniswhite"}
    tifffile.imwrite("m.tif", ids.astype(kind), **options)
    assert np.array_equal(tifffile.imread("m.tif"), ids)
    with rasterio.open("m.tif") as file:
        assert np.array_equal(file.read(1), ids)
    print(f"{np.dtype(kind).name}: stored {ids.ravel().tolist()}, Pillow {values('m.tif')}")
ids[0, 3] = 3
for bits in (2, 4):
    with rasterio.open("m.tif", "w", "GTiff", 4, 1, 1, dtype="uint8", nbits=bits) as file:
        file.write(ids, 1)
    with rasterio.open("m.tif") as file:
        assert np.array_equal(file.read(1), ids)
    print(f"{bits} bits: stored {ids.ravel().tolist()}, Pillow {values('m.tif')}")
CODE
cat > expected <<'TEXT'
bool: stored [0, 1, 1, 0], Pillow [1, 0, 0, 1]
uint8: stored [0, 1, 1, 0], Pillow [255, 254, 254, 255]
uint16: stored [0, 1, 1, 0], Pillow [0, 1, 1, 0]
float32: stored [0, 1, 1, 0], Pillow [0, 1, 1, 0]
2 bits: stored [0, 1, 1, 3], Pillow [0, 85, 85, 255]
4 bits: stored [0, 1, 1, 3], Pillow [0, 17, 17, 51]
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
