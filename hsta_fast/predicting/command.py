"""The command `predict`: several videos, one after the other, and where their results go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from glob import glob, has_magic
from itertools import chain
from pathlib import Path

from ..clips import natural_key, of_recording
from ..data.frames.decode import IMAGE_TYPES
from ..data.frames.stream import open_frames
from ..files import check_outputs, check_writable, make_folder, one_line, write_text
from ..training.setup import find_device
from .camera import camera_frames, line_of, watch_camera
from .cautions import FEELING
from .ensemble import load_ensemble
from .page import Pictures, page
from .recording import predict_video, video_name
from .result import Prediction, how_sure, table
from .settings import PredictConfig
from .video_out import write_video

PAGE = "predict.html"

Recording = Path | list[Path]


def predict_all(config: PredictConfig) -> int:
    """Predict each video, print its result and write its page; returns how many could not be predicted.

    A video that cannot be predicted is one line on the standard error, and the others follow.

    Raises:
        ValueError: the model cannot be used, or a pattern matches nothing.
        OSError: a result cannot be written.
    """
    found = recordings(config.videos)
    if config.video_out is not None and len(found) > 1:
        raise ValueError(f"--video-out expected one video, got {len(found)}: predict them one by one")
    names = folder_names(found)
    root = config.out or Path("predictions")
    check_writable(root, "--out", root)
    files = [*chain.from_iterable(one if isinstance(one, list) else [one] for one in found), config.model]
    pages = [(root if config.out and len(found) == 1 else root / name) / PAGE for name in names]
    outputs = [("--video-out", config.video_out), ("--csv", config.csv), *(("--out", page) for page in pages)]
    check_outputs(outputs, files)
    ensemble = load_ensemble(config.model, fold=config.fold, sure_accuracy=config.sure_accuracy)
    request, device = config.request(), find_device(config.device)

    def as_csv(done: Sequence[Prediction]) -> str:
        calibrated = ensemble.calibration is not None
        return table(done, ensemble.inputs.classes, calibrated=calibrated).to_csv(index=False)

    done: list[Prediction] = []
    failed = 0
    if config.csv is not None:  # one of an earlier call would be taken for this one's
        write_text(config.csv, as_csv([]))
    for recording, to in zip(found, pages, strict=True):
        pictures = Pictures(ensemble, device)
        try:
            prediction = predict_video(
                ensemble, recording, request, device, pictures, progress=not config.json
            )
            if config.video_out is not None:
                again = open_frames(recording, fps=config.fps)
                write_video(config.video_out, again, prediction, dict(prediction.boxes))
        except ValueError as error:
            failed += 1
            print(f"error: {one_line(of_recording(video_name(recording), error))}", file=sys.stderr)
            continue
        done.append(prediction)
        make_folder(to.parent, "--out", to.parent)
        write_text(to, page(prediction, pictures))
        if config.csv is not None:
            write_text(config.csv, as_csv(done))
        if config.json:
            print(json.dumps(prediction.as_json(), ensure_ascii=False))
        else:
            print(f"{prediction}\npage: {one_line(to)}")
    return failed


def watch(config: PredictConfig) -> None:
    """Print a line for each movement before the camera, until it ends or Ctrl-C.

    Raises:
        ValueError: the model cannot be used, or there is no such camera.
    """
    assert config.camera is not None
    frames = camera_frames(config.camera, fps=config.fps)
    first = next(frames)  # before anything is said
    ensemble = load_ensemble(config.model, fold=config.fold, sure_accuracy=config.sure_accuracy)
    said: set[str] = set()

    def warn(text: str) -> None:
        if text not in said:
            print(f"warning: {text}", file=sys.stderr if config.json else sys.stdout, flush=True)
        said.add(text)

    warn(FEELING)
    if not config.json:
        sure = how_sure(ensemble.calibration, len(ensemble.readers))
        print(f"probabilities: {sure}; Ctrl-C ends", flush=True)
    device = find_device(config.device)
    shown = watch_camera(
        ensemble, chain([first], frames), config.request(), device, seconds=config.seconds, warn=warn
    )
    for one in shown:
        print(json.dumps(one.as_json()) if config.json else line_of(one), flush=True)


def recordings(words: Sequence[str]) -> list[Recording]:
    """The recordings that words of the command line name; images of one folder are one recording.

    Raises:
        ValueError: a pattern matches nothing.
    """
    found: list[Recording] = []
    images: dict[Path, list[Path]] = {}
    for word in words:
        paths = [word]
        if has_magic(word) and not Path(word).exists():
            paths = sorted(glob(word), key=natural_key)
            if not paths:
                raise ValueError(f"video expected a file or folder, {word} matches none")
        for path in map(Path, paths):
            if path.suffix.lower() not in IMAGE_TYPES:
                found.append(path)
            elif path.parent in images:
                images[path.parent].append(path)
            else:
                images[path.parent] = own = [path]
                found.append(own)
    return found


def folder_names(found: Sequence[Recording]) -> list[str]:
    """A folder's name for each recording: that of its file or folder, with a number where it is taken."""
    names: list[str] = []
    for recording in found:
        path = recording[0].absolute().parent if isinstance(recording, list) else recording
        path = Path(os.path.abspath(path))  # a link keeps its own name
        name = path.name if path.is_dir() else path.stem
        name = "video" if name.strip(".") == "" else name
        tries = [name, *(f"{name}-{number}" for number in range(2, len(found) + 2))]
        names.append(next(one for one in tries if one not in names))
    return names
