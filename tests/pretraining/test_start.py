"""A pretrained model as the start of a training, and what the run says of the people that it has seen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hsta_fast
from hsta_fast.pretraining.run import RENDERED, pretrain
from hsta_fast.pretraining.settings import PretrainConfig
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.initial import InitialWeights
from tests.pretraining.test_run import SMALL


@pytest.fixture(scope="module")
def file(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was pretrained on three of the four subjects."""
    runs = tmp_path_factory.mktemp("pretrained")
    settings = SMALL | {"epochs": 1, "leave_out": ("casme3/spNO.4",)}
    pretrain(PretrainConfig(**settings, data=faces, runs=runs))
    return runs / "pretrain/model.safetensors"


def training(faces: Path, runs: Path, **changes: Any) -> TrainConfig:
    settings = SMALL | {"epochs": 1, "labels": "emotion3", "protocol": "kfold", "folds": 2, "only": ("1",)}
    return recipe_config("paper", **settings, data=faces, runs=runs, **changes)


def test_a_model_starts_from_every_pretrained_weight(file: Path) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_classes=3, num_layers=1, n_video=1, init=file)
    pretrained, own = hsta_fast.load_model(file).state_dict(), model.state_dict()
    assert all(torch.equal(own[key], pretrained[key]) for key in own if not key.startswith("head."))
    assert own["head.weight"].shape[0] == 3


def test_a_run_says_that_its_start_has_seen_people_who_are_tested(
    file: Path, faces: Path, tmp_path: Path
) -> None:
    run = runner.main(training(faces, tmp_path, init=file))
    config = json.loads((run / "config.json").read_text())
    [sentence] = [note for note in config["notes"] if "model.safetensors" in note]
    seen = "pretraining saw, without labels, 3 of the 4 people who are tested here"
    named = "(casme3/spNO.1, casme3/spNO.2, casme3/spNO.3)"
    assert f"{seen} {named}: on them the scores are not those of unknown people. Its notes: " in sentence
    assert sentence.endswith(RENDERED)
    assert sentence.partition(".safetensors")[0] in (run / "report.html").read_text()


def test_people_are_compared_whatever_the_spelling_of_their_names(
    file: Path, faces: Path, tmp_path: Path
) -> None:
    start = InitialWeights(training(faces, tmp_path, init=file))
    [sentence] = start.remarks(["casme3/SPNO.04", "samm/spNO.1"])
    assert "whose pretraining saw nobody of this name who is tested here. Its notes: " in sentence
    [sentence] = start.remarks(["casme3/SPNO.02", "casme3/SPNO.04"])
    assert "1 of the 2 people who are tested here (casme3/SPNO.02): on them" in sentence


@pytest.mark.parametrize("note", ["", "[", "3", None])
def test_a_model_that_does_not_say_whom_it_has_seen_is_not_checked(
    note: str | None, faces: Path, tmp_path: Path
) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1)
    notes = {} if note is None else {"pretrained_subjects": note}
    hsta_fast.save_model(model, tmp_path / "other.safetensors", notes=notes)
    [sentence] = InitialWeights(training(faces, tmp_path, init=tmp_path / "other.safetensors")).remarks([])
    assert "whether its training saw people who are tested here is not checked" in sentence
