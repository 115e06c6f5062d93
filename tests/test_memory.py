"""How much memory networks take, and what takes less."""

import copy
import functools
import math
import mmap
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import degrid
from degrid.acceleration.winograd_layer import WinogradConv2d, winograd_bytes
from degrid.background import Background, ahead
from degrid.contracts import ExportedNetwork
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.inference import predictor as predictor_module
from degrid.engine.inference.fast_network import FastNetwork
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor, _LiveBytes, activation_bytes
from degrid.engine.inference.tta import fused_scores
from degrid.engine.memory import available_to_process, enough_memory, resident_bytes
from degrid.kernels.crf_settings import CRF
from degrid.kernels.dense_crf import refine_bytes
from degrid.types import LabelSpace, UserError
from degrid.verbs import predict as predict_module


def test_live_bytes_by_hand():
    """4 -> 8 channels of 10x10 float32: 1200 + 3200 bytes of maps; after the first is freed 3200 + 800."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    image = 3 * 100 * 4
    assert (
        activation_bytes(net, (10, 10)) == image + 8 * 100 * 4 + 2 * 100 * 4
    )  # nn.Sequential's caller holds the image
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())


def test_memory_grows_with_the_image():
    model = degrid.deeplabv3("timm:test_resnet", 3, channels=16).eval()
    small, large = activation_bytes(model, (128, 128)), activation_bytes(model, (256, 512))
    assert large / small == pytest.approx(8, rel=0.05)


def test_a_network_that_looks_at_its_values_is_refused():
    class Curious(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(UserError, match="cannot tell how much memory this Curious needs"):
        activation_bytes(Curious(), (8, 8))


def test_a_memory_limit_chooses_windows_that_keep_it(limit_of_maps):
    model = degrid.deeplabv2("timm:test_resnet", 3).eval()
    limit = activation_bytes(model, (512, 512)) // 4
    predictor = Predictor(model, precision="float32", options=InferenceOptions(memory=limit))
    assert predictor.options_for((192, 192)).window is None
    window = predictor.options_for((512, 640)).window
    assert window is not None
    assert limit / 2 < activation_bytes(model, window) <= limit
    image = torch.randint(0, 256, (3, 512, 640), dtype=torch.uint8)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[-2:])))
    ids = Predictor(model, precision="float32", options=InferenceOptions(memory=limit)).class_ids(image)
    assert ids.shape == (512, 640)
    with pytest.raises(
        UserError, match=r"of 0 MiB cannot be kept: .* take 0 MiB, and windows of 128x128 pixels \d+ MiB more"
    ):
        Predictor(model, options=InferenceOptions(memory=1000)).class_ids(image)


def test_whether_windows_are_used_is_decided_once(monkeypatch):
    """Free memory changes from moment to moment; all images are processed by one answer."""
    model = degrid.deeplabv2("timm:test_resnet", 3).eval()
    answers = []
    limit = activation_bytes(model, (512, 512))

    def available(device):
        answers.append(limit if len(answers) % 2 else 10**12)
        return answers[-1]

    monkeypatch.setattr(predictor_module, "available_bytes", available)
    monkeypatch.setattr(predictor_module, "_LARGE", 1)
    predictor = Predictor(model, "cpu", "float32")
    image = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    first, second = predictor.predict(image), predictor.predict(image)
    assert (first.logits is None, second.logits is None) == (False, False)
    assert (len(answers), predictor.windowed) == (1, 0)
    short = Predictor(model, "cpu", "float32")
    assert short.predict(image).logits is short.predict(image).logits is None
    assert (len(answers), short.windowed) == (2, 2)


def test_scores_are_those_of_whole_images_unless_windows_are_asked_for(monkeypatch, caplog, limit_of_maps):
    monkeypatch.setattr(predictor_module, "available_bytes", lambda device: 1)
    monkeypatch.setattr(predictor_module, "_LARGE", 1)
    torch.manual_seed(0)
    model = degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8).eval()
    whole = degrid.evaluate(model, "synthetic:2", device="cpu")
    assert (whole.windowed, whole.windows) == (0, ())
    assert caplog.text.count("may not fit into memory whole; --window") == 1
    pair = degrid.compare([model, model], "synthetic:2", device="cpu", draws=2)
    monkeypatch.undo()
    assert degrid.evaluate(model, "synthetic:2", device="cpu").confusion == whole.confusion
    assert [each.confusion for each in pair.scores] == [whole.confusion] * 2
    limit = int(activation_bytes(model, (128, 128)) * 1.2)
    asked = degrid.evaluate(model, "synthetic:2", device="cpu", options=InferenceOptions(memory=limit))
    assert (asked.windowed, len(asked.windows)) == (2, 1)
    assert asked.confusion != whole.confusion


def test_a_memory_limit_is_that_of_the_process(monkeypatch):
    """What the process takes, the network's copy and, if there is room, compiled code and Winograd's weights come off
    it."""
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 21, 1)).eval()
    copied = 4 * (64 * 27 + 64 + 64 * 64 * 9 + 64 + 64 * 21 + 21)
    winograd = 3 * 4 * 64 * 64 * 64 + (64 << 20)  # 64 products in place of 9; tiles are 32 MiB in, and out
    assert winograd_bytes(net) == winograd
    code = 100 << 20
    monkeypatch.setattr(predictor_module, "used_bytes", lambda device: 300 << 20)
    monkeypatch.setattr(predictor_module, "code_bytes", lambda: code)
    cases = [
        ((winograd + code) * 2 - 1, "float32", 0),
        ((winograd + code) * 2, "float32", winograd + code),
        (code * 2, "bfloat16", code),
        (code * 2 - 1, "bfloat16", 0),
    ]
    for left, precision, more in cases:
        taken = (300 << 20) + (copied if precision == "float32" else copied // 2) + predictor_module._ASIDE
        predictor = Predictor(net, "cpu", precision, InferenceOptions(memory=taken + left))
        assert predictor._usable_memory() == left - more
        assert predictor.network.spares_memory is (more != winograd + code)
        assert predictor.network.uses_compiled is (more > 0)
    image = torch.zeros(3, 2000, 2000, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"of 310 MiB cannot be kept: the program and the network take 36\d MiB"):
        Predictor(net, "cpu", "float32", InferenceOptions(memory=310 << 20)).class_ids(image)


@pytest.mark.parametrize("fault", [lambda: torch.empty(10**15), lambda: bytearray(1 << 62)])
def test_training_that_runs_out_of_memory(fault):
    with (
        pytest.raises(UserError, match=r"training ran out of memory \(.*use a smaller train.batch_size"),
        enough_memory(),
    ):
        fault()
    with pytest.raises(RuntimeError, match="another fault"), enough_memory():
        raise RuntimeError("another fault")


@pytest.mark.skipif(not resident_bytes(), reason="only Linux says how much memory a process takes")
def test_the_memory_of_the_process_grows_by_what_is_taken():
    before = resident_bytes()
    with mmap.mmap(-1, 50 << 20) as taken:
        taken.write(b"x" * len(taken))
        assert 0.9 < (resident_bytes() - before) / len(taken) < 2.1


def test_without_memory_to_spare_the_copy_has_no_winograd_weights():
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).eval()
    batch = torch.zeros(1, 3, 40, 40)
    for spares in (False, True):
        network = FastNetwork(net, torch.device("cpu"), "float32", "half_pixel")
        network.spares_memory = spares
        torch.testing.assert_close(network(batch), net(batch).detach())
        assert network.bytes_to_come() == (0, 0)
        assert any(isinstance(each, WinogradConv2d) for each in network._network.modules()) is not spares


def test_memory_and_window_exclude_one_another():
    with pytest.raises(UserError, match="exclude each other"):
        InferenceOptions(memory=10, window=(5, 5))


def multi_scale(in_turn):
    torch.manual_seed(0)
    model = degrid.deeplabv2("timm:test_resnet", 5, scales=(0.75, 0.5)).train()
    model.scales_in_turn = in_turn
    return model


def step(model, image):
    scales = model.scale_logits(image)
    sum(logits.square().mean() for logits in [*scales, model.fused(scales)]).backward()


def test_scales_in_turn_give_the_same_gradients_and_statistics():
    image = torch.randint(0, 255, (2, 3, 97, 97)).float()
    once, in_turn = multi_scale(False), multi_scale(True)
    step(once, image)
    step(in_turn, image)
    for a, b in zip(once.parameters(), in_turn.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), in_turn.buffers(), strict=True))


def test_scales_in_turn_take_the_memory_of_the_largest():
    """1 + 0.75^2 + 0.5^2 = 1.81 times the feature maps of one scale, without it."""
    peaks = {}
    for in_turn in (False, True):
        model, count = multi_scale(in_turn).to("meta"), _LiveBytes()
        with count:
            step(model, torch.empty(2, 3, 385, 385, device="meta"))
        peaks[in_turn] = count.peak
    weights = sum(p.numel() * 4 for p in model.parameters())  # their gradients
    assert (peaks[True] - weights) / (peaks[False] - weights) < 0.75


def test_deep_copies_are_independent():
    model = multi_scale(True)
    other = copy.deepcopy(model)
    other.scales_in_turn = False
    assert model.scales_in_turn


def write(root, **files):
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


CPU = torch.device("cpu")
MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"


def test_files_kept_in_memory_count_as_available(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO)
    assert available_to_process(tmp_path) == 20_000_000 * 1024


def test_the_smallest_limit_of_the_control_groups_counts(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/slice/job\n")
    group = "sys__fs__cgroup__slice__"
    write(tmp_path, **{f"{group}memoryDOTmax": "3000000000\n", f"{group}memoryDOTcurrent": "1000000000\n"})
    write(tmp_path, **{f"{group}job__memoryDOTmax": "max\n", f"{group}job__memoryDOTcurrent": "900000000\n"})
    assert available_to_process(tmp_path) == 2_000_000_000
    write(tmp_path, **{f"{group}memoryDOTstat": "anon 5\ninactive_file 500000000\n"})
    assert available_to_process(tmp_path) == 2_500_000_000


def test_control_groups_of_version_1(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/x\n4:memory:/docker/1234\n")
    group = "sys__fs__cgroup__memory__"  # in the container the group is the top of its tree
    write(tmp_path, **{f"{group}memoryDOTlimit_in_bytes": "800", f"{group}memoryDOTusage_in_bytes": "300"})
    assert available_to_process(tmp_path) == 500


def test_a_limit_of_addresses_counts(tmp_path):
    line = "Max address space         {}           unlimited            bytes     \n"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__statm="100 50 20 1 0 40 0\n")
    for limit, expected in ((f"{10**9}", 10**9 - 100 * os.sysconf("SC_PAGE_SIZE")), ("unlimited", 20_000_000 * 1024)):
        write(tmp_path, proc__self__limits="Limit   Soft Limit   Hard Limit   Units\n" + line.format(limit))
        assert available_to_process(tmp_path) == expected


def test_somewhere_else_something_is_available(tmp_path):
    assert available_to_process(tmp_path) > 1 << 20


def test_windows_that_save_memory_are_told(tmp_path, limit_of_maps):
    model = degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8).eval()
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    limit = int(activation_bytes(model, (128, 128)) * 1.2)
    for options, told in ((InferenceOptions(memory=limit), 1), (InferenceOptions(window=(96, 96)), 0)):
        found = degrid.predict(model, tmp_path / "a.png", tmp_path / f"{told}", device="cpu", options=options)
        assert sum("1 image predicted in windows of " in remark for remark in found.remarks) == told


def test_scores_that_are_fused_count(limit_of_maps, monkeypatch):
    """Of 1000x1000 pixels and 3 classes: class ids, and two views and their sum in float32, with the views' pixels."""
    model = degrid.deeplabv3("timm:test_resnet", 3, channels=8).eval()
    monkeypatch.setattr(predictor_module, "_ROW", 4)
    cases = (
        (InferenceOptions(), 1),
        (InferenceOptions(crf=CRF()), 1 + 3 * 4 * 3),
        (InferenceOptions(flip=True), 1 + 3 * 4 * 3 + 2 * 4 * 3),
        (InferenceOptions(scales=(0.5, 1.0)), 1 + 3 * 4 * 3 + 4 * 3),
        (InferenceOptions(scales=(1.0, 2.0)), 1 + (2 + 4) * 4 * 3 + 4 * 4 * 3),
    )
    for options, each in cases:
        assert Predictor(model, "cpu", options=options)._bytes_of_results((1000, 1000)) == each * 10**6


def test_views_that_are_fused_are_in_memory_three_times_at_most():
    """The largest of what is alive at once, of a network whose own map is small."""
    size, classes = (160, 192), 4

    class Net(nn.Module):
        def forward(self, image):
            return image.float().mean((1, 2, 3))[:, None, None, None] * torch.arange(classes)[:, None, None] / 255

    for options in (InferenceOptions(flip=True), InferenceOptions(scales=(0.5, 1.0), flip=True, fusion="max")):
        count = _LiveBytes()
        image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        with torch.inference_mode(), count:
            fused_scores(Net(), image, options, "half_pixel")
        of_map, of_pixels = 4 * classes * math.prod(size), 4 * 3 * math.prod(size)
        assert 3 * of_map <= count.peak <= 3 * of_map + 2 * of_pixels


class Exported(ExportedNetwork):
    """As one in a file that gives logits."""

    labels, resize, output = LabelSpace.of_size(2), "half_pixel", "logits"

    def forward(self, image):
        return torch.cat([image[:, :1].float(), 100 - image[:, :1].float()], 1)


def test_a_limit_is_refused_for_exported_models_before_they_are_loaded(tmp_path):
    """No file that is read is empty; windows are what bounds them."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.pt2").touch()
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    options, said = InferenceOptions(memory=4 << 30), "a limit cannot be kept with an exported model, .* --window"
    for name in ("model.onnx", "model.pt2"):
        with pytest.raises(UserError, match=said):
            degrid.evaluate(tmp_path / name, "synthetic:1", options=options)
        with pytest.raises(UserError, match=said):
            degrid.predict(tmp_path / name, tmp_path / "a.png", tmp_path / "out", options=options)
    with pytest.raises(UserError, match=said):
        Predictor(Exported(), options=options)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    whole, inside = Exported(), Predictor(Exported(), "cpu", options=InferenceOptions(window=(32, 32)))
    np.testing.assert_array_equal(inside(pixels), Predictor(whole, "cpu")(pixels))
    assert (inside.windowed, inside.windows) == (1, {(32, 32)})


def test_a_crf_counts(limit_of_maps):
    """It takes the whole image, when the feature maps are gone."""
    model = degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8).eval()
    need = refine_bytes(200 * 300, len(SyntheticScenes.labels), is_compiled=True)
    assert need > 2 * activation_bytes(model, (200, 300))  # windows are not called for
    enough, short = (
        Predictor(model, "cpu", options=InferenceOptions(memory=memory, crf=CRF()))
        for memory in (need + 200 * 300, need)  # with the class ids, and without
    )
    assert enough.options_for((200, 300)).window is None
    with pytest.raises(UserError, match=r"the CRF of an image of 300x200 pixels \d+ MiB more; allow \d+ MiB or more"):
        short.options_for((200, 300))


def test_under_a_limit_large_images_are_read_and_written_one_at_a_time(tmp_path):
    Image.new("1", (2000, 1000)).save(tmp_path / "large.png")
    Image.new("1", (1999, 1000)).save(tmp_path / "small.png")
    small, both, limit = [tmp_path / "small.png"], list(tmp_path.iterdir()), InferenceOptions(memory=1)
    assert [predict_module._depth(*case) for case in ((limit, small), (limit, both), (None, both))] == [2, 0, 2]
    began, seen = [], []
    reads = ahead((functools.partial(began.append, index) for index in range(3)), depth=0)
    with Background(depth=0) as background:
        for read in reads:
            read()
            assert len(began) == len(seen) + 1
            background.run(functools.partial(seen.append, began[-1]))
            assert seen == began


IN_A_PROCESS = """
import sys
from degrid.cli import run
try:
    run()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not resident_bytes(), reason="only Linux says how much memory a process takes")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_process_keeps_its_limit(tmp_path, precision):
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3plus("timm:test_resnet", 2), tmp_path / "model")
    pixels = torch.randint(0, 256, (2000, 1600, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png", compress_level=1)
    command = f"predict model a.png -o out --memory 1000MiB --overlap 0.1 --device cpu --precision {precision}".split()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1]) / 1024
    assert "predicted in windows of" in done.stdout
    assert 700 < peak < 1150
