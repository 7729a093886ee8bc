import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsta_fast.data.clips import LEFT_OUT, ClipTable, clip_frame
from hsta_fast.data.frames.decode import decode_image
from hsta_fast.data.frames.store import FrameStore, load_frames
from hsta_fast.data.sampling import Sampling

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(kind: str, image: np.ndarray = PICTURE) -> bytes:
    return cv2.imencode(kind, image)[1].tobytes()


def table_of(root: Path, clips: Sequence[Sequence[str]]) -> ClipTable:
    rows = [
        {
            "dataset": "casme3",
            "subject": f"s{number}",
            "clip": "a",
            "onset": 10,
            "apex": 11,
            "apex_annotated": True,
            "offset": 9 + len(frames),
            "frames": tuple(frames),
            "expression": "micro",
            "emotion": "sad",
            "action_units": "4",
            "objective_class": 3,
        }
        for number, frames in enumerate(clips)
    ]
    return ClipTable(root, clip_frame(rows))


def three_clips(root: Path) -> ClipTable:
    """Three clips of four PNG frames; frame k of clip c is a picture of the grey value 10 c + k."""
    clips = [[f"{clip}_{k}.png" for k in range(4)] for clip in range(3)]
    for clip, names in enumerate(clips):
        for k, name in enumerate(names):
            (root / name).write_bytes(encoded(".png", np.full((20, 30, 3), 10 * clip + k, np.uint8)))
    return table_of(root, clips)


def load(table: ClipTable, size: int = 8, **arguments: Any) -> tuple[ClipTable, FrameStore]:
    return load_frames(table, Sampling(num_frames=4), size, progress=False, **arguments)


def test_every_frame_is_in_the_row_of_its_path(tmp_path: Path) -> None:
    table, store = load(three_clips(tmp_path))
    assert len(table) == 3 and table.faults == () and len(store) == 12
    assert len(store.pixels) == 12 and store.size == 8
    assert store.pixels[0].shape == (3, 8, 8) and store.pixels[0].dtype == np.uint8
    for clip in range(3):
        for k in range(4):
            assert (store.pixels[store.rows[f"{clip}_{k}.png"]] == 10 * clip + k).all()


def test_only_the_needed_frames_are_decoded(tmp_path: Path) -> None:
    table = three_clips(tmp_path)
    _, store = load_frames(table, Sampling(num_frames=2, special=("onset", "apex")), 8, progress=False)
    assert set(store.rows) == {f"{clip}_{k}.png" for clip in range(3) for k in (0, 1, 3)}


def test_colours_are_rgb_and_grey_has_three_channels(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    (tmp_path / "red.png").write_bytes(encoded(".png", red))
    (tmp_path / "grey.png").write_bytes(encoded(".png", np.full((8, 8), 77, np.uint8)))
    _, store = load(table_of(tmp_path, [["red.png", "grey.png"]]))
    assert (store.pixels[store.rows["red.png"]] == np.array((200, 0, 0))[:, None, None]).all()
    assert (store.pixels[store.rows["grey.png"]] == 77).all()


@pytest.mark.parametrize(("size", "area"), [(12, True), (64, False), (28, False)])
def test_frames_are_resized(tmp_path: Path, size: int, area: bool) -> None:
    how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    for name in "ab":
        (tmp_path / f"{name}.bmp").write_bytes(encoded(".bmp"))
    _, store = load(table_of(tmp_path, [["a.bmp", "b.bmp"]]), size)
    expected = cv2.resize(np.ascontiguousarray(PICTURE[..., ::-1]), (size, size), interpolation=how)
    for row in range(2):
        assert (store.pixels[row] == expected.transpose(2, 0, 1)).all()


def progressive() -> bytes:
    return cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG whose header has a whole small JPEG with an end marker, as cameras write it."""
    thumbnail = encoded(".jpg", PICTURE[:8, :8])
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]


WHOLE = {
    "jpg": encoded(".jpg"),
    "progressive": progressive(),
    "thumbnail": with_thumbnail(encoded(".jpg")),
    "png": encoded(".png"),
    "bmp": encoded(".bmp"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_image_is_refused_wherever_it_ends(kind: str) -> None:
    whole = WHOLE[kind]
    assert decode_image(whole + b"trailing bytes").shape == (24, 32, 3)
    # A PNG's last four bytes are a check sum of nothing: its pictures are whole without them.
    last = len(whole) - (5 if kind == "png" else 1)
    for end in np.linspace(10, last, 60).astype(int):
        with pytest.raises(ValueError, match=f"expected a whole image, .* truncated after {end} bytes"):
            decode_image(whole[:end])


def test_bad_files_are_faults_of_their_clips(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    table = three_clips(tmp_path / "root")
    (table.root / "0_1.png").write_bytes(b"")
    (table.root / "0_2.png").unlink()
    (table.root / "2_3.png").write_bytes(b"GIF89a no such thing here")
    with pytest.raises(ValueError, match=r"^casme3 s0/a onset 10: 0_1.png: expected an image, the file"):
        load(table, strict=True)
    left, store = load(table)
    assert left.clips["subject"].tolist() == ["s1"] and left.clips.index.tolist() == [0]
    assert [fault.what for fault in left.faults] == [
        "0_1.png: expected an image, the file is empty (and 1 more of its frames)",
        "2_3.png: expected a JPEG, PNG or BMP image, the file begins with 47 49 46 38",
    ]
    assert {fault.action for fault in left.faults} == {LEFT_OUT}
    assert "0_1.png" not in store.rows and (store.pixels[store.rows["1_2.png"]] == 12).all()


def test_damage_inside_a_png_is_found() -> None:
    data = bytearray(WHOLE["png"])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="OpenCV cannot decode it"):
        decode_image(bytes(data))


def test_a_damaged_header_is_found() -> None:
    data = bytearray(WHOLE["png"])
    data[17] ^= 0xFF  # the width; its checksum is wrong now
    with pytest.raises(
        ValueError, match="expected a whole image, its header or metadata are damaged or truncated after"
    ):
        decode_image(bytes(data))


def test_a_huge_image_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", no_decode)
    png = bytearray(WHOLE["png"])
    png[16:24] = struct.pack(">II", 50_000, 50_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpg = bytearray(WHOLE["jpg"])
    start = jpg.index(b"\xff\xc0")
    jpg[start + 5 : start + 9] = struct.pack(">HH", 50_000, 50_000)
    for data in (png, jpg):
        with pytest.raises(ValueError, match="at most 64000000 pixels, got 50000 x 50000"):
            decode_image(bytes(data))


def test_a_path_that_leads_outside_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(encoded(".png"))
    (tmp_path / "root").mkdir()
    three_clips(tmp_path / "root")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    outside = ["../outside.png", "link.png", str(tmp_path / "outside.png")]
    clips = [*(["0_0.png", path] for path in outside), ["2_0.png", "2_1.png"]]
    left, _ = load(table_of(tmp_path / "root", clips))
    assert left.clips["subject"].tolist() == ["s3"] and len(left.faults) == 3
    assert all("expected a path inside the root" in fault.what for fault in left.faults)


def test_no_clip_left_and_a_wrong_size_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got none of 1; the first fault is: casme3 s0/a onset 10: x.png"):
        load(table_of(tmp_path, [["x.png", "y.png"]]))
    with pytest.raises(ValueError, match="size expected at least 1 pixel, got 0"):
        load(table_of(tmp_path, [["x.png", "y.png"]]), 0)
