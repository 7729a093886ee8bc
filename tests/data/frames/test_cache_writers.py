"""Killed writers of the cache, and two writers at once: no wrong frame, and none written twice."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from hsta_fast.data.frames.store import load_frames
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.data.sampling import Sampling

# A fork of a process with threads may hang, so a new process forks.
_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, cv2
from hsta_fast.data.frames import cache as cache_module
from hsta_fast.data.frames.cache import Cache
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.data.clips import ClipTable
from hsta_fast.data.frames.store import load_frames
from hsta_fast.data.sampling import Sampling
cv2.setNumThreads(1)
cache_module.CHUNK_BYTES = 30_000
root, folder, moments = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(time.time())
table = read_casme3(root)
table = ClipTable(root, table.clips[:8])
load = lambda cache: load_frames(table, Sampling(num_frames=6), 48, cache=cache, progress=False)[1]
pictures = lambda store: {path: store.pixels[row].tobytes() for path, row in store.rows.items()}
def child(folder):
    number = os.fork()
    if number == 0:
        load(Cache(folder=folder, limit=10**9))
        os._exit(0)
    return number
start = time.perf_counter()
os.waitpid(child(folder / "unbroken"), 0)
whole = time.perf_counter() - start
chunks = lambda place: len(list(place.rglob("*.chunk")))
total = chunks(folder / "unbroken")
places, part = [], 0
# At least one kill has to hit in the middle of the writing; a slow reader of the folder may miss it.
while len(places) < moments or not part:
    place = folder / str(rng.random())
    goal, number = rng.randrange(total), child(place)
    while chunks(place) < goal and os.waitpid(number, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(rng.random() * whole / total)
    try:
        os.kill(number, signal.SIGKILL)
        hit = os.WIFSIGNALED(os.waitpid(number, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        hit = False
    if not hit:  # it was done already
        continue
    places.append(place)
    part += 0 < chunks(place) < total
    assert os.waitpid(child(place), 0)[1] == 0
    assert not list(place.rglob("*.tmp")), list(place.rglob("*.tmp"))
# Not earlier, because this process must have no threads while it forks.
truth = pictures(load(None))
for place in places:
    store = load(Cache(folder=place, limit=10**9))
    assert pictures(store) == truth and store.pixels.in_memory == 0
print(len(places))
"""


@pytest.mark.parametrize("moments", [4, pytest.param(20, marks=pytest.mark.full)])
def test_kill_9_at_random_moments_leaves_no_wrong_frame(faces: Path, tmp_path: Path, moments: int) -> None:
    args = [sys.executable, "-c", _KILLER, str(faces), str(tmp_path), str(moments)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= moments  # the others before the first chunk or after the last


_WRITER = """
import fcntl, sys
from pathlib import Path
import cv2
from hsta_fast.data.frames import cache as cache_module
from hsta_fast.data.frames.cache import Cache
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.data.frames.store import load_frames
from hsta_fast.data.sampling import Sampling
cache_module.CHUNK_BYTES = 40_000
if sys.argv[3] == "without locks":
    def flock(*_):
        raise OSError(95, "not supported")
    fcntl.flock = flock
table = read_casme3(Path(sys.argv[1]))
decoded, decode = [], cv2.imdecode
cv2.imdecode = lambda *args: decoded.append(1) or decode(*args)
print("ready", flush=True)
sys.stdin.readline()
cache = Cache(folder=Path(sys.argv[2]), limit=10**9)
store = load_frames(table, Sampling(num_frames=6), 48, cache=cache, progress=False)[1]
assert store.pixels.in_memory == 0
import hashlib
content = b"".join(store.pixels[row].tobytes() for row in store.rows.values())
print(hashlib.sha256(content).hexdigest(), len(decoded))
"""


@pytest.mark.parametrize("locks", ["with locks", "without locks"])
def test_two_writers_at_once(faces: Path, tmp_path: Path, locks: str) -> None:
    args = [sys.executable, "-c", _WRITER, str(faces), str(tmp_path / "cache"), locks]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen(args, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    _, store = load_frames(read_casme3(faces), Sampling(num_frames=6), 48, progress=False)
    plain = hashlib.sha256(b"".join(store.pixels[row].tobytes() for row in store.rows.values())).hexdigest()
    assert [out.split()[0] for out, _ in said] == [plain, plain]
    written = list((tmp_path / "cache").rglob("*.chunk"))
    # No frame is kept twice: with locks one waits for the other, without they write the same chunks.
    sizes = [(path.stat().st_size - 4096) // (3 * 48 * 48) for path in written]
    frames = len({store.pixels[row].tobytes() for row in store.rows.values()})
    assert sum(sizes) == frames
    if locks == "with locks":
        assert sum(int(out.split()[1]) for out, _ in said) == frames
    assert not list((tmp_path / "cache").rglob("*.tmp"))
