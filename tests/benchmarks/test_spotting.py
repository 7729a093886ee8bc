"""What the benchmark of spotting scores: the answers that `predict` gives, in the classes of the run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks import spotting
from hsta_fast.predicting import recording


def test_the_answers_are_those_of_predict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not the largest of all probabilities, which may be that of "nothing"."""
    interval = SimpleNamespace(onset=3, offset=9, predicted="positive", probabilities={"nothing": 0.9})
    monkeypatch.setattr(recording, "predict", lambda *_: SimpleNamespace(intervals=[interval]))
    one = SimpleNamespace(subject="long01", path=Path("long01_a.mp4"))
    found = spotting.predicted([one], tmp_path)  # type: ignore[list-item]
    assert found.to_dict("records") == [
        {"subject": "long01", "video": "long01_a", "onset": 3, "offset": 9, "class": "positive"}
    ]


def test_the_truth_has_the_classes_of_the_runs_labels(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"labels": "emotion3"}))
    rows = [("long01_a", 0, 9, "Happy"), ("long01_a", 20, 29, "others"), ("long02_a", "", "", "")]
    truth = pd.DataFrame(rows, columns=["video", "onset", "offset", "class"])
    assert spotting.classes_of(truth, tmp_path)["class"].tolist() == ["positive", "", ""]
