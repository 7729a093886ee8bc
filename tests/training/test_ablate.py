"""The paper's tables: a row that is printed twice has the same scores, and the rows can be run."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hsta_fast.protocol import summary_of
from hsta_fast.training.ablate import ablate
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.paper_tables import EXPERIMENTS, PAPER, TABLES


@pytest.fixture
def cfg(faces: Path, tmp_path: Path) -> TrainConfig:
    small: dict[str, Any] = {"model": "hsta_tiny", "image_size": 32, "num_frames": 2}
    small |= {"protocol": "kfold", "folds": 2, "batch_size": 6, "lr": 1e-3, "warmup_epochs": 1, "epochs": 1}
    return recipe_config("paper", data=faces, runs=tmp_path, name="table", **small)


def test_rows_that_two_tables_print_have_the_same_figures() -> None:
    pairs = [
        (("1", "video 0"), ("2", "a1")),
        (("1", "special 0"), ("2", "a1")),
        (("1", "video 1"), ("2", "a3")),
        (("2", "a6"), ("3", "b1")),
        *((("3", f"b{k}"), ("4", f"K {k}, n_v 1, n_s 1")) for k in (1, 2, 3)),
        (("3", "b4"), ("4", "K 3, n_v 2, n_s 1")),
        (("3", "b9"), ("4", "K 3, n_v 2, n_s 2")),
        (("4", "K 4, n_v 2, n_s 1"), ("7", "special frames")),
    ]
    for (table, row), (other, same) in pairs:
        assert PAPER[table][row] == PAPER[other][same], (table, row)
    assert PAPER["7"]["special frames"] == (0.351, 0.380, 0.426)
    assert PAPER["4"]["K 12, n_v 2, n_s 2"] == (0.333, 0.370, 0.422)


def test_every_row_is_a_run() -> None:
    known = {field.name for field in fields(TrainConfig)}
    assert {str(table) for table in TABLES} < set(EXPERIMENTS) == set(PAPER)
    for table, rows in EXPERIMENTS.items():
        assert set(PAPER[table]) in (set(rows), set())
        for settings in rows.values():
            assert set(settings) <= known


def scores(folder: Path) -> pd.DataFrame:
    """The table of a folder, its numbers read exactly by any release of pandas."""
    names = [f"{whose}{name}" for whose in ("", "paper_") for name in ("uf1", "uar", "acc")]
    return pd.read_csv(
        folder / "ablation.csv", converters=dict.fromkeys(names, lambda text: float(text or "nan"))
    )


def test_rows_are_run_and_the_paper_stands_beside(cfg: TrainConfig, tmp_path: Path) -> None:
    text = ablate(cfg, "2", ["a1", "a6"])
    folder = cfg.runs / "table"
    frame = scores(folder)
    assert frame["row"].tolist() == ["a1", "a6"]
    for row in frame.to_dict("records"):
        own = summary_of(folder / row["row"])["pooled"]
        assert {key: row[key] for key in own} == own
        assert tuple(row[f"paper_{key}"] for key in ("uf1", "uar", "acc")) == PAPER["2"][row["row"]]
        shown = [*own.values(), *PAPER["2"][row["row"]]]
        assert " ".join([row["row"], *(f"{value:.3f}" for value in shown)]) in " ".join(text.split())
    assert "WARNING" in text and "Data and protocol differ" in text and "assumed: a3 is video" in text
    assert summary_of(folder / "a1")["folds"] == 2 and "LEAKY" not in text
    with pytest.raises(ValueError, match=r"a1 exists: give --resume"):
        ablate(cfg, "2", ["a5", "a1"])
    assert not (folder / "a5").exists(), "all names are checked before the first row trains"
    # Finished rows stay when others are run later, but not rows with other settings or on other data.
    ablate(cfg, "2", ["a5"])
    kept = scores(folder).set_index("row")
    assert kept.index.tolist() == ["a1", "a5", "a6"] and kept.loc["a1", "uf1"] == frame["uf1"][0]
    ablate(replace(cfg, epochs=2, name="table"), "2", ["a2"])
    assert pd.read_csv(folder / "ablation.csv")["row"].tolist() == ["a2"]  # the others had other settings
    moved = shutil.copytree(cfg.data, tmp_path / "elsewhere")
    ablate(replace(cfg, data=moved), "2", ["a3"])
    table = scores(folder)
    assert table["row"].tolist() == ["a3"]
    ablate(replace(cfg, data=moved, resume=True), "2", ["a1"])  # the same run, on moved data
    assert scores(folder).set_index("row").loc["a1", "uf1"] == frame["uf1"][0]


def test_what_the_data_do_not_allow_is_listed_and_the_rest_goes_on(cfg: TrainConfig) -> None:
    rows = ["special frames, macro, objective", "special frames"]
    text = ablate(cfg, "7", rows)
    assert "not run: --macro expected macro-expressions in the dataset, got none" in text
    frame = pd.read_csv(cfg.runs / "table" / "ablation.csv")
    assert frame["row"].tolist() == rows[::-1] and frame["uf1"].isna().tolist() == [False, True]
    with pytest.raises(
        ValueError, match="table 5: no row could be run; smic was not run: --datasets expected"
    ):
        ablate(cfg, "5")


def test_the_papers_own_folds_are_stamped(cfg: TrainConfig) -> None:
    leaky = recipe_config("paper", **{**vars(cfg), "protocol": "published-folds", "seeds": 2})
    text = ablate(leaky, "figure3", ["2 frames"])
    assert "LEAKY: --protocol published-folds" in text and "here (leaky)" in text
    frame = pd.read_csv(cfg.runs / "table" / "ablation.csv")
    assert frame["leaky"].str.contains("published-folds").all()
    own = [summary_of(cfg.runs / "table" / "2 frames" / f"seed{seed}")["pooled"]["uf1"] for seed in (0, 1)]
    assert frame["uf1"][0] == pytest.approx(sum(own) / 2)


def test_a_row_that_leaves_one_subject_out_is_not_stamped(cfg: TrainConfig) -> None:
    """Tables 5 and 6 set the protocol themselves and override the flag."""
    leaky = recipe_config("paper", **{**vars(cfg), "protocol": "published-folds"})
    text = ablate(leaky, "6", ["3 classes"])
    frame = pd.read_csv(cfg.runs / "table" / "ablation.csv", keep_default_na=False)
    assert "LEAKY" not in text and frame["leaky"].tolist() == [""]
