"""Scores anyone's predictions again and, given all clips, looks for subjects in training and test at once.

The predictions need only the columns label and predicted, as numbers 0, 1, ... or as words. dataset, subject,
clip, onset and fold are used if present; columns p_<class> name the classes. See foreign.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..clips import counted
from .columns import ArgumentError
from .findings import ONE_NAME, Findings, UnitFindings, Verdict, collect_findings
from .foreign import FLAGS
from .metrics import Absent, Scores
from .overlap import Overlap

_MAX_NAMES = 5  # names that a line lists


def audit(
    predictions: Path,
    clips: Path | None = None,
    folds: Path | None = None,
    *,
    absent: Absent = "zero",
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
) -> tuple[str, int]:
    """Score predictions of any program and look for shared subjects.

    A subject that two folds test is a leak, since each trained on what the other tests, unless `folds` says
    otherwise.

    Args:
        predictions: the file, see `foreign.load_predictions`.
        clips: a table of all clips that there were to train on, such as the clips.csv of a run: subject,
            clip; dataset, onset, label and expression if known. Without `folds`, each fold is assumed to have
            trained on all of them that it does not test, except macro-expressions.
        folds: what each fold really trained on, such as a run's folds.csv; see `fold_files.read_folds`.
        absent: how to treat a class without a clip in the truth, see `metrics.score`.
        columns: label, predicted, subject or fold -> the column, or .npy file, that holds it; by default
            found by its usual names.
        classes: class names in the order of their numbers; by default those of the file.

    Returns:
        The findings as text, and the status CLEAN, LEAKS or UNKNOWN (see overlap.py).

    Raises:
        ArgumentError: `folds` without `clips`, or as in `foreign.load_predictions`.
        ValueError: a file cannot be read or does not fit the others; one line naming it.
    """
    if folds is not None and clips is None:
        raise ArgumentError("--folds expected --clips, a table of the clips that its rows name, got none")
    if unknown := sorted(set(columns or {}) - set(FLAGS)):
        raise ArgumentError(f"columns expected {', '.join(FLAGS)}, got {', '.join(unknown)}")
    found = collect_findings(predictions, clips, folds, absent, columns or {}, classes)
    return findings_text(found), found.status


def findings_text(found: Findings | UnitFindings) -> str:
    """The findings in words, for a terminal."""
    lines = [_extent(found), *(f"LEAKY: {reason}" for reason in found.leaky)]
    lines += [f"note: {note}" for note in _notes(found)]
    if isinstance(found, UnitFindings):
        lines += ["", *_unit_score_lines(found), "", *_unit_lines(found)]
    else:
        lines += ["", *_score_lines(found), "", *_class_lines(found)]
    if found.overlap is not None:
        lines += ["", *_differences(found.overlap), *_verdict(found.overlap)]
    split = bool(found.split_subjects) and not found.folds_known
    if found.overlap is None or (split and not found.overlap.subjects):
        lines += ["", _verdict_of_folds(found)]
    return "\n".join(lines)


def _extent(found: Findings | UnitFindings) -> str:
    rows = found.predictions.rows
    parts = [counted(len(rows), "clip")]
    if found.num_subjects is not None:
        parts.append(counted(found.num_subjects, "subject"))
    if isinstance(found, UnitFindings):
        parts.append(counted(len(found.units), "action unit"))
    else:
        parts.append(f"{len(found.predictions.classes)} classes")
    if "fold" in found.predictions.given:
        parts.append(counted(rows["fold"].nunique(), "fold"))
    return f"{found.file}: {', '.join(parts)}"


def _notes(found: Findings | UnitFindings) -> Iterator[str]:
    yield from found.notes
    for name, column in found.predictions.source.items():
        yield f"{name}: column {column}"
    for name, columns in found.predictions.unused.items():
        differ = f"{' and '.join(columns)} differ{'s' * (len(columns) == 1)}"
        yield f"{name}: {differ}, not used (--{name} says which)"
    numbers, classes = found.predictions.numbers, found.predictions.classes
    if numbers is not None and classes != [str(number) for number in numbers]:
        named = [f"{number} {name}" for number, name in zip(numbers, classes, strict=True)]
        yield f"classes: {_some(named, 20)}"
    elif numbers is not None and numbers[0]:
        yield f"no class 0: the classes are {numbers[0]} to {numbers[-1]}"
    if found.absent_classes:
        means = "the mean F1" if isinstance(found, UnitFindings) else "UF1 and UAR"
        effect = {"zero": f"counted as 0 in {means}", "skip": f"left out of {means}"}[found.absent]
        yield f"no clip of {_some(found.absent_classes)}: {effect}"
    if found.repeated:
        repeated = counted(found.repeated, "row", "predict")
        yield f"{repeated} a clip that an earlier row predicts; each row counts"
    if "fold" not in found.predictions.given:
        yield "no column fold: all rows are one test set, so there is no mean of folds"


def _score_lines(found: Findings) -> Iterator[str]:
    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<28}" + "".join(f"{cell:>14}" for cell in cells)

    def numbers(scores: Scores) -> list[str]:
        return [f"{value:.4f}" for value in (scores.uf1, scores.uar, scores.acc)]

    yield line("", ("UF1", "UAR", "ACC"))
    yield line("pooled", numbers(found.pooled))
    if found.interval is not None:
        yield line("95 % over subjects", [f"{low:.3f}-{high:.3f}" for low, high in found.interval.values()])
    yield line("majority class", numbers(found.baseline))
    if found.fold_mean is not None:
        yield line("mean of folds (not a score)", [f"{value:.4f}" for value in found.fold_mean.values()])
    for name, scores in found.datasets.items():
        yield line(name, numbers(scores))


def _unit_score_lines(found: UnitFindings) -> Iterator[str]:
    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<28}" + "".join(f"{cell:>14}" for cell in cells)

    named = {"pooled": found.pooled, "always present": found.baseline, **found.datasets}
    rows = {name: [f"{own.f1:.4f}", f"{own.f1_both:.4f}"] for name, own in named.items()}
    yield line("mean over units", ("F1", "F1 both"))
    for name, cells in rows.items():
        yield line(name, cells)
        if name == "pooled" and found.intervals is not None:
            ends = (found.intervals[score] for score in ("f1", "f1_both"))
            yield line("95 % over subjects", [f"{low:.3f}-{high:.3f}" for low, high in ends])


def _unit_lines(found: UnitFindings) -> Iterator[str]:
    """F1 of each unit, how many clips show it, and for how many it is predicted."""
    yield f"{'unit':<8}{'F1':>8}{'F1 both':>9}{'clips':>8}{'predicted':>11}"
    own = found.pooled
    columns = zip(found.units, own.of_unit, own.both, own.support, own.predicted, strict=True)
    for unit, f1, both, clips, predicted in columns:
        yield f"{unit:<8}{f1:>8.3f}{both:>9.3f}{clips:>8}{predicted:>11}"


def _class_lines(found: Findings) -> Iterator[str]:
    """F1, recall and the row of the confusion matrix of each class."""
    classes, pooled = found.predictions.classes, found.pooled
    width = max(8, *(len(name) + 2 for name in classes))
    heads = "".join(f"{name:>{width}}" for name in classes)
    yield f"{'class':<{width}}{'F1':>8}{'recall':>8}{'clips':>8}   predicted{heads}"
    per_class = zip(classes, pooled.f1, pooled.recall, pooled.support, pooled.confusion, strict=True)
    for name, f1, recall, clips, row in per_class:
        cells = "".join(f"{count:>{width}}" for count in row)
        yield f"{name:<{width}}{f1:>8.3f}{recall:>8.3f}{clips:>8}   {'':9}{cells}"


def _differences(overlap: Overlap) -> Iterator[str]:
    """How the predictions and the clip table differ."""
    name = overlap.clips_file
    if overlap.unknown:
        unknown = counted(len(overlap.unknown), "predicted clip", "are")
        yield f"{unknown} not in {name}: {_some(overlap.unknown)}"
    if overlap.untested:
        yield f"{counted(len(overlap.untested), 'clip')} of {name} never tested: {_some(overlap.untested)}"
    if overlap.labels_skipped == "repeated names":
        yield f"{name} has several clips of one name: labels were not compared."
    if overlap.labels_skipped == "other spelling":
        yield f"The labels of {name} are written differently: they were not compared."
    if overlap.relabelled:
        relabelled = counted(len(overlap.relabelled), "clip", "have")
        yield f"{relabelled} another label in {name}: {_some(overlap.relabelled)}"
    if overlap.other_classes:
        yield f"Labels of {name} that are no class of the predictions: {_some(overlap.other_classes)}"
    if overlap.label_shift:
        starts = (0, 1) if overlap.label_shift > 0 else (1, 0)
        yield f"Labels count from {starts[0]} in {name} and from {starts[1]} here: they were compared so."
    if overlap.unmatched:
        yield f"{counted(overlap.unmatched, 'row')} of {overlap.folds_file} with no clip of {name}."


def _verdict(overlap: Overlap) -> Iterator[str]:
    """The subjects in training and test of the same fold, or that there are none, or that it is unknown."""
    name, total = overlap.clips_file, overlap.num_predictions
    if overlap.folds_file is not None:
        basis = f"by {overlap.folds_file}"
    else:
        basis = f"assuming that each fold trained on every clip of {name} that it does not test"
        if overlap.num_macro:
            basis += f", except its {counted(overlap.num_macro, 'macro-expression')} (--folds says more)"

    def test_clips(count: int) -> str:
        return f"{count} of {total} test clips ({count / total:.0%})"

    clips = test_clips(overlap.shared_clips)
    if overlap.subjects and overlap.by_count:
        yield f"LEAK: {clips} are of subjects with more clips in {name} than the fold tests, {basis}:"
    elif overlap.subjects:
        yield f"LEAK: {clips} are of subjects in training, {basis}."
        yield f"{test_clips(overlap.shared_recordings)} are of a recording in training."
        yield "The subjects in training and test of the same fold are:"
    elif overlap.by_count:
        yield "So it is unknown what each fold trained on: shared subjects were not looked for."
    elif overlap.unmatched:
        yield f"No subject is shared, {basis}; because of those rows, this is not certain."
    elif overlap.trains_on_nothing:
        what = f"A fold tests every clip of {name}, so it is unknown what it trained on"
        yield f"{what}: shared subjects were not looked for."
    else:
        yield f"No subject is in training and test of the same fold, {basis}."
    for fold, subjects in overlap.subjects.items():
        yield f"  fold {fold or '-'}: {counted(len(subjects), 'subject')}, {_some(subjects)}"


def _verdict_of_folds(found: Verdict) -> str:
    """Whether a subject is tested in more than one fold, as far as the predictions alone tell."""
    given = found.predictions.given
    if found.split_subjects:
        what = (
            f"{counted(len(found.split_subjects), 'subject', 'are')} tested in more than one fold, "
            "so also trained on"
        )
        one = "" if "dataset" in given else f" ({ONE_NAME})"
        return f"LEAK: {what}: {_some(found.split_subjects)}{one}"
    if found.split_clips:
        what = f"{counted(found.split_clips, 'clip', 'are')} named in more than one fold"
        return f"{what}: without a column subject (--subject names it), these may be clips of several people."
    not_sought = "Shared subjects were not looked for"
    if missing := [name for name in ("subject", "fold") if name not in given]:
        columns = " and ".join(f"{name} (--{name} names it)" for name in missing)
        return f"{not_sought}: there is no column {columns}."
    if found.predictions.rows["fold"].nunique() == 1:
        return f"{not_sought}: there is one fold, and without --clips it is unknown what it trained on."
    return "No subject is tested in more than one fold. (--clips finds those with further clips in training.)"


def _some(names: Sequence[str], most: int = _MAX_NAMES) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name.strip() for name in names[:most]) + more
