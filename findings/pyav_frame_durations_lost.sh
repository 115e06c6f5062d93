#!/usr/bin/env bash
# A frame's duration is dropped in encoding: the last frame of a video of uneven times gets a made-up length.
#
# Version: PyAV 18.1.0 (with FFmpeg 8.1 inside).
# Behaviour: VideoFrame.duration can be set, and encoders ignore it: packets come without a duration. The container then takes the
# distance to the next frame, and for the last frame, which has none, something else: of 600 ms about 67 are left, so that the video
# ends too early. With the flag `frame_duration` of the codec context, durations are handed on.
# What to do: set `stream.codec_context.flags |= Flags.frame_duration` before the first frame is encoded.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet av==18.1.0 numpy==2.4.0

cat > show.py <<'CODE'
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags

TIMES = [(0, 40), (40, 260), (300, 100), (400, 600)]  # when a frame is shown, and for how long, in ms


def lengths(flags):
    """Write four frames, and read how long each of them is shown, in ms."""
    with av.open("video.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=15, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.flags |= flags
        for pts, duration in TIMES:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base, frame.duration = pts, Fraction(1, 1000), duration
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open("video.mp4") as file:
        return [round(1000 * float(frame.duration * frame.time_base)) for frame in file.decode(video=0)]


print("wanted                    ", [duration for _, duration in TIMES])
print("without the flag          ", lengths(0))
print("with the flag             ", lengths(Flags.frame_duration))
CODE
cat > expected <<'TEXT'
wanted                     [40, 260, 100, 600]
without the flag           [40, 260, 100, 67]
with the flag              [40, 260, 100, 600]
TEXT
env/bin/python show.py | tee found
diff expected found
echo "as described"
