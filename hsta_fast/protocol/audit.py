"""Score anybody's predictions again and, given the clips, say who was in training and test at once.

Of the predictions only the columns label and predicted are needed, as numbers 0, 1, ... or as words. dataset,
subject, clip, onset and fold are used where they are there; columns p_<class> name the classes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import KEY, clip_key, natural_key, person_key, subject_ids
from .fold_files import read_folds
from .metrics import Absent, Scores, bootstrap_interval, majority_baseline, per_dataset, per_fold, score
from .predictions import Answers, read_answers, read_text_table

CLEAN = 0  # exit statuses: no shared subject was found
LEAKS = 1  # one was found, or the file is stamped
UNTOLD = 2  # the clips cannot tell
_SHOWN = 5  # names of each kind that a line lists
_NO_STAMP = ("", "false", "0", "no", "none", "nan")


def audit(
    predictions: Path, clips: Path | None = None, folds: Path | None = None, *, absent: Absent = "zero"
) -> tuple[str, int]:
    """The scores of a predictions csv as text, and CLEAN, LEAKS or, where the clips cannot tell, UNTOLD.

    clips: a csv of all clips that were there to train on (subject and clip; dataset, onset, label, expression
    where known), such as the clips.csv of a run. Each fold is taken to have trained on all of them that it
    does not test, macro-expressions apart, about which such a table cannot tell.
    folds: what each fold really trained on, as `published.read_folds` reads it, such as a run's folds.csv.
    absent: what becomes of a class without a clip in the truth, see `metrics.score`.

    Raises:
        ValueError: a file that cannot be read, or that does not fit the others; one line naming it.
    """
    if folds is not None and clips is None:
        raise ValueError("--folds wants --clips, the table of the clips that its rows name")
    answers = read_answers(predictions)
    known = answers.rows
    marks = sorted(set(known["leaky"])) if "leaky" in known else []
    marks = [mark for mark in marks if mark.casefold() not in _NO_STAMP]
    lines = [_extent(predictions.name, answers), *(f"LEAKY: {mark}" for mark in marks)]
    lines += [f"note: {note}" for note in _notes(answers, absent)]
    lines += ["", *_scores(answers, absent)]
    status = CLEAN
    if clips is not None:
        found, status = _compare(answers, clips, folds)
        lines += ["", *found]
    return "\n".join(lines), LEAKS if marks else status


def _extent(name: str, answers: Answers) -> str:
    rows = answers.rows
    parts = [f"{len(rows)} clips", f"{len(answers.classes)} classes"]
    if "subject" in answers.given:
        parts.insert(1, f"{_people(rows).nunique()} subjects")
    if "fold" in answers.given:
        parts.append(f"{rows['fold'].nunique()} folds")
    return f"{name}: {', '.join(parts)}"


def _notes(answers: Answers, absent: Absent) -> Iterator[str]:
    rows, given = answers.rows, answers.given
    here = np.bincount(rows["label"], minlength=len(answers.classes))
    missing = [name for name, count in zip(answers.classes, here, strict=True) if not count]
    if answers.numbers is not None and answers.numbers[0]:
        yield f"no class 0: taken as classes {answers.numbers[0]} to {answers.numbers[-1]}"
    if missing:
        what = {"zero": "counted as 0 in UF1 and UAR", "skip": "left out of UF1 and UAR"}
        yield f"no clip of {_some(missing)}: {what.get(absent, absent)}"
    if {"subject", "clip", "onset"} <= given:
        named = rows[["clip", "onset"]].assign(person=_people(rows))
        twice = int(named.duplicated().sum())
        if twice:
            yield f"{twice} rows answer a clip that an earlier row has answered; each counts"
    if "fold" not in given:
        yield "no column fold: taken as one test set; no means of folds"
    elif "subject" in given:
        people = _people(rows)
        spelled = dict(zip(people, subject_ids(rows), strict=True))
        folds_of = rows.groupby(people)["fold"].nunique()
        several = sorted((spelled[who] for who in folds_of.index[folds_of > 1]), key=natural_key)
        if several:
            yield f"subjects tested in more than one fold, so also trained on: {_some(several)}"


def _scores(answers: Answers, absent: Absent) -> list[str]:
    rows, classes = answers.rows, answers.classes
    count = len(classes)
    pooled = score(rows["label"], rows["predicted"], count, absent=absent)
    lines = [f"{'':<24}{'UF1':>14}{'UAR':>14}{'ACC':>14}"]

    def line(name: str, cells: list[str]) -> None:
        lines.append(f"{name:<24}" + "".join(f"{cell:>14}" for cell in cells))

    def numbers(scores: Scores) -> list[str]:
        return [f"{value:.4f}" for value in (scores.uf1, scores.uar, scores.acc)]

    line("pooled", numbers(pooled))
    people = rows.assign(dataset="", subject=_people(rows))
    interval = bootstrap_interval(people, count) if "subject" in answers.given else None
    if interval is not None:
        line("95 % over subjects", [f"{low:.3f}-{high:.3f}" for low, high in interval.values()])
    line("majority class", numbers(_baseline(rows, count)))
    if "fold" in answers.given:
        line("mean of folds (no score)", [f"{value:.4f}" for value in per_fold(rows, count)[1].values()])
    if rows["dataset"].nunique() > 1:
        for name, own in per_dataset(rows, count).items():
            line(name, numbers(own))
    width = max(8, *(len(name) + 2 for name in classes))
    heads = "".join(f"{name:>{width}}" for name in classes)
    lines += ["", f"{'class':<{width}}{'F1':>8}{'recall':>8}{'clips':>8}   predicted{heads}"]
    per_class = zip(classes, pooled.f1, pooled.recall, pooled.support, pooled.confusion, strict=True)
    for name, f1, recall, clips, row in per_class:
        cells = "".join(f"{n:>{width}}" for n in row)
        lines.append(f"{name:<{width}}{f1:>8.3f}{recall:>8.3f}{clips:>8}   {'':9}{cells}")
    return lines


def _baseline(rows: pd.DataFrame, count: int) -> Scores:
    """In each fold the most frequent class of the clips that other folds test; of all in one fold."""
    every = np.bincount(rows["label"], minlength=count)
    counts = {}
    for fold, part in rows.groupby("fold", sort=False):
        others = every - np.bincount(part["label"], minlength=count)
        counts[str(fold)] = (others if others.any() else every).tolist()
    return majority_baseline(rows, counts, count)


def _compare(answers: Answers, path: Path, folds: Path | None) -> tuple[list[str], int]:
    """What the table of clips says about the predictions, and the status that this gives."""
    rows, table = answers.rows, read_text_table(path, ("subject", "clip"))
    if not {"subject", "clip"} <= answers.given:
        raise ValueError(f"{path}: wanted predictions with the columns subject and clip to compare with it")
    both = [name for name in KEY if name in table and name in answers.given]
    table = table.assign(**{name: table[name].str.strip() if name in both else "" for name in KEY})
    rows = rows.assign(**{name: rows[name] if name in both else "" for name in KEY})
    rows, table = rows.assign(key=_keys(rows), person=_people(rows)), table.assign(key=_keys(table))
    table = table.assign(person=_people(table))
    macro = (
        (table["expression"] == "macro").to_numpy() if "expression" in table else np.zeros(len(table), bool)
    )
    lines = []
    strangers = ~rows["key"].isin(set(table["key"]))
    if strangers.any():
        lines.append(
            f"{strangers.sum()} predicted clips are not in {path.name}: {_some(rows['key'][strangers])}"
        )
        if folds is None:  # their clips may stand in the table under other names, as if trained on
            found, status = _surely_shared(rows, table[~macro], path.name, set(rows["person"][strangers]))
            return [*lines, *found], status
    untested = ~table["key"].isin(set(rows["key"])) & ~macro
    if untested.any():
        names = _some(table["key"][untested])
        lines.append(f"{untested.sum()} clips of {path.name} were never tested: {names}")
    lines += _other_labels(answers, rows, table, path.name)
    trained, missing = _trained(rows, table, macro, folds)
    if missing and folds is not None:
        lines.append(f"{missing} rows of {folds.name} name no clip of {path.name}.")
    shared, filmed, named = _shared(rows, table, trained, folds)
    if folds is None:
        basis = f"if each fold trained on all clips of {path.name} that it does not test"
        if macro.any():
            basis += f", its {macro.sum()} macro-expressions apart (--folds says more)"
    else:
        basis = f"by {folds.name}"
    if shared:
        share = f"{shared} of {len(rows)} test clips ({shared / len(rows):.0%}) are of subjects in training"
        recorded = f"{filmed} ({filmed / len(rows):.0%}) of a recording in training"
        return [*lines, f"LEAK: {share}, {recorded}, {basis}:", *named], LEAKS
    if missing:
        return [*lines, f"No subject is shared {basis}, but for those rows: that cannot be told."], UNTOLD
    if not all(mine.any() for mine in trained.values()):
        what = f"A fold tests every clip of {path.name}, so what it trained on cannot be told"
        return [*lines, f"{what}: no subject was looked for."], UNTOLD
    return [*lines, f"No subject is in training and test of the same fold, {basis}."], CLEAN


def _surely_shared(
    rows: pd.DataFrame, table: pd.DataFrame, name: str, unsure: set[str]
) -> tuple[list[str], int]:
    """Whose clips in the table outnumber those that a fold tests: some were trained on; not of `unsure`."""
    clips = table["person"].value_counts()
    named, count = [], 0
    for fold, part in rows.groupby("fold", sort=False):
        tested = part["person"].value_counts()
        more = part[part["person"].map(clips).fillna(0) > part["person"].map(tested)]
        more = more[~more["person"].isin(unsure)]
        count += len(more)
        named += _line(str(fold), more)
    if not named:
        return ["So what was trained on cannot be told: no subject was looked for."], UNTOLD
    share = (
        f"{count} of {len(rows)} test clips ({count / len(rows):.0%}) are of subjects of whom {name} has more"
    )
    return [f"LEAK: {share}, if each fold trained on all that it does not test:", *named], LEAKS


def _shared(
    rows: pd.DataFrame, table: pd.DataFrame, trained: dict[str, np.ndarray], folds: Path | None
) -> tuple[int, int, list[str]]:
    """Test clips of people in training, those of recordings in training, and a line for each such fold."""
    recordings, filmed = rows["person"] + " " + rows["clip"], table["person"] + " " + table["clip"]
    shared, filmed_too, named = 0, 0, []
    for fold, part in rows.groupby("fold", sort=False):
        if str(fold) not in trained:
            raise ValueError(f"{folds}: wanted a fold {fold!r}, as in the predictions, got none")
        mine = trained[str(fold)]
        in_both = part[part["person"].isin(set(table["person"][mine]))]
        shared += len(in_both)
        filmed_too += int(recordings[part.index].isin(set(filmed[mine])).sum())
        named += _line(str(fold), in_both)
    return shared, filmed_too, named


def _line(fold: str, rows: pd.DataFrame) -> list[str]:
    names = sorted(set(subject_ids(rows)), key=natural_key)
    return [f"  fold {fold or '-'}: {len(names)} subjects, {_some(names)}"] if names else []


def _trained(
    rows: pd.DataFrame, table: pd.DataFrame, macro: np.ndarray, folds: Path | None
) -> tuple[dict[str, np.ndarray], int]:
    """For each fold which rows of the clip table it trained on; how many rows of `folds` name no clip."""
    if folds is None:
        tests = {str(fold): set(part["key"]) for fold, part in rows.groupby("fold", sort=False)}
        return {fold: (~table["key"].isin(keys)).to_numpy() & ~macro for fold, keys in tests.items()}, 0
    found, missing = read_folds(folds, table, macro=bool(macro.any()))
    return {fold.name: np.isin(np.arange(len(table)), fold.train) for fold in found}, missing


def _other_labels(answers: Answers, rows: pd.DataFrame, table: pd.DataFrame, name: str) -> list[str]:
    if "label" not in table:
        return []
    if table["key"].duplicated().any():
        return [f"{name} has several clips of one name: labels were not compared."]
    code = {word: number for number, word in enumerate(answers.classes)}
    if answers.numbers is not None:
        code |= {str(number): place for place, number in enumerate(answers.numbers)}
    truth = table.set_index("key")["label"].str.strip().str.removesuffix(".0").map(code)
    if truth.isna().all():
        return [f"The labels of {name} are written otherwise: they were not compared."]
    theirs = rows["key"].map(truth)
    other = theirs.notna() & (theirs != rows["label"])
    return (
        [f"{other.sum()} clips have another label in {name}: {_some(rows['key'][other])}"]
        if other.any()
        else []
    )


def _people(rows: pd.DataFrame) -> pd.Series:
    return subject_ids(rows).map(person_key)


def _keys(rows: pd.DataFrame) -> pd.Series:
    names = zip(*(rows[name].astype(str) for name in KEY), strict=True)
    return pd.Series([clip_key(*name) for name in names], index=rows.index, dtype=object)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(name.strip() for name in shown[:_SHOWN]) + more
