"""Fast paths equal their twins in several threads at once, in forked and in spawned processes."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import degrid
from degrid.acceleration.taps import TapConv2d
from degrid.engine.evaluation.metrics import BoundaryCounts
from degrid.engine.inference.predictor import Predictor
from degrid.kernels import support
from degrid.kernels.dense_crf import refine
from degrid.kernels.resample import nearest, resample
from degrid.kernels.smoothing import mix_groups, shared_filter_gradient
from degrid.kernels.upsample_argmax import upsample_argmax

pytestmark = pytest.mark.skipif(not support.can_import_numba(), reason="without numba there are the twins alone")


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def of_argmax():
    return upsample_argmax(values(1, 7, 9, 11), (70, 90))


def of_crf():
    pixels = torch.from_numpy(image(24, 30)).permute(2, 0, 1)
    crf = degrid.CRF(bi_xy_std=10, bi_rgb_std=20, iterations=2)
    return refine(values(3, 24, 30).softmax(0), pixels, crf)


def of_mixing():
    return mix_groups(values(1, 8, 8, 12), values(4, 4, seed=1), 2, (7, 11))


def of_shared_filter():
    return shared_filter_gradient(values(2, 8, 9, 11), values(2, 8, 9, 11, seed=1), 3) / 100


torch.manual_seed(0)
CONV = nn.Conv2d(16, 21, 3, padding=4, dilation=4).requires_grad_(False)
TAPS = TapConv2d(CONV)


def of_taps():
    return TAPS(values(1, 16, 20, 24))


def of_crops():
    pixels, how = image(40, 50), ((33, 47), (2.5, 3.5), (0.7, 0.8))
    found = [resample(pixels, *how, (0, 0, 0)), nearest(pixels[..., 0], *how, 255)]
    return torch.cat([torch.from_numpy(each).flatten() for each in found])


def of_boundaries():
    counts = BoundaryCounts(3)
    counts.update(image(60, 80)[..., 0] // 86, image(60, 80)[..., 1] // 86)
    return torch.from_numpy(np.stack([counts.intersection, counts.union]))


class Net(nn.Module):
    """Wide enough for Winograd's algorithm, with a batch norm to fold."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        convs = (nn.Conv2d(3, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False))
        self.layers = nn.Sequential(*convs, nn.BatchNorm2d(128), nn.Conv2d(128, 4, 1))

    def forward(self, pixels):
        return self.layers(pixels.float() / 255)


PREDICTOR = {}


def of_predictor():
    """Logits by the one predictor of the process: folded, by Winograd's algorithm."""
    if not PREDICTOR:
        PREDICTOR[0] = Predictor(Net(), "cpu", "float32")
    return PREDICTOR[0].scores(torch.from_numpy(image(40, 44)).permute(2, 0, 1)).clone()


PATHS = {name.removeprefix("of_"): function for name, function in dict(globals()).items() if name.startswith("of_")}
EXACT = {"argmax", "crops", "boundaries"}
ERROR = {"predictor": 1e-4}
"""Of the largest number; 1e-5 elsewhere. Winograd's algorithm rounds more."""


def all_found():
    """What each path gives, as arrays; and whether compiled code may run."""
    torch.set_num_threads(1)
    return {name: path().numpy() for name, path in PATHS.items()}, support.numba_installed()


def compare(found, expected):
    for name, values in expected.items():
        if name in EXACT:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            error = np.abs(found[name] - values).max() / np.abs(values).max()
            assert error <= ERROR.get(name, 1e-5), (name, error)


def send(pipe):
    pipe.send(all_found())


def in_a_process(kind):
    context = multiprocessing.get_context(kind)
    receiver, sender = context.Pipe(False)
    process = context.Process(target=send, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


@pytest.fixture(scope="module")
def twins():
    """By PyTorch's operations and NumPy's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "_began_in", os.getpid() + 1)  # as in a forked process
        patch.setattr("degrid.kernels.resample.can_import_numba", lambda: False)
        PREDICTOR.clear()
        found, compiled = all_found()
    assert not compiled
    plain = Net().eval()(torch.from_numpy(image(40, 44)).permute(2, 0, 1)[None]).detach().numpy()
    return found | {"predictor": plain, "taps": CONV(values(1, 16, 20, 24)).numpy()}


def test_in_threads(twins):
    PREDICTOR.clear()
    first, compiled = all_found()
    assert compiled
    assert PREDICTOR[0].network.precision == "float32"
    compare(first, twins)
    with ThreadPoolExecutor(4) as pool:
        jobs = {name: [pool.submit(path) for _ in range(4)] for name, path in PATHS.items()}
        for name, results in jobs.items():
            for result in results:
                np.testing.assert_array_equal(result.result().numpy(), first[name], err_msg=name)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_process(twins):
    """GNU's OpenMP ends a forked process at the first kernel if this one has run some: the twins run there."""
    all_found()
    found, compiled = in_a_process("fork")
    assert not compiled
    compare(found, twins)


@pytest.mark.slow
def test_in_a_spawned_process(twins):
    found, compiled = in_a_process("spawn")
    assert compiled
    compare(found, twins)
