"""The cache gives the frames that decoding would give, after changes, damage, kills and lost permissions."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.data.clips import ClipTable
from hsta_fast.data.frames import cache as cache_module
from hsta_fast.data.frames import store as store_module
from hsta_fast.data.frames.cache import Cache, CachedArrays, load_arrays
from hsta_fast.data.frames.chunks import ArraySpec, digest
from hsta_fast.data.frames.decode import content_keys
from hsta_fast.data.frames.store import FrameStore, frame_spec, load_frames
from hsta_fast.data.sampling import Sampling
from hsta_fast.files import write_atomically
from tests.data.frames.test_store import encoded, table_of

SAMPLING = Sampling(num_frames=4)
SIZE = 16
NOBODY = 65534


@pytest.fixture
def table(tmp_path: Path) -> ClipTable:
    """Six clips of four random JPEGs."""
    rng = np.random.default_rng(0)
    clips = [[f"clips/{clip}_{k}.jpg" for k in range(4)] for clip in range(6)]
    (tmp_path / "data" / "clips").mkdir(parents=True)
    for path in (path for clip in clips for path in clip):
        picture = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (30, 20))
        (tmp_path / "data" / path).write_bytes(encoded(".jpg", picture))
    return table_of(tmp_path / "data", clips)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """An empty cache, in chunks of five frames."""
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 5 * 3 * SIZE**2)
    return new(tmp_path)


def new(tmp_path: Path, limit: int = 10**9) -> Cache:
    """The cache as another process would open it."""
    return Cache(folder=tmp_path / "cache", limit=limit)


def load(table: ClipTable, cache: Cache | None, size: int = SIZE) -> tuple[ClipTable, FrameStore]:
    return load_frames(table, SAMPLING, size, cache=cache, progress=False)


def pictures(store: FrameStore) -> dict[str, bytes]:
    return {path: store.pixels[row].tobytes() for path, row in store.rows.items()}


def in_memory(store: FrameStore) -> int:
    assert isinstance(store.pixels, CachedArrays)
    return store.pixels.in_memory


def chunks(cache: Cache) -> list[Path]:
    return sorted(cache.folder.rglob("*.chunk"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every image that is decoded."""
    calls: list[int] = []
    decode = cv2.imdecode

    def counted(data: np.ndarray, flags: int) -> np.ndarray | None:
        calls.append(len(data))
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", counted)
    return calls


def test_frames_are_decoded_once_and_mapped_afterwards(
    table: ClipTable, cache: Cache, tmp_path: Path, decoded: list[int]
) -> None:
    plain = pictures(load(table, None)[1])
    assert len(decoded) == 24
    first = load(table, cache)[1]
    assert len(decoded) == 48 and pictures(first) == plain and in_memory(first) == 0
    again = load(table, new(tmp_path))[1]
    assert len(decoded) == 48 and pictures(again) == plain and in_memory(again) == 0
    assert isinstance(again.pixels, CachedArrays) and all(again.pixels.on_disk)
    assert not again.pixels[0].flags.writeable
    assert len(chunks(cache)) == 5 and (chunks(cache)[0].parent / "recipe.json").exists()
    # Elsewhere the same files are found too: they are known by their content.
    moved = ClipTable(tmp_path / "moved", table.clips)
    table.root.rename(tmp_path / "moved")
    assert pictures(load(moved, new(tmp_path))[1]) == plain and len(decoded) == 48


def test_another_fingerprint_is_another_place(
    table: ClipTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = pictures(load(table, cache)[1])
    large = pictures(load(table, cache, 2 * SIZE)[1])
    assert large == pictures(load(table, None, 2 * SIZE)[1])
    assert pictures(load(table, cache)[1]) == small
    before = len(chunks(cache))
    monkeypatch.setattr(cv2, "__version__", "another")
    load(table, cache)
    assert len(chunks(cache)) == before + 5


def test_more_frames_of_the_same_clips_are_added(table: ClipTable, cache: Cache, decoded: list[int]) -> None:
    load_frames(table, Sampling(num_frames=2), SIZE, cache=cache, progress=False)
    assert len(decoded) == 18
    assert pictures(load(table, cache)[1]) == pictures(load(table, None)[1])
    assert len(decoded) == 24 + 24


def test_a_changed_file_is_never_served_stale(table: ClipTable, cache: Cache, tmp_path: Path) -> None:
    """Also where its size and its times are as before."""
    before = pictures(load(table, cache)[1])
    path = table.root / "clips/2_1.jpg"
    facts, data = path.stat(), path.read_bytes()
    changed = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[:, ::-1]
    for quality in range(100, 0, -1):
        other = cv2.imencode(".jpg", np.ascontiguousarray(changed), [cv2.IMWRITE_JPEG_QUALITY, quality])[
            1
        ].tobytes()
        if len(other) <= len(data):
            break
    path.write_bytes(other.ljust(len(data), b"\0"))  # bytes after the image have no effect
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    after = pictures(load(table, new(tmp_path))[1])
    assert after == pictures(load(table, None)[1])
    assert [name for name in before if before[name] != after[name]] == ["clips/2_1.jpg"]


def test_a_folder_whose_name_is_no_utf8(table: ClipTable, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/cach\xe9"))
    for decoded in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not decoded:
                patch.setattr(cv2, "imdecode", None)
            _, store = load(table, Cache(folder=folder, limit=10**9))
        assert in_memory(store) == 0


def test_a_file_that_changes_while_it_is_read_is_a_fault(
    table: ClipTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = content_keys

    def and_then_changed(*args: object, **more: object) -> object:
        found = keys(*args, **more)  # type: ignore[arg-type]
        shutil.copy(table.root / "clips/0_0.jpg", table.root / "clips/3_0.jpg")
        return found

    monkeypatch.setattr(store_module, "content_keys", and_then_changed)
    left, _ = load(table, cache)
    assert left.clips["subject"].tolist() == ["s0", "s1", "s2", "s4", "s5"]
    assert "changed while it was read" in left.faults[0].what


def test_a_bar_for_chunks_only_where_there_are_some(
    table: ClipTable, cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_frames(table, SAMPLING, SIZE, cache=cache)
    said = capfd.readouterr().err
    assert "make frames" in said and "check frames" not in said
    load_frames(table, SAMPLING, SIZE, cache=new(tmp_path))
    assert "check frames" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["header", "array", "end", "cut", "empty", "foreign", "longer", "zeros"])
def test_damage_is_found_and_made_good(
    table: ClipTable,
    cache: Cache,
    tmp_path: Path,
    where: str,
    decoded: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain = pictures(load(table, cache)[1])
    victim = chunks(cache)[2]
    whole = victim.read_bytes()
    data = bytearray(whole)
    if where in ("header", "array", "end"):
        at = {"header": 120, "array": 4096 + 1000, "end": len(data) - 1}[where]
        data[at] ^= 0x10
    elif where == "zeros":
        data[4096 + 768 : 4096 + 2 * 768] = bytes(768)
    else:
        data = {
            "cut": data[:-100],
            "empty": bytearray(),
            "foreign": bytearray(b"GIF89a"),
            "longer": data + b"\0",
        }[where]
    victim.write_bytes(data)
    already = len(decoded)
    capfd.readouterr()
    assert pictures(load(table, new(tmp_path))[1]) == plain
    assert "is deleted" in capfd.readouterr().err
    assert 0 < len(decoded) - already <= 5  # of that chunk alone
    assert victim.read_bytes() == whole  # the same frames make the same chunk
    assert "is deleted" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "header",
    [
        *("[]", "1", '"x"', "{}", "[" * 3000, "{", '{"recipe": 1, "keys": [], "sums": []}'),
        *('{"recipe": "R", "keys": 5, "sums": [1]}', '{"recipe": "R", "keys": [[1]], "sums": [1]}'),
        *(
            '{"recipe": "R", "keys": ["a", "b"], "sums": [1]}',
            '{"recipe": "R", "keys": ["a", "a"], "sums": [1, 2]}',
        ),
    ],
)
def test_a_header_of_nonsense_is_deleted(
    table: ClipTable, cache: Cache, tmp_path: Path, header: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even with the digest of its own words."""
    plain = pictures(load(table, cache)[1])
    victim = chunks(cache)[0]
    text = header.replace('"R"', json.dumps(frame_spec(SIZE).digest)).encode()
    words = f"hsta-fast cache {digest(text)} {len(text)}\n".encode() + text
    victim.write_bytes(words.ljust(4096, b"\0") + victim.read_bytes()[4096:])
    store = load(table, new(tmp_path))[1]
    assert pictures(store) == plain and in_memory(store) == 0
    assert "is deleted: its header is not of this format" in capfd.readouterr().err


def test_what_is_no_chunk_is_passed_over(table: ClipTable, cache: Cache, tmp_path: Path) -> None:
    """Opening a pipe would wait for ever; a folder is not ours to delete."""
    plain = pictures(load(table, cache)[1])
    folder = chunks(cache)[0].parent
    os.mkfifo(folder / "pipe.chunk")
    (folder / "folder.chunk").mkdir()
    (folder / ".a.tmp").mkdir()
    chunks(cache)[0].unlink()
    store = load(table, new(tmp_path))[1]
    assert pictures(store) == plain and in_memory(store) == 0


def test_more_chunks_than_open_files(
    table: ClipTable, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped chunk holds no file open; if no other file can be opened, no clip is called faulty."""
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 1)  # 24 chunks of one frame
    plain = pictures(load(table, None)[1])
    before = set(os.listdir("/proc/self/fd"))
    stores = [load(table, new(tmp_path))[1] for _ in range(2)]
    assert [pictures(store) for store in stores] == [plain] * 2 and len(chunks(cache)) == 24
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # not one more
    try:
        with pytest.raises(OSError, match="Too many open files"):
            load(table, None)
        with pytest.raises(OSError, match="Too many open files"):
            load(table, new(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_chunk_in_the_folder_with_another_fingerprint_is_not_served(
    table: ClipTable, cache: Cache, tmp_path: Path
) -> None:
    load(table, cache)
    source = chunks(cache)[0].parent
    spec = frame_spec(SIZE)
    other = ArraySpec(
        name="frames", fingerprint={**spec.fingerprint, "version": 99}, shape=spec.shape, dtype=spec.dtype
    )
    target = cache.folder / f"frames-{other.digest}"
    shutil.copytree(source, target)
    keys = list(content_keys(table.root, ["clips/0_0.jpg"]).values())
    marker = np.full(spec.shape, 7, np.uint8)
    items = load_arrays(other, [str(keys[0])], lambda numbers: [marker] * len(numbers), cache=new(tmp_path))
    assert (items[0] == 7).all()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, which permissions do not limit."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=True)
    shutil.rmtree(folder)


def test_a_read_only_cache_serves_what_it_has(
    table: ClipTable, cache: Cache, open_folder: Path, decoded: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = pictures(load(table, None)[1])
    data = shutil.copytree(table.root, open_folder / "data")
    table = ClipTable(data, table.clips)
    half = ClipTable(data, table.clips[:3])
    place = Cache(folder=open_folder / "cache", limit=10**9)
    load(half, place)
    for path in [place.folder, *place.folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    del decoded[:]
    with as_nobody():
        _, store = load(table, Cache(folder=place.folder, limit=10**9))
        assert pictures(store) == plain and in_memory(store) == 12
        assert len(decoded) == 12
        # A damaged chunk cannot be deleted; it is not served either.
    said = capfd.readouterr().err
    assert "cannot be written" in said and "in memory" in said
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == before
    victim = chunks(place)[0]
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    victim.chmod(0o444)
    with as_nobody():
        _, store = load(half, Cache(folder=place.folder, limit=10**9))
    assert pictures(store) == {path: plain[path] for path in store.rows} and victim.exists()


def test_a_place_that_cannot_be_a_folder(
    table: ClipTable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    _, store = load(table, Cache(folder=tmp_path / "file" / "cache", limit=10**9))
    assert pictures(store) == pictures(load(table, None)[1]) and in_memory(store) == 24
    assert "cannot be written (Not a directory)" in capfd.readouterr().err


def test_a_full_disk_keeps_the_rest_in_memory(
    table: ClipTable,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write, calls = write_atomically, []

    def full(path: Path, fill: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(f"could not write {path}: No space left on device")
        write(path, fill)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "write_atomically", full)
    _, store = load(table, cache)
    assert pictures(store) == pictures(load(table, None)[1]) and in_memory(store) == 14
    assert len(calls) == 3 and "No space left" in capfd.readouterr().err
    monkeypatch.undo()
    assert in_memory(load(table, new(tmp_path))[1]) == 0


@pytest.mark.parametrize(("old", "newer"), [(8, 12), (12, 8)])
def test_the_limit_deletes_what_was_not_used_for_longest(
    table: ClipTable, cache: Cache, tmp_path: Path, old: int, newer: int
) -> None:
    for size in (8, 12):
        load(table, cache, size)
    of = {size: set((cache.folder / f"frames-{frame_spec(size).digest}").glob("*.chunk")) for size in (8, 12)}
    for path in of[old]:
        os.utime(path, (1, 1))
    mine = cache.folder / "note.txt"
    mine.write_text("keep")
    used, freed = (sum(path.stat().st_size for path in paths) for paths in (chunks(cache), of[old]))
    _, store = load(
        table, new(tmp_path, used - freed + 5 * (5 * 3 * SIZE**2 + 4096))
    )  # room for 16 and `newer`
    assert in_memory(store) == 0 and mine.exists()
    assert all(path.exists() for path in of[newer]) and not all(path.exists() for path in of[old])


def test_what_this_process_uses_is_not_deleted(
    table: ClipTable, cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(table, cache)
    before = chunks(cache)
    narrow = new(tmp_path, sum(path.stat().st_size for path in before))
    load(table, narrow)
    _, store = load(table, narrow, 20)
    assert in_memory(store) == 24 and "is full" in capfd.readouterr().err
    assert chunks(cache) == before
    _, store = load(table, new(tmp_path, narrow.limit), 8)  # another process needs nothing of that
    assert in_memory(store) == 0 and chunks(cache) != before


def test_what_was_just_written_is_not_deleted(table: ClipTable, cache: Cache, tmp_path: Path) -> None:
    load(table, cache)
    room = sum(path.stat().st_size for path in chunks(cache))
    narrow = Cache(folder=tmp_path / "other", limit=room)
    load(table, narrow)
    before = chunks(narrow)
    assert in_memory(load(table, narrow, 20)[1]) == 24 and chunks(narrow) == before


def test_what_was_used_last_is_deleted_last(table: ClipTable, cache: Cache, tmp_path: Path) -> None:
    for size in (8, 12):
        load(table, cache, size)
    for path in chunks(cache):
        os.utime(path, (1, 1) if path.parent.name == f"frames-{frame_spec(8).digest}" else (2, 2))
    load(table, new(tmp_path), 8)  # used again
    used = sum(path.stat().st_size for path in chunks(cache))
    load(table, new(tmp_path, used), 4)  # little, but something has to go
    left = {path.parent.name for path in chunks(cache)}
    assert f"frames-{frame_spec(8).digest}" in left
    assert len(list((cache.folder / f"frames-{frame_spec(8).digest}").glob("*.chunk"))) == 2
    assert len(list((cache.folder / f"frames-{frame_spec(12).digest}").glob("*.chunk"))) < 3


def test_the_folder_is_not_counted_for_every_chunk(
    table: ClipTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    clear = Cache._clear

    def watched(self: Cache, size: int) -> int:
        counted.append(size)
        return clear(self, size)

    monkeypatch.setattr(Cache, "_clear", watched)
    load(table, cache)
    assert len(chunks(cache)) == 5 and len(counted) == 1


def test_another_user_may_fill_a_shared_folder(
    table: ClipTable, cache: Cache, open_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock file belongs to the first user; opening it read-only is enough to lock it."""
    data = shutil.copytree(table.root, open_folder / "data")
    shared = Cache(folder=open_folder / "cache", limit=10**9)
    load(ClipTable(data, table.clips[:3]), shared)
    for path in [shared.folder, *shared.folder.iterdir()]:
        path.chmod(0o777)
    with as_nobody():
        _, store = load(ClipTable(data, table.clips), Cache(folder=shared.folder, limit=10**9))
    assert in_memory(store) == 0 and "cannot be written" not in capfd.readouterr().err


def test_bad_files_are_faults_through_the_cache_too(
    table: ClipTable, cache: Cache, tmp_path: Path, decoded: list[int]
) -> None:
    root = table.root / "clips"
    data = (root / "0_0.jpg").read_bytes()
    (root / "0_0.jpg").write_bytes(data[: len(data) // 2])
    (root / "1_1.jpg").write_bytes(b"")
    start = data.index(b"\xff\xc0")
    (root / "2_2.jpg").write_bytes(data[: start + 5] + struct.pack(">HH", 50_000, 50_000) + data[start + 9 :])
    (root / "3_0.jpg").unlink()
    os.mkfifo(root / "3_0.jpg")
    (tmp_path / "outside.jpg").write_bytes(data)
    (root / "4_0.jpg").unlink()
    (root / "4_0.jpg").symlink_to(tmp_path / "outside.jpg")
    for _ in range(2):  # the second time, from a cache that holds the rest
        left, store = load(table, new(tmp_path))
        assert left.clips["subject"].tolist() == ["s5"]
        wrong = [
            *("truncated after", "the file is empty", "at most 64000000 pixels, got 50000 x 50000"),
            *("got: not a plain file", "a path inside the root"),
        ]
        assert all(word in fault.what for word, fault in zip(wrong, left.faults, strict=True))
        assert len(decoded) == 24 - 5 and len(store) == 19
    outside = ClipTable(
        table.root, table_of(table.root, [["clips/5_0.jpg", "../outside.jpg"], ["clips/5_1.jpg"] * 2]).clips
    )
    assert "a path inside the root" in load(outside, cache)[0].faults[0].what


def test_a_folder_without_permission_is_a_fault(table: ClipTable, open_folder: Path) -> None:
    data = shutil.copytree(table.root, open_folder / "data")
    (data / "closed").mkdir()
    shutil.copy(data / "clips/0_0.jpg", data / "closed/0_0.jpg")
    clips = table_of(data, [["closed/0_0.jpg", "clips/0_1.jpg"], ["clips/1_0.jpg", "clips/1_1.jpg"]])
    (data / "closed").chmod(0)
    with as_nobody():
        left, _ = load(clips, Cache(folder=open_folder / "nowhere", limit=10**9))
    assert left.clips["subject"].tolist() == ["s1"] and "got: permission denied" in left.faults[0].what
