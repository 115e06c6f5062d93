"""Arguments of another type than annotated: what is obviously meant is accepted, anything else is refused by name."""

import contextlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import degrid
from degrid.arguments import checked, fitted
from degrid.data.synthetic import SyntheticScenes
from degrid.models import Segmenter
from degrid.types import UserError
from degrid.verbs.statistics import class_statistics


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (tuple[int, int], 64, (64, 64)),
        (tuple[int, int] | None, [64, 32], (64, 32)),
        (tuple[int, int] | None, None, None),
        (tuple[int, int], (np.int64(4), 5.0), (4, 5)),
        (tuple[float, ...], 2, (2.0,)),
        (tuple[float, ...], [0.5, 1], (0.5, 1.0)),
        (int, 3.0, 3),
        (float, np.float32(0.25), 0.25),
        (bool, 1, True),
        (str, torch.device("cuda", 1), "cuda:1"),
        (str | None, torch.bfloat16, "bfloat16"),
        (str | Path, Path("x"), Path("x")),
        (Iterable[str | Path], ("a", Path("b")), ["a", Path("b")]),
        (Sequence[str] | None, "a", ["a"]),
    ],
)
def test_what_is_obviously_meant(hint, value, expected):
    found = fitted(hint, value, "f(x=...)")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (tuple[int, int] | None, "a", "expected 2 numbers or None, got 'a'"),
        (tuple[int, int], (1, 2, 3), "expected 2 numbers, got (1, 2, 3)"),
        (tuple[int, int], 1.5, "expected 2 numbers, got 1.5"),
        (tuple[float, ...], ["a"], "expected numbers, got ['a']"),
        (int, 2.5, "expected a whole number, got 2.5"),
        (int, float("inf"), "expected a whole number, got inf"),
        (int, True, "expected a whole number, got True"),
        (float, "1", "expected a number, got '1'"),
        (bool, 2, "expected True or False, got 2"),
        (str, Path("x"), "expected text, got PosixPath('x')"),
        (Callable[[int], None] | None, 3, "expected a function or None, got 3"),
        (Iterable[str], ["a", 3], "expected several of these: text, got ['a', 3]"),
        (Iterable[str], b"a", "expected several of these: text, got b'a'"),
        (
            degrid.InferenceOptions | None,
            np.zeros(99),
            "expected an InferenceOptions or None, got a value of type",
        ),
    ],
)
def test_what_is_not(hint, value, message):
    with pytest.raises(UserError, match=re.escape(f"f(x=...): {message}")):
        fitted(hint, value, "f(x=...)")


def test_a_checked_function_keeps_its_face():
    def square(side: int, *, name: str = "a") -> tuple[int, str]:
        """A square."""
        return side * side, name

    found = checked(square)
    assert found(3.0, name="b") == (9, "b")
    assert (found.__name__, found.__doc__) == ("square", "A square.")
    assert inspect.signature(found) == inspect.signature(square)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        found(3, nam="b")


PARTS = [getattr(degrid, name) for name in degrid.__all__] + [class_statistics]
VERBS = [part for part in PARTS if callable(part) and not hasattr(part, "to_dict")]
ANY = {"Stopped", "UserError", "Batch", "Sample", "LabelSpace", "PredictResult", "RunResult"}
ANY |= {"SmoothingReport", "DilationReport", "RateSearch", "Report"}
"""What users get and do not make, or make in the innermost loop."""


def fitting(hint):
    """A value that an annotation accepts, though there is no such file, model or data."""
    scenes, network = SyntheticScenes("train"), object.__new__(Segmenter)
    for value in ("none", 1, ["none", "none"], {"a": {}, "b": {}}, scenes, network):
        with contextlib.suppress(UserError):
            return fitted(hint, value, "")
    raise AssertionError(hint)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.__name__ not in ANY], ids=lambda verb: verb.__name__)
def test_every_argument_of_every_verb_is_checked(verb):
    """Those that must be given fit, and the one that does not is refused by its name before any work."""
    hints = typing.get_type_hints(verb.__init__ if isinstance(verb, type) else verb)
    parameters = [each for each in inspect.signature(verb).parameters.values() if each.kind is not each.VAR_KEYWORD]
    needed = {each.name: fitting(hints[each.name]) for each in parameters if each.default is each.empty}
    assert parameters
    for name in (each.name for each in parameters):
        with pytest.raises(UserError, match=rf"{verb.__name__}\({name}=\.\.\.\): expected .*, got <object object at"):
            verb(**{**needed, name: object()})
