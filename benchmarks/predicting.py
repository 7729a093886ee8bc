"""How fast a video is predicted, by stage, and how much memory that takes.

    python -m benchmarks.predicting runs/demo long.mp4 [--hour]

Each stage runs once by itself; its seconds are those of the processor (all threads), which other programs on
the machine change little. The whole is the command `hsta-fast predict` in a process of its own. --hour:
instead of a video, an hour of 1280 x 720 at 25 frames a second, made of the video's own first frames, is
predicted for its memory; it takes about ten minutes.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from hsta_fast.data.frames.stream import FrameStream, open_frames
from hsta_fast.faces import find_faces
from hsta_fast.predicting.clip_inputs import Clip, read_clips
from hsta_fast.predicting.ensemble import load_ensemble
from hsta_fast.predicting.page import Pictures, page
from hsta_fast.predicting.recording import predict_clips, predict_video
from hsta_fast.predicting.request import Request
from hsta_fast.spotting import SpotSettings, spot

HOUR, RATE, SIZE = 3600, 25, (1280, 720)
GREY_SIDE = 320  # about that of the spotter


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what `work` returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def stages(run: Path, video: Path) -> dict[str, float]:
    """Seconds of the processor of each stage."""
    request, device = Request(crop_face=0.1), torch.device("cpu")
    found: dict[str, float] = {}
    found["models and calibration"], ensemble = timed(lambda: load_ensemble(run))
    stream = open_frames(video)
    found["decoding, small and grey"], _ = timed(lambda: sum(1 for _ in stream.small_grey(GREY_SIDE)))
    each = max(1, round(stream.rate or 1))  # the spotter looks for the face once a second
    small = [
        np.repeat(grey[..., None], 3, 2)
        for number, grey in stream.small_grey(GREY_SIDE)
        if number % each == 0
    ]
    found["faces, once a second"], _ = timed(lambda: [find_faces(picture) for picture in small])
    whole, spotted = timed(lambda: spot(stream, settings=SpotSettings()))
    found["movement"] = whole - found["decoding, small and grey"] - found["faces, once a second"]
    clips = [Clip(one.onset, one.offset, one.apex, one.score) for one in spotted.intervals]
    recipe = request.recipe(ensemble.inputs, ensemble.sampling)
    reading, _ = timed(lambda: list(read_clips(stream, clips, recipe)))
    found["decoding again, the clips' frames"] = reading
    both, _ = timed(lambda: predict_clips(ensemble, stream, clips, recipe, device, []))
    found["classification"] = max(0.0, both - reading)
    prediction = predict_video(ensemble, video, request, device)
    pictures = Pictures(ensemble, device)
    drawing, _ = timed(lambda: predict_clips(ensemble, stream, clips, recipe, device, [], pictures))
    writing, _ = timed(lambda: page(prediction, pictures))
    found["pictures and page"] = drawing - both + writing
    return found


def whole_command(run: Path, video: Path, out: Path) -> dict[str, float]:
    """Seconds of the processor and of the clock, and the largest memory in MB, of the command by itself."""
    words = ["predict", str(run), str(video), "--crop-face", "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hsta_fast", *words], check=True, stdout=subprocess.DEVNULL)
    clock = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor": used, "clock": clock, "MB": after.ru_maxrss / 1024}


def write_hour(path: Path, stream: FrameStream) -> None:
    """An hour of `SIZE`: the first frames of a video once a minute, and its first frame in between."""

    def large(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = min(SIZE[0] / width, SIZE[1] / height)
        size = round(width * scale), round(height * scale)
        shown = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
        shown[: size[1], : size[0]] = cv2.resize(picture, size)
        return shown

    pictures = [
        av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        for _, picture in islice(stream.pictures(large), 40)
    ]
    minute = path.with_name("minute.mp4")
    with av.open(str(minute), "w") as container:
        video: Any = container.add_stream("libx264", rate=RATE)
        (video.width, video.height), video.pix_fmt = SIZE, "yuv420p"
        video.options = {"preset": "ultrafast"}
        for number in range(60 * RATE):
            frame = pictures[number if number < len(pictures) else 0]
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    with av.open(str(path), "w") as whole:  # the same packets again and again: nothing is encoded
        copy: Any = None
        for repeat in range(HOUR // 60):
            with av.open(str(minute)) as part:
                source = part.streams.video[0]
                copy = copy or whole.add_stream_from_template(source)
                shift = round(60 * repeat / Fraction(source.time_base or 1))
                for packet in part.demux(source):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = copy
                        whole.mux(packet)


def table(found: dict[str, float], seconds: float) -> str:
    """The stages as a table: seconds of the processor, and of video for each of them."""
    rows = [f"| {name} | {used:.1f} | {seconds / used:.1f} |" for name, used in found.items() if used > 0]
    rows.append(f"| together | {sum(found.values()):.1f} | {seconds / sum(found.values()):.1f} |")
    return "\n".join(["| stage | processor, s | video, s, per s |", "|---|---|---|", *rows])


def main() -> None:
    """Measure what the arguments name, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--hour", action="store_true")
    args = parser.parse_args()
    stream = open_frames(args.video)
    with tempfile.TemporaryDirectory() as folder:
        video, seconds = args.video, stream.seconds(stream.count - 1)
        if args.hour:
            video, seconds = Path(folder) / "hour.mp4", float(HOUR)
            write_hour(video, stream)
        else:
            print(table(stages(args.run, video), seconds), flush=True)
        used = whole_command(args.run, video, Path(folder) / "out")
        print(
            f"the command on {seconds:.0f} s of video: {used['processor']:.1f} s of the processor, "
            f"{used['clock']:.1f} s of the clock, {used['MB']:.0f} MB at most"
        )


if __name__ == "__main__":
    main()
