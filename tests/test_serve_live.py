"""`degrid serve` as a process: under load, when it is told to end, and in a browser."""

import base64
import http.client
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from PIL import Image

import degrid

pytestmark = pytest.mark.slow
MIB = 1 << 20
LABELS = degrid.LabelSpace(("sky", "road", "car"), ((0, 0, 255), (128, 64, 128), (255, 0, 0)))
SIZES = [(48, 64), (40, 56), (96, 80), (33, 71)]


def picture(seed, size):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), dtype=np.uint8)
    return Image.fromarray(small.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]])


def file_of(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


class Server:
    """A server process of two models, "one" and "two"."""

    def __init__(self, folder, *options):
        for seed, name in enumerate(("one", "two")):
            torch.manual_seed(seed)
            network = degrid.deeplabv3plus("timm:test_resnet", LABELS, output_stride=16, pretrained=False)
            degrid.save(network, folder / name)
        self.models = [folder / "one", folder / "two"]
        words = [sys.executable, "-m", "degrid", "serve", *map(str, self.models), "--port", "0", *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", self.process.stdout.readline())[1])

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def upload(self, path, content, field="file", **values):
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in values.items()
        ]
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'
        body = b"".join([*parts, head.encode(), content, f"\r\n--{boundary}--\r\n".encode()])
        return self.ask("POST", path, body, {"content-type": f"multipart/form-data; boundary={boundary}"})

    def resident(self):
        """MiB of memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def end(self):
        self.process.terminate()
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("models"), "--max-upload", "1MiB", "--waiting", "5")
    yield server
    # At the end: what has begun is answered, and nothing was said but where the server is.
    answers, image = [], file_of(picture(0, (480, 640)))
    thread = threading.Thread(target=lambda: answers.append(server.upload("/predict.png", image)))
    thread.start()
    while not json.loads(server.ask("GET", "/health")[2])["requests"]:
        assert thread.is_alive()
    assert server.end() == (0, "")
    thread.join(60)
    assert answers[0][0] == 200


def test_500_requests_of_every_kind(server):
    images = [picture(index, size) for index, size in enumerate(SIZES)]
    predictors = {path.name: degrid.Predictor(degrid.load(path), "cpu", "float32") for path in server.models}
    right = {(name, index): predictors[name](image) for name in predictors for index, image in enumerate(images)}
    files = [file_of(image) for image in images]
    kinds = ["good"] * 6 + ["garbage", "cut", "huge", "pixels", "form", "gone"]
    random.seed(0)
    jobs = [(random.choice(kinds), random.choice([*right]), random.randrange(1 << 30)) for _ in range(500)]

    def ask(kind, name, index, rng):
        if kind == "good":
            status, headers, content = server.upload(f"/predict.png?model={name}", files[index])
            if status == 200:
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), right[name, index])
            return status, headers
        if kind == "form":
            form = rng.choice(["multipart/form-data", "multipart/form-data; boundary=x", "text/plain"])
            return server.ask("POST", "/predict", rng.randbytes(3000), {"content-type": form})[:2]
        if kind == "garbage":
            content = rng.randbytes(rng.randrange(5000))
        elif kind == "cut":
            content = files[index][: rng.randrange(20, len(files[index]) - 20)]
        elif kind == "huge":
            content = bytes(rng.randrange(MIB, 3 * MIB))
        else:
            size = rng.randrange(5100, 60000).to_bytes(4, "big")
            content = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * size + b"\x08\x02\0\0\0" + bytes(1000)
        return server.upload("/predict", content, "files")[:2]

    def run(job):
        """The kind of a request, and what it was answered in turn until there was a place."""
        kind, (name, index), seed = job
        if kind == "gone":  # in the middle of its upload
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.putrequest("POST", "/predict")
            connection.putheader("content-length", "1000")
            connection.endheaders(files[index][:300])
            connection.close()
            return [(kind, 0)]
        statuses = []
        while True:
            status, headers = ask(kind, name, index, random.Random(seed))
            statuses.append((kind, status))
            if status != 503:
                return statuses
            assert int(headers["retry-after"]) >= 1
            time.sleep(0.1)

    with ThreadPoolExecutor(8) as threads:
        first = list(threads.map(run, jobs[:100]))
        before = server.resident()
        rest = list(threads.map(run, jobs[100:]))
    found = Counter(itertools.chain(*first, *rest))
    expected = {"good": {200}, "garbage": {415}, "cut": {422}, "huge": {413}, "pixels": {413, 422}, "form": {400, 422}}
    for kind, statuses in expected.items():
        assert {status for each, status in found if each == kind} - {503} <= statuses
    assert {status for _, status in found} > {200, 503}
    assert server.resident() < 1.1 * before
    assert json.loads(server.ask("GET", "/health")[2]) == {"status": "ok", "requests": 0}


def test_a_wheel_holds_the_page_and_every_other_file(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    root, copy = Path(__file__).parents[1], tmp_path / "degrid"
    shutil.copytree(root / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    expected = {file.relative_to(copy / "src").as_posix() for file in (copy / "src").rglob("*") if file.is_file()}
    (wheel,) = copy.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == {name for name in expected if ".egg-info/" not in name}
    assert {f"degrid/serving/page/{name}" for name in ("index.html", "page.css", "page.js")} <= held


needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = browser.Browser(folder)
        yield page
        page.close()


@needs_chromium
@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (390, 800, True)], ids=["wide", "phone"])
def test_the_page(server, page, tmp_path, width, height, phone):
    image = picture(7, (96, 128))
    file = tmp_path / "photo.png"
    image.save(file)
    ids, other = (degrid.Predictor(degrid.load(path), "cpu", "float32")(image) for path in server.models)
    colors = np.array(LABELS.colors)
    page.open(f"http://127.0.0.1:{server.port}/", width, height, phone)
    page.wait("models.length == 2")

    # One image: its overlay, pixel by pixel, at two opacities.
    page.choose_files("#files", file)
    page.wait("shown")
    assert seen(page) == pytest.approx(0.45 * np.asarray(image) + 0.55 * colors[ids], abs=2)
    slide(page, "opacity", 100)
    assert np.array_equal(seen(page), colors[ids])
    legend = page.value("[...document.querySelectorAll('.legend tbody tr')].map((line) => line.innerText.trim())")
    shares = {name: np.mean(ids == index) for index, name in enumerate(LABELS.names) if np.any(ids == index)}
    assert sorted(legend) == sorted(f"{name}\t{100 * share:.1f} %" for name, share in shares.items())

    # Two models, and the border between them.
    page.value("element('second').value = 'two'; element('second').dispatchEvent(new Event('change'))")
    page.wait("shown.results.length == 2")
    assert np.array_equal(seen(page), colors[np.where(np.arange(128) < 64, ids, other)])
    left, top, wide, high = box(page, "view")
    x, y, *_ = box(page, "divider")
    page.mouse("mousePressed", x + 12, y + 30, button="left", buttons=1, clickCount=1)
    page.mouse("mouseMoved", left + wide / 4, y + 30, button="left", buttons=1)
    page.mouse("mouseReleased", left + wide / 4, y + 30, button="left", clickCount=1)
    moved = np.flatnonzero((seen(page) != colors[other]).any((0, 2)))
    assert len(moved) == 0 or moved.max() < 33
    assert np.array_equal(seen(page)[:, 33:], colors[other][:, 33:])

    # The class of a pixel, and its receptive field.
    page.mouse("mouseMoved", left + wide * 100.5 / 128, top + high * 20.5 / 96)
    words = page.value("element('readout').textContent")
    assert words.startswith(f"x 100, y 20: one: {LABELS.names[ids[20, 100]]} (")
    assert f"two: {LABELS.names[other[20, 100]]} (" in words
    page.value("element('field').click()")
    page.click(left + wide * 100.5 / 128, top + high * 20.5 / 96)
    page.wait("field")
    assert f"two decides for {LABELS.names[other[20, 100]]}" in page.value("element('readout').textContent")
    assert page.value("field.left == 0 && field.top == 0 && field.layer.width == 128")

    # Nothing is cut off, nothing failed, and nothing was asked of others.
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    assert page.problems == []
    assert {address.split("/")[2] for address in page.asked} == {f"127.0.0.1:{server.port}"}


def seen(page):
    """What the canvas shows, int64 [H,W,3]."""
    code = "[element('view').width, element('view').height, ...element('view').getContext('2d').getImageData(0, 0, "
    width, height, *values = page.value(f"{code}element('view').width, element('view').height).data]")
    return np.array(values).reshape(height, width, 4)[..., :3]


def box(page, name):
    return page.value(f"((r) => [r.left, r.top, r.width, r.height])(element('{name}').getBoundingClientRect())")


def slide(page, name, value):
    page.value(f"element('{name}').value = {value}; element('{name}').dispatchEvent(new Event('input'))")


@needs_chromium
def test_saving_a_picture_of_the_camera_and_a_kind_that_browsers_do_not_show(server, page, tmp_path):
    image = picture(8, (40, 48))
    image.save(tmp_path / "map.tif")
    page.open(f"http://127.0.0.1:{server.port}/", 900, 700)
    page.wait("models.length == 2")
    page.choose_files("#files", tmp_path / "map.tif", tmp_path / "map.tif")
    page.wait("shown")
    slide(page, "opacity", 0)
    assert np.array_equal(seen(page), np.asarray(image))
    assert page.value("element('place').textContent") == "1 of 2: map.tif"
    page.value("download = (blob, name) => { saved = [name, blob.size, blob.text ? blob : null]; }; saved = null")
    endings = {"ids": ".png", "polygons": ".polygons.json", "rle": ".coco_rle.json"}
    for output, ending in endings.items():
        page.value(f"saved = null; document.querySelector('[data-output={output}]').click()")
        page.wait("saved")
        assert page.value("saved[0]") == f"map{ending}"
        if output != "ids":
            assert json.loads(page.value("saved[2].text()"))
    page.value("element('camera').click()")
    page.wait("element('video').videoWidth > 0")
    page.value("element('take').click()")
    page.wait("shown.file.name == 'camera.png'")
    assert page.problems == []


GIVE = """(async (kind, base64) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
  const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  element("drop").dispatchEvent(event);
  return event.defaultPrevented;
})"""


@needs_chromium
def test_images_are_dropped_and_pasted_and_a_large_one_is_measured_in_a_frame(server, page):
    page.open(f"http://127.0.0.1:{server.port}/", 900, 700)
    page.wait("models.length == 2")
    for index, kind in enumerate(("drop", "paste")):
        image = picture(9 + index, (40, 560 + index))
        content = base64.b64encode(file_of(image)).decode()
        if kind == "drop":  # otherwise the browser would open the file in place of the page
            assert page.value(f"{GIVE}('dragover', '{content}')")
            assert page.value("element('drop').className") == "over"
        assert page.value(f"{GIVE}('{kind}', '{content}')") == (kind == "drop")
        page.wait(f"shown && shown.file.name == '{kind}.png'")
        assert page.value("element('drop').className") == ""
        slide(page, "opacity", 0)
        assert np.array_equal(seen(page), np.asarray(image))
    page.value("element('field').click()")
    left, top, wide, high = box(page, "view")
    page.click(left + wide * 550.5 / 561, top + high / 2)
    page.wait("field")
    assert page.value("[field.left, field.top, field.layer.width, field.layer.height]") == [561 - 513, 0, 513, 40]
    words = page.value("element('readout').textContent")
    assert words.endswith("Only the 513x40 pixels in the frame were measured.")
    assert page.problems == []


@needs_chromium
def test_what_is_no_image_is_said_and_the_next_one_is_shown(server, page, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    image = picture(3, (40, 48))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "clear.png")
    page.open(f"http://127.0.0.1:{server.port}/", 900, 700)
    page.wait("models.length == 2")
    page.choose_files("#files", tmp_path / "notes.txt")
    page.wait("!element('error').hidden")
    assert page.value("element('error').textContent").startswith("notes.txt is not an image; expected JPEG, PNG")
    page.choose_files("#files", tmp_path / "photo.png", tmp_path / "clear.png")
    page.wait("element('error').textContent.startsWith('photo.png is not an image that is read here')")
    page.problems.clear()  # browsers report answers of 415
    page.value("element('after').click()")
    page.wait("shown")
    assert page.value("element('error').hidden && element('result').ariaBusy == 'false'")
    # Where it is transparent, too, it is what the model saw.
    slide(page, "opacity", 0)
    assert np.array_equal(seen(page), np.asarray(image)[..., :3])
    assert page.problems == []


@needs_chromium
def test_a_wrong_token_is_said(server, page):
    page.open(f"http://127.0.0.1:{server.port}/", 900, 700)
    page.wait("models.length == 2")
    page.value("asked = askForToken(); 0")
    assert page.value("element('asking').open && element('wrong').hidden")
    page.value("element('token').value = 'guessed'; element('enter').requestSubmit(); asked")
    page.value("asked = askForToken(); 0")
    assert page.value("!element('wrong').hidden && element('token').value == ''")
    page.value("element('asking').close(); asked")
    assert page.value("sessionStorage.getItem('token')") == ""
    assert page.problems == []


@needs_chromium
def test_pixels_are_reached_by_keys_and_a_few_are_enlarged(server, page, tmp_path):
    image = picture(5, (3, 4))
    image.save(tmp_path / "few.png")
    ids = degrid.Predictor(degrid.load(server.models[0]), "cpu", "float32")(image)
    page.open(f"http://127.0.0.1:{server.port}/", 900, 700)
    page.wait("models.length == 2")
    page.choose_files("#files", tmp_path / "few.png")
    page.wait("shown")
    assert box(page, "view")[2:] == [300, 225]
    page.value("element('view').focus()")
    for name, place in (("ArrowRight", (3, 1)), ("ArrowRight", (3, 1)), ("ArrowUp", (3, 0)), ("ArrowLeft", (2, 0))):
        page.call("Input.dispatchKeyEvent", type="keyDown", key=name)
        words = page.value("element('readout').textContent")
        assert words.startswith(f"x {place[0]}, y {place[1]}: {LABELS.names[ids[place[1], place[0]]]} (")
    page.value("element('field').click(); element('view').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    page.wait("field")
    assert page.value("[field.x, field.y]") == [2, 0]
    assert page.problems == []
