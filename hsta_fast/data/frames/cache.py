"""Arrays made once and kept on disk: decoded frames, optical flow, apexes.

    <folder>/<name>-<digest of the fingerprint>/recipe.json    the fingerprint in words
                                                <name>.chunk   a header, then about 16 MB of arrays

An array is found by its key, which is made from the content of its source files, and by the fingerprint
(everything else that its bytes depend on), which names the folder. So a changed file or a changed setting
never gets the old array, and a dataset that was moved is still found.

A chunk is written to a temporary file that is then moved into place, so a killed writer leaves no partial
chunk. Its header has a checksum of itself and of every array. Arrays are checked when a chunk is opened; a
chunk in which anything is wrong is deleted and its arrays are made again. Two writers of one folder take
turns; without locks (some network disks) both do the work and write the same bytes to the same name. Arrays
that cannot be written (read-only folder, full disk, the limit) are kept in memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ...files import EXHAUSTED, lock_file, open_lock, write_atomically, write_text
from ...threads import thread_pool
from .chunks import ArraySpec, chunk_head, map_arrays, open_chunk

CHUNK_BYTES = 16 * 2**20  # the most that a killed writer loses
COUNT_EVERY = 10.0  # seconds before a writer measures the folder's size again

Made = np.ndarray | ValueError
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class Cache:
    """Where arrays are kept, and how many bytes of them at most.

    Beyond `limit` the least recently used chunks are deleted, but none that this object has handed out.
    """

    folder: Path
    limit: int
    in_use: set[Path] = field(default_factory=set, init=False)
    _counted: float = field(default=-math.inf, init=False)  # when the folder was last measured
    _bytes: int = field(default=0, init=False)  # found then and written since

    def make_room(self, size: int) -> bool:
        """Reserve `size` bytes, deleting the least recently used chunks; False if they do not fit."""
        if time.monotonic() - self._counted > COUNT_EVERY or self._bytes + size > self.limit:
            self._counted, self._bytes = time.monotonic(), self._clear(size)
        if self._bytes + size > self.limit:
            return False
        self._bytes += size
        return True

    def _clear(self, size: int) -> int:
        """Delete chunks until `size` more bytes fit, if that is possible; returns the bytes left."""
        chunks = []
        for path in self.folder.glob("*/*.chunk"):
            with contextlib.suppress(OSError):  # deleted by another process just now
                facts = path.stat()
                chunks.append((facts.st_mtime_ns, facts.st_size, path))
        left = sum(chunk[1] for chunk in chunks)
        spare = sorted(chunk for chunk in chunks if chunk[2] not in self.in_use)
        if left - sum(chunk[1] for chunk in spare) + size <= self.limit:
            for _, freed, path in spare:
                if left + size <= self.limit:
                    break
                path.unlink(missing_ok=True)  # a process that has it mapped keeps it until it ends
                left -= freed
        return left


@dataclass(frozen=True, eq=False)
class CachedArrays:
    """Arrays by number, mapped read-only from disk or in memory: `arrays[3]` has the shape `shape`.

    parts: arrays (n, *shape). on_disk: for each part whether it is mapped. places: (part, row) of each array,
    part -1: not made. errors: number -> message for each array that could not be made.
    """

    parts: Sequence[np.ndarray]
    on_disk: Sequence[bool]
    places: Sequence[tuple[int, int]]
    errors: dict[int, str]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> np.ndarray:
        part, row = self.places[number]
        if part < 0:
            raise KeyError(self.errors[number])
        return self.parts[part][row]

    @property
    def in_memory(self) -> int:
        """How many of the arrays could not be kept on disk."""
        return sum(part >= 0 and not self.on_disk[part] for part, _ in set(self.places))


def load_arrays(
    spec: ArraySpec,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[Made]],
    *,
    groups: Sequence[list[int]] | None = None,
    cache: Cache | None = None,
    progress: bool = False,
) -> CachedArrays:
    """One array for each key: read from the cache if it is there and undamaged, else made and stored.

    Args:
        spec: shape, dtype and fingerprint of the arrays.
        keys: the keys of the arrays.
        make: makes the arrays with the given numbers (positions in `keys`), with a ValueError in the place of
            an array that cannot be made. Called from several threads at once.
        groups: numbers to make in one call (frames of one video); by default each alone.
        cache: None keeps everything in memory.
        progress: show progress bars.
    """
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    store = _CacheFolder(spec, cache, progress)
    with thread_pool() as pool:
        store.find(set(first), pool)
        if len(store.found) < len(first):
            with store.writing() as lock:
                if lock:  # another writer may have finished some while this one waited
                    store.find(set(first) - set(store.found), pool)
                jobs = []
                for group in groups or ([number] for number in first.values()):
                    wanted = [n for n in group if first[keys[n]] == n and keys[n] not in store.found]
                    if wanted:
                        jobs.append(wanted)
                errors = store.make(jobs, keys, make, pool)
        else:
            errors = {}
    places = [store.found.get(key, (-1, -1)) for key in keys]
    wrong = {n: errors[key] for n, key in enumerate(keys) if key in errors}
    return CachedArrays(store.parts, store.on_disk, places, wrong, spec.shape)


class _CacheFolder:
    """One folder of the cache, and the arrays found in it or made for it: `found` is key -> (part, row)."""

    def __init__(self, spec: ArraySpec, cache: Cache | None, progress: bool) -> None:
        self.spec, self.cache, self.progress = spec, cache, progress
        self.folder = cache.folder / f"{spec.name}-{spec.digest}" if cache else None
        self.parts: list[np.ndarray] = []
        self.on_disk: list[bool] = []
        self.found: dict[str, tuple[int, int]] = {}
        self.writable = False

    def say(self, line: str) -> None:
        tqdm.write(f"cache {self.folder}: {line}", file=sys.stderr)

    def find(self, wanted: set[str], pool: ThreadPoolExecutor) -> None:
        """Open the chunks that have wanted keys; delete chunks in which anything is wrong."""
        if self.cache is None or self.folder is None:
            return
        try:
            paths = sorted(path for path in self.folder.glob("*.chunk") if path.is_file())
        except OSError:  # no folder yet, or no permission to read it
            return

        def check(path: Path) -> tuple[Path, tuple[np.ndarray, dict[str, int]] | ValueError | OSError]:
            try:
                return path, open_chunk(path, self.spec, wanted)
            except (ValueError, OSError) as error:
                return path, error

        hidden = not (self.progress and paths)
        bar = tqdm(paths, f"check {self.spec.name}", unit="chunk", disable=hidden, leave=False)
        for path, opened in _in_order(pool, check, bar):
            if isinstance(opened, OSError):
                if opened.errno in EXHAUSTED:
                    raise opened
                self.say(f"{path.name} cannot be read: {opened.strerror or opened}")
            elif isinstance(opened, ValueError):
                self.say(f"{path.name} is deleted: {opened}")
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            elif opened[1]:
                self.found.update({key: (len(self.parts), row) for key, row in opened[1].items()})
                self.parts.append(opened[0])
                self.on_disk.append(True)
                self.cache.in_use.add(path)
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now: the last to be deleted when room is needed

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Wait until no other process writes to the folder; yields whether this process can write to it."""
        if self.folder is None:
            yield False
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.folder / ".lock")
        except OSError as error:
            self.say(f"cannot be written ({error.strerror}); what is not in it is kept in memory")
            yield False
            return
        with lock:
            self.writable = True
            try:
                if not lock_file(lock, wait=False):
                    self.say("another process is filling it; waiting")
                    lock_file(lock)
            except OSError as error:
                self.say(f"{error}; continuing without a lock")
            else:
                self.tidy()
            yield True

    def tidy(self) -> None:
        """Delete what a killed writer left, and write recipe.json. Needs the lock: others may write, too."""
        assert self.folder is not None
        try:
            for leftover in self.folder.glob(".*.tmp"):
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)
            if not (self.folder / "recipe.json").exists():
                write_text(self.folder / "recipe.json", json.dumps(self.spec.fingerprint, indent=2) + "\n")
        except OSError as error:
            self.say(str(error))

    def make(
        self,
        jobs: list[list[int]],
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[Made]],
        pool: ThreadPoolExecutor,
    ) -> dict[str, str]:
        """Make the arrays of all jobs, chunk by chunk; returns key -> message for those that failed."""
        errors: dict[str, str] = {}
        per_chunk = max(1, CHUNK_BYTES // self.spec.bytes_each)
        total = sum(map(len, jobs))
        bar = tqdm(total=total, desc=f"make {self.spec.name}", disable=not self.progress, dynamic_ncols=True)
        names: list[str] = []
        arrays: list[np.ndarray] = []
        with bar:
            for numbers, made in _in_order(pool, lambda job: (job, list(make(job))), jobs, len):
                for number, array in zip(numbers, made, strict=True):
                    bar.update()
                    if isinstance(array, ValueError):
                        errors[keys[number]] = str(array)
                        continue
                    names.append(keys[number])
                    arrays.append(array)
                    if len(names) == per_chunk:
                        self.add(names, arrays)
                        names, arrays = [], []
            if names:
                self.add(names, arrays)
        return errors

    def add(self, names: list[str], arrays: list[np.ndarray]) -> None:
        """Keep the arrays of these keys as one part: a chunk on disk if possible, else in memory."""
        part = np.stack(arrays).astype(self.spec.dtype, copy=False)
        mapped = False
        if self.writable and self.cache is not None and self.folder is not None:
            try:
                if path := self.write(names, part):
                    part = map_arrays(path, self.spec, path.stat().st_size - part.nbytes, len(part))
                    mapped = True
                    self.cache.in_use.add(path)
            except OSError as error:
                self.writable = False
                self.say(f"{error}; what is not in it is kept in memory")
        self.found.update({key: (len(self.parts), row) for row, key in enumerate(names)})
        self.parts.append(part)
        self.on_disk.append(mapped)

    def write(self, names: list[str], part: np.ndarray) -> Path | None:
        """Write a chunk and return its path; None if there is no room for it."""
        assert self.cache is not None and self.folder is not None
        start, name = chunk_head(self.spec, names, part)
        if not self.cache.make_room(len(start) + part.nbytes):
            self.writable = False
            self.say(f"is full ({self.cache.limit / 1e9:g} GB); what is not in it is kept in memory")
            return None
        path = self.folder / name

        def fill(file: Any) -> None:
            file.write(start)
            file.write(part.data)

        write_atomically(path, fill)
        return path


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    size: Callable[[Job], int] = lambda job: 1,
) -> Iterator[Result]:
    """The results of `work` in the order of the jobs.

    About 32 items per thread are computed ahead; each thread always has a job, however large it is. size: the
    number of items of a job.
    """
    threads = os.cpu_count() or 1
    left, waiting, items = iter(jobs), deque[tuple[int, Future[Result]]](), 0

    def submit() -> None:
        nonlocal items
        while len(waiting) < threads or items < 32 * threads:
            job = next(left, None)
            if job is None:
                return
            items += size(job)
            waiting.append((size(job), pool.submit(work, job)))

    try:
        submit()
        while waiting:
            count, future = waiting.popleft()
            result = future.result()
            items -= count
            submit()
            yield result
    finally:
        for _, future in waiting:
            future.cancel()
