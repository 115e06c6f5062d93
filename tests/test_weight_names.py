"""How names of weights are unwrapped, compared and recognised."""

import numpy as np
import pytest
import timm
import torch

from degrid.checkpoints.systems.table import SYSTEMS
from degrid.lookup import in_a_line, some
from degrid.weight_names import misfit, torchvision_resnet, unwrapped


def test_misfit_names_what_is_missing_foreign_and_of_another_shape():
    own = {"a": np.zeros(2), "b": np.zeros((3, 1)), "bn.num_batches_tracked": np.zeros(())}
    assert misfit(own, own) == ""
    given = {"a": torch.zeros(4), "c": torch.zeros(1), "fc": torch.zeros(1)}
    expected = "1 missing (b); 1 not in this model (c); 1 of another shape (a is [4], the model has [2])"
    assert misfit(own, given, spare=["fc"]) == expected
    assert misfit(own, {"a": own["a"], "b": own["b"]}) == ""
    assert misfit(own, {"a": own["a"], "b": own["b"]}, counters=True) == "1 missing (bn.num_batches_tracked)"


def test_wrappers_come_off():
    state = {"module.a": [1], "b": [2]}
    for wrapped in (state, {"state_dict": state, "epoch": 3}, {"state_dict": {"model": state}}):
        assert unwrapped(wrapped) == {"a": [1], "b": [2]}
    assert unwrapped([1]) is None


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnets_are_known_by_their_names(name):
    with torch.device("meta"):
        names = timm.create_model(name).state_dict()
    assert torchvision_resnet(names) == name
    assert torchvision_resnet([f"encoder.{key}" for key in names], "encoder.") == name
    assert torchvision_resnet([key for key in names if not key.startswith("layer3.1.")]) is None


def test_some():
    assert some([]) == ""
    assert some(["a", 2], 2) == "a, 2"
    assert some("abcde") == "a, b, c, d, ..."


def test_every_name_of_a_system_stands_for_one():
    names = [*SYSTEMS, *(alias for system in SYSTEMS.values() for alias in system.aliases)]
    assert len(set(names)) == len(names)
    assert len({system.title for system in SYSTEMS.values()}) == len(SYSTEMS)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such size.\n  at line 3"), "ValueError: no such size"),
        (KeyError(), "KeyError"),
        (RuntimeError(" " + 300 * "x"), f"RuntimeError: {160 * 'x'} ..."),
        (RuntimeError(100 * "ab\t "), f"RuntimeError: {' '.join(53 * ['ab'])} ..."),
    ],
)
def test_errors_of_libraries_are_said_in_a_line(error, said):
    assert in_a_line(error) == said
