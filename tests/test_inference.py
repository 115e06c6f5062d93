"""Scales, flips and sliding windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import degrid
from degrid import UserError
from degrid.acceleration.fold import folded
from degrid.engine.inference import fast_network as fast
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor
from degrid.engine.inference.tta import fused_scores, slide_in_bands


class Pointwise(nn.Module):
    """Logits of a pixel from that pixel alone: the same after any flip, and in any window."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        return self.conv(x.float() / 255)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_flips_and_windows_of_a_pointwise_network_change_nothing(image):
    model = Pointwise()
    plain = Predictor(model).scores(image)
    for options in (
        InferenceOptions(window=(16, 20)),
        InferenceOptions(window=(10, 53), overlap=0.0),
        InferenceOptions(window=(37, 8), overlap=0.8),
    ):
        torch.testing.assert_close(Predictor(model, options=options).scores(image), plain, rtol=1e-5, atol=1e-5)
    flipped = Predictor(model, options=InferenceOptions(flip=True)).scores(image)
    torch.testing.assert_close(flipped / 2, plain.softmax(1))
    largest = Predictor(model, options=InferenceOptions(flip=True, fusion="max")).scores(image)
    torch.testing.assert_close(largest, plain)
    for options in (
        InferenceOptions(flip=True),
        InferenceOptions(window=(16, 20)),
        InferenceOptions(flip=True, window=(16, 20)),
    ):
        assert torch.equal(Predictor(model, options=options).class_ids(image), Predictor(model).class_ids(image))


def test_scales_of_an_image_without_detail_change_nothing():
    """A network that is the same at every scale: pointwise, on an image whose resized versions are itself."""
    image = torch.tensor([30, 120, 200], dtype=torch.uint8)[:, None, None].expand(3, 40, 24).contiguous()
    model = Pointwise()
    options = InferenceOptions(scales=(0.5, 0.75, 1.0, 1.25, 1.75), flip=True)
    found = Predictor(model, options=options).scores(image)
    torch.testing.assert_close(found / 10, Predictor(model).scores(image).softmax(1), rtol=1e-4, atol=1e-6)


def test_fusions_equal_a_direct_computation(image):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 5, 5, 2, 2), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1)).eval()
    x = image[None].float()

    def look(size, flip):
        pixels = F.interpolate(x, size, mode="bilinear", align_corners=False) if size != (37, 53) else x
        logits = model(pixels.flip(-1) if flip else pixels)
        logits = logits.flip(-1) if flip else logits
        return F.interpolate(logits, (37, 53), mode="bilinear", align_corners=False)

    with torch.inference_mode():
        looks = [look(size, flip) for size in ((18, 26), (37, 53), (56, 80)) for flip in (False, True)]
        scales = (0.5, 1.0, 1.5)
        mean = fused_scores(model, x, InferenceOptions(scales, True), "half_pixel")
        largest = fused_scores(model, x, InferenceOptions(scales, True, "max"), "half_pixel")
    torch.testing.assert_close(mean, sum(logits.softmax(1) for logits in looks))
    torch.testing.assert_close(largest, torch.stack(looks).amax(0))


def test_a_window_that_covers_the_image_is_the_whole_image(image):
    torch.manual_seed(3)
    model = degrid.deeplabv3("timm:test_resnet", 3, channels=8).eval()
    plain = Predictor(model).scores(image)
    options = InferenceOptions(window=(64, 64))
    assert torch.equal(Predictor(model, options=options).class_ids(image), Predictor(model).class_ids(image))
    assert torch.equal(Predictor(model, options=InferenceOptions(window=(37, 53))).scores(image), plain)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_a_blend_of_constant_logits_has_no_seam(overlap):
    image = torch.zeros(1, 3, 50, 70)
    options = InferenceOptions(window=(16, 24), overlap=overlap)
    constant = slide_in_bands(lambda x: torch.full((1, 2, 4, 6), 3.25), image, options, "half_pixel")
    bands = [(first, band.clone()) for first, band in constant]
    assert [first for first, _ in bands] == [sum(b.shape[2] for _, b in bands[:i]) for i in range(len(bands))]
    whole = torch.cat([band for _, band in bands], 2)
    assert whole.shape == (1, 2, 50, 70)
    torch.testing.assert_close(whole, torch.full_like(whole, 3.25))


def test_a_window_fades_into_the_next():
    """Two windows of 8 over 12 columns share 4; the outer one of these is idle on either side, by hand."""
    values = iter([0.0, 12.0])
    options = InferenceOptions(window=(2, 8), overlap=0.5)
    bands = slide_in_bands(
        lambda x: torch.full((1, 1, 2, 8), next(values)), torch.zeros(1, 3, 2, 12), options, "half_pixel"
    )
    row = torch.cat([band.clone() for _, band in bands], 2)[0, 0, 0]
    assert row.tolist() == pytest.approx([0, 0, 0, 0, 0, 12 * 1 / 3, 12 * 2 / 3, 12, 12, 12, 12, 12])


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_windows_equal_the_whole_image_where_the_network_looks_no_further_than_a_quarter_of_the_overlap(overlap):
    """Three 3x3 convolutions, one of rate 2 and one of stride 2, see 1 + 2 * (1 + 2) = 7 pixels to either side."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 3, 3, padding=1),
        torch.nn.Upsample(scale_factor=2),  # its pixels do not mix, so that enlarging the logits changes nothing
    )
    image = torch.rand(1, 3, 192, 320) * 255
    options = InferenceOptions(window=(128, 128), overlap=overlap)
    with torch.no_grad():
        found = torch.cat([band.clone() for _, band in slide_in_bands(net, image, options, "half_pixel")], 2)
        torch.testing.assert_close(found, net(image), rtol=1e-5, atol=1e-4)


def test_bands_hold_no_more_rows_than_a_window():
    image = torch.zeros(1, 3, 400, 40)
    rows = [b.shape[2] for _, b in slide_in_bands(Pointwise(), image, InferenceOptions(window=(64, 40)), "half_pixel")]
    assert sum(rows) == 400
    assert max(rows) <= 64


def test_crf_is_applied_to_the_fused_probabilities(image):
    from degrid.kernels.crf_settings import CRF
    from degrid.kernels.dense_crf import refine

    model = Pointwise()
    crf = CRF(bi_xy_std=10, bi_rgb_std=20, iterations=2)
    plain = Predictor(model).scores(image)[0].softmax(0)
    for options in (
        InferenceOptions(crf=crf),
        InferenceOptions(flip=True, crf=crf),
        InferenceOptions(window=(20, 20), crf=crf),
    ):
        found = Predictor(model, options=options).scores(image)[0]
        torch.testing.assert_close(found, refine(plain, image, crf), rtol=1e-3, atol=1e-4)
        assert torch.equal(Predictor(model, options=options).class_ids(image), found.argmax(0).to(torch.uint8))


def test_evaluation_and_predictor_use_them(image):
    from degrid.types import LabelSpace, Sample

    # Made once, since making the network seeds what the threads that read samples share.
    predictor = Predictor(Pointwise(), precision="float32")

    class Two:
        labels = LabelSpace.of_size(4)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            picture = image.roll(index, 2)
            return Sample(picture, predictor.class_ids(picture), f"s{index}")

    for options in (None, InferenceOptions(flip=True), InferenceOptions(window=(20, 20))):
        assert degrid.evaluate(Pointwise(), Two(), options=options).miou == 1.0
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    prediction = Predictor(Pointwise(), options=InferenceOptions(window=(20, 20))).predict(pixels)
    assert prediction.logits is None
    assert np.array_equal(prediction.ids, Predictor(Pointwise())(pixels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "factors above 0"),
        ({"scales": (0.0, 1.0)}, "factors above 0"),
        ({"fusion": "median"}, 'expected mean or max, got "median"'),
        ({"window": (0, 5)}, "at least 1 pixel"),
        ({"overlap": 1.0}, "from 0 to below 1"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        InferenceOptions(**settings)


def test_a_scale_that_leaves_nothing_is_refused(image):
    model = degrid.deeplabv3("timm:test_resnet", 3, channels=8).eval()
    with pytest.raises(
        UserError, match=r"scale 0\.2 makes the image of 53x37 pixels 11x7, less than one feature of stride 16"
    ):
        Predictor(model, options=InferenceOptions(scales=(0.2, 1.0))).scores(image)


@pytest.mark.parametrize(("picky", "sizes"), [(False, [(128, 128)]), (True, [(128, 128), (150, 140)])])
def test_a_corner_of_the_image_shows_what_can_be_folded(monkeypatch, picky, sizes):
    """The run that finds it keeps every map, which for a large image is many times what inference needs."""

    class Net(nn.Sequential):
        def forward(self, x):
            if picky and x.shape[-2:] != (150, 140):
                raise RuntimeError("expected 150 x 140")
            return super().forward(x.float())

    seen = []
    monkeypatch.setattr(
        fast, "folded", lambda model, example: seen.append(example.shape[-2:]) or folded(model, example)
    )
    model = Net(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    image = torch.randint(0, 256, (3, 150, 140), dtype=torch.uint8)
    found = Predictor(model, device="cpu", precision="float32").scores(image)
    assert [tuple(size) for size in seen] == sizes
    with torch.no_grad():
        torch.testing.assert_close(found, model(image[None]), rtol=1e-4, atol=1e-3)  # values to some hundreds
