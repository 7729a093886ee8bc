"""Scores of spotting: which expressions in long recordings were found, and were their classes recognised?

A spotted interval is a true positive if the frames that it shares with an annotated one are at least half of
the frames that either has: intersection over union >= 1/2, counted in whole inclusive frames. Each annotated
interval makes at most one true positive, and each spotted one is at most one. Counts are pooled over all
recordings (He et al., "Spotting macro- and micro-expression intervals in long video sequences", FG 2020; the
challenges MEGC 2020 to 2024):

    F1 = 2 TP / (spotted + annotated)
    STRS = F1 x UF1 of the class on the true positives

STRS is the spot-then-recognise score of Liong, See, Chan, "Spot-then-recognize: a micro-expression analysis
network for seamless evaluation of long videos", Signal Processing: Image Communication 110, 2023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..clips import natural_key, person_key, words_key
from .interval_pairs import match_intervals

# What to do where the two tables name classes in different ways.
LABELS_HINT = "where they are the classes of a label set, --labels names it"

_VIDEO_TYPE = re.compile(r"\.(avi|m4v|mkv|mov|mp4|webm)$", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}(?:\.0*)?")
BLANK = ("", "nan", "None", "<NA>")


@dataclass(frozen=True, kw_only=True)
class VideoCounts:
    """The counts of one recording; subject: "" where the tables have none."""

    subject: str
    video: str
    annotated: int
    spotted: int
    tp: int

    @property
    def fp(self) -> int:
        """Spotted intervals that are no true positive."""
        return self.spotted - self.tp

    @property
    def fn(self) -> int:
        """Annotated intervals that were missed."""
        return self.annotated - self.tp


@dataclass(frozen=True, kw_only=True)
class SpottingScores:
    """Scores of spotted intervals, all from the same counts; 0/0 is 0.

    Attributes:
        tp, fp, fn: true positives, spotted intervals that are none, and missed annotated ones.
        class_f1: F1 of each class on the true positives; {} where a table has no classes.
        uf1: the mean of `class_f1`; None without classes.
        strs: f1 x uf1; None without classes.
        f1_of_means: the F1 of the mean precision and the mean recall over classes, which the published script
            of the challenges multiplies with; None without classes.
        strs_of_means: f1 x f1_of_means; None without classes.
        videos: the counts of each recording.
        kinds: the scores of micro- and macro-expressions apart, where both tables tell them.
    """

    tp: int
    fp: int
    fn: int
    class_f1: Mapping[str, float] = field(default_factory=dict)
    uf1: float | None = None
    f1_of_means: float | None = None
    videos: tuple[VideoCounts, ...] = ()
    kinds: Mapping[str, SpottingScores] = field(default_factory=dict)

    @property
    def precision(self) -> float:
        """The share of the spotted intervals that are true positives."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """The share of the annotated intervals that were found."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def strs(self) -> float | None:
        """The spot-then-recognise score."""
        return None if self.uf1 is None else self.f1 * self.uf1

    @property
    def strs_of_means(self) -> float | None:
        """The spot-then-recognise score with `f1_of_means`."""
        return None if self.f1_of_means is None else self.f1 * self.f1_of_means

    def as_json(self) -> dict[str, Any]:
        """All scores and counts as plain values."""
        names = ("tp", "fp", "fn", "precision", "recall", "f1", "uf1", "strs", "f1_of_means", "strs_of_means")
        of_video = ("subject", "video", "annotated", "spotted", "tp", "fp", "fn")
        videos = [{name: getattr(video, name) for name in of_video} for video in self.videos]
        return {
            **{name: getattr(self, name) for name in names},
            "class_f1": dict(self.class_f1),
            "kinds": {kind: scores.as_json() for kind, scores in self.kinds.items()},
            "videos": videos,
        }


def score_spotting(
    truth: pd.DataFrame,
    spotted: pd.DataFrame,
    classes: Sequence[str] = (),
    *,
    names: tuple[str, str] = ("truth", "spotted"),
) -> SpottingScores:
    """Score spotted intervals of any number of recordings.

    Args:
        truth: a row for each annotated interval; video, onset, offset (whole numbers, inclusive), and
            subject, class and expression (micro, macro) if known. A row with a blank onset and offset names a
            recording without an expression.
        spotted: a row for each spotted interval, with the same columns; a row that is there twice counts
            twice.
        classes: those over which UF1 is the mean, such as all but "others"; by default all in the truth. A
            true positive of another annotated class does not count in it.
        names: what messages call the two tables, such as their files.

    A recording is its video, with its subject where both tables have one. Spellings are as those of clips
    (`clips.words_key`); folders above the name and the ending of a video file are left out where the names
    differ only by them. Where both tables have expressions, micro is compared with micro and macro with
    macro.

    Of several ways to pair intervals, one with the most pairs counts; of these the one with the most similar
    pair, and so on; of equally similar pairs that of the earlier annotated, then of the earlier spotted
    interval.

    Raises:
        ValueError: a column is missing; a video has no name; an onset or offset is no whole number; an
            offset lies before its onset; a spotted interval is of no recording of the truth; no class of the
            spotted intervals is one of the truth. One line naming the table and the row.
    """
    true, found = (_intervals(table, name) for table, name in zip((truth, spotted), names, strict=True))
    _name_videos(true, found, names)
    tables = (truth, true), (spotted, found)
    chosen: Sequence[str] = ()
    if all("class" in table and not _is_blank(rows["class"]) for table, rows in tables):
        chosen = _checked_classes(true, found, classes, names)
    apart: dict[str, SpottingScores] = {}
    if all("expression" in table and (_of(rows)["expression"] != "").all() for table, rows in tables):
        for kind in sorted({*_of(true)["expression"], *_of(found)["expression"]}, reverse=True):
            # All rows of a recording, so that one without this kind counts too.
            own = [
                rows.assign(onset=rows["onset"].where(rows["expression"] == kind, -1))
                for rows in (true, found)
            ]
            apart[kind] = _scores(own[0], own[1], chosen)
    return _scores(true, found, chosen, kinds=apart)


def _intervals(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with text cells and whole numbers; blank ones are -1 in both columns and mean no interval."""
    for column in ("video", "onset", "offset"):
        if column not in table:
            listed = ", ".join(map(str, table.columns)) or "none"
            raise ValueError(f"{name}: expected the columns video, onset and offset, got {listed}")
    rows = pd.DataFrame(index=table.index)
    for column in ("subject", "video", "class", "expression"):
        cells = table[column].astype(object).fillna("").astype(str).str.strip() if column in table else ""
        rows[column] = cells if isinstance(cells, str) else cells.where(~cells.isin(BLANK), "")
    rows["expression"] = rows["expression"].map(_kind)
    ends = []
    for index, video, onset, offset in zip(
        table.index, rows["video"], table["onset"], table["offset"], strict=True
    ):
        where = f"{name}: row {index + 2}" if isinstance(index, int) else f"{name}: row {index}"
        if not video:
            raise ValueError(f"{where}: video expected the name of a recording, got none")
        ends.append(_ends(where, str(onset).strip(), str(offset).strip()))
    rows["onset"], rows["offset"] = zip(*ends, strict=True) if ends else ((), ())
    return rows


def _ends(where: str, onset: str, offset: str) -> tuple[int, int]:
    if onset in BLANK and offset in BLANK:
        return -1, -1
    for column, cell in (("onset", onset), ("offset", offset)):
        if _WHOLE.fullmatch(cell) is None:
            raise ValueError(f"{where}: {column} expected a whole number, got {cell!r}")
    first, last = int(onset.partition(".")[0]), int(offset.partition(".")[0])
    if first < 0 or last < first:
        raise ValueError(
            f"{where}: offset expected at least the onset, both 0 or more, got {first} and {last}"
        )
    return first, last


def _kind(cell: str) -> str:
    """The kind of an expression, "micro-expression" and "Micro - 1/2" as "micro"; others as they are."""
    word = cell.casefold()
    return next((kind for kind in ("micro", "macro") if word.startswith(kind)), word)


def _of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are intervals, without those that only name a recording."""
    return rows[rows["onset"] >= 0]


def _is_blank(cells: pd.Series) -> bool:
    """Whether there are cells, and all are blank."""
    return len(cells) > 0 and bool((cells == "").all())


def _name_videos(true: pd.DataFrame, found: pd.DataFrame, names: tuple[str, str]) -> None:
    """Set the columns `name` and, with the subject, `key`: equal for rows of the same recording."""
    complete = bool((true["subject"] != "").all() and (found["subject"] != "").all())
    recordings = {}  # with subjects, and without -> how many there are
    # A subject that is known of some recordings alone still tells them apart, if both tables have the same.
    for short, with_subject in product((False, True), (True,) if complete else (True, False)):
        for rows in (true, found):
            people = rows["subject"].map(person_key) if with_subject else ""
            rows["name"] = rows["video"].map(lambda video, short=short: _video_key(video, short))
            rows["key"] = people + "|" + rows["name"]
        is_known, count = found["key"].isin(true["key"]), true["key"].nunique()
        if not short:
            recordings[with_subject] = count
            unknown = ~is_known
        if is_known.all() and count == recordings[with_subject]:
            break
    else:
        row = found[unknown].iloc[0]
        whose = f" of subject {row['subject']}" if with_subject else ""
        raise ValueError(
            f"{names[1]}: video expected a recording of {names[0]}, got {row['video']!r}{whose}; one without "
            "an expression has a row with a blank onset and offset there"
        )
    # A row without a subject may be of any recording of that name, with a subject or without.
    people = true.groupby("name")["subject"].nunique()
    open_to = found[found["subject"] == ""]["name"] if with_subject else true["name"]
    if (several := people[(people > 1) & people.index.isin(open_to)]).any():
        video = true[true["name"] == several.index[0]]["video"].iloc[0]
        raise ValueError(
            f"{names[1]}: expected a column subject, got none: {video!r} in {names[0]} is of several people"
        )


def _video_key(video: str, short: bool) -> str:
    path = video.replace("\\", "/").strip("/")
    if short:
        path = _VIDEO_TYPE.sub("", path.rpartition("/")[2])
    return words_key(path)


def _checked_classes(
    true: pd.DataFrame, found: pd.DataFrame, classes: Sequence[str], names: tuple[str, str]
) -> list[str]:
    """The classes over which the mean is, as the truth writes them."""
    spelled = {words_key(word): word for word in true["class"] if word}
    if unknown := [word for word in classes if words_key(word) not in spelled]:
        known = ", ".join(sorted(spelled.values(), key=natural_key))
        raise ValueError(f"--classes expected some of {known}, as in {names[0]}, got {', '.join(unknown)}")
    chosen = [spelled[words_key(word)] for word in classes] or sorted(spelled.values(), key=natural_key)
    recognised = {words_key(word) for word in found["class"] if word}
    if recognised and not recognised & spelled.keys():
        got = ", ".join(sorted({word for word in found["class"] if word}, key=natural_key)[:5])
        raise ValueError(
            f"{names[1]}: class expected some of {', '.join(chosen)}, as in {names[0]}, got {got}; "
            f"{LABELS_HINT}"
        )
    return chosen


def _scores(
    true: pd.DataFrame,
    found: pd.DataFrame,
    classes: Sequence[str],
    *,
    kinds: Mapping[str, SpottingScores] | None = None,
) -> SpottingScores:
    """The scores of these rows; with `kinds` each is compared with rows of its own kind."""
    videos, right = [], []
    for key in dict.fromkeys(true["key"]):
        own = [_of(rows[rows["key"] == key]) for rows in (true, found)]
        named = true[true["key"] == key].iloc[0]
        pairs = []
        for kind in kinds or ("",):
            annotated, spotted = (rows[rows["expression"] == kind] if kinds else rows for rows in own)
            ends = ([*zip(rows["onset"], rows["offset"], strict=True)] for rows in (annotated, spotted))
            words = annotated["class"].to_list(), spotted["class"].to_list()
            pairs += [(words[0][i], words[1][j]) for i, j in match_intervals(*ends)]
        right += pairs
        videos.append(
            VideoCounts(
                subject=named["subject"],
                video=named["video"],
                annotated=len(own[0]),
                spotted=len(own[1]),
                tp=len(pairs),
            )
        )
    class_f1, of_means = _class_scores(right, classes) if classes else ({}, None)
    return SpottingScores(
        tp=sum(video.tp for video in videos),
        fp=sum(video.fp for video in videos),
        fn=sum(video.fn for video in videos),
        class_f1=class_f1,
        uf1=float(np.mean([*class_f1.values()])) if classes else None,
        f1_of_means=of_means,
        videos=tuple(videos),
        kinds=kinds or {},
    )


def _class_scores(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> tuple[dict[str, float], float]:
    """The F1 of each class, and the F1 of the mean precision and the mean recall over the classes."""
    keys = [words_key(word) for word in classes]
    counted = [(words_key(true), words_key(found)) for true, found in pairs if words_key(true) in keys]
    f1, precision, recall = {}, [], []
    for word, key in zip(classes, keys, strict=True):
        right = counted.count((key, key))
        annotated, said = (sum(pair[end] == key for pair in counted) for end in (0, 1))
        f1[word] = _share(2 * right, annotated + said)
        precision.append(_share(right, said))
        recall.append(_share(right, annotated))
    mean = float(np.mean(precision)), float(np.mean(recall))
    return f1, _share(2 * mean[0] * mean[1], sum(mean))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
