"""Videos: every frame at its time, upright, with its sound; predictions frame by frame and averaged over time."""

import http.server
import io
import itertools
import json
import socket
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_verbs_predict import cli, contents

import degrid
from degrid.background import Newest
from degrid.camera import SourceReader, is_source, source_name
from degrid.data.synthetic import SyntheticScenes
from degrid.image import overlay_classes
from degrid.types import Bands, UserError
from degrid.video import Frame, VideoReader, VideoWriter, is_result_video

av = pytest.importorskip("av")

SIZE = (48, 64)
UNEVEN, LAST = [40, 80, 95, 200, 350, 351, 1000], 250
"""Times of frames, and how long the last one is shown, milliseconds."""


def scene(index, size=SIZE):
    """A picture whose corners differ, so that turns and mirrors show."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 255 // size[1], y * 255 // size[0], np.full(size, 20 * index % 256)], 2).astype(np.uint8)


def write(
    path, times=tuple(range(5)), base=Fraction(1, 10), size=SIZE, matrix=None, sound=None, lossless=False, **options
):
    """A video of `scene`s at times in units of `base`."""
    with av.open(str(path), "w", **options) as out:
        stream = out.add_stream("ffv1" if lossless else "libx264", rate=10, options={} if lossless else {"crf": "5"})
        stream.height, stream.width = size
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        stream.codec_context.time_base = base
        if matrix:
            stream.set_display_matrix(matrix)
        audio = out.add_stream(sound, rate=8000, layout="mono") if sound else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(scene(index, size), format="rgb24")
            frame.pts, frame.time_base = time, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio:
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
            heard.sample_rate, heard.pts = 8000, 0
            out.mux(audio.encode(heard))
            out.mux(audio.encode(None))
    return path


def read(path):
    """Size, seconds and pixels of all frames."""
    with VideoReader(path) as video:
        frames = [item for item in video.items() if isinstance(item, Frame)]
        return [float(frame.pts * video.time_base) for frame in frames], [frame.pixels for frame in frames]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8), folder)
    return folder


TURNS = {
    "as it is": ((1, 0, 0, 1), lambda pixels: pixels),
    "a quarter counterclockwise": ((0, -1, 1, 0), np.rot90),
    "a quarter clockwise": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "half": ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    "transposed": ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(tmp_path, turn):
    (a, b, c, d), turned = TURNS[turn]
    one = 1 << 16
    matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    _, frames = read(write(tmp_path / "v.mp4", times=(0,), matrix=matrix))
    expected = turned(scene(0)).astype(int)
    assert frames[0].shape == expected.shape
    assert np.abs(frames[0] - expected).mean() < 8


SLOW = pytest.mark.slow


@pytest.mark.parametrize("ending", ["mp4", pytest.param("mov", marks=SLOW), pytest.param("mkv", marks=SLOW)])
def test_every_frame_keeps_its_time(model, tmp_path, ending):
    source = write(tmp_path / "v.mp4", UNEVEN, Fraction(1, 1000))
    found = degrid.predict(model, source, tmp_path / f"out.{ending}", device="cpu", precision="float32")
    times, frames = read(tmp_path / f"out.{ending}")
    assert times == [time / 1000 for time in UNEVEN] == read(source)[0]
    assert found.written.startswith("7 frames, 1.10 s, in ")
    assert (found.videos, found.images, found.failures) == (1, 0, ())
    predictor = degrid.Predictor(degrid.load(model), "cpu", "float32")
    for pixels, shown in zip(read(source)[1], frames, strict=True):
        expected = overlay_classes(pixels, predictor(pixels), predictor.labels)
        assert np.abs(shown.astype(int) - expected).mean() < 8


@SLOW
def test_a_gif_of_several_pictures_is_a_video_and_one_of_a_single_picture_is_none(model, tmp_path):
    first, *others = (Image.fromarray(scene(index)) for index in range(0, 12, 4))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=others, duration=[100, 250, 50])
    first.save(tmp_path / "still.gif")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    found = degrid.predict(model, tmp_path, tmp_path / "out", device="cpu")
    assert (found.images, found.videos, len(found.failures)) == (1, 1, 1)
    assert "broken.gif" in found.failures[0]
    assert read(tmp_path / "out" / "moving.overlay.mp4")[0] == [0, 0.1, 0.35]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["videos"]["moving"]["seconds"] == 0.4


def test_class_ids_are_kept_frame_by_frame(model, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    source = write(folder / "v.mkv", size=(33, 47), lossless=True)
    Image.fromarray(scene(3)).save(folder / "photo.png")
    (folder / "notes.txt").write_text("no video")
    settings = {"device": "cpu", "precision": "float32"}
    predictor = degrid.Predictor(degrid.load(model), "cpu", "float32")
    expected = [predictor(pixels) for pixels in read(source)[1]]
    assert np.array_equal(read(source)[1][2], scene(2, (33, 47)))
    found = degrid.predict(model, folder, tmp_path / "png", files=degrid.ResultFiles(video_ids="png"), **settings)
    assert (found.images, found.videos, found.left_out) == (1, 1, {".txt": 1})
    written = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "png" / "v").iterdir())]
    assert np.array_equal(written, expected)
    files = degrid.ResultFiles(video_ids="ffv1", overlay=False)
    degrid.predict(model, folder, tmp_path / "ffv1", files=files, **settings)
    with av.open(str(tmp_path / "ffv1" / "v.ids.mkv")) as video:
        assert np.array_equal([frame.to_ndarray(format="gray") for frame in video.decode(video=0)], expected)
    assert sorted(contents(tmp_path / "ffv1")) == ["photo.png", "summary.json", "v.ids.mkv"]
    summary = json.loads((tmp_path / "ffv1" / "summary.json").read_text())
    row = summary["videos"]["v"]
    assert (row["width"], row["height"], row["frames"], row["seconds"]) == (47, 33, 5, 0.5)
    names = SyntheticScenes.labels.names
    assert row["pixels"] == {name: n for i, name in enumerate(names) if (n := int(np.sum(np.equal(expected, i))))}
    assert sum(summary["pixels"].values()) == 5 * 33 * 47 + SIZE[0] * SIZE[1]


@SLOW
def test_results_are_no_videos_to_segment_and_nothing_else_is_replaced(model, tmp_path):
    write(tmp_path / "v.mp4")
    for _ in range(2):
        found = degrid.predict(model, tmp_path, tmp_path, device="cpu", precision="float32")
        assert found.videos == 1
    assert sorted(contents(tmp_path)) == ["summary.json", "v.mp4", "v.overlay.mp4"]
    assert is_result_video(tmp_path / "v.overlay.mp4")
    own = write(tmp_path / "own.mp4", times=(0,))
    before = own.read_bytes()
    with pytest.raises(UserError, match=r"own.mp4 was not written by degrid and would be lost"):
        degrid.predict(model, tmp_path / "v.mp4", own, device="cpu")
    assert own.read_bytes() == before


@pytest.mark.parametrize("weight", [0.5, pytest.param(0.9, marks=SLOW)])
def test_smoothing_averages_the_probabilities(model, tmp_path, weight):
    source = write(tmp_path / "v.mkv", lossless=True)
    out = tmp_path / "ids"
    files = degrid.ResultFiles(video_ids="png")
    options = degrid.InferenceOptions(smooth=weight)
    degrid.predict(model, source, out, device="cpu", precision="float32", files=files, options=options)
    predictor, average = degrid.Predictor(degrid.load(model), "cpu", "float32"), None
    for index, pixels in enumerate(read(source)[1]):
        now = predictor.scores(torch.from_numpy(pixels).permute(2, 0, 1)).softmax(1)
        average = now if average is None else weight * average + (1 - weight) * now
        expected = torch.nn.functional.interpolate(average, SIZE, mode="bilinear").argmax(1)[0].numpy()
        written = np.asarray(Image.open(out / "v" / f"{index:06d}.png"))
        assert np.mean(written == expected) > 0.999


@SLOW
def test_the_command_keeps_the_sound_and_tells_how_far_it_is(model, tmp_path):
    source = write(tmp_path / "v.mov", sound="aac")
    done = cli("predict", model, source, "-o", tmp_path / "o.mp4", "--smooth", 0.5, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"5 frames, 0.50 s, in {tmp_path / 'o.mp4'}" in done.output
    packets = []
    for path in (source, tmp_path / "o.mp4"):
        with av.open(str(path)) as video:
            packets.append([bytes(packet) for packet in video.demux(audio=0) if packet.size])
    assert packets[0] == packets[1]
    seen = []
    degrid.predict(model, source, tmp_path / "o.mp4", device="cpu", progress=seen.append)
    assert [(now.done, now.total) for now in seen] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 6), (5, 5)]
    assert {now.task for now in seen} == {"predicting v.mov"}
    done = cli("predict", model, source, "-o", tmp_path / "o.mp4", "--no-overlay", "--video-ids", "ffv1")
    assert f"5 frames, 0.50 s, in {tmp_path / 'o.ids.mkv'}\n" in done.output
    spoken = write(tmp_path / "w.mkv", sound="wavpack")
    found = degrid.predict(model, spoken, tmp_path / "w.mp4", device="cpu")
    assert found.remarks == (f"{spoken}: its sound (wavpack) cannot be kept in this kind of file and is left out",)


def damaged(tmp_path):
    """Files that break off, or hold something else, and what is said of them."""
    whole = write(tmp_path / "whole.mp4", range(60), container_options={"movflags": "faststart"}).read_bytes()
    cut = write(tmp_path / "whole.mkv", range(60)).read_bytes()
    yield "half.mp4", whole[: len(whole) // 2], "is damaged or cut off"
    yield "head.mp4", whole[:200], "is damaged, or contains no frames"
    yield "text.mp4", b"no video at all", "is not a readable video, or is damaged"
    yield "half.mkv", cut[: len(cut) // 2], "is damaged or cut off"


def test_damaged_videos_are_told_and_leave_nothing(model, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    said = {}
    for name, content, sentence in damaged(tmp_path):
        (bad / name).write_bytes(content)
        said[name] = sentence
    Image.fromarray(scene(1)).save(bad / "good.png")
    out = tmp_path / "out"
    files = degrid.ResultFiles(video_ids="png")
    found = degrid.predict(model, bad, out, device="cpu", files=files)
    assert (found.images, found.videos, len(found.failures)) == (1, 0, len(said))
    assert found.failed_videos == len(said)
    for name, sentence in said.items():
        assert any(f"{bad / name} {sentence}" in failure for failure in found.failures), found.failures
    assert sorted(contents(out)) == ["good.overlay.jpg", "good.png", "summary.json"]
    done = cli("predict", model, bad / "half.mp4", "-o", tmp_path / "o.mp4", "--device", "cpu")
    assert done.exit_code == 1
    assert "1 of 1 video could not be used" in str(done.exception)
    assert not (tmp_path / "o.mp4").exists()


def test_mistakes(model, tmp_path):
    source = write(tmp_path / "v.mp4", times=(0,))
    Image.fromarray(scene(1)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"takes the result of one video, got 1 image and 1 video"):
        degrid.predict(model, tmp_path, tmp_path / "o.mp4")
    with pytest.raises(UserError, match=r"videos are written as \.mp4, \.mov, \.mkv"):
        degrid.predict(model, source, tmp_path / "o.avi")
    with pytest.raises(UserError, match="are for videos, and none was found"):
        degrid.predict(model, tmp_path / "photo.png", options=degrid.InferenceOptions(smooth=0.5))
    with pytest.raises(UserError, match="smooth: expected a weight from 0 to below 1, got 1"):
        degrid.InferenceOptions(smooth=1.0)
    with pytest.raises(UserError, match=r"--format coco \(format=...\) is for images"):
        degrid.predict(model, source, files=degrid.ResultFiles("coco"))
    with pytest.raises(UserError, match="nothing would be written for the videos"):
        degrid.predict(model, source, files=degrid.ResultFiles(overlay=False))
    network = degrid.load(model)
    network.bands = Bands(3, ((0.0, 4095.0),))
    with pytest.raises(UserError, match="videos hold colours, and this model reads other bands or ranges"):
        degrid.predict(network, source, tmp_path / "o.mp4")


def test_a_folder_is_searched_for_videos_only_where_they_can_be_read(model, tmp_path, monkeypatch):
    Image.fromarray(scene(1)).save(tmp_path / "photo.png")
    (tmp_path / "v.mp4").write_bytes(b"")
    monkeypatch.setattr("degrid.verbs.find_images.reads_videos", lambda: False)
    found = degrid.predict(model, tmp_path, tmp_path / "out", device="cpu")
    assert (found.images, found.videos, found.left_out) == (1, 0, {".mp4": 1})
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    found = degrid.predict(model, tmp_path / "v.mp4", tmp_path / "out", device="cpu")
    assert found.failures == ('videos need PyAV: pip install "degrid[video]"',)


@pytest.mark.parametrize("later", ["0", "2"])
def test_a_written_frame_lasts_as_long_as_that_of_the_source(tmp_path, later):
    """Whether or not frames of the source are stored in another order (with `later` frames between others)."""
    base, lasting = Fraction(1, 1000), [*np.diff(UNEVEN).tolist(), LAST]
    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"bf": later})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.flags |= av.codec.context.Flags.frame_duration
        for index, (time, duration) in enumerate(zip(UNEVEN, lasting, strict=True)):
            frame = av.VideoFrame.from_ndarray(scene(index), format="rgb24")
            frame.pts, frame.time_base, frame.duration = time, base, duration
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))

    def shown(path):
        with VideoReader(path) as video:
            times = [(frame.pts * video.time_base, frame.duration * video.time_base) for frame in video.items()]
        return [(float(1000 * start), float(1000 * duration)) for start, duration in times]

    expected = list(zip(UNEVEN, lasting, strict=True))
    assert shown(tmp_path / "v.mp4")[:-1] == expected[:-1]
    with VideoReader(tmp_path / "v.mp4") as video, VideoWriter(tmp_path / "w.mp4", "mp4", video, (1, 1)) as out:
        for frame in video.items():
            out.add(frame.pixels[:1, :1], frame.pts, frame.duration)
    assert shown(tmp_path / "w.mp4") == shown(tmp_path / "v.mp4")
    if later == "0":
        assert shown(tmp_path / "w.mp4") == expected


def test_the_newest_is_taken_and_the_last_and_an_error_are_never_lost():
    ready, go = threading.Event(), threading.Event()

    def source():
        yield 0
        assert go.wait(60)
        yield from (1, 2, 3)
        ready.set()  # 3 has been offered by now
        go.clear()
        assert go.wait(60)
        yield from (4, 5)
        raise ValueError("unplugged")

    with Newest(source()) as newest:
        assert next(newest) == 0
        go.set()
        assert ready.wait(60)
        assert next(newest) == 3
        go.set()
        rest = []
        with pytest.raises(ValueError, match="unplugged"):
            rest.extend(newest)
        assert rest in ([4, 5], [5])
        assert list(newest) == []


def test_cameras_and_addresses_are_no_files():
    names = {
        "/dev/video0": "video0",
        "avfoundation:0": "avfoundation_0",
        "dshow:video=A camera": "dshow_video_A_camera",
        "rtsp://me:secret@camera.local:554/live/yard.sdp?key=secret": "yard",
        "http://camera.local/": "camera.local",
    }
    assert [source_name(name) for name in names] == list(names.values())
    assert all(map(is_source, names))
    assert not any(map(is_source, ("video.mp4", "C:/videos/a.mp4", "photos/*.jpg", "dev/video0", "lavfi")))


def drawn(words, count):
    """Frames of FFmpeg's test picture."""
    with av.open(words, format="lavfi") as video:
        return [frame.to_ndarray(format="rgb24") for frame, _ in zip(video.decode(video=0), range(count), strict=False)]


PICTURE = "testsrc=size=64x48:rate=20"
EXACT = {"device": "cpu", "precision": "float32"}


def test_a_camera_is_recorded_at_the_times_of_its_frames(model, tmp_path):
    """FFmpeg's test picture is opened as cameras are, by a device of FFmpeg, and comes in real time."""
    files, out = degrid.ResultFiles(seconds=0.4, video_ids="png"), tmp_path / "o.mp4"
    found = degrid.predict(model, f"lavfi:{PICTURE},realtime", out, files=files, **EXACT)
    frames, predictor = drawn(PICTURE, 8), degrid.Predictor(degrid.load(model), "cpu", "float32")
    times, shown = read(out)
    places = [round(20 * time) for time in times]
    assert times == [place / 20 for place in places]
    assert places[-1] == 7  # the last one is never left out
    for place, pixels, file in zip(places, shown, sorted((tmp_path / "o").iterdir()), strict=True):
        ids = predictor(frames[place])
        assert np.array_equal(np.asarray(Image.open(file)), ids)
        assert np.abs(pixels.astype(int) - overlay_classes(frames[place], ids, predictor.labels)).mean() < 16
    left_out = f"{len(times)} of 8 frames are predicted: the others arrived in the meantime"
    assert found.remarks == ((left_out,) if len(times) < 8 else ())


def test_an_interrupted_recording_is_whole(model, tmp_path):
    def interrupt(now):
        if now.done == 4 and now.total is None:
            raise KeyboardInterrupt

    found = degrid.predict(model, f"lavfi:{PICTURE},realtime", tmp_path / "o.mp4", progress=interrupt, **EXACT)
    assert found.videos == 1
    assert len(read(tmp_path / "o.mp4")[0]) == 4
    source = write(tmp_path / "v.mkv")

    def at_once(now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # of a file, part of the result is no result
        degrid.predict(model, source, tmp_path / "v.mp4", progress=at_once, **EXACT)
    assert not (tmp_path / "v.mp4").exists()


def test_mistakes_with_cameras(model, tmp_path):
    found = degrid.predict(model, "rtsp://me:secret@127.0.0.1:9/x?key=secret", tmp_path, device="cpu")
    assert found.failures == ("rtsp://127.0.0.1:9/x cannot be opened: Connection refused",)
    with pytest.raises(UserError, match=r"a camera or stream is predicted alone, got /dev/video0 among 2"):
        degrid.predict(model, [str(tmp_path), "/dev/video0"], tmp_path)
    with pytest.raises(UserError, match=r"seconds: expected more than 0, got 0"):
        degrid.ResultFiles(seconds=0)
    with pytest.raises(UserError, match=r"--seconds \(ResultFiles.seconds\) is for cameras and streams"):
        degrid.predict(model, write(tmp_path / "v.mp4", (0,)), files=degrid.ResultFiles(seconds=1))


@SLOW
def test_a_stream_without_times_has_those_of_its_arrival(model, tmp_path, monkeypatch):
    """As cameras send JPEGs over HTTP. The address of a whole video is read like the file."""
    # A clock that shows 0.3 s more at each frame, however late it comes on a busy machine; FFmpeg supposes 40 ms.
    clock = itertools.count()
    monkeypatch.setattr("degrid.camera.time", SimpleNamespace(monotonic=lambda: 0.3 * next(clock)))
    file = write(tmp_path / "v.mp4", UNEVEN, Fraction(1, 1000))

    class Camera(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            self.send_response(200)
            if self.path == "/v.mp4":
                content = file.read_bytes()
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("content-type", "multipart/x-mixed-replace;boundary=--next")
            self.end_headers()
            for index in range(5):
                stream = io.BytesIO()
                Image.fromarray(scene(index)).save(stream, "JPEG", quality=95)
                head = f"--next\r\ncontent-type: image/jpeg\r\ncontent-length: {len(stream.getvalue())}\r\n\r\n"
                self.wfile.write(head.encode() + stream.getvalue() + b"\r\n")
                time.sleep(0.1)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        degrid.predict(model, f"{address}/v.mp4", tmp_path / "a.mp4", **EXACT)
        assert read(tmp_path / "a.mp4")[0] == [time / 1000 for time in UNEVEN]
        with SourceReader(f"{address}/live.mjpg") as camera:
            assert camera.live
            frames = list(camera.items())
        server.shutdown()
    # In milliseconds; a frame that is overtaken by the next one is left out, the last one never.
    times = [frame.pts for frame in frames]
    assert times[-1] == 1200
    assert set(times) <= {0, 300, 600, 900, 1200}
    assert [frame.duration for frame in frames[:-1]] == list(np.diff(times))
    assert np.abs(frames[-1].pixels.astype(int) - scene(4)).mean() < 8


@SLOW
def test_a_stream_that_falls_silent_ends(model, tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.camera._PATIENCE", 2.0)
    write(tmp_path / "v.ts", range(30))
    content = (tmp_path / "v.ts").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        held = []

        def send():
            for part in (content, b""):
                connection, _ = server.accept()
                connection.sendall(part)
                held.append(connection)  # it stays open

        threading.Thread(target=send, daemon=True).start()
        found = degrid.predict(model, address, tmp_path / "o.mp4", **EXACT)
        assert found.videos == 1
        assert f"{address} ended: nothing came in time" in found.remarks
        found = degrid.predict(model, address, tmp_path / "o2.mp4", **EXACT)
        assert found.failures == (f"{address} cannot be opened: nothing came in time",)
        for connection in held:
            connection.close()
