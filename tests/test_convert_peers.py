"""Networks of other projects: their tensors through the converter, and the logits that their code computed."""

import peers
import pytest
import torch

from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.config import ModelConfig, from_dict
from degrid.networks import build_model
from degrid.types import LabelSpace
from degrid.verbs.convert import fill

slow = pytest.mark.slow


def converted(name, key):
    """A network's plan by the row of the table that recognises it, and the model that it describes."""
    tensors = peers.tensors(name)
    system, *_ = find_system(tensors, None, name)
    assert system is SYSTEMS[key]
    plan = system.plan(tensors)
    assert not plan.unexpected
    assert set(plan.origins.values()) | set(plan.dropped) == set(tensors)
    config = from_dict(ModelConfig, {"pretrained": False, **plan.model})
    model = build_model(config, LabelSpace.of_size(peers.spec(name)["classes"]))
    fill(model, plan, name)
    return plan, model.eval()


def rates(module):
    """Of all 3x3 convolutions above 1, in order."""
    found = [m.dilation[0] for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
    return [rate for rate in found if rate > 1]


@pytest.mark.parametrize(
    ("name", "system", "encoder_rates", "aspp_rates"),
    [
        pytest.param("jfzhang95_resnet101", "jfzhang95", [2, 4, 8], [6, 12, 18], marks=slow),
        ("jfzhang95_mobilenet", "jfzhang95", [2], [6, 12, 18]),
        pytest.param("VainF_deeplabv3_resnet50", "vainf", [2, 2], [6, 12, 18], marks=slow),
        pytest.param("VainF_deeplabv3plus_resnet50", "vainf", [2, 2], [6, 12, 18], marks=slow),
        ("VainF_deeplabv3plus_mobilenet", "vainf", [2, 2, 2], [6, 12, 18]),
        ("bubbliiiing_mobilenet", "bubbliiiing", [2, 2, 2], [6, 12, 18]),
        pytest.param("jfzhang95_xception", "jfzhang95", [2, 2, 2], [6, 12, 18], marks=slow),
        pytest.param("jfzhang95_drn", "jfzhang95", [*[2] * 6, 4, 4, 4, 2], [12, 24, 36], marks=slow),
        pytest.param("VainF_deeplabv3plus_xception", "vainf", [2, 2, 2, 2], [6, 12, 18], marks=slow),
        pytest.param("bubbliiiing_xception", "bubbliiiing", [], [6, 12, 18], marks=slow),
        ("mmseg_deeplabv3plus_r18-d8", "mmseg", [2, 2, 4], [12, 24, 36]),
        ("mmseg_deeplabv3_m-v2-d8", "mmseg", [2, 2, 4, 4], [12, 24, 36]),
        pytest.param("mmseg_deeplabv3_r50d-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("mmseg_deeplabv3_r50-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("mmseg_deeplabv3plus_r50-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("detectron2_deeplabv3_R103", "detectron2", [2, 4, 8], [6, 12, 18], marks=slow),
        pytest.param("detectron2_deeplabv3plus_R103", "detectron2", [2, 4, 8], [6, 12, 18], marks=slow),
        ("paddleseg_deeplabv3p_resnet50", "paddleseg", [*[2] * 6, 4, 8, 16], [12, 24, 36]),
    ],
)
def test_same_logits_as_the_projects_own_code(name, system, encoder_rates, aspp_rates):
    plan, model = converted(name, system)
    assert rates(model.encoder) == encoder_rates
    assert rates(model.head.aspp) == aspp_rates == list(plan.model["rates"])
    with torch.inference_mode():
        logits = model(peers.image(name))[0].numpy()
    expected = peers.logits(name)
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() <= 1e-4 * abs(expected).max()
