#!/usr/bin/env bash
# timm's AvgPool2dSame counts its padding although it is told count_include_pad=False.
#
# Version: timm 1.0.31 with torch 2.15.0.
# Behaviour: the layer pads with zeros first and pools the padded map without padding, so that count_include_pad, which
# the pooling gets, has nothing left to leave out. Averages at the right and bottom border are too small: half, and a
# quarter in the corner, for a 2x2 window. timm puts this layer into the shortcuts of ResNet-D, ResNeSt and others
# where output_stride removes a stride, with count_include_pad=False; torch.nn.AvgPool2d, which stands there otherwise,
# leaves its padding (by ceil_mode) out.
# What to do: divide by the same pooling of ones, or pool with ceil_mode on a map that needs no padding.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2

cat > show.py <<'CODE'
import timm
import torch
from timm.layers import AvgPool2dSame

ones = torch.ones(1, 1, 3, 3)
print("AvgPool2dSame", AvgPool2dSame(2, 1, count_include_pad=False)(ones).tolist()[0][0])
odd = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
print("AvgPool2d", odd(ones).tolist()[0][0])
net = timm.create_model("resnet18d", output_stride=8)
pools = [module for module in net.modules() if isinstance(module, AvgPool2dSame)]
print("in resnet18d at output stride 8:", len(pools), {pool.count_include_pad for pool in pools})
CODE
cat > expected <<'TEXT'
AvgPool2dSame [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 0.25]]
AvgPool2d [[1.0, 1.0], [1.0, 1.0]]
in resnet18d at output stride 8: 2 {False}
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
