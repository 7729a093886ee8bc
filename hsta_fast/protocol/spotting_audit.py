"""Scores anybody's table of spotted intervals against a table of the annotated ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..clips import counted, natural_key, words_key
from .columns import Table, read_columns
from .spotting import BLANK, LABELS_HINT, SpottingScores, score_spotting

_REQUIRED, _OPTIONAL = ("video", "onset", "offset"), ("subject", "class", "expression")


def read_intervals(path: Path) -> Table:
    """A table of intervals as `score_spotting` takes it, its columns found by their usual names.

    Raises:
        ValueError: it cannot be read, or a column is missing; one line naming it.
    """
    return read_columns(path, _REQUIRED, _OPTIONAL)


def audit_spotting(
    spotted: Path,
    truth: Path | Table,
    classes: Sequence[str] = (),
    *,
    name: str = "the annotation",
    label_set: Sequence[str] = (),
    remarks: Sequence[str] = (),
    as_json: bool = False,
) -> str:
    """The scores of a file of spotted intervals, as text or JSON.

    truth: the annotated ones: such a file too, or the table itself (see `score_spotting`).
    name: what messages call the table itself.
    label_set: the classes that the annotated words have become, if they have.
    remarks: what else there is to say about them.

    Raises:
        ValueError: a table cannot be read, or does not fit the other; one line naming it.
    """
    found = read_intervals(spotted)
    known = read_intervals(truth) if isinstance(truth, Path) else truth
    names = str(truth) if isinstance(truth, Path) else name, str(spotted)
    scores = score_spotting(known.rows, found.rows, classes, names=names)
    remarks = [*remarks, *_foreign(known.rows, found.rows, label_set, names)]
    if as_json:
        return json.dumps({"remarks": [*remarks], **scores.as_json()}, indent=2)
    sources = {names[1]: found.source, names[0]: known.source}
    notes = [
        f"note: {name}: {ours}: column {theirs}"
        for name, source in sources.items()
        for ours, theirs in source.items()
        if ours != theirs
    ]
    notes += [f"note: {remark}" for remark in remarks]
    repeated = int(found.rows.duplicated([*{*_REQUIRED, *_OPTIONAL} & {*found.rows}]).sum())
    if repeated:
        notes.append(
            f"note: {counted(repeated, 'row')} of {names[1]} repeated: each counts as a spotted interval"
        )
    return "\n".join([f"{names[1]}, by {names[0]}", *notes, "", *_lines(scores)])


def _foreign(
    truth: pd.DataFrame, spotted: pd.DataFrame, label_set: Sequence[str], names: tuple[str, str]
) -> list[str]:
    """A sentence on the spotted classes that are never right, as another way of naming them has."""
    own = {words_key(word) for word in label_set or truth.get("class", ()) if word.strip() not in BLANK}
    words = {words_key(word): word for word in spotted.get("class", ()) if word.strip() not in BLANK}
    foreign = sorted((word for key, word in words.items() if key not in own), key=natural_key)
    if not own or not foreign:
        return []
    if label_set:
        return [f"{names[1]}: class expected some of {', '.join(label_set)}, got also {', '.join(foreign)}"]
    got = ", ".join(foreign)
    return [f"{names[1]}: class expected some of those of {names[0]}, got also {got}; {LABELS_HINT}"]


def _lines(scores: SpottingScores) -> Iterator[str]:
    width = max(11, *(len(_name(video.subject, video.video)) + 2 for video in scores.videos), 0)
    heads = ("annotated", "spotted", "TP", "FP", "FN")
    yield f"{'recording':<{width}}" + "".join(f"{head:>11}" for head in heads)
    for video in scores.videos:
        cells = (video.annotated, video.spotted, video.tp, video.fp, video.fn)
        yield f"{_name(video.subject, video.video):<{width}}" + "".join(f"{cell:>11}" for cell in cells)
    yield ""
    yield f"{'pooled':<{width}}" + "".join(
        f"{head:>11}" for head in ("TP", "FP", "FN", "precision", "recall", "F1")
    )
    for name, part in {"all": scores, **scores.kinds}.items():
        counts = "".join(f"{count:>11}" for count in (part.tp, part.fp, part.fn))
        yield f"{name:<{width}}{counts}{part.precision:>11.4f}{part.recall:>11.4f}{part.f1:>11.4f}"
    yield ""
    if scores.uf1 is None or scores.strs is None or scores.strs_of_means is None:
        yield "no STRS: intervals of both tables need a class"
        return
    each = ", ".join(f"{name} {value:.3f}" for name, value in scores.class_f1.items())
    yield f"UF1 of the class on the true positives {scores.uf1:.4f} ({each})"
    yield f"STRS {scores.strs:.4f} = F1 x UF1"
    of_means = f"the F1 of mean precision and mean recall ({scores.f1_of_means:.4f})"
    yield f"     {scores.strs_of_means:.4f} = F1 x {of_means}"


def _name(subject: str, video: str) -> str:
    return f"{subject}/{video}" if subject else video
