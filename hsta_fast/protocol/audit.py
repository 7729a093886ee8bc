"""Score anybody's predictions again and, given the clips, say who was in training and test at once.

Of the predictions only the columns label and predicted are needed, as numbers 0, 1, ... or as words. dataset,
subject, clip, onset and fold are used where they are there; columns p_<class> name the classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .folds import natural_key, person
from .metrics import (
    Absent,
    Scores,
    bootstrap_interval,
    class_names,
    majority_baseline,
    per_dataset,
    per_fold,
    read_text_table,
    score,
)
from .published import read_folds

_NAMES = ("dataset", "subject", "clip", "onset", "fold")
_CLIP = ["dataset", "subject", "clip", "onset"]
_SHOWN = 5  # names of each kind that a line lists


def audit(
    predictions: Path, clips: Path | None = None, folds: Path | None = None, *, absent: Absent = "zero"
) -> tuple[str, bool]:
    """The scores of a predictions csv as text, and whether it is known to leak.

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
    answers = _read_answers(predictions)
    known = answers.rows
    marks = sorted(set(known["leaky"]) - {""}) if "leaky" in known else []
    lines = [_extent(predictions.name, answers), *(f"LEAKY: {mark}" for mark in marks)]
    lines += [f"note: {note}" for note in _notes(answers, absent)]
    lines += ["", *_scores(answers, absent)]
    leaks = bool(marks)
    if clips is not None:
        found, leak = _compare(answers, clips, folds)
        lines += ["", *found]
        leaks |= leak
    return "\n".join(lines), leaks


@dataclass(frozen=True)
class _Answers:
    """rows: the columns of a predictions table, blank where the file has none; given: those that it has.

    numbers: whether the file has its classes as numbers.
    """

    rows: pd.DataFrame
    classes: list[str]
    given: set[str]
    numbers: bool


def _read_answers(path: Path) -> _Answers:
    raw = read_text_table(path, ("label", "predicted"))
    if raw.empty:
        raise ValueError(f"{path}: wanted a row for each test clip, got none")
    words = pd.concat([raw["label"], raw["predicted"]]).str.strip()
    if (words == "").any():
        raise ValueError(f"{path}: wanted a label and an answer in each row, got a blank")
    classes = class_names(raw)
    numeric = bool(words.str.fullmatch(r"[0-9]{1,6}").all())
    if numeric:
        count = max(len(classes), int(words.astype(int).max()) + 1)
        if classes and count > len(classes):
            raise ValueError(f"{path}: wanted labels 0..{len(classes) - 1}, got {count - 1}")
        classes = classes or [str(number) for number in range(count)]
        code = {str(number): number for number in range(count)}
        words = words.str.lstrip("0").replace("", "0")
    else:
        classes = classes or sorted(set(words), key=natural_key)
        code = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(words) - set(code))
    if unknown:
        raise ValueError(f"{path}: wanted classes of {', '.join(classes)}, got {', '.join(unknown[:_SHOWN])}")
    if len(classes) < 2:
        raise ValueError(f"{path}: wanted two or more classes, got {', '.join(classes)}")
    numbers = words.map(code).to_numpy(dtype=np.int64).reshape(2, -1)
    rows = raw.assign(label=numbers[0], predicted=numbers[1])
    given = {name for name in _NAMES if name in raw}
    for name in _NAMES:
        rows[name] = raw[name].str.strip() if name in given else ""
    return _Answers(rows, classes, given, numeric)


def _extent(name: str, answers: _Answers) -> str:
    rows = answers.rows
    parts = [f"{len(rows)} clips", f"{len(answers.classes)} classes"]
    if "subject" in answers.given:
        parts.insert(1, f"{rows[['dataset', 'subject']].drop_duplicates().shape[0]} subjects")
    if "fold" in answers.given:
        parts.append(f"{rows['fold'].nunique()} folds")
    return f"{name}: {', '.join(parts)}"


def _notes(answers: _Answers, absent: Absent) -> Iterator[str]:
    rows, given = answers.rows, answers.given
    here = np.bincount(rows["label"], minlength=len(answers.classes))
    missing = [name for name, count in zip(answers.classes, here, strict=True) if not count]
    if missing:
        what = {"zero": "counted as 0 in UF1 and UAR", "skip": "left out of UF1 and UAR"}
        yield f"no clip of {', '.join(missing)}: {what.get(absent, absent)}"
    if {"subject", "clip", "onset"} <= given:
        twice = int(rows.duplicated(_CLIP).sum())
        if twice:
            yield f"{twice} rows answer a clip that an earlier row has answered; each counts"
    if "fold" not in given:
        yield "no column fold: taken as one test set; no means of folds"
    elif "subject" in given:
        folds_of = rows.groupby(rows["dataset"] + "/" + rows["subject"])["fold"].nunique()
        several = sorted(folds_of.index[folds_of > 1], key=natural_key)
        if several:
            yield f"subjects tested in more than one fold, so also trained on: {_some(several)}"


def _scores(answers: _Answers, absent: Absent) -> list[str]:
    rows, classes = answers.rows, answers.classes
    count = len(classes)
    pooled = score(rows["label"], rows["predicted"], count, absent=absent)
    lines = [f"{'':<24}{'UF1':>14}{'UAR':>14}{'ACC':>14}"]

    def line(name: str, cells: list[str]) -> None:
        lines.append(f"{name:<24}" + "".join(f"{cell:>14}" for cell in cells))

    def numbers(scores: Scores) -> list[str]:
        return [f"{value:.4f}" for value in (scores.uf1, scores.uar, scores.acc)]

    line("pooled", numbers(pooled))
    interval = bootstrap_interval(rows, count) if "subject" in answers.given else None
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


def _compare(answers: _Answers, path: Path, folds: Path | None) -> tuple[list[str], bool]:
    """What the table of clips says about the predictions, and whether a subject is shared."""
    rows, table = answers.rows, read_text_table(path, ("subject", "clip"))
    if not {"subject", "clip"} <= answers.given:
        raise ValueError(f"{path}: wanted predictions with the columns subject and clip to compare with it")
    both = [name for name in _CLIP if name in table and name in answers.given]
    table = table.assign(**{name: table[name].str.strip() if name in both else "" for name in _CLIP})
    rows = rows.assign(**{name: rows[name] if name in both else "" for name in _CLIP})
    keys, wanted = _keys(rows), _keys(table)
    kinds = table["expression"] if "expression" in table else pd.Series("", index=table.index)
    macro = (kinds == "macro").to_numpy()
    lines = []
    strangers = ~keys.isin(set(wanted))
    if strangers.any():
        lines.append(f"{strangers.sum()} predicted clips are not in {path.name}: {_some(keys[strangers])}")
        if folds is None:  # their clips may stand in the table under other names, as if trained on
            return [*lines, "So what was trained on cannot be told: no subject was looked for."], False
    untested = ~wanted.isin(set(keys)) & ~macro
    if untested.any():
        lines.append(f"{untested.sum()} clips of {path.name} were never tested: {_some(wanted[untested])}")
    lines += _other_labels(answers, rows.assign(key=keys), table.assign(key=wanted), path.name)
    trained = _trained(rows, keys, wanted, macro, table, folds)
    people, faces = _people(rows), _people(table)
    spelled = dict(zip(people, rows["dataset"] + "/" + rows["subject"], strict=True))
    recordings, filmed = people + " " + rows["clip"], faces + " " + table["clip"]
    shared, filmed_too, named = 0, 0, []
    for fold, part in rows.groupby("fold", sort=False):
        if str(fold) not in trained:
            raise ValueError(f"{folds}: wanted a fold {fold!r}, as in the predictions, got none")
        mine = trained[str(fold)]
        in_both = people[part.index].isin(set(faces[mine]))
        shared += int(in_both.sum())
        filmed_too += int(recordings[part.index].isin(set(filmed[mine])).sum())
        names = sorted({spelled[who] for who in people[part.index][in_both]}, key=natural_key)
        if names:
            named.append(f"  fold {str(fold) or '-'}: {len(names)} subjects, {_some(names)}")
    if folds is None:
        basis = f"if each fold trained on all clips of {path.name} that it does not test"
        if macro.any():
            basis += f", its {macro.sum()} macro-expressions apart (--folds says more)"
    else:
        basis = f"by {folds.name}"
    if not shared:
        return [*lines, f"No subject is in training and test of the same fold, {basis}."], False
    share = f"{shared} of {len(rows)} test clips ({shared / len(rows):.0%}) are of subjects in training"
    recorded = f"{filmed_too} ({filmed_too / len(rows):.0%}) of a recording in training"
    lines.append(f"LEAK: {share}, {recorded}, {basis}:")
    return [*lines, *named], True


def _trained(
    rows: pd.DataFrame,
    keys: pd.Series,
    wanted: pd.Series,
    macro: np.ndarray,
    table: pd.DataFrame,
    folds: Path | None,
) -> dict[str, np.ndarray]:
    """For each fold the rows of the clip table that it trained on, bool."""
    if folds is None:
        tests = {str(fold): set(keys[part.index]) for fold, part in rows.groupby("fold", sort=False)}
        return {fold: (~wanted.isin(tested)).to_numpy() & ~macro for fold, tested in tests.items()}
    trained = {}
    for fold in read_folds(folds, table, macro=bool(macro.any()))[0]:
        trained[fold.name] = np.isin(np.arange(len(table)), fold.train)
    return trained


def _other_labels(answers: _Answers, rows: pd.DataFrame, table: pd.DataFrame, name: str) -> list[str]:
    if "label" not in table:
        return []
    words = [str(number) for number in range(len(answers.classes))] if answers.numbers else answers.classes
    theirs = table["label"].str.strip().map({word: number for number, word in enumerate(words)})
    both = rows.merge(table.assign(truth=theirs)[["key", "truth"]].drop_duplicates("key"), on="key")
    other = both["truth"].notna() & (both["label"] != both["truth"])
    if not other.any():
        return []
    return [f"{other.sum()} clips have another label in {name}: {_some(both['key'][other])}"]


def _people(rows: pd.DataFrame) -> pd.Series:
    return (rows["dataset"] + "/" + rows["subject"]).map(person)


def _keys(rows: pd.DataFrame) -> pd.Series:
    """A clip's name, the same however its numbers are padded."""
    return _people(rows) + " " + (rows["clip"] + " " + rows["onset"].str.strip()).map(_plain)


def _plain(text: str) -> str:
    return " ".join(person(word) for word in text.split())


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(name.strip() for name in shown[:_SHOWN]) + more
