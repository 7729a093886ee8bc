"""Clips per second into training batches, mirrored and shifted: from the cache, and decoding JPEGs each time.

Both take 8 frames a clip, have both cores and give the same bytes. Decoding has a thread for each core; the
cache is read in one, as in training. Every other round is the other's: a busy machine slows both alike.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import hsta_fast
from hsta_fast.data import Augment, Cache, ClipData, ClipTable, Sampling, SynthConfig, load_frames, render
from hsta_fast.data.casme3 import read_casme3
from hsta_fast.data.frames import FrameStore, fit, read_frames
from hsta_fast.data.loading import ahead

SAMPLING = Sampling()
# What the frames on disk are (height, width), and the side of the model's.
CASES = {
    "rendered 112": ((112, 112), 112),
    "224 x 224": ((224, 224), 224),
    "340 x 280, as CASME II cropped": ((340, 280), 224),
    "640 x 480, as SMIC": ((480, 640), 224),
    "1280 x 720, as CAS(ME)3": ((720, 1280), 224),
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=2, clips_per_subject=12, size=112))


def resized(faces: Path, out: Path, shape: tuple[int, int]) -> ClipTable:
    """The clips, their frames in another size, with a camera's noise, at the quality they were rendered in."""
    table = read_casme3(faces)
    rng = np.random.default_rng(0)
    for path in {path for clip in table.clips["frames"] for path in clip}:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        data = (faces / path).read_bytes()
        if shape != (112, 112):
            image = cv2.resize(
                np.asarray(cv2.imread(str(faces / path))), shape[::-1], interpolation=cv2.INTER_CUBIC
            )
            noisy = image + rng.normal(0, 1.5, (*shape, 1)).astype(np.float32)
            jpeg = cv2.imencode(
                ".jpg", np.clip(noisy, 0, 255).astype(np.uint8), (cv2.IMWRITE_JPEG_QUALITY, 95)
            )[1]
            data = jpeg.tobytes()
        (out / path).write_bytes(data)
    return ClipTable(out, table.clips.assign(label=np.arange(len(table)) % 3))


def one_pass(data: ClipData, number: int, batch_size: int = 12) -> Any:
    more = {"augment": Augment(flip=True, crop=4), "seed": (0, number)}
    return data.batches(range(len(data)), batch_size=batch_size, train=True, **more)  # type: ignore[arg-type]


def decoding(table: ClipTable, size: int, pool: ThreadPoolExecutor) -> ClipData:
    """The same clips, every frame of the pass decoded anew."""
    _, store = load_frames(table, SAMPLING, size, progress=False)
    paths = list(store.rows)

    def decode(path: str) -> np.ndarray:
        made = read_frames(table.root, [path], lambda image: fit(image, size))[0]
        assert isinstance(made, np.ndarray)
        return made

    class Decoded:
        shape = (3, size, size)

        def __init__(self) -> None:
            self.made: dict[int, Any] = {}

        def start(self) -> None:
            self.made = {row: pool.submit(decode, path) for row, path in enumerate(paths)}

        def __getitem__(self, row: int) -> np.ndarray:
            return self.made[row].result()

    return ClipData(table, FrameStore(Decoded(), store.rows, store.keys), SAMPLING)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def bench_feeding(benchmark: Any, faces: Path, tmp_path: Path, case: str) -> None:
    shape, size = CASES[case]
    table = resized(faces, tmp_path / "data", shape)
    cache = Cache(folder=tmp_path / "cache", limit=10**10)
    start = time.perf_counter()
    load_frames(table, SAMPLING, size, cache=cache, progress=False)
    filled = time.perf_counter() - start
    start = time.perf_counter()
    _, store = load_frames(
        table, SAMPLING, size, cache=Cache(folder=cache.folder, limit=10**10), progress=False
    )
    opened = time.perf_counter() - start
    cached = ClipData(table, store, SAMPLING)
    seconds: dict[str, list[float]] = {"decode": [], "cache": []}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fresh = decoding(table, size, pool)
        for number in range(7):
            start = time.perf_counter()
            fresh.store.pixels.start()  # type: ignore[union-attr]
            slow = list(one_pass(fresh, number))
            middle = time.perf_counter()
            fast = list(one_pass(cached, number))
            seconds["decode"].append(middle - start)
            seconds["cache"].append(time.perf_counter() - middle)
            assert all(torch.equal(a.video, b.video) for a, b in zip(slow, fast, strict=True))
    benchmark.group = "feeding"
    benchmark.pedantic(lambda: list(one_pass(cached, 0)), rounds=9, warmup_rounds=2)
    rates = {how: len(table) / median(times) for how, times in seconds.items()}
    benchmark.extra_info.update(
        clips_per_second_decoding=round(rates["decode"]),
        clips_per_second_from_cache=round(rates["cache"]),
        times=round(rates["cache"] / rates["decode"], 1),
        first_start_ms_per_clip=round(1000 * filled / len(table), 1),
        later_start_ms_per_clip=round(1000 * opened / len(table), 1),
    )
    print(f"\n{case}: {benchmark.extra_info}")


@pytest.mark.parametrize("thread", ["no thread", "a thread loads ahead"])
def bench_training_on_the_cpu(benchmark: Any, faces: Path, thread: str) -> None:
    """A pass of training steps, with batches made by a thread ahead of them and without."""
    table = read_casme3(faces)
    table = ClipTable(table.root, table.clips.assign(label=np.arange(len(table)) % 3))
    _, store = load_frames(table, SAMPLING, 112, progress=False)
    data = ClipData(table, store, SAMPLING)
    model = hsta_fast.create_model("hsta_tiny", num_classes=3, num_layers=2, n_video=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        batches = one_pass(data, 0)
        for batch in batches if thread == "no thread" else ahead(batches, 2):
            cross_entropy(model(video=batch.video, special=batch.special), batch.label).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    benchmark.group = "training on the CPU"
    benchmark.pedantic(run, rounds=9, warmup_rounds=2)
    benchmark.extra_info["clips_per_second"] = len(data) / benchmark.stats.stats.median
