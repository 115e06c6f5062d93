"""What exported files hold: operations that runtimes take, named sizes, and fixed ones where that is asked for."""

import importlib
import itertools
import threading
import zipfile
from collections import namedtuple

import pytest
import torch
from test_export import LABELS, ids_of, network
from timm.layers.padding import pad_same as timm_pad_same

import degrid
from degrid.exporters.exporter import Exporter
from degrid.exporters.facts import ImageInput
from degrid.exporters.graph import ExportGraph, Source, example_image, pad_same, to_plain_layers, traceable_padding
from degrid.exporters.onnx import Onnx
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.torch_export import holds_compiled_code
from degrid.model_folder import open_model
from degrid.models.aspp import ASPP, SummedASPP
from degrid.types import UserError


@pytest.fixture(scope="module")
def model():
    return network(operator="tent")


def exported(model, path, **options):
    import onnx

    degrid.export(model, path, **options)
    return onnx.load(path)


def operations(made):
    return {node.op_type for node in made.graph.node}


def shape_of(value):
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


def type_of(value):
    import onnx

    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


@pytest.mark.parametrize(("kernel", "step", "rate"), [*itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 5))])
def test_padding_is_that_of_timm(kernel, step, rate):
    for height, width in itertools.product(range(1, 10), (7, 12)):
        x = torch.rand(1, 1, height, width)
        how = (kernel, 3), (step, 2), (rate, 1), -1.0
        assert torch.equal(pad_same(x, *how), timm_pad_same(x, *how))


def test_timm_pads_as_before_after_tracing():
    module = importlib.import_module("timm.layers.conv2d_same")
    before = module.pad_same
    with traceable_padding():
        assert module.pad_same is pad_same
    assert module.pad_same is before


@pytest.mark.parametrize("relu", [True, False])
def test_the_pooled_pixel_is_added(relu):
    torch.manual_seed(0)
    aspp = ASPP(6, 4, (2, 3), relu=relu).eval()
    for norm in aspp.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(SummedASPP(aspp)(x), aspp(x), rtol=1e-5, atol=1e-6)


def test_an_aspp_of_another_make_stays():
    class Own(ASPP):
        def forward(self, x):
            return 2 * super().forward(x)

    plain, own = torch.nn.Sequential(ASPP(4, 4, (2,))), torch.nn.Sequential(Own(4, 4, (2,)))
    for net in (plain, own):
        assert to_plain_layers(net) == 0
    assert type(plain[0]) is SummedASPP
    assert type(own[0]) is Own


def test_a_free_file(model, tmp_path):
    made = exported(model, tmp_path / "m.onnx")
    assert [each.version for each in made.opset_import if not each.domain] == [18]
    assert shape_of(made.graph.input[0]) == ["batch", 3, "height", "width"]
    assert made.graph.output[0].name == "ids"
    assert shape_of(made.graph.output[0]) == ["batch", "height", "width"]
    assert not operations(made) & {"Expand", "Tile", "Ceil", "Mod", "Max"}
    # OpenCV 5.0 takes a sum with a convolution for a shortcut, and a single pixel added to a map is none.
    shapes = {value.name: shape_of(value)[2:] for value in made.graph.value_info}
    sums = [node for node in made.graph.node if node.op_type == "Add"]
    assert not any([1, 1] in [shapes.get(name) for name in node.input] for node in sums)
    known = {"batch", "height", "width", ""}
    assert {size for value in made.graph.value_info for size in shape_of(value) if isinstance(size, str)} <= known


def test_logits_have_sizes_of_their_own(model, tmp_path):
    made = exported(model, tmp_path / "m.onnx", output="logits", format=Onnx(opset=19))
    assert [each.version for each in made.opset_import if not each.domain] == [19]
    assert shape_of(made.graph.output[0]) == ["batch", 3, "logits_height", "logits_width"]


def test_a_fixed_file_has_no_arithmetic_of_sizes_and_no_uint8(model, tmp_path):
    takes = ImageInput("float32", (50, 66))
    made = exported(model, tmp_path / "m.onnx", takes=takes)
    assert not operations(made) & {"Shape", "Cast", "Gather", "Reshape", "Expand", "ConstantOfShape"}
    assert shape_of(made.graph.input[0]) == [1, 3, 50, 66]
    assert (type_of(made.graph.input[0]), type_of(made.graph.output[0])) == ("FLOAT", "INT64")
    loaded = ExportedModel(tmp_path / "m.onnx")
    assert loaded.facts.takes == takes
    image = example_image((1, 3, 50, 66), seed=4)
    assert loaded(image).dtype == torch.uint8
    assert (loaded(image) == ids_of(model, image)).float().mean() > 0.999
    with pytest.raises(UserError, match=r"takes 1 image of 50x66, got 2 images of 50x66; resize, or export"):
        loaded(image.expand(2, -1, -1, -1))


@pytest.mark.slow
def test_a_fixed_number_of_images_of_any_size(model, tmp_path):
    made = exported(model, tmp_path / "m.onnx", takes=ImageInput(batch=2))
    assert shape_of(made.graph.input[0]) == [2, 3, "height", "width"]
    loaded = ExportedModel(tmp_path / "m.onnx")
    image = example_image((2, 3, 41, 37), seed=4)
    assert (loaded(image) == ids_of(model, image)).float().mean() > 0.999
    with pytest.raises(UserError, match=r"takes 2 images of any size, got 1 image of 41x37"):
        loaded(image[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageInput("uint16"), 'unknown input "uint16"'),
        (lambda: ImageInput(size=(0, 5)), r"at least one image of one pixel; got size \(0, 5\)"),
        (lambda: ImageInput(batch=0), "batch 0"),
        (lambda: Onnx(17), "opset 17: expected 18 to 23"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_terms_of_sizes_do_not_grow_with_the_layers():
    """A tracer that cannot see ceil(H / 2) in each layer carries a longer term to the next."""
    layers = importlib.import_module("timm.layers.conv2d_same")
    model = torch.nn.Sequential(*(layers.Conv2dSame(3, 3, 3, 2) for _ in range(3)))
    source = Source.of(model, "logits", ImageInput("float32"))
    height = source.program.graph.output_node().args[0][0].meta["val"].shape[2]
    assert str(height).count("//") <= 1, height


@pytest.mark.slow
def test_a_pt2_file_takes_any_size_as_pytorch_opens_it(tmp_path):
    """Tracing saw an odd number of blocks, and that an image is large; neither is a condition on others."""
    model = network(degrid.deeplabv3, "gi")
    degrid.export(model, tmp_path / "m.pt2", format="torch-export")
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    for height, width in ((64, 64), (33, 80), (16, 24)):
        image = example_image((1, 3, height, width), seed=6)
        assert (loaded(image) == ids_of(model, image)).float().mean() > 0.999


@pytest.mark.parametrize("encoder", ["timm:test_resnet", pytest.param("timm:convnext_atto", marks=pytest.mark.slow)])
def test_padding_of_timm_can_be_stored(encoder, tmp_path):
    """resnet-D averages with "SAME" padding where a stride was removed; torch.export cannot store its `ceil`."""
    model = degrid.deeplabv3(encoder, LABELS, output_stride=8, channels=8, operator="tent").eval()
    source = Source.of(model, "logits", ImageInput())
    torch.export.save(source.program, tmp_path / "m.pt2")
    image = example_image((1, 3, 75, 131), seed=1)
    with torch.no_grad():
        found, wanted = torch.export.load(tmp_path / "m.pt2").module(check_guards=False)(image), model(image)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_the_graph_is_a_copy(model):
    before = [type(module) for module in model.modules()]
    ExportGraph(model)
    assert [type(module) for module in model.modules()] == before
    assert issubclass(Onnx, Exporter)


Named = namedtuple("Named", ("aux", "logits"))


class OfUser(torch.nn.Module):
    """Networks of other programs, which degrid's own do not resemble."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv = kind, torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        if self.kind == "floats" and not x.is_floating_point():
            raise ValueError("expected floats")
        if self.kind == "in place":
            x = x.add_(57)
        y = self.conv(x.float() / 255)
        return {"named": Named(-y, y), "dictionary": {"aux": -y, "out": y}}.get(self.kind, y)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["floats", "in place", "named", "dictionary"])
def test_networks_of_users_are_written_as_they_are_predicted_with(kind, tmp_path):
    model, pixels = OfUser(kind), example_image((1, 3, 40, 50))
    labels = degrid.LabelSpace.of_size(2)
    degrid.export(model, tmp_path / "m.pt2", format="torch-export", output="logits", labels=labels)
    found = torch.export.load(tmp_path / "m.pt2").module()(pixels.clone())
    expected = degrid.Predictor(OfUser(kind), "cpu", "float32").scores(pixels[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class OfOtherTypes(OfUser):
    """Casts its maps itself, or is in 16 bits as a whole."""

    def __init__(self, kind):
        super().__init__(kind)
        self.conv.to({"double": torch.float64}.get(kind, torch.float16))

    def forward(self, x):
        return self.conv(x.double() if self.kind == "double" else x.half() if self.kind == "half" else x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["double", "half", "all in half"])
def test_networks_of_other_types_are_written(kind, tmp_path):
    model, pixels = OfOtherTypes(kind), example_image((1, 3, 40, 50))
    labels = degrid.LabelSpace.of_size(2)
    degrid.export(model, tmp_path / "m.pt2", format="torch-export", output="logits", labels=labels)
    found = open_model(tmp_path / "m.pt2")(pixels).float()
    with torch.no_grad():
        expected = model(pixels if kind != "all in half" else pixels.half()).float()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0.2)
    assert all(each.dtype == model.conv.weight.dtype for each in model.parameters())


class Large(OfUser):
    def forward(self, x):
        assert x.shape[-2] > 90, "too small for me"
        return super().forward(x)


class ByValue(OfUser):
    def forward(self, x):
        return super().forward(x if x.float().mean() < 100 else 255 - x)


@pytest.mark.slow
def test_networks_that_cannot_be_compared_or_traced_are_refused_in_one_sentence(tmp_path, capfd):
    for model, message in (
        (Large(""), "fails on images of 65x97 .too small for me"),
        (ByValue(""), "tracing it failed"),
    ):
        with pytest.raises(UserError, match=message):
            degrid.export(model, tmp_path / "m.pt2", format="torch-export", labels=degrid.LabelSpace.of_size(2))
    assert capfd.readouterr() == ("", "")


class OneSize(OfUser):
    """Takes no image but of one size."""

    def forward(self, x):
        return super().forward(x) + torch.zeros(64, 64)


@pytest.mark.slow
def test_what_cannot_be_copied_or_run_is_refused_in_one_sentence(tmp_path):
    locked, fixed = OfUser(""), OneSize("")
    locked.lock = threading.Lock()
    for model, message in (
        (locked, "OfUser cannot be copied .TypeError"),
        (fixed, "this network cannot be exported: tracing it failed .*--size"),
    ):
        with pytest.raises(UserError, match=message):
            degrid.export(model, tmp_path / "m.pt2", format="torch-export", labels=degrid.LabelSpace.of_size(2))
    assert not list(tmp_path.iterdir())
    takes = ImageInput(size=(64, 64))  # as the sentence says
    labels = degrid.LabelSpace.of_size(2)
    degrid.export(fixed, tmp_path / "m.pt2", format="torch-export", takes=takes, labels=labels)


def test_a_damaged_file_is_refused(tmp_path):
    """PyTorch opens it, and predicts with other weights."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1)).eval()
    torch.nn.init.constant_(network[0].weight, 0.123)
    labels = degrid.LabelSpace.of_size(2)
    degrid.export(network, tmp_path / "m.pt2", format="torch-export", labels=labels)
    whole = (tmp_path / "m.pt2").read_bytes()
    weight = network[0].weight.detach().numpy().tobytes()
    assert whole.count(weight) == 1
    (tmp_path / "m.pt2").write_bytes(whole.replace(weight, bytes([weight[0] ^ 64]) + weight[1:]))
    with pytest.raises(UserError, match=r"cannot read the exported model .*m\.pt2: .* damaged; copy or export"):
        open_model(tmp_path / "m.pt2")
    (tmp_path / "m.pt2").write_bytes(whole)
    assert open_model(tmp_path / "m.pt2").labels == labels


def test_a_damaged_table_of_contents_holds_no_compiled_code(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/model.so", "code")
    assert holds_compiled_code(tmp_path / "m.pt2")
    whole = (tmp_path / "m.pt2").read_bytes()
    (tmp_path / "m.pt2").write_bytes(whole.replace(b"PK\1\2", b"PK\1\3"))
    assert zipfile.is_zipfile(tmp_path / "m.pt2")
    assert not holds_compiled_code(tmp_path / "m.pt2")


class FiltersOfItsOwn(torch.nn.Module):
    """Each image is convolved with filters of its own, by as many groups as there are images."""

    def __init__(self):
        super().__init__()
        self.filters = torch.nn.Parameter(torch.rand(4, 3, 3, 3))

    def forward(self, image):
        x = image.float() / 255
        count, _, height, width = x.shape
        filters = self.filters * x.mean((1, 2, 3)).reshape(-1, 1, 1, 1, 1)
        y = torch.conv2d(x.reshape(1, -1, height, width), filters.reshape(-1, 3, 3, 3), padding=1, groups=count)
        return y.reshape(count, 4, height, width)


def test_what_onnx_cannot_hold_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"ONNX cannot hold this network at its operation aten.conv2d.* \(TypeError: "):
        degrid.export(
            FiltersOfItsOwn().eval(), tmp_path / "model.onnx", output="logits", labels=degrid.LabelSpace.of_size(4)
        )
    assert not list(tmp_path.iterdir())


class SeesBothWays(torch.nn.Module):
    """Images and their mirror images go through it as one batch, which is parted again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image):
        x = image.float() / 255
        straight, mirrored = self.conv(torch.cat([x, x.flip(-1)])).chunk(2)
        return straight + mirrored.flip(-1)


@pytest.mark.slow
def test_what_a_library_fails_at_is_said_in_a_sentence_that_helps(tmp_path):
    labels, message = degrid.LabelSpace.of_size(4), r"onnx cannot hold this network \(PassError: .*--batch"
    with pytest.raises(UserError, match=message):
        degrid.export(SeesBothWays().eval(), tmp_path / "model.onnx", labels=labels)
    assert not list(tmp_path.iterdir())
    degrid.export(SeesBothWays().eval(), tmp_path / "model.onnx", takes=ImageInput(batch=1), labels=labels)
