#!/usr/bin/env bash
# timm's Xception gives features from within its units: after a ReLU and before the shortcut is added.
#
# Version: timm 1.0.31 with torch 2.15.0.
# Behaviour: with features_only=True, the features of xception41, 65 and 71 at strides 2 to 16 are not outputs of units, as
# those of timm's ResNets are, but what the last convolution of a unit with stride 2 reads (`stack.act3`). None of them holds
# a value below zero, and none contains the unit's shortcut. DeepLab v3+ of TensorFlow, where these networks and their
# weights come from, reads the same place before the ReLU, so that a decoder with its weights on timm's feature at
# stride 4 is wrong wherever that map is negative. Only the last feature is the output of a unit.
# What to do: hook the second convolution of that unit (`blocks.1.stack.conv2`) for the map before the ReLU.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6

cat > show.py <<'CODE'
import timm
import torch

torch.manual_seed(0)
net = timm.create_model("xception65", features_only=True).eval()
modules = dict(net.named_modules())
seen = {}
for name in ("conv2", "act3"):
    modules["blocks_1"].stack.get_submodule(name).register_forward_hook(
        lambda module, inputs, output, name=name: seen.update({name: output.detach().clone()})
    )
modules["blocks_1"].register_forward_hook(lambda module, inputs, output: seen.update(unit=output.detach()))
with torch.no_grad():
    features = net(torch.randn(1, 3, 64, 64))
print([(info["module"], info["reduction"]) for info in net.feature_info.info])
print("some values below zero:", [bool((feature < 0).any()) for feature in features])
print("at stride 4: ReLU of conv2", torch.equal(features[1], seen["conv2"].relu()))
print("conv2 below zero:", f"{(seen['conv2'] < 0).float().mean():.1f} of the map")
print("the unit's own output:", tuple(seen["unit"].shape), "and the feature:", tuple(features[1].shape))
resnet = timm.create_model("resnet18", features_only=True)
print("resnet18:", [info["module"] for info in resnet.feature_info.info])
CODE
cat > expected <<'TEXT'
[('blocks.0.stack.act3', 2), ('blocks.1.stack.act3', 4), ('blocks.2.stack.act3', 8), ('blocks.19.stack.act3', 16), ('blocks.20', 32)]
some values below zero: [False, False, False, False, False]
at stride 4: ReLU of conv2 True
conv2 below zero: 0.5 of the map
the unit's own output: (1, 256, 8, 8) and the feature: (1, 256, 16, 16)
resnet18: ['act1', 'layer1', 'layer2', 'layer3', 'layer4']
TEXT
env/bin/python -W ignore show.py | tee found
diff expected found
echo "as described"
