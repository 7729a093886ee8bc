"""All readers: which dataset a folder holds, its clips, and several folders as one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from ...clips import KEY
from ..clips import LEFT_OUT, ClipTable, fault_of
from . import casme2, casme3, custom, samm, smic
from .annotation import NO_TABLE, missing_columns, rows_of
from .base import Expression, Reader, check_not_empty
from .folders import check_folder
from .sheets import Sheets, annotation_files, read_sheets

DatasetName = Literal["auto", "casme2", "samm", "smic", "casme3", "csv"]


READERS: dict[str, Reader] = {
    module.READER.name: module.READER for module in (casme2, samm, smic, casme3, custom)
}


def recognise(root: Path | str, annotation: Path | str | None = None) -> tuple[str, str]:
    """(dataset, version) of the copy at `root`, by its annotation's columns and its folders.

    The version is "no frames" if only the annotation is there. Raises ValueError if it is none of the
    datasets, or could be several.
    """
    root = check_folder(root)
    tables, errors = _tables(annotation_files(root) if annotation is None else [Path(annotation)])
    found = {}
    for name, reader in READERS.items():
        has_table = any(not missing_columns(sheets, reader.columns) for sheets in tables.values())
        version = version_of(name, root, annotation)
        if has_table or (name == "smic" and version == "cropped"):  # the one that needs no annotation
            found[name] = version
    if len(found) > 1:
        # A released dataset with its frames wins over a plain table, and over one without its frames.
        found = {name: v for name, v in found.items() if v != "no frames" and name != "csv"} or found
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(f"{root}: expected one dataset, got {' and '.join(found)}; name one with --dataset")
    raise ValueError(f"{root}: {_none_found(root, tables, errors)}")


def version_of(dataset: str, root: Path, annotation: Path | str | None = None) -> str:
    """The version of a copy that is read, "no frames" if only an annotation is there."""
    versions = list(READERS[dataset].versions(root))
    if dataset == "smic" and annotation is not None and "long" in versions:
        return "long"  # the one that has an annotation
    return next(iter(versions), "no frames")


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


def join(tables: Sequence[ClipTable]) -> ClipTable:
    """One table from several; its root is the folder that holds all roots.

    If a clip is in several tables, the first is kept.
    """
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


def _none_found(root: Path, tables: dict[Path, Sheets], errors: Sequence[str]) -> str:
    """Why the folder at `root` is none of the datasets, as one line."""
    expected = "CASME II, SAMM, SMIC-HS or CAS(ME)3 with its annotation (csv or xlsx), or a plain table"
    by_frames = [name for name, reader in READERS.items() if name != "csv" and reader.versions(root)]
    said = []
    if by_frames:
        said.append(f"the folders of {' and '.join(READERS[name].title for name in by_frames)}")
    said += errors or ([] if tables else [NO_TABLE])
    near = [
        (len(missing_columns(sheets, reader.columns)) / len(reader.columns.required), path, reader)
        for path, sheets in tables.items()
        for name, reader in READERS.items()
        if name in (by_frames or READERS)
    ]
    if near:
        # The table with the fewest columns missing, for the dataset whose folders are here, or else for any.
        _, path, reader = min(near, key=lambda one: one[0])
        try:
            rows_of(path, tables[path], reader.columns)
        except ValueError as error:
            said.append(f"as {reader.title}: {error}")
    return f"expected {expected}, got {'; '.join(said)}"
