"""timm imported without what networks do not need, against timm as it comes, in processes of their own."""

import json
import subprocess
import sys

import pytest

NAMES = ("resnet18", "mobilenetv2_100", "convnext_atto", "efficientvit_b0")
REPORT = f"""
import json, sys, torch, timm
found = {{}}
for name in {NAMES!r}:
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = net(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    found[name] = [[*each.shape, each.double().abs().sum().item()] for each in maps]
print(json.dumps([len(timm.list_models()), "torchvision" in sys.modules, found]))
"""


@pytest.mark.slow
def test_networks_are_those_of_timm_as_it_comes():
    quick = "from degrid.cli import quick_imports; quick_imports.install()"
    answers = [
        json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for code in (REPORT, quick + REPORT)
    ]
    (count, has_torchvision, maps), (quick_count, quick_has_torchvision, quick_maps) = answers
    assert (has_torchvision, quick_has_torchvision) == (True, False)
    assert (count, maps) == (quick_count, quick_maps)
