"""Arrays made once and kept on disk: decoded frames, optical flow, apexes.

    <folder>/<kind>-<recipe>/recipe.json    in words: what the arrays of this folder are
                             <name>.chunk   a header, then some 16 MB of arrays of one shape and dtype

An array is known by a key, made from the content of what it was computed from, and by its folder's recipe,
which holds everything else that its bytes depend on. So neither a changed file nor a changed setting can be
served what was there before, and a data set that was moved is still found.

A chunk is written beside its place and then moved there, so a killed writer leaves no part of one. Its header
carries a check sum of itself and of every array. What is asked for is checked when it is opened; a chunk in
which anything is wrong is thrown away and its arrays are made again. Two writers of one folder take turns;
without locks (some network disks) both would do the work, and the same bytes would be moved to the same
name. Arrays that cannot be written (read-only folder, full disk, the limit) are kept in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from typing import IO, Any, TypeVar

import numpy as np
from tqdm import tqdm

from ...files import EXHAUSTED, write_atomically, write_text
from .chunks import Kind, chunk_head, map_arrays, open_chunk

CHUNK_BYTES = 16 * 2**20  # what a killed writer loses at most
COUNT_EVERY = 10.0  # seconds for which a writer trusts what it knows of the folder's size

Made = np.ndarray | ValueError
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class Cache:
    """Where arrays are kept, and at most how many bytes of them.

    Beyond `limit` the chunks that were not used for longest are deleted, none that came out of this object.
    """

    folder: Path
    limit: int
    in_use: set[Path] = field(default_factory=set, init=False)
    _counted: float = field(default=-math.inf, init=False)  # when the folder was last looked through
    _bytes: int = field(default=0, init=False)  # what was there, and what was written since

    def make_room(self, size: int) -> bool:
        """Whether `size` more bytes keep to the limit, once chunks not used for longest are deleted."""
        if time.monotonic() - self._counted > COUNT_EVERY or self._bytes + size > self.limit:
            self._counted, self._bytes = time.monotonic(), self._clear(size)
        if self._bytes + size > self.limit:
            return False
        self._bytes += size
        return True

    def _clear(self, size: int) -> int:
        """Delete what has to go for `size` more bytes, if that helps; returns the bytes that are left."""
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
class Items:
    """Arrays by number: `items[3]`, mapped read-only from disk or in memory.

    parts: arrays (n, *shape). on_disk: which of them are mapped. places: (part, row) of each item. errors:
    what was wrong with items that have none.
    """

    parts: Sequence[np.ndarray]
    on_disk: Sequence[bool]
    places: Sequence[tuple[int, int]]
    errors: dict[int, str]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> np.ndarray:
        part, row = self.places[item]
        if part < 0:
            raise KeyError(self.errors[item])
        return self.parts[part][row]

    @property
    def in_memory(self) -> int:
        """How many of the arrays could not be kept on disk."""
        return sum(part >= 0 and not self.on_disk[part] for part, _ in set(self.places))


def load_items(
    kind: Kind,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[Made]],
    *,
    groups: Sequence[list[int]] | None = None,
    cache: Cache | None = None,
    progress: bool = False,
) -> Items:
    """One array for each key, out of the cache where it is there and whole, made and kept otherwise.

    make: the arrays of some items, given by their numbers in `keys`; a ValueError in the place of one that
        cannot be made. Called in several threads at once.
    groups: numbers that are made in one call (frames of one video); by default each alone.
    cache: None keeps everything in memory.
    """
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    shelf = _Shelf(kind, cache, progress)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shelf.find(set(first), pool)
        if len(shelf.found) < len(first):
            with shelf.writing() as lock:
                if lock:  # what another writer has finished while this one waited
                    shelf.find(set(first) - set(shelf.found), pool)
                jobs = []
                for group in groups or ([number] for number in first.values()):
                    wanted = [n for n in group if first[keys[n]] == n and keys[n] not in shelf.found]
                    if wanted:
                        jobs.append(wanted)
                errors = shelf.make(jobs, keys, make, pool)
        else:
            errors = {}
    places = [shelf.found.get(key, (-1, -1)) for key in keys]
    wrong = {n: errors[key] for n, key in enumerate(keys) if key in errors}
    return Items(shelf.parts, shelf.on_disk, places, wrong, kind.shape)


class _Shelf:
    """The folder of one kind, and what was found in it or made for it: `found` is key -> (part, row)."""

    def __init__(self, kind: Kind, cache: Cache | None, progress: bool) -> None:
        self.kind, self.cache, self.progress = kind, cache, progress
        self.folder = cache.folder / f"{kind.name}-{kind.digest}" if cache else None
        self.parts: list[np.ndarray] = []
        self.on_disk: list[bool] = []
        self.found: dict[str, tuple[int, int]] = {}
        self.writable = False

    def say(self, line: str) -> None:
        tqdm.write(f"cache {self.folder}: {line}", file=sys.stderr)

    def find(self, wanted: set[str], pool: ThreadPoolExecutor) -> None:
        """Open the chunks that hold wanted keys; throw those away in which anything is wrong."""
        if self.cache is None or self.folder is None:
            return
        try:
            paths = sorted(path for path in self.folder.glob("*.chunk") if path.is_file())
        except OSError:  # none yet, or one that may not be read
            return

        def check(path: Path) -> tuple[Path, tuple[np.ndarray, dict[str, int]] | ValueError | OSError]:
            try:
                return path, open_chunk(path, self.kind, wanted)
            except (ValueError, OSError) as error:
                return path, error

        bar = tqdm(paths, f"check {self.kind.name}", unit="chunk", disable=not self.progress, leave=False)
        for path, opened in _in_order(pool, check, bar):
            if isinstance(opened, OSError):
                if opened.errno in EXHAUSTED:
                    raise opened
                self.say(f"{path.name} cannot be read: {opened.strerror}")
            elif isinstance(opened, ValueError):
                self.say(f"{path.name} is thrown away: {opened}")
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            elif opened[1]:
                self.found.update({key: (len(self.parts), row) for key, row in opened[1].items()})
                self.parts.append(opened[0])
                self.on_disk.append(True)
                self.cache.in_use.add(path)
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now: deleted last where room is needed

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """The right to write to the folder: True, once no other process has it, where it can be had."""
        if self.folder is None:
            yield False
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.open_lock()
        except OSError as error:
            self.say(f"cannot be written ({error.strerror}); what is not in it is kept in memory")
            yield False
            return
        with lock:
            self.writable = True
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.say("another process is filling it; waiting")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                for litter in self.folder.glob(".*.tmp"):  # of a writer that was killed
                    if litter.is_file():
                        litter.unlink(missing_ok=True)
                words = json.dumps(self.kind.recipe, indent=2) + "\n"
                if not (self.folder / "recipe.json").exists():
                    write_text(self.folder / "recipe.json", words)
            except OSError as error:
                self.say(f"{error}; going on without a lock")
            yield True

    def open_lock(self) -> IO[str]:
        """The file that writers lock; read-only where another user made it, which is enough for a lock."""
        assert self.folder is not None
        try:
            return (self.folder / ".lock").open("a")
        except PermissionError:
            if not os.access(self.folder, os.W_OK, effective_ids=True):
                raise
            return (self.folder / ".lock").open()

    def make(
        self,
        jobs: list[list[int]],
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[Made]],
        pool: ThreadPoolExecutor,
    ) -> dict[str, str]:
        """Make the items of all jobs, chunk by chunk; returns key -> what was wrong."""
        errors: dict[str, str] = {}
        per_chunk = max(1, CHUNK_BYTES // self.kind.bytes_each)
        total = sum(map(len, jobs))
        bar = tqdm(total=total, desc=f"make {self.kind.name}", disable=not self.progress, dynamic_ncols=True)
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
        """Keep arrays of these keys as one part: a chunk on disk where possible."""
        part = np.stack(arrays).astype(self.kind.dtype, copy=False)
        mapped = False
        if self.writable and self.cache is not None and self.folder is not None:
            try:
                if path := self.write(names, part):
                    with path.open("rb") as file:
                        part = map_arrays(file, self.kind, path.stat().st_size - part.nbytes, len(part))
                    mapped = True
                    self.cache.in_use.add(path)
            except OSError as error:
                self.writable = False
                self.say(f"{error}; what is not in it is kept in memory")
        self.found.update({key: (len(self.parts), row) for row, key in enumerate(names)})
        self.parts.append(part)
        self.on_disk.append(mapped)

    def write(self, names: list[str], part: np.ndarray) -> Path | None:
        """Write a chunk; None where there is no room for it."""
        assert self.cache is not None and self.folder is not None
        start, name = chunk_head(self.kind, names, part)
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
    """Results in the order of the jobs, a bounded number of items ahead of who takes them.

    size: items of a job. There is a job for each thread, however large.
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
