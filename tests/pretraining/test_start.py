"""A pretrained model as the start of a training, and what the run says of the people that it has seen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import hsta_fast
from hsta_fast.model_card import model_card
from hsta_fast.pretraining.run import RENDERED, pretrain
from hsta_fast.pretraining.settings import PretrainConfig
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.initial import InitialWeights
from hsta_fast.training.run_models import finished_models
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
    assert config["leaky"] == []  # no label was seen
    # The model's file may be published: it says so too, without names.
    notes = hsta_fast.load_model(run / "folds/01/model.safetensors").notes
    assert f"{seen}: on them the scores are not those of unknown people" in notes["caveats"]
    assert "spNO" not in notes["caveats"] and "leaky" not in notes


def test_people_are_compared_whatever_the_spelling_of_their_names(
    file: Path, faces: Path, tmp_path: Path
) -> None:
    start = InitialWeights(training(faces, tmp_path, init=file))
    [sentence] = start.remarks(["casme3/SPNO.04", "samm/spNO.1"])
    saw_nobody = "whose pretraining saw nobody of this name who is tested here"
    assert f"{saw_nobody}, 1 name occurs in both, in other data sets. Its notes: " in sentence
    [sentence] = start.remarks(["casme3/SPNO.04", "samm/spNO.4"])
    assert f"{saw_nobody}. Its notes: " in sentence
    [sentence] = start.remarks(["casme3/SPNO.02", "casme3/SPNO.04"])
    assert "1 of the 2 people who are tested here (casme3/SPNO.02): on them" in sentence
    [sentence] = start.remarks(["casme3/SPNO.02", "samm/spNO.2", "samm/SPNO.03", "csv/spno.3"])
    assert "(casme3/SPNO.02): on them" in sentence and "2 names occur in both, in other data sets" in sentence


@pytest.mark.parametrize("note", ["", "[", "3", None])
def test_a_model_that_does_not_say_whom_it_has_seen_is_not_checked(
    note: str | None, faces: Path, tmp_path: Path
) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1)
    notes = {} if note is None else {"pretrained_subjects": note}
    hsta_fast.save_model(model, tmp_path / "other.safetensors", notes=notes)
    [sentence] = InitialWeights(training(faces, tmp_path, init=tmp_path / "other.safetensors")).remarks([])
    assert "whether its training saw people who are tested here is not checked" in sentence


def test_a_start_that_has_seen_labels_of_people_who_are_tested_makes_a_run_leaky(
    file: Path, faces: Path, tmp_path: Path
) -> None:
    first = runner.main(training(faces, tmp_path, init=file, name="first"))
    of_first = hsta_fast.load_model(first / "folds/01/model.safetensors")
    tested = pd.read_csv(first / "predictions.csv")["subject"]
    learned = sorted({f"casme3/spNO.{n}" for n in (1, 2, 3, 4)} - set("casme3/" + tested))
    assert len(learned) == 2 and json.loads(of_first.notes["trained_subjects"]) == learned
    assert len(json.loads(of_first.notes["pretrained_subjects"])) == 3
    assert "leaky" not in of_first.notes

    second = runner.main(training(faces, tmp_path, init=first / "folds/01/model.safetensors", name="second"))
    config = json.loads((second / "config.json").read_text())
    reason = (
        "--init model.safetensors: it was trained with the labels of 2 of the 4 people who are tested here."
    )
    assert config["leaky"] == [reason]
    for name in ("clips.csv", "folds.csv", "predictions.csv", "folds/01/predictions.csv"):
        assert set(pd.read_csv(second / name)["leaky"]) == {reason}
    metrics = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert {line["leaky"] for line in metrics} == {reason}
    assert "(leaky)" in (second / "report.html").read_text()
    assert f"LEAKY: {reason}" in (second / "run.log").read_text()
    [sentence] = [note for note in config["notes"] if "model.safetensors" in note]
    assert (
        f"whose training saw, with labels, 2 of the 4 people who are tested here ({learned[0]}, " in sentence
    )
    notes = hsta_fast.load_model(second / "folds/01/model.safetensors").notes
    assert notes["leaky"] == reason
    assert json.loads(notes["trained_subjects"]) == learned  # of both trainings
    assert notes["pretrained_subjects"] == of_first.notes["pretrained_subjects"]

    third = training(faces, tmp_path, init=second / "folds/01/model.safetensors", name="third")
    start = InitialWeights(third)
    assert start.leaks(["casme3/spNO.9"]) == [] and len(start.leaks(learned)) == 1


def test_a_start_that_names_nobody_is_passed_on_as_not_checked(faces: Path, tmp_path: Path) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1)
    hsta_fast.save_model(model, tmp_path / "old.safetensors")
    first = InitialWeights(training(faces, tmp_path, init=tmp_path / "old.safetensors"))
    assert first.leaks(["casme3/spNO.1"]) == []
    hsta_fast.save_model(model, tmp_path / "new.safetensors", notes=first.notes(["casme3/spNO.1"]))
    second = InitialWeights(training(faces, tmp_path, init=tmp_path / "new.safetensors"))
    [sentence] = second.remarks(["casme3/spNO.1"])
    assert "training saw, with labels, 1 of the 1 people" in sentence
    assert "and whether old.safetensors, where it started, saw such people is not checked" in sentence
    assert len(second.leaks(["casme3/spNO.01"])) == 1  # whatever the spelling
    assert second.notes(["casme3/spNO.2"])["start_not_checked"] == "old.safetensors"


def test_lists_of_people_are_not_printed(faces: Path, tmp_path: Path) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1)
    model.notes = InitialWeights(training(faces, tmp_path)).notes(["casme3/spNO.1"]) | {"more": "said"}
    card = model_card(model)
    assert "- more: said" in card and "spNO.1" not in card


def test_other_frames_than_those_of_the_pretraining_are_remarked(
    file: Path, faces: Path, tmp_path: Path
) -> None:
    cfg = training(faces, tmp_path, init=file)
    [same] = InitialWeights(cfg).remarks([])
    assert "pixels" not in same
    [other] = InitialWeights(replace(cfg, image_size=48, num_frames=4)).remarks([])
    theirs, own = "of 32 x 32 pixels, 2 a clip", "of 48 x 48 pixels, 4 a clip"
    assert f"; it was pretrained on frames {theirs}, here they are {own}. Its notes: " in other


def test_a_pretraining_is_no_run(file: Path) -> None:
    for command in (evaluate, finished_models):
        with pytest.raises(
            ValueError, match="pretrain expected a run, got a pretraining: its model is for train --init"
        ):
            command(file.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": Path("")}, r"--init expected a file of pretrained weights, got '\.'"),
        ({"init_special": Path("")}, r"--init-special expected a file of pretrained weights, got '\.'"),
        ({"branches": ("video", "video")}, "--branches expected special or video, or both, got "),
    ],
)
def test_flags_that_mean_nothing_are_refused(changes: dict[str, Any], message: str, faces: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        training(faces, faces, **changes)
