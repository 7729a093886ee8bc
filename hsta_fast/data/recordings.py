"""The recordings of a dataset with all their annotated intervals: what spotting is scored on.

A recording is the folder or the video file that the frames of some clips lie in. In CAS(ME)^2, SAMM Long
Videos, CAS(ME)3, the long SMIC-HS and plain tables it holds more than these clips, in the other datasets
little or nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..clips import KEY, counted, natural_key, words_key
from .clips import ClipTable
from .frames.video import split_video
from .labels.sets import ClassColumn, LabelSet
from .readers.base import EXPRESSIONS, check_not_empty
from .readers.folders import ANY_NUMBERED, FrameFolders
from .readers.registry import scan
from .readers.videos import VideoFiles

# Frames a second, as the datasets were published; a plain table's own column fps and videos tell theirs.
RATES = {
    **dict.fromkeys(("casme2", "samm", "samm_long"), 200.0),
    **dict.fromkeys(("smic",), 100.0),
    **dict.fromkeys(("casme_squared", "casme3"), 30.0),
    "casme": 60.0,
}


@dataclass(frozen=True, kw_only=True)
class AnnotatedInterval:
    """An annotated expression: inclusive numbers of frames, counted from 0, the recording's first frame.

    expression: "micro" or "macro"; emotion: the annotation's word, "" where it has none.
    objective_class: 1 to 7; 0 where it is not known.
    """

    clip: str
    onset: int
    apex: int
    offset: int
    expression: str
    emotion: str
    action_units: str
    objective_class: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording of a person.

    name: what tells it from the others of its subject: the folder's or the file's name.
    path: the folder of images or the video file, below the dataset's folder.
    frames: the paths of the images in their order, below the dataset's folder; empty for a video file.
    count: the number of frames.
    first: the number that the annotation gives the first frame; 0 in a video file.
    rate: frames a second; None where it is not known.
    intervals: all annotated ones that can be read, in order of their onsets.
    complete: whether every annotated expression of its subject could be read, so that the other frames are
        known to be neutral.
    """

    dataset: str
    subject: str
    name: str
    path: str
    frames: tuple[str, ...]
    count: int
    first: int
    rate: float | None
    intervals: tuple[AnnotatedInterval, ...]
    complete: bool = True

    def source(self, root: Path) -> Path | list[Path]:
        """The video file, or the images in their order, for `open_frames`."""
        return [root / frame for frame in self.frames] if self.frames else root / self.path


def recordings(
    root: Path | str, dataset: str = "auto", *, annotation: Path | str | None = None
) -> tuple[list[Recording], ClipTable]:
    """The recordings of the copy at `root`, in natural order, and the table of clips that they come from.

    Micro- and macro-expressions are both read, whatever their length. For `dataset` and `annotation` see
    `read_dataset`.

    Both are empty for a table without a row, which says that nothing is annotated.

    Raises:
        ValueError: the copy cannot be read, or no row of its table is a usable clip.
    """
    table = scan(root, dataset, annotation=annotation, expressions=EXPRESSIONS)
    if table.faults:
        check_not_empty(table)
    folders, videos = FrameFolders(table.root, ANY_NUMBERED), VideoFiles(table.root)
    unread = {(fault.dataset, fault.subject) for fault in table.faults if fault.action.endswith("left out")}
    all_unread = any(subject == "?" for _, subject in unread)  # one fault stands for many
    parts: dict[tuple[str, str, str], list[Mapping[Any, Any]]] = {}
    for clip in table.clips.to_dict("records"):
        parts.setdefault((clip["dataset"], clip["subject"], _place(clip["frames"][0])), []).append(clip)
    found = []
    for (name, subject, path), clips in parts.items():
        rates = {table.rates[key] for clip in clips if (key := _key(clip)) in table.rates}
        is_video = split_video(clips[0]["frames"][0])[1] is not None
        if is_video:
            timeline = videos.timeline(path)
            frames: tuple[str, ...] = ()
            count = len(timeline) if timeline.certain is None else timeline.certain
            numbers: Sequence[int] = range(count)
            rate = timeline.rate(0, len(timeline) - 1)
        else:
            listing = folders.listing(path)
            numbers = listing.numbers
            frames = tuple(f"{path}/{listing.files[number]}" for number in numbers)
            count, rate = len(frames), RATES.get(name)
        place = {number: position for position, number in enumerate(numbers)}
        found.append(
            Recording(
                dataset=name,
                subject=subject,
                name=_name(path, subject),
                path=path,
                frames=frames,
                count=count,
                first=numbers[0],
                rate=rates.pop() if len(rates) == 1 else rate,
                intervals=tuple(sorted(_intervals(clips, place), key=lambda one: (one.onset, one.offset))),
                complete=not all_unread and (name, subject) not in unread,
            )
        )
    return sorted(
        found, key=lambda one: (one.dataset, natural_key(one.subject), natural_key(one.path))
    ), table


def neutral_stretches(recording: Recording, least: int, apart: int = 0) -> list[tuple[int, int]]:
    """(first, last) of every stretch of at least `least` frames without an annotated expression, inclusive.

    apart: frames that are left out before each onset and after each offset, which annotators see later and
        earlier than movement begins and ends. Empty for a recording that is not `complete`.
    """
    if not recording.complete:
        return []
    stretches, start = [], 0
    for interval in recording.intervals:
        stretches.append((start, interval.onset - apart - 1))
        start = max(start, interval.offset + apart + 1)
    stretches.append((start, recording.count - 1))
    return [(first, last) for first, last in stretches if last - first + 1 >= least]


def interval_table(found: Iterable[Recording], column: ClassColumn = "emotion") -> pd.DataFrame:
    """The annotated intervals as `protocol.score_spotting` takes them: one row each.

    Columns: subject, video, onset, offset, class (the emotion word, or the number of the objective class),
    expression, dataset. A recording without one has a row with a blank onset and offset.
    """
    rows: list[tuple[str, str, int | str, int | str, str, str, str]] = []
    for recording in found:
        names = recording.subject, recording.name
        own = [
            (*names, one.onset, one.offset, str(getattr(one, column)), one.expression, recording.dataset)
            for one in recording.intervals
        ]
        rows += own or [(*names, "", "", "", "", recording.dataset)]
    columns = ["subject", "video", "onset", "offset", "class", "expression", "dataset"]
    return pd.DataFrame(rows, columns=columns)


def with_classes(table: pd.DataFrame, labels: LabelSet, name: str) -> tuple[pd.DataFrame, list[str]]:
    """A table of intervals with the classes of a label set instead of the annotated words.

    An interval whose word has no class in the set counts in spotting and has no class.

    Args:
        table: columns as of `interval_table`; the dataset may be missing. Words may be in any case.
        labels: the label set.
        name: what messages call the table.

    Returns:
        (the table with a new column class, a sentence on the intervals without a class if there are any).

    Raises:
        ValueError: there are intervals, and the set knows no word of any.
    """
    blank = pd.Series("", index=table.index)
    datasets, cells, onsets = (
        table.get(column, blank).astype(object).fillna("").astype(str).str.strip().to_list()
        for column in ("dataset", "class", "onset")
    )
    words = [cell.casefold() for cell in cells]
    mappings = [labels.words(dataset) for dataset in datasets]
    classes = [mapping.get(word) or "" for word, mapping in zip(words, mappings, strict=True)]
    annotated = [row for row in zip(words, mappings, classes, onsets, strict=True) if row[-1]]
    unknown = {word for word, mapping, *_ in annotated if word not in mapping}
    if annotated and not any(word in mapping for word, mapping, *_ in annotated):
        got = ", ".join(sorted(unknown - {""})[:5]) or "no word"
        raise ValueError(f"--labels expected a label set with words of {name}, got {labels.name} and {got}")
    without = [word for word, _, given, _ in annotated if not given]
    remarks = []
    if without:
        each = [f"{word or 'a blank'}{' (unknown to it)' * (word in unknown)}" for word in sorted({*without})]
        what = f"{labels.name} has no class for {counted(len(without), 'annotated interval')}"
        remarks.append(f"{name}: {what}, of which only the place is scored: {', '.join(each)}")
    return table.assign(**{"class": classes}), remarks


def _key(clip: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(clip[name] for name in KEY)


def _place(frame: str) -> str:
    """The video file, or the folder, of a frame."""
    path, number = split_video(frame)
    return path if number is not None else path.rpartition("/")[0]


def _name(path: str, subject: str) -> str:
    """A recording's name: its path below the subject's folder, without the ending of a video file."""
    is_video = split_video(f"{path}#0")[1] is not None
    parts = (path.rpartition(".")[0] if is_video else path).split("/")
    above = [place for place, part in enumerate(parts[:-1]) if words_key(part) == words_key(subject)]
    return "/".join(parts[above[-1] + 1 :]) if above else parts[-1]


def _intervals(clips: Sequence[Mapping[Any, Any]], place: Mapping[int, int]) -> Iterable[AnnotatedInterval]:
    for clip in clips:
        yield AnnotatedInterval(
            clip=clip["clip"],
            onset=place[clip["onset"]],
            apex=place[clip["apex"]],
            offset=place[clip["offset"]],
            expression=clip["expression"],
            emotion=clip["emotion"],
            action_units=clip["action_units"],
            objective_class=int(clip["objective_class"]),
        )
