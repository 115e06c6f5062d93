"""The server: its answers are those of degrid.predict, and what asks for too much is refused."""

import asyncio
import base64
import io
import json
import socket
import tempfile
import zlib
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

import degrid
from degrid.analysis.receptive_field import influence
from degrid.data.formats.shapes.coco import segmentation_region
from degrid.data.formats.shapes.polygon import polygon_region
from degrid.data.formats.shapes.region import Thing, draw, without
from degrid.serving import answers
from degrid.serving.app import Service, make_app
from degrid.serving.guard import Guard, is_local
from degrid.serving.served import ServeLimits, Worker, serve_as
from degrid.types import UserError

LABELS = degrid.LabelSpace(("sky", "road", "car"), ((0, 0, 255), (128, 64, 128), (255, 0, 0)))


def picture(seed=0, size=(48, 64)):
    """Blocks of colours, so that there are regions with holes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return Image.fromarray(small.repeat(8, 0).repeat(8, 1))


def file_of(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = degrid.deeplabv3plus("timm:test_resnet", LABELS, output_stride=16, pretrained=False)
    place = tmp_path_factory.mktemp("serve") / "model"
    degrid.save(network, place)
    return place


@pytest.fixture(scope="module")
def served(model):
    return serve_as("tiny", degrid.Predictor(degrid.load(model), "cpu", "float32"))


@pytest.fixture(scope="module")
def client(served):
    limits = ServeLimits(upload=20_000, pixels=10_000, files=2, waiting=1)
    with TestClient(make_app([served], limits), base_url="http://localhost") as client:
        yield client


def test_ids_are_those_that_degrid_predict_writes(client, model, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture(1).save(photos / "a.jpg", exif=exif)
    Image.fromarray((np.asarray(picture(2))[..., 0] * 257.0).astype(np.uint16)).save(photos / "b.png")
    degrid.predict(model, photos, tmp_path / "out", precision="float32")
    for name in ("a.jpg", "b.png"):
        expected = Image.open(tmp_path / "out" / f"{name[0]}.png")
        answer = client.post("/predict.png", files={"file": (name, (photos / name).read_bytes())})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        found = Image.open(io.BytesIO(answer.content))
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        assert found.getpalette() == expected.getpalette()


def ask(client, wanted, *images, status=200):
    query = "&".join(f"output={each}" for each in wanted)
    files = [("files", (f"{number}.png", image)) for number, image in enumerate(images)]
    answer = client.post(f"/predict?{query}", files=files)
    assert answer.status_code == status, answer.text
    return answer.json()


def raw(text, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def test_every_form_of_an_answer_is_the_same_map(client, served):
    images = [picture(3), picture(4, (40, 56))]
    answer = ask(client, ["ids", "polygons", "rle", "raw", "image"], *map(file_of, images))
    answers.Predictions.model_validate(answer)
    assert answer["model"] == "tiny"
    for number, (image, found) in enumerate(zip(images, answer["images"], strict=True)):
        prediction = served.predictor.predict(image)
        ids = prediction.ids
        shape = height, width = ids.shape
        assert (found["file"], found["width"], found["height"]) == (f"{number}.png", width, height)
        assert len(np.unique(ids)) > 1
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(found["ids"])))), ids)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"])))), np.asarray(image))
        assert np.array_equal(raw(found["raw"]["ids"], shape), ids)
        logits = torch.nn.functional.interpolate(torch.from_numpy(prediction.logits)[None], shape, mode="bilinear")
        sure = logits.softmax(1).amax(1)[0].numpy()
        assert np.abs(raw(found["raw"]["confidence"], shape) / 255 - sure).max() <= 0.51 / 255
        for each in found["classes"]:
            assert LABELS.names[each["id"]] == each["name"]
            assert each["pixels"] == np.count_nonzero(ids == each["id"])
            assert each["share"] == each["pixels"] / ids.size
        polygons = [Thing(each["id"], solid(each, *shape)) for each in found["polygons"]]
        assert np.array_equal(draw(polygons, *shape, rest=99), ids)
        for each, thing in zip(found["polygons"], polygons, strict=True):
            mask = draw([Thing(1, thing.region)], *shape) == 1
            assert each["area"] == mask.sum()
            assert each["score"] == pytest.approx(sure[mask].mean(), abs=1e-5)
        for each in found["rle"]:
            mask = draw([Thing(1, segmentation_region(each["segmentation"], *shape))], *shape) == 1
            assert np.array_equal(mask, ids == each["category_id"])
            assert each["score"] == pytest.approx(sure[mask].mean(), abs=1e-5)
            x, y, wide, high = each["bbox"]
            assert mask[y : y + high, x : x + wide].sum() == mask.sum() == each["area"]
            assert all(mask[y : y + high, x : x + wide].any(axis)[[0, -1]].all() for axis in (0, 1))


def solid(polygon, *shape):
    outer, *holes = (polygon_region(np.array(ring, float), *shape) for ring in (polygon["outer"], *polygon["holes"]))
    return without(outer, holes)


def test_by_default_ids_alone(client):
    (found,) = ask(client, [], file_of(picture()))["images"]
    assert set(found) == {"file", "width", "height", "classes", "ids"}


def test_noise_is_not_described_by_outlines(client, monkeypatch):
    monkeypatch.setattr(answers, "_MOST_EDGES", 10)
    assert "too many pieces" in ask(client, ["polygons"], file_of(picture(3)), status=422)["detail"]


@pytest.mark.parametrize(
    ("images", "status", "message"),
    [
        ([b"text"], 415, "0.png is not an image that is read here"),
        ([b"%!PS-Adobe-3.0 EPSF-3.0\n"], 415, "0.png is not an image"),
        ([file_of(picture())[:200]], 422, "0.png is damaged or cut short"),
        ([file_of(Image.new("RGB", (101, 100)))[:60]], 413, "0.png: a request may have 0.0 million pixels"),
        ([file_of(picture(size=(80, 72)))] * 2, 413, "1.png: a request may have"),
        ([file_of(picture())] * 3, 413, "a request may have 2 images, got 3"),
        ([b"x" * 30_000], 413, "a request may have 0.0190735 MiB"),
        ([], 422, "files"),
    ],
)
def test_uploads_that_are_refused(client, images, status, message):
    # The fourth is cut short: it is refused for its size, which its beginning says, before anything is decoded.
    assert message in ask(client, [], *images, status=status)["detail"]


def test_a_tiff_of_many_bands_counts_by_its_bytes(client):
    tiff = io.BytesIO()
    Image.new("RGB", (80, 80)).save(tiff, "TIFF")
    content = bytearray(tiff.getvalue())
    place = content.index(b"\x15\x01\x03\x00")  # SamplesPerPixel
    content[place + 8 : place + 10] = (300).to_bytes(2, "little")
    ask(client, [], bytes(content), status=413)


def test_bytes_are_counted_where_no_header_says_how_many(client):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/predict", content=(b"x" * 1000 for _ in range(100)), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("model=other", 404, 'no model "other"; there are tiny'),
        ("output=masks", 422, "output: Input should be 'ids'"),
    ],
)
def test_values_that_cannot_be(client, query, status, message):
    answer = client.post(f"/predict?{query}", files={"files": file_of(picture())})
    assert answer.status_code == status
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "form", "detail"),
    [
        ("/predict", {}, "files: expected images as files of a form, as curl -F files=@photo.jpg sends"),
        (
            "/predict",
            {"files": ["a", "b"]},
            "files: expected images as files of a form, as curl -F files=@photo.jpg sends",
        ),
        (
            "/receptive_field",
            {"file": "a", "x": "1"},
            "file: expected an image as a file of a form, as curl -F file=@photo.jpg sends; "
            "y: expected a value of the form, got none",
        ),
    ],
)
def test_forms_without_what_is_needed(client, path, form, detail):
    answer = client.post(path, data=form)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


def test_names_that_are_no_text(client):
    head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="+2AA-"\r\n\r\n'
    body, kind = head + file_of(picture()) + b"\r\n--x--\r\n", "multipart/form-data; boundary=x; charset=utf-7"
    answer = client.post("/predict", content=body, headers={"content-type": kind})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["file"] == r"\ud800"


def test_models_health_and_the_description(client):
    (found,) = client.get("/models").json()["models"]
    assert answers.Models.model_validate({"models": [found]})
    assert [each["name"] for each in found["classes"]] == list(LABELS.names)
    assert found["classes"][1]["color"] == [128, 64, 128]
    assert found["precision"] == "float32"
    assert client.get("/health").json() == {"status": "ok", "requests": 0}
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/predict.png", "/receptive_field", "/models", "/health"}


@pytest.mark.parametrize("path", ["/", "/page.js", "/models", "/health", "/openapi.json"])
def test_headers_alone(client, path):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]


def test_no_upload_stays_on_the_disk(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held: list[int] = []
    predict = client.app.state.service.models["tiny"].predictor.predict

    def watched(scene):
        held.append(len(list(tmp_path.iterdir())))
        return predict(scene)

    monkeypatch.setattr(client.app.state.service.models["tiny"].predictor, "predict", watched)
    ask(client, ["rle"], file_of(picture()), file_of(picture(1)))
    assert held == [2, 2]
    ask(client, ["rle"], file_of(picture()), file_of(picture())[:40], status=422)
    assert not list(tmp_path.iterdir())


def test_when_all_places_are_taken(client):
    worker = client.app.state.service.worker
    assert worker.take_place()
    assert worker.take_place()
    try:
        answer = client.post("/predict", files={"files": file_of(picture())})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").json()["requests"] == 2
    finally:
        worker.give_back()
        worker.give_back()
    ask(client, [], file_of(picture()))
    assert worker.taken == 0


def test_the_page_loads_nothing_from_elsewhere(client):
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "//" not in answer.text.replace("// ", "")
    assert len(list(resources.files("degrid.serving").joinpath("page").iterdir())) == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "models.example:8000"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "https://page.example"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://["}, 403),
    ],
)
def test_pages_of_other_sites_are_not_answered(client, headers, status):
    assert client.get("/models", headers=headers).status_code == status


def test_the_token(served):
    with TestClient(make_app([served], token="a long token"), base_url="http://models.example") as client:
        assert client.get("/").status_code == 200
        assert client.get("/health").status_code == 200
        for given in (
            None,
            "",
            "Bearer",
            "Bearer a long toke",
            "Basic a long token",
            "Bearer a long token2",
            "Bearer ä",
        ):
            answer = client.get("/models", headers={} if given is None else {"authorization": given.encode()})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/models", headers={"authorization": "Bearer a long token"}).status_code == 200


def through_the_guard(receive, limits, **headers):
    """The status that a request gets from an application that reads all of it."""
    pairs = [(b"host", b"localhost"), *((name.encode(), value.encode()) for name, value in headers.items())]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": pairs}
    sent, worker = [], Worker(0)

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def send(message):
        sent.append(message)

    async def run():
        from starlette.middleware.exceptions import ExceptionMiddleware

        await Guard(ExceptionMiddleware(application), worker, limits, None)(scope, receive, send)

    asyncio.run(run())
    assert worker.taken == 0
    return sent[0]["status"]


def test_a_request_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("degrid.serving.guard._IDLE_SECONDS", 0.01)

    async def receive():
        await asyncio.sleep(60)

    assert through_the_guard(receive, ServeLimits(seconds=0.02)) == 408


def test_what_is_left_unread_is_read_within_bounds():
    count = 0

    async def receive():
        nonlocal count
        count += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    assert through_the_guard(receive, ServeLimits(upload=1000)) == 413
    assert 40 <= count <= 42


def test_a_sender_that_waits_for_leave_is_refused_at_once():
    async def receive():
        pytest.fail("it would send all of it")

    headers = {"content-length": str(10**12), "expect": "100-continue"}
    assert through_the_guard(receive, ServeLimits(), **headers) == 413


def test_a_job_whose_sender_has_gone_is_not_begun(served):
    service, ran = Service([served], ServeLimits()), []

    class Gone:
        async def is_disconnected(self):
            return True

    async def run():
        import threading

        stop = threading.Event()
        first = service.worker.submit(stop.wait)
        waiting = asyncio.ensure_future(service.run(Gone(), lambda: ran.append(1), every=0.01))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stop.set()
        first.result()

    asyncio.run(run())
    service.worker.close()
    assert ran == []


def test_influence_without_gradients_is_refused():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(UserError, match="gives no gradients"):
        influence(lambda image: image.detach() * weight, torch.zeros(3, 5, 5, dtype=torch.uint8), 2, 2)


def test_influence_of_a_dilated_convolution_by_hand():
    network = nn.Conv2d(1, 2, 3, padding=4, dilation=4, bias=False)
    with torch.no_grad():
        network.weight[0] = 1
        network.weight[1] = -1
    field, best = influence(network, torch.ones(1, 21, 25, dtype=torch.uint8), 10, 12)
    expected = np.zeros((21, 25))
    expected[6:15:4, 8:17:4] = 1
    assert best == 0
    assert np.array_equal(field, expected)
    with pytest.raises(degrid.UserError, match="expected a pixel in the image of 25x21, got row 21"):
        influence(network, torch.ones(1, 21, 25, dtype=torch.uint8), 21, 0)


def test_the_receptive_field_of_a_pixel(client, served):
    image = picture(5)
    answer = client.post("/receptive_field", files={"file": file_of(image)}, data={"x": 20, "y": 30})
    assert answer.status_code == 200
    found = answer.json()
    answers.ReceptiveField.model_validate(found)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    field, best = influence(served.predictor.model, pixels, 30, 20)
    assert found["id"] == best == served.predictor(image)[30, 20]
    shape = found["height"], found["width"]
    assert shape == (48, 64)
    expected = np.sqrt(field / field.max())
    assert np.abs(raw(found["map"], shape) / 255 - expected).max() <= 0.51 / 255
    side = found["size95"] // 2
    within = [field[max(0, 30 - each) : 31 + each, max(0, 20 - each) : 21 + each].sum() for each in (side - 1, side)]
    assert within[0] < 0.95 * field.sum() <= within[1]
    outside = client.post("/receptive_field", files={"file": file_of(image)}, data={"x": 64, "y": 0})
    assert outside.status_code == 422
    assert "expected a pixel in the image of 64x48" in outside.json()["detail"]


def test_a_network_without_names_for_its_classes():
    found = serve_as("plain", degrid.Predictor(nn.Conv2d(3, 5, 1), "cpu", "float32"))
    assert found.labels.names == tuple(f"class {index}" for index in range(5))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_hosts_of_this_machine(host):
    assert is_local(host)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"host": "0.0.0.0"}, "others could reach the server at 0.0.0.0: give a --token"),
        ({"host": "models.example"}, "give a --token"),
        ({"host": "0.0.0.0", "token": "short"}, "a token needs at least 8 characters, got 5"),
        ({"port": 70_000}, "expected a port from 0 to 65535"),
        ({"models": []}, "at least one model"),
        ({"models": "no_such_folder", "port": 0}, "no model in no_such_folder"),
    ],
)
def test_what_cannot_be_served(model, arguments, message):
    with pytest.raises(degrid.UserError, match=message):
        degrid.serve(**{"models": model, **arguments})


def test_a_port_that_is_taken(model):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(degrid.UserError, match="choose another --port"),
    ):
        degrid.serve(model, port=taken.getsockname()[1])


@pytest.mark.parametrize("wrong", [{"upload": 0}, {"waiting": -1}, {"seconds": 0}])
def test_limits_that_cannot_be(wrong):
    with pytest.raises(degrid.UserError, match="server's limits must be"):
        ServeLimits(**wrong)


def test_answers_are_json_that_browsers_take(client):
    text = client.post("/predict?output=raw", files={"files": file_of(picture())}).text
    assert json.loads(text, parse_constant=pytest.fail)
