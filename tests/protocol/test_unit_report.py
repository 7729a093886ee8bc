"""The report, the audit and the gallery of a run of action units say what its predictions say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsta_fast.protocol import always_present, audit, read_predictions, score_table, table, write_report
from hsta_fast.protocol.gallery import pairs_of, worst_decisions, worst_errors
from hsta_fast.protocol.predictions import units_among
from hsta_fast.protocol.unit_scores import unit_scores_by

from .test_report import Page
from .test_unit_scores import UNITS, a_table


@pytest.fixture
def predictions() -> pd.DataFrame:
    """48 clips of two datasets, 12 people, a fold for each dataset; nobody in "b" shows AU12."""
    rows = a_table(5, clips=48, subjects=6)
    rows["fold"] = rows["dataset"]
    rows.loc[rows["dataset"] == "b", "AU12"] = 0
    return rows.assign(clip=[f"c{i}" for i in range(48)], onset=range(48))


@pytest.fixture
def run(tmp_path: Path, predictions: pd.DataFrame) -> Path:
    """A run directory as training leaves it."""
    run = tmp_path / "rendered"
    run.mkdir()
    predictions.to_csv(run / "predictions.csv", index=False)
    settings = {"task": "units", "num_folds": 2, "train_counts": {"a": [9, 5, 2], "b": [4, 4, 4]}, "seed": 3}
    (run / "config.json").write_text(json.dumps(settings | {"notes": ["Rendered."], "classes": UNITS}))
    line = {"epoch": 1, "train_loss": 1.0, "train_acc": 0.5, "test_loss": 1.2, "test_acc": 0.4}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"fold": f, **line}) + "\n" for f in "ab"))
    return run


def test_report_table_and_summary_show_the_numbers(run: Path, predictions: pd.DataFrame) -> None:
    page, text = Page(write_report(run)), table(run)
    assert not page.open
    pooled, baseline = score_table(predictions, UNITS), always_present(predictions, UNITS)
    by = unit_scores_by(predictions, UNITS, "dataset")
    for shown in (page.text, " ".join(text.split())):
        assert "48 clips, 12 subjects, 3 action units, 2 of 2 folds" in shown and "Rendered." in shown
        assert f"model {pooled.f1:.3f} {pooled.f1_both:.3f}" in shown
        assert f"always present {baseline.f1:.3f} {baseline.f1_both:.3f}" in shown
        for k, unit in enumerate(UNITS):
            assert f"{unit} {pooled.of_unit[k]:.3f} " in shown
            assert f" {baseline.of_unit[k]:.3f} {pooled.both[k]:.3f} {pooled.support[k]}" in shown
        of_b = " ".join(f"{f1:.3f}" for f1 in by["b"].of_unit[:2])
        assert f"b {of_b} - {by['b'].f1:.3f}" in shown, "no clip of b shows the last unit"
        mean = (by["a"].of_unit[0] + by["b"].of_unit[0]) / 2
        assert f"mean of datasets {mean:.3f}" in shown
    summary = json.loads((run / "summary.json").read_text())
    assert summary["task"] == "units" and summary["pooled"]["f1"] == pytest.approx(pooled.f1)
    assert summary["per_dataset"][1]["units"]["AU12"] is None
    means = np.mean([by["a"].f1, by["b"].f1])
    assert summary["mean_of_datasets"]["f1"] == pytest.approx(means) == summary["per_fold_mean"]["f1"]
    low, high = summary["interval"]["f1"]
    assert low < pooled.f1 < high
    tex = (run / "scores.tex").read_text()
    assert all(f"{unit} & {f1:.3f} & " in tex for unit, f1 in zip(UNITS, pooled.of_unit, strict=True))
    assert f"mean & {pooled.f1:.3f} & {low:.3f}--{high:.3f}" in tex
    assert {path.name for path in run.glob("*.png")} == {"curves.png"}


def test_an_absent_unit_counts_as_zero_and_is_named(run: Path, predictions: pd.DataFrame) -> None:
    predictions.assign(AU4=0).to_csv(run / "predictions.csv", index=False)
    assert "No test clip of AU4: counted as 0 in the mean F1." in Page(write_report(run)).text
    text, _ = audit(run / "predictions.csv")
    assert "no clip of AU4: counted as 0 in the mean F1" in text
    skipped = score_table(predictions.assign(AU4=0), UNITS, absent="skip")
    assert f"{skipped.f1:.4f}" in audit(run / "predictions.csv", absent="skip")[0]


def test_a_person_in_two_folds_is_a_leak(run: Path, predictions: pd.DataFrame) -> None:
    clips = run / "clips.csv"
    predictions[["dataset", "subject", "clip", "onset"]].to_csv(clips, index=False)
    text, status = audit(run / "predictions.csv", clips)
    assert status == 0 and f"pooled {score_table(predictions, UNITS).f1:.4f}" in " ".join(text.split())
    folds = ["1" if i < 20 else "2" for i in range(48)]
    predictions.assign(fold=folds).to_csv(run / "predictions.csv", index=False)
    text, status = audit(run / "predictions.csv", clips)
    assert status == 1 and "LEAK: " in text
    with pytest.raises(ValueError, match="--classes expected predictions of one class a clip, got action"):
        audit(run / "predictions.csv", classes=("a", "b"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("AU4", 2, "column AU4: expected a whole number from 0 to 1, got '2'"),
        ("p_AU4", 1.5, "column p_AU4: expected a probability from 0 to 1"),
        ("fold", "", "column fold: expected a name"),
    ],
)
def test_wrong_cells_are_named(
    run: Path, predictions: pd.DataFrame, column: str, value: object, message: str
) -> None:
    cells = [value, *predictions[column].tolist()[1:]]
    predictions.assign(**{column: cells}).to_csv(run / "predictions.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_predictions(run / "predictions.csv")


def test_a_unit_without_a_probability_is_not_left_out(run: Path, predictions: pd.DataFrame) -> None:
    predictions.drop(columns="p_AU4").to_csv(run / "predictions.csv", index=False)
    with pytest.raises(ValueError, match="expected a column p_AU4 beside AU4, got none"):
        read_predictions(run / "predictions.csv")


def test_a_table_with_a_label_is_one_of_classes() -> None:
    assert units_among(["AU1", "p_AU1", "AU2", "fold"]) == ["AU1"]
    assert units_among(["label", "AU1", "p_AU1"]) == []


def test_the_gallery_shows_the_most_confident_wrong_decisions(predictions: pd.DataFrame) -> None:
    names = pairs_of(UNITS)
    shown = worst_errors(predictions, 100)
    expected = []
    for i, row in enumerate(predictions.to_dict("records")):
        wrong = []
        for unit in UNITS:
            share, said = row[f"p_{unit}"], int(row[f"p_{unit}"] >= 0.5)
            if said != row[unit]:
                wrong.append((share if said else 1 - share, unit, said))
        if wrong:
            share, unit, said = max(wrong)
            expected.append((share, i, f"no {unit}" if said else unit, unit if said else f"no {unit}"))
    assert (
        worst_decisions(predictions, UNITS)["label"] != worst_decisions(predictions, UNITS)["predicted"]
    ).sum() == len(expected)
    found = [
        (share, i, names[label], names[predicted])
        for i, share, label, predicted in zip(
            shown.index, shown["probability"], shown["label"], shown["predicted"], strict=True
        )
    ]
    assert found[0] == max(expected) and set(found) <= set(expected)
    assert shown["probability"].is_monotonic_decreasing
