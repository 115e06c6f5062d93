"""The server beside the model itself when idle, and its memory under 500 requests, 8 at a time.

    python benchmarks/serve.py runs/my_photos photos/*.jpg

Prints the median and 95th percentile of one request at a time, which alternate with the model's own predictions, here
with threads that wait as those of degrid's commands do: others would spin on a core that the server needs. Then the
memory after each hundred of 500 requests, of which one in ten is garbage, cut short or too large.
"""

import http.client
import io
import itertools
import os
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import degrid
from degrid.image import read_image
from degrid.threads import settle_threads

SIZES = [(480, 360), (360, 270), (640, 480), (320, 240)]
OUTPUTS = ["ids", "raw", "polygons", "rle"]


class Server:
    """`degrid serve` as a process."""

    def __init__(self, model: str) -> None:
        words = [sys.executable, "-m", "degrid", "serve", model, "--port", "0"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        place = re.search(r":(\d+)/", self.process.stdout.readline())
        assert place is not None
        self.port = int(place[1])

    def upload(self, path: str, content: bytes, field: str = "files") -> int:
        """The status of an answer that is read completely."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\ncontent-disposition: form-data; name="{field}"; filename="a.jpg"\r\n\r\n'
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        connection.request("POST", path, body, {"content-type": f"multipart/form-data; boundary={mark}"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def resident(self) -> float:
        """MiB of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def idle(server: Server, model: str, photo: Path, count: int = 60) -> None:
    """Alternate the model's own predictions and requests of each kind."""
    predictor = degrid.Predictor(degrid.load(model), "cpu", "float32")
    pixels, content = read_image(photo), photo.read_bytes()
    kinds = {
        "the model itself": lambda: predictor(pixels),
        "/predict.png": lambda: server.upload("/predict.png", content, "file"),
        "raw": lambda: server.upload("/predict?output=raw", content),
        "polygons and rle": lambda: server.upload("/predict?output=polygons&output=rle", content),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _, (kind, run) in itertools.product(range(count + 5), kinds.items()):
        start = time.perf_counter()
        run()
        times[kind].append(1000 * (time.perf_counter() - start))
    own = times["the model itself"][5:]
    for kind, values in times.items():
        middle, late = np.median(values[5:]), np.percentile(values[5:], 95)
        ratios = f"{middle / np.median(own):.2f} and {late / np.percentile(own, 95):.2f} times the model's own"
        print(f"{kind}: median {middle:.0f} ms, 95th percentile {late:.0f} ms, {ratios}")


def busy(server: Server, photos: list[Path]) -> None:
    """500 requests, 8 at a time, of photographs in four sizes, three in ten of them damaged."""

    def ask(number: int) -> tuple[str, int]:
        stream = io.BytesIO()
        Image.open(photos[number % len(photos)]).resize(SIZES[number % 4]).save(stream, "JPEG")
        sound = stream.getvalue()
        kind, content = {
            7: ("garbage", os.urandom(20_000)),
            8: ("cut short", sound[: len(sound) // 8]),
            9: ("too large", bytes(40 << 20)),
        }.get(number % 10, ("sound", sound))
        while (status := server.upload(f"/predict?output={OUTPUTS[number // 10 % 4]}", content)) == 503:
            time.sleep(0.2)
        return kind, status

    found: Counter[tuple[str, int]] = Counter()
    with ThreadPoolExecutor(8) as threads:
        for first in range(0, 500, 100):
            found.update(threads.map(ask, range(first, first + 100)))
            print(f"after {first + 100} requests: {server.resident():.0f} MiB")
    print(", ".join(f"{kind}: {status} ({number})" for (kind, status), number in sorted(found.items())))


if __name__ == "__main__":
    settle_threads()
    server = Server(sys.argv[1])
    try:
        idle(server, sys.argv[1], Path(sys.argv[2]))
        busy(server, [Path(name) for name in sys.argv[2:]])
    finally:
        server.process.terminate()
