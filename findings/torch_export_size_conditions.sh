#!/usr/bin/env bash
# torch.export makes conditions of sizes that only some images meet, for a network that asks for none.
#
# Version: torch 2.15.0.
# Behaviour: height and width are Dim.DYNAMIC, and forward cuts a map to the image's size (pad, stride 2, pixel_shuffle, slice).
# Whether the slice cuts anything is asked about strides while tracing, and the answer for the traced image becomes a condition on
# all: traced with an odd size, the program's module refuses even sizes, which the network itself takes with the same operations.
# module(check_guards=False) runs them, and gives the network's values.
# What to do: try an exported program at sizes of both kinds, not only at others than the traced one.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0

cat > show.py <<'CODE'
import torch
import torch.nn.functional as F


class Cut(torch.nn.Module):
    def forward(self, image):
        height, width = image.shape[2:]
        blocks = F.conv2d(F.pad(image, (0, 1, 0, 1)), torch.ones(12, 3, 2, 2), stride=2)
        return F.relu(F.pixel_shuffle(blocks, 2)[:, :, :height, :width])


network, free = Cut().eval(), torch.export.Dim.DYNAMIC
traced = (torch.rand(2, 3, 97, 161),)
program = torch.export.export(network, traced, dynamic_shapes=({0: free, 2: free, 3: free},))
checked, unchecked = program.module(), program.module(check_guards=False)
for height, width in ((97, 161), (65, 33), (64, 64)):
    image = torch.rand(1, 3, height, width)
    try:
        result = torch.equal(checked(image), network(image))
    except AssertionError as error:
        result = str(error).split(":")[0]
    print(height, width, "module():", result, "| without conditions:", torch.equal(unchecked(image), network(image)))
CODE
cat > expected <<'TEXT'
97 161 module(): True | without conditions: True
65 33 module(): True | without conditions: True
64 64 module(): Guard failed | without conditions: True
TEXT
env/bin/python show.py | tee found
diff expected found
echo "as described"
