"""Which subjects are in training and test of the same fold, from predictions and the table of all clips."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ..clips import KEY, clip_key, natural_key, person_key, spelling_key, subject_ids, words_key
from .columns import read_columns
from .fold_files import read_folds
from .label_check import compare_labels
from .predictions import Predictions

# Exit statuses of an audit.
CLEAN = 0  # no shared subject was found
LEAKS = 1  # one was found, or the file has a leaky column
UNKNOWN = 2  # the files do not tell


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Subjects in training and test of the same fold, and how the predictions and the clip table differ.

    Attributes:
        clips_file: name of the file with the clip table.
        folds_file: name of the file that tells what each fold trained on; None: assumed to be all clips that
            it does not test, except macro-expressions.
        num_predictions: rows of the predictions.
        num_macro: macro-expressions in the clip table.
        unknown: predicted clips that are not in the clip table.
        untested: clips of the table, without macro-expressions, that no fold tests.
        relabelled: predicted clips whose label differs from that in the table.
        other_classes: labels of these clips in the table that are no class of the predictions.
        label_shift: what was added to the numbers of the table, which count from another first class.
        labels_skipped: why labels could not be compared; None if they were, or if the table has none.
        unmatched: rows of the fold file that name no clip of the table.
        by_count: there are unknown clips and no fold file. They may be in the table under other names, so
            only subjects with more clips in the table than the fold tests are known to be in training.
        subjects: for each fold that has some, its subjects in training and test.
        shared_clips: predictions of clips of these subjects.
        shared_recordings: predictions of clips whose recording is in training too.
        trains_on_nothing: a fold tests every clip of the table, so what it trained on is unknown.
    """

    clips_file: str
    folds_file: str | None
    num_predictions: int
    num_macro: int
    unknown: list[str]
    subjects: dict[str, list[str]]
    shared_clips: int
    shared_recordings: int = 0
    by_count: bool = False
    untested: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    other_classes: list[str] = field(default_factory=list)
    label_shift: int = 0
    labels_skipped: Literal["repeated names", "other spelling"] | None = None
    unmatched: int = 0
    trains_on_nothing: bool = False

    @property
    def status(self) -> int:
        """CLEAN, LEAKS or UNKNOWN."""
        if self.subjects:
            return LEAKS
        return UNKNOWN if self.by_count or self.unmatched or self.trains_on_nothing else CLEAN


def find_overlap(predictions: Predictions, clips: Path, folds: Path | None) -> Overlap:
    """Compare predictions with all clips that there were to train on.

    Args:
        predictions: must have the columns subject and clip.
        clips: a table with subject and clip; dataset, onset, label and expression are used if present.
        folds: what each fold trained on, see `fold_files.read_folds`; see `Overlap.folds_file` for None.

    Raises:
        ValueError: a file cannot be read or does not fit the others; the message names it.
    """
    table = read_columns(clips, ("subject", "clip"), ("dataset", "onset", "expression")).rows
    if not {"subject", "clip"} <= predictions.given:
        got = ", ".join(sorted(predictions.given)) or "neither"
        raise ValueError(f"{clips}: expected predictions with the columns subject and clip, got {got}")
    if folds is not None and "fold" not in predictions.given:
        raise ValueError(f"{folds}: expected predictions with a column fold, got none; --fold names it")
    compared = {name for name in KEY if name in table and name in predictions.given}
    rows = _with_keys(predictions.rows, compared)
    table = _with_keys(table, compared)
    macro = np.zeros(len(table), dtype=bool)
    if "expression" in table:
        macro = (
            table["expression"].map(spelling_key).str.startswith(("macro", "neutral")).to_numpy(dtype=bool)
        )
    is_unknown = ~rows["key"].isin(set(table["key"]))
    unknown = rows["written"][is_unknown].tolist()
    if unknown and folds is None:
        unsure = set(rows["person_key"][is_unknown])
        shared = [*_outnumbered(rows, table[~macro], unsure)]
        return Overlap(
            clips_file=clips.name,
            folds_file=None,
            num_predictions=len(rows),
            num_macro=int(macro.sum()),
            unknown=unknown,
            by_count=True,
            subjects=_subjects_of(shared),
            shared_clips=sum(len(part) for _, part in shared),
        )
    labels = compare_labels(predictions, rows, table)
    trained, unmatched = _trained_on(rows, table, macro, folds)
    shared = [*_in_training(rows, table, trained, "person_key")]
    recordings = _in_training(rows, table, trained, "recording")
    return Overlap(
        clips_file=clips.name,
        folds_file=None if folds is None else folds.name,
        num_predictions=len(rows),
        num_macro=int(macro.sum()),
        unknown=unknown,
        untested=table["written"][~table["key"].isin(set(rows["key"])) & ~macro].tolist(),
        relabelled=labels.relabelled,
        other_classes=labels.other_classes,
        label_shift=labels.shift,
        labels_skipped=labels.skipped,
        unmatched=unmatched,
        subjects=_subjects_of(shared),
        shared_clips=sum(len(part) for _, part in shared),
        shared_recordings=sum(len(part) for _, part in recordings),
        trains_on_nothing=not all(mask.any() for mask in trained.values()),
    )


def person_keys(rows: pd.DataFrame) -> pd.Series:
    """The key of each row's person, equal for all spellings; see `clips.person_key`."""
    return subject_ids(rows).map(person_key)


def people_as_written(rows: pd.DataFrame) -> list[str]:
    """The people of these rows, each once, as "dataset/subject" or, without a dataset, as "subject"."""
    return sorted({person.removeprefix("/") for person in subject_ids(rows)}, key=natural_key)


def _with_keys(rows: pd.DataFrame, compared: set[str]) -> pd.DataFrame:
    """`rows` with the columns key, person_key, recording and, for messages, written.

    Columns of KEY outside `compared` become "".
    """
    own = rows.reindex(columns=[*KEY], fill_value="").itertuples(index=False, name=None)
    rows = rows.assign(written=[_as_written(*names) for names in own])
    rows = rows.assign(**{name: rows[name].str.strip() if name in compared else "" for name in KEY})
    names = zip(*(rows[name].astype(str) for name in KEY), strict=True)
    keys = pd.Series([clip_key(*name) for name in names], index=rows.index, dtype=object)
    people = person_keys(rows)
    return rows.assign(key=keys, person_key=people, recording=people + " " + rows["clip"].map(words_key))


def _trained_on(
    rows: pd.DataFrame, table: pd.DataFrame, macro: np.ndarray, folds: Path | None
) -> tuple[dict[str, np.ndarray], int]:
    """For each fold, the rows of the clip table that it trained on, and how many fold rows name no clip."""
    if folds is None:
        tested = {str(fold): set(part["key"]) for fold, part in rows.groupby("fold", sort=False)}
        return {fold: (~table["key"].isin(keys)).to_numpy() & ~macro for fold, keys in tested.items()}, 0
    read, unmatched = read_folds(folds, table, macro=bool(macro.any()))
    masks = {spelling_key(fold.name): np.isin(np.arange(len(table)), fold.train) for fold in read}
    trained = {}
    for name in rows["fold"].unique():
        if (mask := masks.get(spelling_key(name))) is not None:
            trained[name] = mask
        else:
            raise ValueError(f"{folds}: expected a fold {name!r}, as in the predictions, got none")
    return trained, unmatched


def _in_training(
    rows: pd.DataFrame, table: pd.DataFrame, trained: dict[str, np.ndarray], column: str
) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each fold, the rows it tests whose `column` (person_key, recording) it has in training too."""
    for fold, part in rows.groupby("fold", sort=False):
        yield str(fold), part[part[column].isin(set(table[column][trained[str(fold)]]))]


def _outnumbered(
    rows: pd.DataFrame, table: pd.DataFrame, unsure: set[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each fold, the rows of people with more clips in the table than it tests; not of `unsure`."""
    in_table = table["person_key"].value_counts()
    for fold, part in rows.groupby("fold", sort=False):
        tested = part["person_key"].map(part["person_key"].value_counts())
        more = part["person_key"].map(in_table).fillna(0) > tested
        yield str(fold), part[more & ~part["person_key"].isin(unsure)]


def _subjects_of(shared: list[tuple[str, pd.DataFrame]]) -> dict[str, list[str]]:
    return {fold: people_as_written(part) for fold, part in shared if len(part)}


def _as_written(dataset: str, subject: str, clip: str, onset: str) -> str:
    return f"{dataset} {subject}/{clip}".strip() + (f" onset {onset}" if onset else "")
