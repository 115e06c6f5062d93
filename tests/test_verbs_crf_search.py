"""degrid crf-search and --crf-set."""

import dataclasses

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app, options
from degrid.types import LabelSpace, Sample


class ByColor(nn.Module):
    """Class 1 where the image is bright, blurred, so that there is something to sharpen; logits at stride 4."""

    def forward(self, x):
        bright = (x.float().mean(1, keepdim=True) > 128).float()
        small = nn.functional.avg_pool2d(bright, 12, stride=4, padding=4)
        return torch.cat([1 - small, small], 1) * 3


class Squares:
    """Bright squares on a dark, noisy ground."""

    labels = LabelSpace.of_size(2)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        label = torch.zeros(48, 64, dtype=torch.uint8)
        label[10 + index : 30, 8 : 40 + 3 * index] = 1
        noise = torch.randint(0, 30, (3, 48, 64), generator=torch.Generator().manual_seed(index))
        return Sample((label * 180 + 20 + noise).to(torch.uint8), label, f"{index}")


@pytest.fixture(scope="module")
def found():
    start = degrid.CRF(iterations=2, pos_xy_std=2)
    return degrid.crf_search(ByColor(), Squares(), num=3, options=degrid.InferenceOptions(crf=start))


def test_what_is_tried(found):
    # 27 coarse settings and as many around the best, which is one of both.
    assert len({crf for crf, _ in found.tried}) == len(found.tried) == 53
    assert [miou for _, miou in found.tried] == sorted((miou for _, miou in found.tried), reverse=True)
    assert {(crf.iterations, crf.pos_xy_std, crf.pos_weight) for crf, _ in found.tried} == {(2, 2, 3)}
    assert {30, 65, 100} <= {crf.bi_xy_std for crf, _ in found.tried}
    assert found.images == 3
    assert found.to_dict()["tried"][0] == {**dataclasses.asdict(found.best), "miou": found.tried[0][1]}


def test_scores_are_those_of_evaluate(found):
    class Three(Squares):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return super().__getitem__((0, 2, 4)[index])

    assert found.without == degrid.evaluate(ByColor(), Three()).miou
    for crf, miou in (found.tried[0], found.tried[-1]):
        scores = degrid.evaluate(ByColor(), Three(), options=degrid.InferenceOptions(crf=crf))
        assert miou == pytest.approx(scores.miou, abs=1e-12)
    assert found.tried[0][1] > found.without


def test_the_command(tmp_path):
    labels = degrid.open_dataset("synthetic").labels
    network = degrid.deeplabv3plus("timm:test_resnet", labels, output_stride=16, pretrained=False)
    degrid.save(network, tmp_path / "model")
    place = str(tmp_path / "all.json")
    words = ["crf-search", str(tmp_path / "model"), "--data", "synthetic:2", "-n", "1", "-o", place]
    done = CliRunner().invoke(app, [*words, "--crf-set", "iterations=1"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].endswith("without a CRF")
    assert lines[-1].startswith("best: --crf-set bi_weight=")
    assert lines[-1].endswith("--crf-set iterations=1")
    assert (tmp_path / "all.json").exists()


def test_parameters_from_the_command_line():
    assert options.inference_options(crf=True).crf == degrid.CRF()
    assert options.inference_options().crf is None
    given = options.inference_options(crf_set=["bi_rgb_std=5", "iterations=3"]).crf
    assert given == degrid.CRF(bi_rgb_std=5, iterations=3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("bi_rgb=5", 'no parameter "bi_rgb". Did you mean "bi_rgb_std"?'),
        ("bi_rgb_std=wide", 'expected a number after "bi_rgb_std=", got "wide"'),
        ("iterations=2.5", 'expected a number after "iterations=", got "2.5"'),
        ("pos_xy_std=0", "must be above 0"),
    ],
)
def test_parameters_that_cannot_be(value, message):
    with pytest.raises(degrid.UserError) as error:
        options.inference_options(crf_set=[value])
    assert message in str(error.value)


def test_nothing_to_search_on():
    class Empty(Squares):
        def __len__(self):
            return 0

    with pytest.raises(degrid.UserError, match="holds no image"):
        degrid.crf_search(ByColor(), Empty())
    with pytest.raises(degrid.UserError, match="at least 1 image"):
        degrid.crf_search(ByColor(), Squares(), num=0)
