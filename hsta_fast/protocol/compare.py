"""Whether one run is better than another: differences of their scores on the same clips, and two tests.

The paired bootstrap resamples subjects, the same ones for both runs, so clips of a person may depend on each
other. McNemar's test counts the clips that one run alone has right and takes them as independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from ..clips import KEY, clip_key, counted
from .columns import ArgumentError
from .findings import leaky_reasons, split_subjects
from .foreign import load_predictions
from .metrics import Scores, resampled_scores, score, subject_weights, unscored_classes
from .overlap import person_keys
from .predictions import Predictions
from .run_scores import LEAKY, NOTES, NUM_FOLDS, read_json, unfinished

MAX_ALL_PAIRS = 4  # of more runs, each is compared with the first only


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One of the compared runs.

    Attributes:
        name: the last part of its path; the whole path if two are equal.
        num_clips: all clips that it predicts.
        leaky: why its scores are not to be trusted.
        notes: what a reader of its scores must know.
        predicted: (num_common,) int64, the predicted classes of the common clips.
        scores: its scores on the common clips.
    """

    name: str
    num_clips: int
    leaky: list[str]
    notes: list[str]
    predicted: np.ndarray
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second of two runs minus the first.

    Attributes:
        first, second: their names.
        values: differences of "uf1", "uar" and "acc".
        interval: 95 % of the paired bootstrap over subjects; None with one subject.
        first_alone: clips that only the first has right; second_alone: those that only the second has right.
        p: of McNemar's exact test, two-sided.
        p_holm: p, corrected by Holm for the number of comparisons.
    """

    first: str
    second: str
    values: dict[str, float]
    interval: dict[str, tuple[float, float]] | None
    first_alone: int
    second_alone: int
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs on their common clips.

    Attributes:
        runs: the runs.
        classes: the K class names.
        num_clips: clips that all runs predict.
        num_subjects: their people.
        datasets_known: whether a run says of which dataset a clip is; else one name is one person.
        differences: of each pair of up to `MAX_ALL_PAIRS` runs; of more, of each run and the first.
    """

    runs: list[Compared]
    classes: list[str]
    num_clips: int
    num_subjects: int
    datasets_known: bool
    differences: list[Difference]


def compare_runs(
    paths: Sequence[Path], *, classes: Sequence[str] = (), samples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare runs on the clips that all of them predict.

    A class without a clip counts as zero in UF1 and UAR. Clips are matched by dataset, subject, clip and
    onset, as far as all runs have these columns.

    Args:
        paths: two or more: folders of runs, or files of predictions with the columns subject and clip.
        classes: class names in the order of their numbers, for files that have numbers only.
        samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ArgumentError: one path, or one twice; `classes` as in `foreign.load_predictions`.
        ValueError: a file cannot be read, has a clip twice, or shares no clip with the others; labels or
            classes differ. One line naming the file.
    """
    if len(set(paths)) < max(2, len(paths)):
        raise ArgumentError(
            f"compare expected two or more different runs, got {' '.join(map(str, paths)) or 'none'}"
        )
    files = [_predictions_of(Path(path)) for path in paths]
    read = [load_predictions(file, classes=classes, required=("subject", "clip")) for file in files]
    names = _names([Path(path) for path in paths])
    all_classes = _common_classes(files, read, bool(classes))
    rows, people = _common_rows(files, read, all_classes)
    truth = rows[0]["label"].to_numpy()
    unscored = unscored_classes(all_classes, truth)
    runs = [
        Compared(
            name=name,
            num_clips=len(own.rows),
            leaky=_leaky(Path(path), own),
            notes=_notes(Path(path), own),
            predicted=common["predicted"].to_numpy(),
            scores=score(truth, common["predicted"], len(all_classes), absent="zero", unscored=unscored),
        )
        for name, path, own, common in zip(names, paths, read, rows, strict=True)
    ]
    subjects = np.unique(people, return_inverse=True)[1]
    num_subjects = int(subjects.max()) + 1
    weights = subject_weights(num_subjects, samples, seed)
    drawn = [
        resampled_scores(subjects, truth, run.predicted, len(all_classes), weights, unscored=unscored)
        for run in runs
    ]
    places = range(len(runs))
    pairs = [*combinations(places, 2)] if len(runs) <= MAX_ALL_PAIRS else [(0, other) for other in places[1:]]
    tests = [mcnemar(runs[a].predicted == truth, runs[b].predicted == truth) for a, b in pairs]
    corrected = holm([p for _, _, p in tests])
    differences = []
    for (a, b), (first_alone, second_alone, p), p_holm in zip(pairs, tests, corrected, strict=True):
        ends = {name: np.quantile(drawn[b][name] - drawn[a][name], (0.025, 0.975)) for name in drawn[a]}
        differences.append(
            Difference(
                first=runs[a].name,
                second=runs[b].name,
                values={name: getattr(runs[b].scores, name) - getattr(runs[a].scores, name) for name in ends},
                interval={n: (float(low), float(high)) for n, (low, high) in ends.items()}
                if num_subjects > 1
                else None,
                first_alone=first_alone,
                second_alone=second_alone,
                p=p,
                p_holm=p_holm,
            )
        )
    return Comparison(
        runs=runs,
        classes=all_classes,
        num_clips=len(truth),
        num_subjects=num_subjects,
        datasets_known=any("dataset" in own.given for own in read),
        differences=differences,
    )


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """McNemar's test of two classifiers on the same clips (McNemar 1947), exact: binomial, not chi-squared.

    first, second: (num_clips,) bool, whether each has a clip right.

    Returns:
        The clips that the first alone and that the second alone has right, and the two-sided p: the chance of
        a split at least as uneven if each of these clips fell to either with 1/2. It is 1 without such clips.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    first_alone, second_alone = int((first & ~second).sum()), int((second & ~first).sum())
    total = first_alone + second_alone
    return first_alone, second_alone, float(binomtest(first_alone, total).pvalue) if total else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method (Holm 1979), in the same order."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def _predictions_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / "predictions.csv").is_file():
        return path / "predictions.csv"
    inner = sorted(folder.name for folder in path.iterdir() if (folder / "predictions.csv").is_file())
    if inner:
        raise ValueError(
            f"{path}: expected one run, got several: compare {', '.join(inner)} in it, each by itself"
        )
    raise ValueError(f"{path}: expected a run with predictions.csv, got a folder without it")


def _names(paths: Sequence[Path]) -> list[str]:
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    return read_json(file, file.read_text(encoding="utf-8")) if file.is_file() else {}


def _notes(path: Path, own: Predictions) -> list[str]:
    config = _config(path)
    notes = [str(note) for note in config.get(NOTES) or []]
    done, num_folds = own.rows["fold"].nunique(), config.get(NUM_FOLDS)
    if isinstance(num_folds, int) and "fold" in own.given and done < num_folds:
        notes.append(unfinished(done, num_folds))
    return notes


def _leaky(path: Path, own: Predictions) -> list[str]:
    reasons = [str(reason) for reason in _config(path).get(LEAKY) or []]
    reasons += [reason for reason in leaky_reasons(own.rows) if reason not in reasons and not reasons]
    if {"subject", "fold"} <= own.given and (split := split_subjects(own.rows, person_keys(own.rows))):
        reasons.append(f"{counted(len(split), 'subject', 'are')} tested in more than one fold")
    return reasons


def _common_classes(files: Sequence[Path], read: Sequence[Predictions], named: bool) -> list[str]:
    """The classes of all runs. A file without names for them may lack those that it never mentions."""
    longest = max(read, key=lambda own: len(own.classes)).classes
    for file, own in zip(files, read, strict=True):
        declared = named or any(str(column).startswith("p_") for column in own.rows)
        missing = set(longest) - set(own.classes)
        if not set(own.classes) <= set(longest) or (missing and declared):
            got = f"{', '.join(own.classes[:9])} and {', '.join(longest[:9])} (--classes names numbers)"
            raise ValueError(f"{file}: expected the classes of the other runs, got {got}")
    return longest


def _common_rows(
    files: Sequence[Path], read: Sequence[Predictions], classes: list[str]
) -> tuple[list[pd.DataFrame], np.ndarray]:
    """The rows of the common clips of each run, in the same order and classes, and the person of each row."""
    given = set(KEY).intersection(*(own.given for own in read))
    tables = [_keyed(file, own, given, classes) for file, own in zip(files, read, strict=True)]
    keys = tables[0].index
    common = keys[np.logical_and.reduce([keys.isin(other.index) for other in tables])]
    if common.empty:
        place = next((i for i, table in enumerate(tables) if not keys.isin(table.index).any()), 1)
        got = f"none: it has {_name_of(tables[0])}, {files[place]} has {_name_of(tables[place])}"
        raise ValueError(f"{files[0]}: expected clips that all runs predict, got {got}")
    first, *others = (table.loc[common] for table in tables)
    # Clips are matched without the column if one file lacks it; people of two datasets stay two.
    with_dataset = next((i for i, own in enumerate(read) if "dataset" in own.given), 0)
    people = person_keys(tables[with_dataset].loc[common]).to_numpy()
    for file, other in zip(files[1:], others, strict=True):
        differs = (other["label"] != first["label"]).to_numpy()
        if differs.any():
            pair = [classes[table["label"][differs].iloc[0]] for table in (other, first)]
            got = f"{differs.sum()} others, such as of {_name_of(other[differs])}: {' and '.join(pair)}"
            raise ValueError(f"{file}: expected the labels of {files[0]}, got {got}")
    return [first, *others], people


def _keyed(file: Path, own: Predictions, given: set[str], classes: list[str]) -> pd.DataFrame:
    """The rows by the keys of their clips, from the columns `given`, with numbers of `classes`."""
    codes = np.array([classes.index(name) for name in own.classes])
    rows = own.rows.assign(label=codes[own.rows["label"]], predicted=codes[own.rows["predicted"]])
    matched = rows[[*KEY]].assign(**{name: "" for name in KEY if name not in given})
    keys = [clip_key(*names) for names in matched.itertuples(index=False, name=None)]
    rows = rows.set_index(pd.Index(keys))
    if rows.index.has_duplicates:
        got = f"{_name_of(rows[rows.index.duplicated()])} twice, by {', '.join(sorted(given))}"
        raise ValueError(f"{file}: expected each clip once, got {got}")
    return rows


def _name_of(rows: pd.DataFrame) -> str:
    """The first clip, for a message."""
    first = rows.iloc[0]
    return f"{first['subject']}/{first['clip']} {first['onset']}".strip()
