"""What an audit finds out about a file of predictions, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import KEY, clip_key
from .columns import ArgumentError
from .foreign import load_predictions
from .metrics import (
    Absent,
    Scores,
    bootstrap_interval,
    majority_baseline,
    per_dataset,
    per_fold,
    score,
    unscored_classes,
)
from .overlap import CLEAN, LEAKS, UNKNOWN, Overlap, find_overlap, people_as_written, person_keys
from .predictions import NAMES, Predictions, read_unit_predictions, units_in
from .run_scores import notes_beside
from .unit_scores import (
    Interval,
    UnitScores,
    always_present,
    score_table,
    truth_of,
    unit_intervals,
    unit_scores_by,
)

_NOT_LEAKY = ("", "false", "0", "no", "none", "nan")
ONE_NAME = "without a column dataset, one name is one person"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether people are in training and test at once, and what else a reader of predictions must know.

    Attributes:
        file: name of the file.
        predictions: its content; of action units a class is the set of units that a clip shows.
        leaky: the reasons given in its column leaky.
        notes: those of the run in whose folder it lies, such as that its faces are rendered.
        absent: how a class without a test clip is treated, see `metrics.score`.
        absent_classes: names of these classes, or units.
        num_subjects: people; None without a column subject.
        repeated: rows whose clip an earlier row has already.
        split_subjects: subjects tested in more than one fold. If each fold trained on what it does not test,
            these are leaks.
        split_clips: without a column subject, the number of clip names tested in more than one fold; each is
            one clip, or clips of several subjects.
        overlap: comparison with the table of all clips; None without that table.
    """

    file: str
    predictions: Predictions
    leaky: list[str]
    notes: list[str]
    absent: Absent
    absent_classes: list[str]
    num_subjects: int | None
    repeated: int
    split_subjects: list[str]
    split_clips: int
    overlap: Overlap | None

    @property
    def status(self) -> int:
        """CLEAN, LEAKS or UNKNOWN; see overlap.py."""
        if self.leaky or (self.split_subjects and not self.folds_known):
            return LEAKS
        if self.overlap is not None:
            return self.overlap.status
        return UNKNOWN if self.split_clips else CLEAN

    @property
    def folds_known(self) -> bool:
        """Whether a file tells what each fold trained on, so that it need not be assumed."""
        return self.overlap is not None and self.overlap.folds_file is not None


@dataclass(frozen=True, kw_only=True)
class Findings(Verdict):
    """The scores of a file of predictions over K classes, and what its reader must know about them.

    Attributes:
        pooled: scores over all rows.
        interval: of the pooled scores, see `metrics.bootstrap_interval`; None without a column subject.
        baseline: scores of always predicting, in a fold, the most frequent class of what other folds test.
        fold_mean: unweighted means over folds of "uf1", "uar" and "acc"; None without a column fold.
        datasets: scores of each dataset; empty if there are not several.
    """

    pooled: Scores
    interval: dict[str, tuple[float, float]] | None
    baseline: Scores
    fold_mean: dict[str, float] | None
    datasets: dict[str, Scores]


@dataclass(frozen=True, kw_only=True)
class UnitFindings(Verdict):
    """The scores of the predictions.csv of a run of action units, and what its reader must know about them.

    Attributes:
        units: their names.
        pooled: scores over all rows.
        intervals: of the pooled scores, see `unit_scores.unit_intervals`; None with one subject.
        baseline: scores of predicting every unit for every clip.
        datasets: scores of each dataset; empty if there are not several.
    """

    units: list[str]
    pooled: UnitScores
    intervals: dict[str, Interval] | None
    baseline: UnitScores
    datasets: Mapping[str, UnitScores]


def collect_findings(
    path: Path,
    clips: Path | None,
    folds: Path | None,
    absent: Absent,
    columns: Mapping[str, str],
    classes: Sequence[str],
) -> Findings | UnitFindings:
    """Read predictions, score them and compare them with the clips; arguments and errors as in `audit`."""
    if units_in(path):
        if flags := [*columns, *["classes"] * bool(classes)]:
            raise ArgumentError(
                f"--{flags[0]} expected predictions of one class a clip, got action units: {path}"
            )
        return _of_units(path, clips, folds, absent)
    predictions = load_predictions(path, columns, classes)
    rows, names, given = predictions.rows, predictions.classes, predictions.given
    unscored = unscored_classes(names, rows["label"])
    scored = names[: len(names) - unscored]
    pooled = score(rows["label"], rows["predicted"], len(names), absent=absent, unscored=unscored)
    people = person_keys(rows) if "subject" in given else None
    by_person = None if people is None else rows.assign(dataset="", subject=people)
    several_datasets = rows["dataset"].nunique() > 1
    return Findings(
        file=path.name,
        predictions=predictions,
        leaky=leaky_reasons(rows),
        notes=notes_beside(path),
        absent=absent,
        absent_classes=[name for name, count in zip(scored, pooled.support, strict=False) if not count],
        num_subjects=None if people is None else people.nunique(),
        repeated=_repeated(rows, people) if people is not None and {"clip", "onset"} <= given else 0,
        split_subjects=split_subjects(rows, people) if people is not None and "fold" in given else [],
        split_clips=_split_clips(rows) if people is None and {"clip", "fold"} <= given else 0,
        pooled=pooled,
        interval=None
        if by_person is None
        else bootstrap_interval(by_person, len(names), absent=absent, unscored=unscored),
        baseline=_baseline(rows, len(names), absent, unscored),
        fold_mean=per_fold(rows, len(names))[1] if "fold" in given else None,
        datasets=per_dataset(rows, len(names)) if several_datasets else {},
        overlap=None if clips is None else find_overlap(predictions, clips, folds),
    )


def _of_units(path: Path, clips: Path | None, folds: Path | None, absent: Absent) -> UnitFindings:
    """The findings on the predictions of a run of action units."""
    rows, units = read_unit_predictions(path)
    pooled = score_table(rows, units, absent=absent)
    people, truth = person_keys(rows), truth_of(rows, units).astype(bool)
    shown = pd.Series(["+".join(np.array(units)[own]) or "none" for own in truth], index=rows.index)
    codes, classes = pd.factorize(shown)
    as_classes = rows.assign(label=codes, predicted=codes, onset=rows["onset"].astype(str))
    predictions = Predictions(as_classes, [*classes], set(NAMES), None)
    return UnitFindings(
        file=path.name,
        predictions=predictions,
        leaky=leaky_reasons(rows),
        notes=notes_beside(path),
        absent=absent,
        absent_classes=[unit for unit, count in zip(units, pooled.support, strict=True) if not count],
        num_subjects=people.nunique(),
        repeated=0,
        split_subjects=split_subjects(rows, people),
        split_clips=0,
        overlap=None if clips is None else find_overlap(predictions, clips, folds),
        units=units,
        pooled=pooled,
        intervals=unit_intervals(rows.assign(dataset="", subject=people), units, absent=absent),
        baseline=always_present(rows, units, absent=absent),
        datasets=unit_scores_by(rows, units, "dataset") if rows["dataset"].nunique() > 1 else {},
    )


def _repeated(rows: pd.DataFrame, people: pd.Series) -> int:
    return int(rows[["clip", "onset"]].assign(person_key=people).duplicated().sum())


def leaky_reasons(rows: pd.DataFrame) -> list[str]:
    """What the column leaky says, if there is one and it says more than no."""
    cells = {cell for name in rows if str(name).casefold() == "leaky" for cell in rows[name]}
    return sorted(cell for cell in cells if cell.casefold() not in _NOT_LEAKY)


def split_subjects(rows: pd.DataFrame, people: pd.Series) -> list[str]:
    """The subjects tested in more than one fold, as written; people: the key of each row's person."""
    num_folds = rows.groupby(people)["fold"].nunique()
    split = people.isin(num_folds.index[num_folds > 1])
    return people_as_written(rows[split & ~people.duplicated()])


def _split_clips(rows: pd.DataFrame) -> int:
    keys = pd.Series([clip_key(*names) for names in rows[[*KEY]].itertuples(index=False, name=None)])
    return int((rows["fold"].groupby(keys).nunique() > 1).sum())


def _baseline(rows: pd.DataFrame, num_classes: int, absent: Absent, unscored: int) -> Scores:
    """Predicts in each fold the most frequent class of what the other folds test; with one fold, of all."""
    total = np.bincount(rows["label"], minlength=num_classes)
    counts = {}
    for fold, part in rows.groupby("fold", sort=False):
        others = total - np.bincount(part["label"], minlength=num_classes)
        counts[str(fold)] = (others if others.any() else total).tolist()
    return majority_baseline(rows, counts, num_classes, absent=absent, unscored=unscored)
