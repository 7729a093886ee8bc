"""Training on several folders of data, of different datasets, with labels from a file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsta_fast.data import label_set, read_datasets
from hsta_fast.protocol import read_predictions
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, from_json, recipe_config, to_json
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.setup import RENDERED, describe, set_up


@pytest.fixture
def config(faces: Path, tmp_path: Path) -> TrainConfig:
    """The rendered faces as CAS(ME)3, and half of them again as own clips, with own labels."""
    own = tmp_path / "own"
    table = pd.read_csv(faces / "annotation.csv")
    table = table[table["Subject"].isin(table["Subject"].unique()[:2])]
    for subject in table["Subject"].unique():
        shutil.copytree(faces / subject, own / subject)
    for path in own.rglob("*.jpg"):  # the same file under two people's names would be one person
        path.write_bytes(path.read_bytes() + b"\0")
    mine = pd.DataFrame(
        {
            "dataset": "lab",
            "subject": table["Subject"],
            "clip": table["Filename"],
            "path": table["Subject"] + "/" + table["Filename"] + "/color",
            "onset": table["Onset"],
            "apex": table["Apex"],
            "offset": table["Offset"],
            "emotion": table["emotion"],
        }
    )
    mine.to_csv(own / "clips.csv", index=False)
    mapping = {"happy": "good", "surprise": "good", "disgust": "bad"}
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["bad", "good"], "mapping": mapping}))
    return recipe_config(
        "paper",
        data=faces,
        more_data=(own,),
        labels=str(tmp_path / "labels.json"),
        runs=tmp_path / "runs",
        model="hsta_tiny",
        num_layers=1,
        n_video=1,
        image_size=48,
        num_frames=2,
        protocol="kfold",
        folds=2,
        epochs=1,
        warmup_epochs=0,
        batch_size=12,
    )


def test_a_run_on_two_data_sets(config: TrainConfig) -> None:
    exp = set_up(config)
    table = read_datasets([config.data, *config.more_data])
    assert exp.data.table.root == table.root and len(exp.data) == 24 + 12
    assert exp.labels.classes == label_set(config.labels).classes == ("bad", "good")
    # The same names in two datasets are two people.
    people = set(zip(exp.data.table.clips["dataset"], exp.data.table.clips["subject"], strict=True))
    assert {dataset for dataset, _ in people} == {"casme3", "lab"} and len(people) == 6
    # The same faces: decoded from either folder they are the same pixels.
    clips = exp.data.table.clips
    first = {name: np.flatnonzero(clips["dataset"] == name)[:1] for name in ("casme3", "lab")}
    batches = [next(exp.data.batches(rows, batch_size=1, seed=(0,), train=False)) for rows in first.values()]
    assert (batches[0].video == batches[1].video).all() and batches[0].label == batches[1].label
    assert RENDERED in describe(exp)["notes"]
    run = runner.main(config)
    assert set(read_predictions(run / "predictions.csv")["dataset"]) == {"casme3", "lab"}
    assert "0 predictions differ" in evaluate(run)
    moved = config.more_data[0].rename(config.more_data[0].with_name("moved"))
    assert runner.main(replace(config, more_data=(moved,), resume=True)) == run


def test_rendered_data_among_others_are_noted(config: TrainConfig) -> None:
    swapped = recipe_config(
        "paper", **{**vars(config), "data": config.more_data[0], "more_data": (config.data,)}
    )
    assert RENDERED in describe(set_up(swapped))["notes"]


def test_the_settings_go_through_json(config: TrainConfig) -> None:
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    alone = {name: value for name, value in to_json(config).items() if name != "more_data"}
    assert from_json(alone).more_data == ()


def test_the_data_set_may_be_named(config: TrainConfig) -> None:
    one = {**vars(config), "more_data": ()}
    assert len(set_up(recipe_config("paper", **{**one, "dataset": "casme3"})).data) == 24
    with pytest.raises(ValueError, match=r"expected also the columns (subject|clip, path)"):
        set_up(recipe_config("paper", **{**one, "dataset": "csv"}))
    with pytest.raises(ValueError, match="--dataset expected one of auto, casme2"):
        recipe_config("paper", **{**one, "dataset": "fer"})
