#!/usr/bin/env bash
# Hugging Face datasets stores masks with a palette, and masks of int64 or int32, as uncompressed TIFF and not as PNG.
#
# Version: datasets 5.2.0, Pillow 12.3.0, NumPy 2.4.6.
# Behaviour: datasets.Image keeps an image that is in memory as PNG if its mode is 1, L, LA, RGB or RGBA. Every other mode
# becomes TIFF without compression: P (the usual form of VOC's masks) and what arrays of int64 and int32 are turned into. A
# mask of 512x512 with four areas takes over 260,000 bytes with a palette and over a million as int64, where the same ids as
# uint8 take less than 3,000. The values, and the palette, are kept. Programs that take the bytes for PNG fail, and published
# data grow a hundred times.
# What to do: give arrays of uint8, or grey images; read the bytes by their beginning.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet datasets==5.2.0 pillow==12.3.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$PWD/cache"

cat > store.py <<'CODE'
import datasets
import numpy as np
from PIL import Image

ids = np.zeros((512, 512), np.uint8)
ids[100:300, 50:200], ids[200:400, 220:300], ids[50:90, 350:500] = 1, 2, 3
palette = Image.fromarray(ids)
palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
assert palette.mode == "P"
values = {"palette": palette, "uint8": ids, "int64": ids.astype(np.int64)}
for name, value in values.items():
    data = datasets.Dataset.from_dict({"mask": [value]}, features=datasets.Features({"mask": datasets.Image()}))
    stored = data.cast_column("mask", datasets.Image(decode=False))[0]["mask"]["bytes"]
    image = data[0]["mask"]
    size = "over a million" if len(stored) > 1_000_000 else "over 260,000" if len(stored) > 260_000 else "below 3,000"
    print(f"{name}: {image.format}, {size} bytes, same ids: {np.array_equal(np.asarray(image), ids)}")
CODE

env/bin/python -W ignore store.py 2> log.txt | tee out.txt || { cat log.txt; exit 1; }
grep -qx "palette: TIFF, over 260,000 bytes, same ids: True" out.txt
grep -qx "uint8: PNG, below 3,000 bytes, same ids: True" out.txt
grep -qx "int64: TIFF, over a million bytes, same ids: True" out.txt
echo "as described"
