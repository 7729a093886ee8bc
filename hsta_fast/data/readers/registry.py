"""All readers: which dataset a folder holds, its clips, and several folders as one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from ...clips import KEY
from ..clips import LEFT_OUT, ClipTable, fault_of
from . import (
    casme,
    casme2,
    casme3,
    casme_squared,
    custom,
    dfme,
    four_dme,
    mmew,
    samm,
    samm_long,
    smic,
)
from .annotation import NO_TABLE, Columns, first_errors, missing_columns, rows_of, table_levels
from .base import Expression, Reader, check_not_empty
from .folders import check_folder, is_near
from .sheets import Sheets, read_sheets
from .tree import contents

DatasetName = Literal[
    "auto",
    "casme2",
    "samm",
    "smic",
    "casme3",
    "mmew",
    "dfme",
    "casme",
    "4dme",
    "casme_squared",
    "samm_long",
    "csv",
]


_FIRST = (casme2, samm, smic, casme3)
_FURTHER = (mmew, dfme, casme, four_dme, casme_squared, samm_long)
# Cut from the same recordings, under the same numbers: 006 of one is 006 of the other.
SAME_PEOPLE = ("samm", "samm_long")
READERS: dict[str, Reader] = {module.READER.name: module.READER for module in (*_FIRST, *_FURTHER, custom)}


def recognise(root: Path | str, annotation: Path | str | None = None) -> tuple[str, str]:
    """(dataset, version) of the copy at `root`, by its annotation's columns and its folders.

    The annotation is the one given, or else in `root` or the folders below it. The version is "no frames" if
    only the annotation is there. Raises ValueError if it is none of the datasets, or could be several.
    """
    root = check_folder(root)
    tables, errors = _search(root) if annotation is None else _tables([Path(annotation)])
    found, refused = {}, []
    for name, reader in READERS.items():
        fits = any(not missing_columns(sheets, reader.columns) for sheets in tables.values())
        if not fits and name != "smic":
            continue
        try:
            version = version_of(name, root, annotation)
        except ValueError as error:
            refused.append(str(error))
            continue
        if fits and version == "no frames":  # then the table alone has to tell the dataset
            columns = replace(reader.columns, required=_all_telling(reader.columns))
            fits = any(not missing_columns(sheets, columns) for sheets in tables.values())
        if fits or (name, version) == ("smic", "cropped"):  # the one that needs no annotation
            found[name] = version
    if len(found) > 1 and "smic" in found and "smic" not in _with_table(tables):
        # SMIC-HS without a table: the table that was asked for wins, and one in the root if it lies deep.
        in_root = {path: sheets for path, sheets in tables.items() if path.parent == root}
        is_far = not is_near(READERS["smic"].versions(root)["cropped"])
        if annotation is not None or (is_far and _with_table(in_root)):
            del found["smic"]
    if len(found) > 1:
        # A released dataset with its frames wins over a plain table, and over one without its frames; then
        # one whose table has all columns of another's and more wins over that one.
        found = {name: v for name, v in found.items() if v != "no frames" and name != "csv"} or found
        found = {name: v for name, v in found.items() if not any(_has_more(other, name) for other in found)}
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(f"{root}: expected one dataset, got {_several(root, found, tables)}")
    by_frames = [name for name in READERS if name != "csv" and _has_frames(name, root)]
    if refused and not by_frames:  # the folders are those of a camera that is not read
        raise ValueError("; ".join(refused))
    raise ValueError(f"{root}: {_none_found(root, tables, [*refused, *errors], by_frames)}")


def _all_telling(columns: Columns) -> tuple[str, ...]:
    """The columns by which a table without frames is known."""
    return (*columns.required, *columns.telling)


def _has_more(name: str, than: str) -> bool:
    """Whether the table of one dataset has all columns of another's table, and more."""
    own, others = (set(map(str.casefold, _all_telling(READERS[one].columns))) for one in (name, than))
    return others < own


def _search(root: Path) -> tuple[dict[Path, Sheets], list[str]]:
    """The tables in `root` if one of them is that of a dataset, else also those in the folders below."""
    tables: dict[Path, Sheets] = {}
    errors: list[str] = []
    for number, paths in enumerate(table_levels(root)):
        here, why = _tables(paths)
        if number:  # a plain table counts only in the root itself
            here = {path: sheets for path, sheets in here.items() if _with_table({path: sheets}) != ["csv"]}
        tables |= here
        errors += why
        if number == 0 and _with_table(tables):
            break
    return tables, errors


def _with_table(tables: dict[Path, Sheets]) -> list[str]:
    """The datasets whose columns one of the tables has."""
    return [
        name
        for name, reader in READERS.items()
        if any(not missing_columns(sheets, reader.columns) for sheets in tables.values())
    ]


def _several(root: Path, found: dict[str, str], tables: dict[Path, Sheets]) -> str:
    """The datasets found, where they are, and what to do about it."""
    places = {}
    for name in found:
        reader = READERS[name]
        own = [path.parent for path, s in tables.items() if not missing_columns(s, reader.columns)][:1]
        parts = [path.relative_to(root).as_posix() for path in own if path.is_relative_to(root)]
        parts += list(reader.versions(root).values())[:1]
        places[name] = os.path.commonpath(part or "." for part in parts) or parts[0]
    if len({*places.values(), "."}) <= len(places):
        return f"{' and '.join(found)}; name one with --dataset"
    each = [f"{READERS[name].title} in {place}" for name, place in places.items()]
    return f"{' and '.join(each)}; give the folder of each"


def version_of(dataset: str, root: Path, annotation: Path | str | None = None) -> str:
    """The version of a copy that is read, "no frames" if only an annotation is there."""
    return next(iter(READERS[dataset].folders(root, annotation)), "no frames")


def read_dataset(
    root: Path | str,
    dataset: str = "auto",
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """The clips of one copy, and what was wrong with it.

    dataset: "auto" (see `recognise`) or one of `READERS`.
    annotation: the table, if the root holds none or several.
    expressions: the kinds of expression to read; only CAS(ME)3 and plain tables have "macro".
    strict: raise the first fault instead of listing it.

    Raises ValueError if the copy cannot be read or has no usable clip.
    """
    return check_not_empty(scan(root, dataset, annotation=annotation, expressions=expressions, strict=strict))


def scan(
    root: Path | str,
    dataset: str = "auto",
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """Like `read_dataset`, but the table may be empty."""
    root = check_folder(root)
    if dataset == "auto":
        dataset, _ = recognise(root, annotation)
    if dataset not in READERS:
        raise ValueError(f"--dataset expected auto or one of {', '.join(READERS)}, got {dataset!r}")
    return READERS[dataset].scan(root, annotation, expressions, strict=strict)


def read_datasets(
    roots: Sequence[Path | str],
    dataset: str = "auto",
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """The clips of several copies in one table.

    With one root this is `read_dataset`. With several, each is recognised by itself and read with the
    annotation in its own folder; paths of frames become relative to the folder that holds all roots.

    Also raises ValueError if `dataset` or `annotation` is given with several roots.
    """
    if not roots:
        raise ValueError("roots expected at least one folder of data, got none")
    if len(roots) == 1:
        return read_dataset(roots[0], dataset, annotation=annotation, expressions=expressions, strict=strict)
    if dataset != "auto" or annotation is not None:
        raise ValueError(
            "--dataset and --annotation expected one folder of data, got several (recognised by themselves)"
        )
    return join([read_dataset(root, expressions=expressions, strict=strict) for root in roots])


def check_people(datasets: Iterable[str]) -> None:
    """ValueError if two of the datasets are recordings of the same people: one could be in train and test."""
    if set(SAME_PEOPLE) <= set(datasets):
        raise ValueError(
            f"{' and '.join(SAME_PEOPLE)} expected one of the two, got both: recordings of the same people"
        )


def join(tables: Sequence[ClipTable]) -> ClipTable:
    """One table from several; its root is the folder that holds all roots.

    If a clip is in several tables, the first is kept. Raises ValueError for datasets of the same people.
    """
    check_people(name for table in tables for name in table.clips["dataset"])
    places = [os.path.abspath(table.root) for table in tables]
    root = Path(os.path.commonpath(places))
    parts = []
    for table, place in zip(tables, places, strict=True):
        prefix = Path(place).relative_to(root).as_posix()
        clips = table.clips.copy()
        if prefix != ".":
            clips["frames"] = clips["frames"].map(
                lambda frames, at=prefix: tuple(f"{at}/{p}" for p in frames)
            )
        parts.append(clips)
    clips = pd.concat(parts, ignore_index=True)
    twice = clips.duplicated(list(KEY))
    faults = [fault for table in tables for fault in table.faults]
    faults += [
        fault_of(clip, "clip expected in one of the folders, got it in several", LEFT_OUT)
        for clip in clips[twice].to_dict("records")
    ]
    remarks = dict.fromkeys(remark for table in tables for remark in table.remarks)
    defaults = {dataset: name for table in tables for dataset, name in table.default_labels.items()}
    return ClipTable(root, clips[~twice].reset_index(drop=True), tuple(faults), tuple(remarks), defaults)


def _tables(paths: Sequence[Path]) -> tuple[dict[Path, Sheets], list[str]]:
    """The sheets of each readable file, and why the others are unreadable."""
    tables, errors = {}, []
    for path in paths:
        try:
            tables[path] = read_sheets(path)
        except ValueError as error:
            errors.append(str(error))
    return tables, errors


def _none_found(
    root: Path, tables: dict[Path, Sheets], errors: Sequence[str], by_frames: Sequence[str]
) -> str:
    """Why the folder at `root` is none of the datasets, as one line; by_frames: whose folders it has."""
    titles = ", ".join(reader.title for name, reader in READERS.items() if name != "csv")
    expected = f"one of {titles} with its annotation (csv or xlsx), or a plain table"
    said = []
    if by_frames:
        said.append(f"the folders of {' and '.join(READERS[name].title for name in by_frames)}")
    said += [first_errors(errors)] if errors else []
    near = [
        (len(missing_columns(sheets, reader.columns)) / len(reader.columns.required), path, reader)
        for path, sheets in tables.items()
        for name, reader in READERS.items()
        if name in (by_frames or READERS)
    ]
    # Below the root there may be tables of any kind: those with few of the columns are not worth a word.
    near = [one for one in near if one[1].parent == root or one[0] <= 0.5]
    if near:
        # The table with the fewest columns missing, for the dataset whose folders are here, or else for any.
        _, path, reader = min(near, key=lambda one: one[0])
        try:
            rows_of(path, tables[path], reader.columns)
        except ValueError as error:
            said.append(f"as {reader.title}: {error}")
    elif not errors:
        what = f"{len(tables)} tables without the columns of any" if tables else NO_TABLE
        said.append(f"{what}; the folder holds: {contents(root)}")
    return f"expected {expected}, got {'; '.join(said)}"


def _has_frames(dataset: str, root: Path) -> bool:
    try:
        return version_of(dataset, root) not in ("no frames", smic.WITHOUT_CLIPS)
    except ValueError:
        return False
