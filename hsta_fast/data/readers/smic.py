"""SMIC-HS: cropped `HS/s1/micro/negative/<clip>/*.jpg` or long `SMIC_HS_E/s20/s20_ne_01/image17581039.jpg`.

The cropped version needs no annotation: a folder's name gives the emotion, and all images in a clip's folder
are the clip. The long recordings come with `SMIC-HS-E_annotation.xlsx`, sheet HS: Subject, Filename, OnsetF,
OffsetF, Emotion, and Onset2F, Offset2F where a row holds a second expression. If both versions are there, the
cropped one is read.

No apex is annotated: it is the middle frame. Subject and clip are written with two digits, s01 and s01_ne_01,
as in the official list of MEGC 2019, whatever the padding in files and tables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows, integer
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import (
    ANY_NUMBERED,
    FolderNames,
    FrameFolders,
    in_order,
    list_subfolders,
    near_subjects,
    posix_join,
    subfolders,
)

DATASET = "smic"
COLUMNS = Columns(
    required=("Subject", "Filename", "OnsetF", "OffsetF", "Emotion"),
    optional=("Onset2F", "Offset2F", "Onset3F", "Offset3F"),
    sheet="HS",
    unread=("TotalMF1", "TotalMF2", "TotalMF3", "FirstF", "LastF", "TotalVL"),
)
_SUBJECT = re.compile(r"s[0-9]{1,3}", re.IGNORECASE)
_CLIP = re.compile(r"s([0-9]{1,4})_([a-z]+)_?([0-9]{1,4})")
_CAMERA = re.compile(r"(?<![a-z])(?:hs|vis|nir)(?![a-z])", re.IGNORECASE)
_CAMERA_FOLDER = re.compile(r"(?:SMIC[ _-]?)?(HS|VIS|NIR)(?:[ _-](?:E|long|cropped|raw))*")
_CODES = {"ne": "negative", "po": "positive", "sur": "surprise"}


subject_id = partial(padded_subject, prefix="s", width=2)

# The version of folders that are named as those of subjects, but hold none named as a clip.
WITHOUT_CLIPS = "without clips"


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version ("cropped", "long") -> folders of the subjects; see `Reader`.

    With an annotation, which the cropped ones do not have, only the long ones if there are any. Raises
    ValueError if all are of the cameras VIS and NIR, whose clips are not those of HS.
    """
    found: dict[str, list[str]] = {}
    other: dict[str, str] = {}
    without_clips: list[str] = []
    for folder in near_subjects(root, _SUBJECT):
        subjects = filter(_SUBJECT.fullmatch, subfolders(root, folder))
        inner = [
            name.casefold() for subject in subjects for name in subfolders(root, posix_join(folder, subject))
        ]
        version = "cropped" if "micro" in inner else "long"
        if version == "long" and not any(map(_CLIP.fullmatch, inner)):
            without_clips.append(folder)
        elif (camera := _camera(root, folder)) == "HS":
            found.setdefault(version, []).append(folder)
        else:
            other.setdefault(camera, folder)
    if other and not found:
        cameras = [f"SMIC-{camera} in {root / folder}" for camera, folder in other.items()]
        raise ValueError(f"SMIC expected the camera HS, got {' and '.join(cameras)}; only SMIC-HS is read")
    order = ("long",) if annotation is not None and "long" in found else ("cropped", "long")
    return in_order(found, order) or in_order({WITHOUT_CLIPS: without_clips}, [WITHOUT_CLIPS])


def _camera(root: Path, folder: str) -> str:
    """The camera that the nearest folder above the subjects names, in the root, or as the root's parents."""
    root = Path(os.path.realpath(root))
    for name in (*reversed(Path(folder).parts), root.name):
        if (part := _CAMERA.search(name)) is not None:
            return part[0].upper()
    # Other folders above the root are not part of the copy: only one that is called like a camera's counts.
    for above in (root.parent, root.parent.parent):
        if (whole := _CAMERA_FOLDER.fullmatch(above.name)) is not None:
            return whole[1]
    return "HS"


def clip_id(text: str) -> str:
    """The clip, "s01_ne_01", from any padding; other names unchanged."""
    match = _CLIP.fullmatch(text.casefold())
    return f"s{int(match[1]):02d}_{match[2]}_{int(match[3]):02d}" if match else text


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames = FrameFolders(root, ANY_NUMBERED)
    version, base = next(iter(READER.versions(root, annotation).items()), ("", ""))
    if version == "cropped":
        if annotation is not None:
            raise ValueError(f"annotation expected None for the cropped SMIC-HS in {root}, got {annotation}")
        return _folders_as_rows(root, base), _cropped(frames)
    return annotated_rows(root, annotation, COLUMNS), _long(frames, base)


def _folders_as_rows(root: Path, base: str) -> Iterator[tuple[str, Row]]:
    """A row for each clip's folder, and one with a "problem" for each unreadable folder of clips."""

    def problems(errors: list[tuple[str, str]], subject: str) -> Iterator[tuple[str, Row]]:
        for name, why in errors:
            cells = {"subject": subject or name, "filename": name or "?", "problem": why}
            yield f"folder {base or '.'}", Row(0, cells)

    subjects, errors = list_subfolders(root, base)
    yield from problems([(name, why) for name, why in errors if _SUBJECT.fullmatch(name)], "")
    for subject in filter(_SUBJECT.fullmatch, subjects):
        kinds, errors = list_subfolders(root, posix_join(base, subject))
        yield from problems(
            [(name, why) for name, why in errors if name.casefold() in ("", "micro")], subject
        )
        for micro in (posix_join(base, subject, kind) for kind in kinds if kind.casefold() == "micro"):
            emotions, errors = list_subfolders(root, micro)
            yield from problems(errors, subject)
            for emotion in emotions:
                clips, errors = list_subfolders(root, posix_join(micro, emotion))
                yield from problems(errors, subject)
                for clip in clips:
                    folder = posix_join(micro, emotion, clip)
                    cells = {"subject": subject, "filename": clip, "emotion": emotion, "folder": folder}
                    yield f"folder {folder}", Row(0, cells)


def _cropped(folders: FrameFolders) -> Interpret:
    def interpret(row: Row) -> AnnotationRow:
        if row["problem"]:
            raise ValueError(row["problem"])
        folder = row["folder"]
        numbers = sorted(folders.all_files(folder))
        onset, offset = numbers[0], numbers[-1]
        notes = []
        if offset - onset + 1 > len(numbers):
            length = offset - onset + 1
            missing = f"{length - len(numbers)} of {length} frame numbers have no image"
            notes.append((missing, "the image before stands in"))
        return _annotation_row(row, str(onset), str(offset), _with_stand_ins(folders, folder), notes)

    return interpret


def _with_stand_ins(folders: FrameFolders, folder: str) -> Callable[[int, int], tuple[str, ...]]:
    """The frames of a folder that is one clip; a number without an image gets the image before it."""

    def frames(onset: int, offset: int) -> tuple[str, ...]:
        files = folders.all_files(folder)
        paths: list[str] = []
        for number in range(onset, offset + 1):
            paths.append(f"{folder}/{files[number]}" if number in files else paths[-1])
        return tuple(paths)

    return frames


def _long(folders: FrameFolders, base: str) -> Interpret:
    names = FolderNames(folders.root)

    def interpret(row: Row) -> AnnotationRow:
        folder = names.path(base, subject_id(row["Subject"]), folder_name(row, "Filename"))
        also = []
        for number in ("2", "3"):
            onset, offset = row[f"Onset{number}F"], row[f"Offset{number}F"]
            if onset or offset:
                span = f"{onset or '?'}..{offset or '?'}"
                what = f"expression {number} of the row, {span}, has no emotion of its own"
                also.append((integer(onset), what))
        return _annotation_row(
            row,
            row["OnsetF"],
            row["OffsetF"],
            partial(folders.frames, folder),
            also=also,
        )

    return interpret


def _annotation_row(
    row: Row,
    onset: str,
    offset: str,
    frames: Callable[[int, int], tuple[str, ...]],
    notes: Sequence[tuple[str, str]] = (),
    also: Sequence[tuple[int | None, str]] = (),
) -> AnnotationRow:
    """The ids padded to two digits, and the emotion of the clip's name where the row's differs."""
    subject, clip = subject_id(row["Subject"]), clip_id(folder_name(row, "Filename"))
    emotion = row["Emotion"].casefold()
    parts = _CLIP.fullmatch(clip)
    notes = list(notes)
    if parts is not None:
        if f"s{parts[1]}" != subject:
            raise ValueError(f"filename expected a clip of subject {subject}, got {row['Filename']!r}")
        named = _CODES.get(parts[2], emotion)
        if emotion and emotion != named:
            notes.append((f"emotion {emotion!r} of a clip named {clip}", f"taken as {named}, by its name"))
            emotion = named
    return AnnotationRow(
        dataset=DATASET,
        subject=subject,
        clip=clip,
        onset=onset,
        apex=None,
        offset=offset,
        frames=frames,
        emotion=emotion,
        notes=tuple(notes),
        also=tuple(also),
    )


READER = Reader(
    name=DATASET,
    title="SMIC-HS",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetF"]),
    labels="emotion3",
    frames="HS/s1/micro/negative/s1_ne_01/*.jpg or SMIC_HS_E/s20/s20_ne_01/image17581039.jpg",
)
