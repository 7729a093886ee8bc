"""The pictures of misclassified clips show the clips' frames, and the maps of the model that was tested."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hsta_fast import HSTA
from hsta_fast.protocol import Picture, read_predictions, worst_errors
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.gallery import SIDE, _heat, _pictures
from hsta_fast.training.run_checks import delete_run
from hsta_fast.training.setup import Experiment, set_up

SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 48, "num_frames": 4},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6, "epochs": 1},
    **{"warmup_epochs": 1, "dtype": "float32"},
}
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def make_config(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    runs = tmp_path_factory.mktemp("gallery")

    def make(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**SMALL, "data": faces, "runs": runs, **changes})

    return make


@pytest.fixture(scope="module")
def run(make_config: MakeConfig) -> Path:
    return runner.main(make_config(name="whole"))


def image(picture: Picture) -> np.ndarray:
    """RGB (SIDE, SIDE, 3), int64."""
    decoded = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None and decoded.shape == (SIDE, SIDE, 3)
    return decoded.astype(np.int64)


def pictures(cfg: TrainConfig, index: int = 3) -> tuple[Experiment, list[Picture]]:
    """Of one clip, by a fresh model."""
    exp = set_up(cfg)
    torch.manual_seed(0)
    model = HSTA(cfg.architecture(len(exp.labels.classes))).eval()
    [of_clip] = _pictures(exp, model, np.array([index]))
    return exp, of_clip


def near(picture: np.ndarray, frame: np.ndarray) -> bool:
    """Whether a picture shows the frame (3, H, W), up to JPEG's losses."""
    expected = cv2.resize(frame.transpose(1, 2, 0), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return float(abs(picture - expected).mean()) < 4


def test_a_run_leaves_the_pictures_of_its_worst_errors(run: Path) -> None:
    predictions = read_predictions(run / "predictions.csv")
    for number in ("01", "02"):
        saved = json.loads((run / "folds" / number / "gallery.json").read_text())
        errors = worst_errors(read_predictions(run / "folds" / number / "predictions.csv"), 24)
        assert saved["count"] == 24
        assert [clip["onset"] for clip in saved["clips"]] == [str(onset) for onset in errors["onset"]]
        for clip in saved["clips"]:
            sizes = [len(base64.b64decode(picture["jpeg"])) for picture in clip["pictures"]]
            assert len(sizes) == 5 and 4 / 3 * sum(sizes) < 3e6 / 48, "48 clips fit into 3 MB"
    page = (run / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 5 * len(worst_errors(predictions, 24)) > 0


def test_evaluate_adds_them_to_a_run_that_has_none(run: Path) -> None:
    files = {path: path.read_text() for path in [*run.glob("folds/*/gallery.json"), run / "report.html"]}
    assert "added" not in evaluate(run), "it has them"
    for path in files:
        path.unlink()
    assert f"misclassified clips added to {run / 'report.html'}" in evaluate(run)
    assert {path: path.read_text() for path in files} == files


def test_a_run_may_have_none_and_others_when_resumed(make_config: MakeConfig, run: Path) -> None:
    cfg = make_config(name="none", gallery=0, only=("1",))
    without = runner.main(cfg)
    assert not list(without.rglob("gallery.json")) and "added" not in evaluate(without)
    assert "Misclassified" not in (without / "report.html").read_text()
    runner.main(make_config(name="none", gallery=5, resume=True))
    saved = json.loads((without / "folds" / "02" / "gallery.json").read_text())
    assert saved["count"] == 5 and len(saved["clips"]) <= 5
    assert "Misclassified" in (without / "report.html").read_text()
    predicted = [(path / "predictions.csv").read_text() for path in (run, without)]
    assert predicted[0] == predicted[1], "pictures change no prediction"
    delete_run(without)
    assert not list(without.rglob("gallery.json"))


def test_pictures_are_those_of_the_clip(make_config: MakeConfig) -> None:
    exp, of_clip = pictures(make_config())
    clip = exp.data.table.clips.iloc[3]
    onset, apex = (
        exp.data.store.pixels[exp.data.store.rows[clip["frames"][i]]]
        for i in (0, clip["apex"] - clip["onset"])
    )
    last = len(clip["frames"]) - 1
    distances = [abs(round(last * i / 3) - (clip["apex"] - clip["onset"])) for i in range(4)]
    frame = distances.index(min(distances)) + 1
    assert [p.title.split(",")[0] for p in of_clip] == [
        *("onset", "apex", "apex minus onset"),
        *(f"special CLS over video frame {frame} of 4", "video CLS over onset and apex"),
    ]
    shown = [image(p) for p in of_clip]
    assert near(shown[0], onset) and near(shown[1], apex)
    times = int(of_clip[2].title.split("times ")[1])
    assert times > 1
    moved = np.clip(128 + times * (apex.astype(int) - onset), 0, 255).astype(np.uint8)
    still = np.full_like(moved, 128)
    assert abs(shown[2] - _up(moved)).mean() < 0.5 * abs(shown[2] - _up(still)).mean()


def _up(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame.transpose(1, 2, 0), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.int64)


def test_colour_marks_the_patch_and_the_face_stays_visible() -> None:
    """112 pixels in patches of 12: the last 4 rows and columns belong to no patch."""
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (112, 112), dtype=np.uint8), (0, 0), 4)
    frame = np.repeat(frame[None], 3, axis=0)
    weights = np.full((9, 9), 0.01)
    weights[2, 6] = 0.2
    picture = _heat("CLS", frame, weights, 12)
    assert picture.title == f"CLS, peak {0.2 / weights.mean():.1f} times the mean"
    shown = image(picture)
    colour = shown[:, :, 0] - shown[:, :, 2]
    row, column = (
        np.average(np.arange(SIDE), weights=colour.clip(20).sum(1 - d) - 20 * SIDE) for d in (0, 1)
    )
    middle = np.array([2.5, 6.5]) * 12 * SIDE / 112
    assert abs(np.array([row, column]) - middle).max() < 3
    assert abs(colour[-6:]).max() < 30 and abs(colour[:, -6:]).max() < 30
    # Under the strongest colour the grey of the face still varies.
    grey = _up(frame)[:, :, 0]
    patch = tuple(slice(int(m) - 8, int(m) + 8) for m in middle)
    assert np.corrcoef(grey[patch].ravel(), shown[patch].mean(2).ravel())[0, 1] > 0.5


def test_even_weights_have_no_colour() -> None:
    frame = np.full((3, 48, 48), 90, dtype=np.uint8)
    weights = 1 + 1e-3 * np.random.default_rng(0).random((3, 3))
    picture = _heat("CLS", frame, weights, 16)
    assert picture.title == "CLS, peak 1.0 times the mean"
    assert abs(image(picture) - 90).max() <= 4
    picture = _heat("CLS", frame, np.zeros((3, 3), dtype=np.float32), 16)  # the CLS looks at itself alone
    assert picture.title == "CLS, peak 0.0 times the mean" and abs(image(picture) - 90).max() <= 4


@pytest.mark.parametrize(
    ("changes", "titles"),
    [
        ({"branches": ("video",)}, ["onset", "apex", "apex minus onset"]),
        ({"csta": False}, ["onset", "apex", "apex minus onset"]),
        ({"flow": "dis"}, ["onset", "apex", "apex minus onset", "special CLS", "video CLS over the flow"]),
        ({"onset_only": True}, ["onset", "special CLS", "video CLS over the onset, given twice"]),
        (
            {"special": ("onset", "offset"), "num_frames": 2},
            ["onset", "special CLS", "video CLS over onset and offset"],
        ),
    ],
    ids=["one branch", "no csta", "flow", "onset only", "no apex"],
)
def test_a_model_that_is_shown_less_has_fewer_pictures(
    make_config: MakeConfig, changes: dict[str, Any], titles: list[str]
) -> None:
    _, of_clip = pictures(make_config(**changes))
    assert len(of_clip) == len(titles)
    for picture, title in zip(of_clip, titles, strict=True):
        assert picture.title.startswith(title) and image(picture).std() > 1


def test_random_frames_are_those_of_the_test(make_config: MakeConfig) -> None:
    cfg = make_config(sampling="random", num_frames=2, seed=3)
    data = set_up(cfg).data
    [batch] = data.batches([3, 7], batch_size=2, seed=(cfg.seed,), train=False)
    for i, index in enumerate((3, 7)):
        positions = data.test_positions(index, (cfg.seed,))
        frames = data.table.clips["frames"].iloc[index]
        expected = np.stack([data.store.pixels[data.store.rows[frames[p]]] for p in positions], axis=1)
        assert (batch.video[i].numpy() == expected).all()
