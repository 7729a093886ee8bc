"""Differences of runs equal their definitions, written out; what does not fit is refused."""

import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from hsta_fast.protocol import compare_runs, comparison_latex, comparison_text, holm, mcnemar, score
from hsta_fast.protocol.compare import Comparison


@pytest.fixture
def write(tmp_path: Path, predictions: pd.DataFrame) -> Callable[..., Path]:
    """Writes predictions of the same clips, a share of them redrawn; keyword arguments replace columns."""

    def make(name: str, wrong: float, drop: str = "", **columns: Any) -> Path:
        rng = np.random.default_rng(len(name))
        redrawn = np.where(rng.random(60) < wrong, rng.integers(0, 3, 60), predictions["label"])
        table = predictions.drop(columns=drop.split()).assign(**({"predicted": redrawn} | columns))
        table.sample(frac=1, random_state=len(name)).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return make


def compare(paths: list[Path]) -> str:
    return comparison_text(compare_runs(paths))


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).sort_values("onset", ignore_index=True)


def test_the_interval_is_that_of_resampled_subjects_written_out(write: Callable[..., Path]) -> None:
    """In float64, subject by subject, with scikit-learn's F1 of the classes that a sample has."""
    paths = [write("first.csv", 0.6), write("second.csv", 0.3)]
    samples = 40
    [found] = compare_runs(paths, samples=samples, seed=5).differences
    first, second = map(table_of, paths)
    people = sorted(set(first["subject"]))
    differences = []
    for draw in np.random.default_rng(5).integers(len(people), size=(samples, len(people))):
        rows = np.concatenate([np.flatnonzero(first["subject"] == people[who]) for who in draw])
        truth = first["label"][rows].to_numpy()
        own = []
        for table in (first, second):
            predicted = table["predicted"][rows].to_numpy()
            own.append(
                {
                    "uf1": f1_score(
                        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
                    ),
                    "uar": np.mean([(predicted[truth == k] == k).mean() for k in np.unique(truth)]),
                    "acc": (predicted == truth).mean(),
                }
            )
        differences.append({name: own[1][name] - own[0][name] for name in own[0]})
    assert found.interval is not None
    for name, (low, high) in found.interval.items():
        values = [one[name] for one in differences]
        assert (low, high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-12)
        assert low < found.values[name] < high
    full = [score(table["label"], table["predicted"], 3) for table in (first, second)]
    assert found.values == pytest.approx(
        {name: getattr(full[1], name) - getattr(full[0], name) for name in found.values}, abs=1e-15
    )


@pytest.mark.parametrize(("alone", "other"), [(1, 9), (9, 1), (4, 5), (5, 5), (0, 3), (0, 0)])
def test_mcnemar_by_hand(alone: int, other: int) -> None:
    """Two-sided: all splits of the discordant clips that are no likelier than the one that was seen."""
    first = np.array([True] * alone + [False] * other + [True, True, False])
    second = np.array([False] * alone + [True] * other + [True, True, False])
    total = alone + other
    chances = [comb(total, k) / 2**total for k in range(total + 1)]
    expected = sum(chance for chance in chances if chance <= chances[alone])
    *counts, p = mcnemar(first, second)
    assert counts == [alone, other] and p == pytest.approx(expected, abs=1e-15)


def test_mcnemar_of_one_to_nine() -> None:
    """2 (1 + 10) / 1024, the tail of the binomial on both sides."""
    assert mcnemar([True] + [False] * 9, [False] + [True] * 9)[2] == pytest.approx(22 / 1024, abs=1e-15)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_two_runs_of_the_same_predictions_do_not_differ(write: Callable[..., Path], tmp_path: Path) -> None:
    first = write("first.csv", 0.5)
    second = tmp_path / "again.csv"
    second.write_text(first.read_text())
    [found] = compare_runs([first, second]).differences
    assert set(found.values.values()) == {0.0} and found.p == 1 and found.p_holm == 1
    assert found.interval == dict.fromkeys(("uf1", "uar", "acc"), (0.0, 0.0))


def by_pair(found: Comparison) -> list[tuple[str, str]]:
    return [(own.first, own.second) for own in found.differences]


def test_all_pairs_of_four_runs_and_of_five_each_with_the_first(write: Callable[..., Path]) -> None:
    paths = [write(f"{'r' * n}.csv", n / 8) for n in range(1, 6)]
    names = [path.name for path in paths]
    four = compare_runs(paths[:4], samples=20)
    assert by_pair(four) == [(names[a], names[b]) for a in range(4) for b in range(a + 1, 4)]
    assert [own.p_holm for own in four.differences] == holm([own.p for own in four.differences])
    assert by_pair(compare_runs(paths, samples=20)) == [(names[0], name) for name in names[1:]]


def test_clips_are_matched_by_name_in_any_spelling_and_only_common_ones_count(
    write: Callable[..., Path], predictions: pd.DataFrame, tmp_path: Path
) -> None:
    first = write("first.csv", 0.4)
    other = write(
        "second.csv", 0.4, subject=predictions["subject"].str.replace("spNO.", "SPno.0"), drop="dataset"
    )
    table = pd.read_csv(other, dtype=str)
    table[table["onset"].astype(int) < 50].to_csv(other, index=False, sep=";")
    found = compare_runs([first, other], samples=20)
    assert found.num_clips == 50 and [run.num_clips for run in found.runs] == [60, 50]
    kept = [table_of(first)[:50], pd.read_csv(other, sep=";").sort_values("onset")]
    for run, rows in zip(found.runs, kept, strict=True):
        assert run.scores.uf1 == score(rows["label"], rows["predicted"], 3).uf1
    text = compare([first, other])
    assert "50 clips of 8 subjects that all 2 runs predict" in text
    assert "note: first.csv: 10 of its clips are left out" in text and "second.csv: " not in text


def test_classes_are_matched_by_name(write: Callable[..., Path], predictions: pd.DataFrame) -> None:
    """The second file has words, and no columns that order the classes."""
    first = write("first.csv", 0.4)
    names = np.array(["negative", "positive", "surprise"])
    own = table_of(first)
    numbered = "p_negative p_positive p_surprise"
    second = write("second.csv", 0, numbered, label=names[own["label"]], predicted=names[own["predicted"]])
    [found] = compare_runs([first, second], samples=20).differences
    assert set(found.values.values()) == {0.0}
    # Numbered by columns in another order, in which negative is 2.
    turned = {f"p_{name}": 0.0 for name in ("positive", "surprise", "negative")}
    codes = {"label": (own["label"] + 2) % 3, "predicted": (own["predicted"] + 2) % 3}
    [found] = compare_runs(
        [first, write("turned.csv", 0, numbered, **turned, **codes)], samples=20
    ).differences
    assert set(found.values.values()) == {0.0}
    third = write("third.csv", 0, numbered, predicted=own["predicted"])
    with pytest.raises(
        ValueError, match=f"^{third}: expected the classes of the other runs, got 0, 1, 2 and neg"
    ):
        compare_runs([first, third])
    [found] = compare_runs([first, third], classes=[*names], samples=20).differences
    assert set(found.values.values()) == {0.0}


def test_a_class_that_only_one_file_mentions(write: Callable[..., Path], predictions: pd.DataFrame) -> None:
    numbered = "p_negative p_positive p_surprise"
    two = predictions["label"].clip(upper=1)
    first = write("first.csv", 0, numbered, label=two, predicted=two)
    second = write("second.csv", 0, numbered, label=two, predicted=predictions["label"])
    assert compare_runs([first, second], samples=20).classes == ["0", "1", "2"]
    assert "note: no clip of 2: counted as 0 in UF1 and UAR" in compare([first, second])


def test_what_does_not_fit_is_refused(
    write: Callable[..., Path], predictions: pd.DataFrame, tmp_path: Path
) -> None:
    first = write("first.csv", 0.4)
    other = (predictions["label"] + (predictions["onset"] == 7)) % 3
    (tmp_path / "seeds" / "seed1").mkdir(parents=True)
    (tmp_path / "seeds" / "seed1" / "predictions.csv").write_text(first.read_text())
    (tmp_path / "empty").mkdir()
    twice = tmp_path / "twice.csv"
    twice.write_text(first.read_text() + first.read_text().splitlines()[1] + "\n")
    for paths, message in (
        ([first], f"^compare expected two or more different runs, got {first}$"),
        ([first, first], "^compare expected two or more different runs, got "),
        (
            [first, write("x.csv", 0, label=other)],
            "x.csv: expected the labels of .*first.csv, got 1 others, such as of",
        ),
        (
            [first, write("y.csv", 0, clip="z")],
            r"first.csv: expected clips that all runs predict, got none: it has spNO.\d/b \d+, "
            r"\S+y.csv has spNO.\d/z \d+$",
        ),
        ([first, write("z.csv", 0, "clip")], "z.csv: expected the columns subject and clip, missing: clip"),
        (
            [first, write("one.csv", 0, "subject p_negative p_positive p_surprise", label=0, predicted=0)],
            "one.csv: expected the columns subject and clip, missing: subject",
        ),
        (
            [first, twice],
            "twice.csv: expected each clip once, got .* twice, by clip, dataset, onset, subject",
        ),
        (
            [first, tmp_path / "seeds"],
            "seeds: expected one run, got several: compare seed1 in it, each by itself",
        ),
        ([first, tmp_path / "empty"], "empty: expected a run with predictions.csv, got a folder without it"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_runs(paths)


def test_leaky_runs_and_notes_are_marked(make_run: Callable[..., Path], write: Callable[..., Path]) -> None:
    run = make_run(leaky=["folds by clip"], notes=["Rendered faces."])
    other = write("other.csv", 0.3)
    again = write("again.csv", 0.3, leaky="chosen by hand", fold=[str(i % 2) for i in range(60)])
    found = compare_runs([run, other, again])
    text, tex = comparison_text(found), comparison_latex(found)
    for said in (
        "LEAKY: rendered: folds by clip",
        "note: rendered: Rendered faces.",
        "LEAKY: again.csv: chosen by hand",
        "LEAKY: again.csv: 8 subjects are tested in more than one fold",
        "\nrendered (leaky) ",
        "\nother.csv  ",
    ):
        assert said in text
    assert "Leaky: rendered: folds by clip" in tex and "rendered: Rendered faces." in tex
    assert "rendered (leaky) &" in tex and "other.csv &" in tex and "$p$ (Holm)" in tex


def test_the_text_says_what_each_test_may_conclude(write: Callable[..., Path]) -> None:
    two = compare([write("first.csv", 0.6), write("second.csv", 0.3)])
    assert "bootstrap over subjects" in two and "takes clips as independent" in two and "Holm" not in two
    three = compare([write("first.csv", 0.6), write("second.csv", 0.3), write("th.csv", 0.3)])
    assert "p (Holm) is corrected for the 3 comparisons, the intervals are not." in three


def test_one_subject_has_no_interval(write: Callable[..., Path]) -> None:
    paths = [write(name, 0.5, subject="s") for name in ("a.csv", "bb.csv")]
    [found] = compare_runs(paths).differences
    assert found.interval is None and "95 % over" not in compare(paths)


def test_runs_of_one_name_have_their_paths(write: Callable[..., Path], tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder / "run").mkdir(parents=True)
        (tmp_path / folder / "run" / "predictions.csv").write_text(write("a.csv", 0.5).read_text())
        (tmp_path / folder / "run" / "config.json").write_text(json.dumps({}))
        paths.append(tmp_path / folder / "run")
    assert [run.name for run in compare_runs(paths, samples=20).runs] == [str(path) for path in paths]


def test_people_of_two_datasets_stay_two_where_one_file_does_not_name_them(tmp_path: Path) -> None:
    """Else the bootstrap over subjects draws two people as one, and its interval is wrong."""
    rows = ["casme2,1,a,0,0", "samm,1,b,1,1", "casme2,2,c,0,1", "samm,2,d,1,0"]
    full, plain, again = (tmp_path / name for name in ("full.csv", "plain.csv", "again.csv"))
    full.write_text("\n".join(["dataset,subject,clip,label,predicted", *rows]))
    plain.write_text("\n".join(["subject,clip,label,predicted", *(row.partition(",")[2] for row in rows)]))
    again.write_text(full.read_text())
    of_both = compare_runs([full, again], samples=200).differences[0].interval
    for paths in ([full, plain], [plain, full]):
        found = compare_runs(paths, samples=200)
        assert found.num_subjects == 4 and found.differences[0].interval == of_both
        assert "one name is one person" not in compare(paths)
    again.write_text(plain.read_text())
    text = compare([plain, again])
    assert text.startswith("4 clips of 2 subjects that all 2 runs predict\n")
    assert "\nnote: without a column dataset, one name is one person\n" in text


def test_an_unfinished_run_says_so(make_run: Callable[..., Path], write: Callable[..., Path]) -> None:
    run = make_run(num_folds=5, notes=["Rendered faces."])
    text = compare([run, write("other.csv", 0.3)])
    assert "note: rendered: Unfinished: 4 of 5 folds. The scores are of these folds only.\n" in text
    assert text.count("Unfinished") == 1 and "note: rendered: Rendered faces." in text
