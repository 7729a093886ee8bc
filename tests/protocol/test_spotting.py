"""Scores of spotting equal those of a second scorer, written with sets of frames and brute force."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast import cli
from hsta_fast.data.recordings import interval_table, recordings
from hsta_fast.protocol import audit_spotting, match_intervals, score_spotting

from ..data import further_datasets

Interval = tuple[int, int]
Rows = list[tuple[str, int, int, str]]  # video, onset, offset, class

CLASSES = ("happy", "sad", "fear")


# The second scorer: it shares no code with the first, and tries every pairing.


def all_pairings(truth: list[Interval], spotted: list[Interval]) -> list[list[tuple[int, int]]]:
    """Every set of pairs without a common end, of intervals that share at least half of their frames."""
    sets = [[set(range(first, last + 1)) for first, last in some] for some in (truth, spotted)]
    good = [
        (i, j)
        for i, one in enumerate(sets[0])
        for j, other in enumerate(sets[1])
        if 2 * len(one & other) >= len(one | other)
    ]
    found: list[list[tuple[int, int]]] = [[]]
    for pair in good:
        found += [[*some, pair] for some in found if all(pair[0] != i and pair[1] != j for i, j in some)]
    return found


def best_pairing(truth: list[Interval], spotted: list[Interval]) -> list[tuple[int, int]]:
    """The pairing with most pairs, whose pairs in order of preference come first."""

    def preference(pair: tuple[int, int]) -> tuple[object, ...]:
        one, other = truth[pair[0]], spotted[pair[1]]
        a, b = set(range(one[0], one[1] + 1)), set(range(other[0], other[1] + 1))
        return -Fraction(len(a & b), len(a | b)), (*one, pair[0]), (*other, pair[1])

    pairings = [sorted(pairing, key=preference) for pairing in all_pairings(truth, spotted)]
    most = max(map(len, pairings))
    return min((p for p in pairings if len(p) == most), key=lambda p: [preference(pair) for pair in p])


def second_scorer(truth: Rows, spotted: Rows) -> dict[str, float]:
    pairs = []
    for video in {row[0] for row in truth}:
        own, found = ([row for row in rows if row[0] == video] for rows in (truth, spotted))
        for i, j in best_pairing([row[1:3] for row in own], [row[1:3] for row in found]):
            pairs.append((own[i][3], found[j][3]))
    precision = len(pairs) / len(spotted) if spotted else 0
    recall = len(pairs) / len(truth)
    f1 = 2 * precision * recall / (precision + recall) if pairs else 0
    each, precisions, recalls = [], [], []
    for word in {row[3] for row in truth}:
        tp = sum(a == b == word for a, b in pairs)
        fp = sum(a != word and b == word for a, b in pairs)
        fn = sum(a == word and b != word for a, b in pairs)
        each.append(2 * tp / (2 * tp + fp + fn) if tp else 0)
        precisions.append(tp / (tp + fp) if tp else 0)
        recalls.append(tp / (tp + fn) if tp else 0)
    mean_p, mean_r = sum(precisions) / len(each), sum(recalls) / len(each)
    of_means = 2 * mean_p * mean_r / (mean_p + mean_r) if mean_p else 0
    uf1 = sum(each) / len(each)
    return {
        "tp": len(pairs),
        "fp": len(spotted) - len(pairs),
        "fn": len(truth) - len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "uf1": uf1,
        "strs": f1 * uf1,
        "f1_of_means": of_means,
        "strs_of_means": f1 * of_means,
    }


# Few places and lengths: touching, nested and equal intervals are common.
_ENDS = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(lambda at: (at[0], at[0] + at[1] - 1))
_ROWS = st.lists(st.tuples(st.sampled_from("ab"), _ENDS, st.sampled_from(CLASSES)), min_size=1, max_size=7)
ROWS = _ROWS.map(lambda rows: [(video, *ends, word) for video, ends, word in rows])


def table(rows: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["video", "onset", "offset", "class"])


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS)
def test_scores_equal_the_second_scorers(truth: Rows, spotted: Rows) -> None:
    truth += [(video, 50, 59, word) for video, word in zip("aba", CLASSES, strict=True)]
    scores = score_spotting(table(truth), table(spotted)).as_json()
    for name, value in second_scorer(truth, spotted).items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=200, deadline=None)
@given(st.lists(_ENDS, max_size=5), st.lists(_ENDS, max_size=5))
def test_pairs_are_the_preferred_ones_of_the_most(truth: list[Interval], spotted: list[Interval]) -> None:
    assert match_intervals(truth, spotted) == best_pairing(truth, spotted)


@pytest.mark.parametrize(
    ("truth", "spotted", "pairs"),
    [
        ([(0, 9)], [(0, 4)], [(0, 0)]),  # 5 of 10 frames: exactly half
        ([(0, 10)], [(0, 4)], []),  # 5 of 11
        ([(0, 9)], [(10, 19)], []),  # touching
        ([(0, 9)], [(2, 6)], [(0, 0)]),  # nested
        ([(0, 9)], [(0, 9), (0, 9)], [(0, 0)]),  # the second of two equal ones is none
        ([(0, 9), (0, 9)], [(0, 9)], [(0, 0)]),
        ([], [(0, 9)], []),
        ([(0, 9)], [], []),
        ([(5, 5)], [(5, 5)], [(0, 0)]),
        # The most similar pair alone would leave the others without a partner.
        ([(0, 9), (0, 12)], [(0, 9), (0, 6)], [(0, 0), (1, 1)]),
        ([(0, 9), (3, 12)], [(2, 11), (0, 6)], [(1, 0), (0, 1)]),
        # Beyond what a float tells: 3 x 2^60 frames.
        ([(0, 10**15 - 1)], [(0, 5 * 10**14 - 1)], [(0, 0)]),
        ([(0, 10**15)], [(0, 5 * 10**14 - 1)], []),
    ],
)
def test_pairs_by_hand(truth: list[Interval], spotted: list[Interval], pairs: list[tuple[int, int]]) -> None:
    assert match_intervals(truth, spotted) == pairs


def test_many_intervals_are_paired_in_time() -> None:
    """Hundreds in a chain, each similar to its neighbours: the most pairs, without trying all pairings."""
    truth = [(3 * place, 3 * place + 9) for place in range(400)]
    spotted = [(3 * place + 1, 3 * place + 10) for place in range(400)]
    assert sorted(match_intervals(truth, spotted)) == [(place, place) for place in range(400)]


def test_scores_by_hand() -> None:
    """4 annotated, 4 spotted, 3 true positives; happy 1 of 2 right, sad wholly."""
    truth = table([("a", 0, 9, "happy"), ("a", 20, 29, "happy"), ("b", 0, 9, "sad"), ("b", 40, 49, "sad")])
    spotted = table([("a", 0, 9, "happy"), ("a", 21, 29, "sad"), ("b", 0, 8, "sad"), ("b", 90, 99, "sad")])
    scores = score_spotting(truth, spotted)
    assert (scores.tp, scores.fp, scores.fn) == (3, 1, 1)
    assert scores.precision == scores.recall == scores.f1 == 0.75
    assert scores.class_f1 == pytest.approx({"happy": 2 / 3, "sad": 2 / 3})
    assert scores.strs == pytest.approx(0.75 * 2 / 3)
    # Mean precision (1 + 1/2) / 2, mean recall (1/2 + 1) / 2.
    assert scores.strs_of_means == pytest.approx(0.75 * 0.75)
    assert [(v.video, v.annotated, v.spotted, v.tp, v.fp, v.fn) for v in scores.videos] == [
        ("a", 2, 2, 2, 0, 0),
        ("b", 2, 2, 1, 1, 1),
    ]
    alone = score_spotting(truth, spotted, ["SAD"])
    assert alone.class_f1 == {"sad": 1.0} and alone.strs == 0.75  # happy taken for sad is not counted


def test_without_truth_or_spotted_intervals() -> None:
    nothing = score_spotting(table([("a", "", "", "")]), table([]))
    assert (nothing.tp, nothing.fp, nothing.fn, nothing.f1, nothing.strs) == (0, 0, 0, 0.0, None)
    false = score_spotting(table([("a", "", "", "")]), table([("a", 3, 9, "sad")]).drop(columns="class"))
    assert (false.tp, false.fp, false.precision, false.recall, false.f1) == (0, 1, 0, 0, 0)
    missed = score_spotting(table([("a", 3, 9, "sad")]), table([]))
    assert (missed.fn, missed.f1, missed.uf1, missed.strs) == (1, 0, 0, 0)


def test_micro_and_macro_are_apart() -> None:
    truth = table([("a", 0, 9, "sad"), ("a", 20, 29, "sad"), ("b", 20, 59, "sad")])
    spotted = table([("a", 0, 9, "sad"), ("a", 20, 29, "sad")])
    for rows, kinds in ((truth, ["Micro - 1/2", "Macro", "Macro"]), (spotted, ["micro", "micro-expression"])):
        rows["expression"] = kinds
    scores = score_spotting(truth, spotted)
    assert (scores.tp, scores.fp, scores.fn) == (1, 1, 2)  # the second is of the other kind
    micro, macro = scores.kinds["micro"], scores.kinds["macro"]
    assert [*scores.kinds] == ["micro", "macro"]
    assert (micro.tp, micro.fp, micro.fn) == (1, 1, 0) and (macro.tp, macro.fp, macro.fn) == (0, 0, 2)
    assert len(micro.videos) == len(macro.videos) == 2
    untold = score_spotting(truth, spotted.drop(columns="expression"))
    assert untold.tp == 2 and not untold.kinds


def test_recordings_are_found_by_any_spelling() -> None:
    truth = table([("s1/rec_01.mp4", 0, 9, "sad"), ("s2/rec_02.mp4", 0, 9, "sad")])
    for names in (("s1/rec_01.mp4", "s2/rec_02.mp4"), ("Rec-1", "rec_2.avi"), (r"x\rec_01", r"y\rec_02")):
        spotted = table([(names[0], 0, 9, "sad"), (names[1], 20, 29, "sad")])
        scores = score_spotting(truth, spotted)
        assert [(v.tp, v.fp, v.fn) for v in scores.videos] == [(1, 0, 0), (0, 1, 1)]


def test_a_subject_tells_recordings_of_one_name_apart() -> None:
    truth, spotted = table([("1", 0, 9, "sad"), ("1", 0, 9, "sad")]), table([("1", 0, 9, "sad")])
    truth.insert(0, "subject", ["s01", "s02"])
    assert score_spotting(truth, spotted.assign(subject="S2")).videos[1].tp == 1
    with pytest.raises(
        ValueError, match="spotted: expected a column subject, got none: '1' in truth is of sev"
    ):
        score_spotting(truth, spotted)


def test_a_row_without_subject_is_not_given_to_one_of_several() -> None:
    """Where one recording of that name has a subject and another has none, it may be of either."""
    truth = table([("a.mp4", 0, 9, "x"), ("a.mov", "", "", ""), ("b.mp4", 0, 9, "x")])
    truth.insert(0, "subject", ["s1", "", "s2"])
    for name in ("a", "folder/a.mp4"):
        with pytest.raises(ValueError, match=r"spotted: expected a column subject, got none: 'a\.mp4' in tr"):
            score_spotting(truth, table([(name, 0, 9, "x")]))
    of_a = table([("a", 0, 9, "x")]).assign(subject="s1")
    assert score_spotting(truth, of_a).tp == 1
    for name, tp in (("b.mp4", 1), ("a.mp4", 1), ("a.mov", 0)):  # which one is plain
        assert score_spotting(truth, table([(name, 0, 9, "x")])).tp == tp


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", 9, 3, "sad")],
            "spotted: row 2: offset expected at least the onset, both 0 or more, got 9 and 3",
        ),
        (
            [("a", 1, 3, "sad"), ("a", "x", 3, "sad")],
            "spotted: row 3: onset expected a whole number, got 'x'",
        ),
        ([("a", 1, "", "sad")], "spotted: row 2: offset expected a whole number, got ''"),
        ([("a", 1.5, 2, "sad")], "row 2: onset expected a whole number, got '1.5'"),
        (
            [("c", 1, 3, "sad")],
            "spotted: video expected a recording of truth, got 'c'; one without an expression",
        ),
        ([("a", 1, 3, "joy")], "spotted: class expected some of sad, as in truth, got joy"),
        ([("a", 1, 3, "sad"), (" ", 1, 3, "sad")], "spotted: row 3: video expected the name of a recording"),
    ],
)
def test_faults_are_named(rows: Rows, message: str) -> None:
    with pytest.raises(ValueError) as error:
        score_spotting(table([("a", 0, 9, "sad"), ("b", 0, 9, "sad")]), table(rows))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_blank_cells_of_pandas_are_blank() -> None:
    columns = ("video", "onset", "offset", "class")
    truth = pd.DataFrame([("v", 0, 9, "a"), ("w", np.nan, np.nan, np.nan)], columns=columns, dtype=object)
    spotted = pd.DataFrame([("v", 0, 9, np.nan)], columns=columns).assign(subject=np.nan)
    found = score_spotting(truth, spotted)
    assert (found.tp, found.fp, found.fn) == (1, 0, 0)


def test_missing_columns_and_unknown_classes_are_named() -> None:
    truth = table([("a", 0, 9, "sad")])
    with pytest.raises(
        ValueError, match="truth: expected the columns video, onset and offset, got video, onset"
    ):
        score_spotting(truth.drop(columns="offset"), truth)
    with pytest.raises(ValueError, match="^--classes expected some of sad, as in truth, got joy"):
        score_spotting(truth, truth, ["joy"])


def test_files_of_any_program(tmp_path: Path) -> None:
    """Usual names of columns, another separator, a workbook; repeated rows count as they are."""
    (tmp_path / "truth.csv").write_text(
        "Subject;Filename;OnsetFrame;Offset;Emotion\n1;r1;0;9;sad\n1;r1;20;29;happy\n2;r2;;;\n"
    )
    rows = [("1", "r1", 0, 9, "sad"), ("1", "r1", 0, 9, "sad"), ("2", "r2", 3, 9, "happy")]
    columns = ["participant", "video_name", "onset", "offset_frame", "predicted"]
    pd.DataFrame(rows, columns=columns).to_excel(tmp_path / "spotted.xlsx", index=False)
    text = audit_spotting(tmp_path / "spotted.xlsx", tmp_path / "truth.csv")
    assert "spotted.xlsx repeated: each counts as a spotted interval" in text
    assert "class: column predicted" in text and "class: column Emotion" in text
    assert "STRS 0.2000 = F1 x UF1" in text  # F1 2/5, UF1 1/2
    found = json.loads(audit_spotting(tmp_path / "spotted.xlsx", tmp_path / "truth.csv", as_json=True))
    assert (found["tp"], found["fp"], found["fn"]) == (1, 2, 1) and found["strs"] == pytest.approx(0.2)
    assert [video["fp"] for video in found["videos"]] == [1, 1]
    (tmp_path / "bad.csv").write_text("video,onset,offset\nr1,5,3\n")
    with pytest.raises(ValueError, match="bad.csv: row 2: offset expected"):
        audit_spotting(tmp_path / "bad.csv", tmp_path / "truth.csv")
    (tmp_path / "short.csv").write_text("video,start\nr1,5\n")
    with pytest.raises(ValueError, match="short.csv: expected a column onset"):
        audit_spotting(tmp_path / "short.csv", tmp_path / "truth.csv")


def test_the_command_scores_tables_and_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`audit SPOTTED --spotting TRUTH`, the truth a table or the folder of a dataset."""
    rows = [further_datasets.samm_long_row(), further_datasets.samm_long_row(Filename="006_2_1")]
    root = further_datasets.samm_long_copy(tmp_path / "samm", rows)
    (found, *_), _ = recordings(root)
    (one,) = found.intervals
    spotted = f"subject,video,onset,offset\n{found.subject},{found.name},{one.onset},{one.offset}\n"
    (tmp_path / "spotted.csv").write_text(spotted)
    interval_table(recordings(root)[0]).to_csv(tmp_path / "truth.csv", index=False)

    def run(*args: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["hsta-fast", "audit", str(tmp_path / "spotted.csv"), *args])
        cli.main()
        read: dict[str, Any] = json.loads(capsys.readouterr().out)
        return read

    by_folder = run("--spotting", str(root), "--json")
    assert (by_folder["tp"], by_folder["fp"], by_folder["fn"]) == (1, 0, 1)
    assert by_folder == run("--spotting", str(tmp_path / "truth.csv"), "--json")
    assert by_folder["remarks"] == []
    (root / "synthetic.json").write_text("{}")  # as a rendered dataset has it
    assert "say nothing about people" in run("--spotting", str(root), "--json")["remarks"][0]
    beside = "--spotting", str(root)
    for flags in ((*beside, "--clips", "c.csv"), ("--json",), (*beside, "--absent", "skip")):
        with pytest.raises(SystemExit) as ended:
            run(*flags)
        assert ended.value.code == 2
