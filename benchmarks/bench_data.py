"""Clips per second in training batches, mirrored and shifted: from the cache, and decoding JPEGs each time.

Both use 8 frames of a clip and give the same bytes. Decoding has a thread for each core, so a busy machine
slows it more; one thread reads the cache, as in training. For comparison the lower bound of decoding: OpenCV
alone, one process for each core, without building batches.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import hsta_fast
from benchmarks.cases import Step
from benchmarks.compare import OURS, Make
from hsta_fast.data import Augment, Cache, ClipData, ClipTable, Sampling, load_frames
from hsta_fast.data.frames.decode import read_frames, resize_to_planes
from hsta_fast.data.frames.store import FrameStore
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.synth import SynthConfig, render
from hsta_fast.threads import prefetch

SAMPLING = Sampling()
CORES = os.cpu_count() or 1
# Size of the frames on disk (height, width), and side of the model's frames.
CASES = {
    "112 x 112 to 112": ((112, 112), 112),
    "224 x 224 to 224": ((224, 224), 224),
    "340 x 280 to 224": ((340, 280), 224),  # CASME II cropped
    "640 x 480 to 224": ((480, 640), 224),  # SMIC
    "1280 x 720 to 224": ((720, 1280), 224),  # CAS(ME)3
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=2, clips_per_subject=6, size=112))


def resized(faces: Path, out: Path, shape: tuple[int, int]) -> ClipTable:
    """The clips with frames of another size, with camera noise, at the JPEG quality of the rendered ones."""
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


class Decoded:
    """Frames that all threads of a pool decode again after each `start`."""

    def __init__(self, table: ClipTable, paths: list[str], size: int, pool: ThreadPoolExecutor) -> None:
        self.table, self.paths, self.pool = table, paths, pool
        self.shape = (3, size, size)
        self.made: dict[int, Future[np.ndarray]] = {}

    def decode(self, path: str) -> np.ndarray:
        made = read_frames(self.table.root, [path], lambda image: resize_to_planes(image, self.shape[1]))[0]
        assert isinstance(made, np.ndarray)
        return made

    def start(self) -> None:
        self.made = {row: self.pool.submit(self.decode, path) for row, path in enumerate(self.paths)}

    def __getitem__(self, row: int) -> np.ndarray:
        return self.made[row].result()


def decoding(table: ClipTable, size: int, pool: ThreadPoolExecutor) -> ClipData:
    """The same clips; every pass decodes every frame again."""
    _, store = load_frames(table, SAMPLING, size, progress=False)
    frames = Decoded(table, list(store.rows), size, pool)
    return ClipData(table, FrameStore(cast(Any, frames), store.rows, store.keys), SAMPLING)


def decode_alone(paths: list[str], size: int) -> None:
    """RGB planes of these files by OpenCV alone, without our checks."""
    for path in paths:
        resize_to_planes(cv2.cvtColor(np.asarray(cv2.imread(path)), cv2.COLOR_BGR2RGB), size)


@contextlib.contextmanager
def opencv_alone(table: ClipTable, store: FrameStore) -> Iterator[Step]:
    """`decode_alone` in one process for each core: the lower bound of decoding, without building batches."""
    paths = [str(table.root / path) for path in store.rows]
    parts = [paths[start :: 4 * CORES] for start in range(4 * CORES)]
    with ProcessPoolExecutor(
        CORES, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield lambda: list(pool.map(decode_alone, parts, [store.size] * len(parts)))


def check_equal(fresh: ClipData, cached: ClipData) -> None:
    cast(Decoded, fresh.store.pixels).start()
    for slow, fast in zip(one_pass(fresh, 0), one_pass(cached, 0), strict=True):
        assert torch.equal(slow.video, fast.video) and torch.equal(slow.special, fast.special)


@pytest.mark.parametrize("case", CASES)
def bench_feeding(compare: Callable[..., None], faces: Path, tmp_path: Path, case: str) -> None:
    shape, size = CASES[case]
    table = resized(faces, tmp_path / "data", shape)
    cache, starts = Cache(folder=tmp_path / "cache", limit=10**10), []
    for _ in range(2):
        start = time.perf_counter()
        _, store = load_frames(table, SAMPLING, size, cache=cache, progress=False)
        starts.append(round(1e3 * (time.perf_counter() - start) / len(table), 1))
    cached = ClipData(table, store, SAMPLING)
    with ThreadPoolExecutor(CORES) as pool, opencv_alone(table, store) as alone:
        fresh = decoding(table, size, pool)
        check_equal(fresh, cached)

        def decoded_pass() -> None:
            cast(Decoded, fresh.store.pixels).start()
            for _ in one_pass(fresh, 0):
                pass

        members: dict[str, Make] = {
            OURS: lambda: lambda: [None for _ in one_pass(cached, 0)],
            "decoding": lambda: decoded_pass,
            "OpenCV alone": lambda: alone,
        }
        notes = {"clips": len(table), "first_start_ms_per_clip": starts[0], "later": starts[1]}
        compare(f"data, {case}", members, notes=notes, seconds=1.0)


@pytest.mark.parametrize("name", ["hsta_tiny"])
def bench_training(compare: Callable[..., None], faces: Path, name: str) -> None:
    """A pass of training steps, without a thread that prefetches batches (as on a CPU) and with one."""
    table = read_casme3(faces)
    table = ClipTable(table.root, table.clips.assign(label=np.arange(len(table)) % 3))
    _, store = load_frames(table, SAMPLING, 112, progress=False)
    data = ClipData(table, store, SAMPLING)

    def make() -> Callable[[Any], None]:
        model = hsta_fast.create_model(name, num_classes=3, num_layers=2, n_video=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def train(batches: Any) -> None:
            for batch in batches:
                cross_entropy(model(video=batch.video, special=batch.special), batch.label).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return train

    def prefetching() -> Step:
        train = make()
        return lambda: train(prefetch(one_pass(data, 0), 2))

    def plain() -> Step:
        train = make()
        return lambda: train(one_pass(data, 0))

    members = {OURS: plain, "prefetching thread": prefetching}
    compare(f"data, an epoch of {name}, 112 x 112", members, notes={"clips": len(data)})
