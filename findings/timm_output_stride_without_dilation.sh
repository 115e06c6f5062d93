#!/usr/bin/env bash
# timm takes output_stride for networks that it does not dilate: the strides go, and no convolution reaches further.
#
# Version: timm 1.0.31 with torch 2.15.0 and torchvision 0.29.2.
# Behaviour: create_model(NAME, features_only=True, output_stride=8) removes strides, and most families raise the
# dilation of the convolutions after them, so that pretrained weights keep their meaning. MobileOne (reparametrised
# blocks) removes the strides and leaves every dilation at 1: feature_info says reduction 8, as asked, but the last
# features see a quarter of what the weights were trained for. RepVGG, which is made by the same code, is dilated.
# What to do: count the dilations, not the reductions; or check that the features at every (old / new stride)-th place
# equal those of the network with its own strides.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2

cat > show.py <<'CODE'
import timm
import torch

for name in ("mobileone_s0", "repvgg_a0", "resnet18"):
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True).eval()
    fine = timm.create_model(name, features_only=True, output_stride=8).eval()
    fine.load_state_dict(plain.state_dict())
    dilations = sorted({module.dilation[0] for module in fine.modules() if isinstance(module, torch.nn.Conv2d)})
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        wanted, found = plain(image)[-1], fine(image)[-1][..., ::4, ::4]
    middle = (..., slice(3, 5), slice(3, 5))  # away from the border
    same = torch.allclose(found[middle], wanted[middle], rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    print(name, "reduction", fine.feature_info.reduction()[-1], "dilations", dilations, "same features", same)
CODE
cat > expected <<'TEXT'
mobileone_s0 reduction 8 dilations [1] same features False
repvgg_a0 reduction 8 dilations [1, 2] same features True
resnet18 reduction 8 dilations [1, 2, 4] same features True
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
