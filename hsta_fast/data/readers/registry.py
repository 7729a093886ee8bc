"""All readers under one roof: which dataset a folder holds, and its clips; several folders as one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from ...clips import KEY
from ..clips import LEFT_OUT, ClipTable, fault_of
from . import casme2, casme3, custom, samm, smic
from .annotation import Sheets, annotation_files, missing_columns, no_table, read_sheets, rows_of
from .base import Expression, Reader, want_clips
from .folders import want_folder

DatasetName = Literal["auto", "casme2", "samm", "smic", "casme3", "csv"]


READERS: dict[str, Reader] = {
    module.READER.name: module.READER for module in (casme2, samm, smic, casme3, custom)
}


def recognise(root: Path | str, annotation: Path | str | None = None) -> tuple[str, str]:
    """(dataset, version) of the copy at `root`, by its annotation's columns and its folders.

    The version is "no frames" where only the annotation is there. Raises ValueError where it is none of the
    datasets, or could be several.
    """
    root = want_folder(root)
    tables, errors = _tables(annotation_files(root) if annotation is None else [Path(annotation)])
    found = {}
    for name, reader in READERS.items():
        has_table = any(not missing_columns(sheets, reader.columns) for sheets in tables.values())
        version = version_of(name, root, annotation)
        if has_table or (name == "smic" and version == "cropped"):  # the one that needs no annotation
            found[name] = version
    if len(found) > 1:
        # An annotation whose frames lie elsewhere gives way to one whose frames are here.
        found = {name: v for name, v in found.items() if v != "no frames" and name != "csv"} or found
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(f"{root}: looks like {' and '.join(found)}; name one with --dataset")
    raise ValueError(f"{root}: {_none_found(root, tables, errors)}")


def version_of(dataset: str, root: Path, annotation: Path | str | None = None) -> str:
    """The version that is read of a copy, "no frames" where only an annotation is there."""
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
    annotation: the table, where the root holds none or several.
    expressions: which kinds are wanted; only CAS(ME)3 and plain tables have "macro".
    strict: raise the first fault instead of listing it.

    Raises ValueError where the copy cannot be read or has no usable clip.
    """
    return want_clips(scan(root, dataset, annotation=annotation, expressions=expressions, strict=strict))


def scan(
    root: Path | str,
    dataset: str = "auto",
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """`read_dataset`, possibly without a clip."""
    root = want_folder(root)
    if dataset == "auto":
        dataset, _ = recognise(root, annotation)
    if dataset not in READERS:
        raise ValueError(f"--dataset wants auto or one of {', '.join(READERS)}, got {dataset!r}")
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

    One root is `read_dataset`. Of several, each is recognised by itself with the annotation in its own
    folder, and the frames become relative to the folder that holds all roots.

    Raises ValueError also where several roots come with a dataset's name or an annotation.
    """
    if not roots:
        raise ValueError("wanted at least one folder of data, got none")
    if len(roots) == 1:
        return read_dataset(roots[0], dataset, annotation=annotation, expressions=expressions, strict=strict)
    if dataset != "auto" or annotation is not None:
        raise ValueError(
            "several folders of data are recognised by themselves: no --dataset, no --annotation"
        )
    return join([read_dataset(root, expressions=expressions, strict=strict) for root in roots])


def join(tables: Sequence[ClipTable]) -> ClipTable:
    """One table of several; its root is the folder that holds all roots.

    Of a clip that is found twice the first stays.
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
        fault_of(clip, "wanted each clip in one of the folders only", LEFT_OUT)
        for clip in clips[twice].to_dict("records")
    ]
    return ClipTable(root, clips[~twice].reset_index(drop=True), tuple(faults))


def _tables(paths: Sequence[Path]) -> tuple[dict[Path, Sheets], list[str]]:
    """The sheets of each file that can be read, and why the others cannot."""
    tables, errors = {}, []
    for path in paths:
        try:
            tables[path] = read_sheets(path)
        except ValueError as error:
            errors.append(str(error))
    return tables, errors


def _none_found(root: Path, tables: dict[Path, Sheets], errors: Sequence[str]) -> str:
    """Why the folder at `root` is none of the datasets, in one line."""
    wanted = "wanted CASME II, SAMM, SMIC-HS or CAS(ME)3 with its annotation (csv or xlsx), or a plain table"
    by_frames = [name for name, reader in READERS.items() if name != "csv" and reader.versions(root)]
    said = []
    if by_frames:
        said.append(f"it has the folders of {' and '.join(READERS[name].title for name in by_frames)}")
    said += errors or ([] if tables else [no_table(root)])
    near = [
        (len(missing_columns(sheets, reader.columns)) / len(reader.columns.required), path, reader)
        for path, sheets in tables.items()
        for name, reader in READERS.items()
        if name in (by_frames or READERS)
    ]
    if near:
        # Of the dataset whose folders are here, or else of all, the table that lacks least.
        _, path, reader = min(near, key=lambda one: one[0])
        try:
            rows_of(path, tables[path], reader.columns)
        except ValueError as error:
            said.append(f"as {reader.title}: {error}")
    return "; ".join([wanted, *said])
