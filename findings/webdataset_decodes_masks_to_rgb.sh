#!/usr/bin/env bash
# WebDataset's decode("pil") makes RGB of every mask, and decode("l8") brightness of a palette mask: class ids are lost.
#
# Version: webdataset 1.0.2 with Pillow 12.3.0, NumPy 2.4.6.
# Behaviour: the names of its image decoders stand for a colour mode into which each PNG in a sample is converted, masks
# included: "pil" is short for "pil rgb". A grey mask of class ids comes back as three equal channels, a palette mask as
# the colours of its palette; the decoders for grey ("l8", "pill") convert a palette mask's colours to brightness, so
# that class 1 is some number that depends on the palette. No name gives the ids of a palette mask.
# What to do: leave the label undecoded and open its bytes with Pillow, or write labels as grey PNG and use "l8" for
# the label alone.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet webdataset==1.0.2 pillow==12.3.0 numpy==2.4.6

cat > show.py <<'CODE'
import io
import tarfile

import numpy as np
import webdataset
from PIL import Image

ids = np.array([[0, 1], [2, 1]], np.uint8)
palette = Image.fromarray(ids)
palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
with tarfile.open("train.tar", "w") as archive:
    for name, mask in (("grey", Image.fromarray(ids)), ("palette", palette)):
        stream = io.BytesIO()
        mask.save(stream, format="PNG")
        entry = tarfile.TarInfo(f"{name}.seg.png")
        entry.size = stream.tell()
        archive.addfile(entry, io.BytesIO(stream.getvalue()))
for decoder in (None, "pil", "l8"):
    data = webdataset.WebDataset("train.tar", shardshuffle=False)
    for sample in data.decode(decoder) if decoder else data:
        mask = sample["seg.png"]
        mask = Image.open(io.BytesIO(mask)) if decoder is None else mask
        print(decoder, sample["__key__"], np.asarray(mask).reshape(4, -1).tolist())
CODE
cat > expected <<'TEXT'
None grey [[0], [1], [2], [1]]
None palette [[0], [1], [2], [1]]
pil grey [[0, 0, 0], [1, 1, 1], [2, 2, 2], [1, 1, 1]]
pil palette [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 0, 0]]
l8 grey [[0], [1], [2], [1]]
l8 palette [[0], [38], [75], [38]]
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
