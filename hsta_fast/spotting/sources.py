"""The recordings that words of a command line name: video files, folders of images, folders of a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..clips import counted, natural_key
from ..data.frames.decode import IMAGE_TYPES
from ..data.frames.video import VIDEO_TYPES
from ..data.readers.registry import recognise
from ..data.recordings import Recording, recordings


@dataclass(frozen=True)
class Source:
    """A recording: what tables call it, where it is, and its frames a second where a dataset tells them.

    subject: "" where it is not known.
    """

    subject: str
    video: str
    frames: Path | list[Path]
    rate: float | None = None


def sources(paths: Sequence[Path]) -> list[Source]:
    """The recordings at these paths, those of a folder in natural order.

    A folder is that of a dataset, or of video files, or a recording whose images are in it. Images beside a
    dataset or videos are pictures of something else, such as a plot: a line on the standard error says that
    they are left out.

    Raises:
        ValueError: a folder holds none of them, or a dataset that cannot be read and no video.
    """
    found: list[Source] = []
    for path in paths:
        found += _of_folder(path) if path.is_dir() else [Source("", path.stem, path)]
    return found


def unnamed_videos(folder: Path, known: Sequence[Recording]) -> list[Source]:
    """The video files in a dataset's folder that are none of its recordings."""
    named = {recording.path for recording in known}
    return [Source("", path.stem, path) for path in _files(folder, VIDEO_TYPES) if path.name not in named]


def _of_folder(folder: Path) -> list[Source]:
    """The recordings of a dataset, and the video files in its folder that its table does not name."""
    known: list[Recording] = []
    why = "its table has no row"
    root, images = folder, _files(folder, IMAGE_TYPES)
    try:
        known, table = recordings(folder)
        root = table.root
    except ValueError as error:
        why = str(error)
    videos = unnamed_videos(folder, known)
    if not known and not videos:
        if not images:
            expected = "images, video files or a dataset in a folder"
            raise ValueError(f"{folder}: expected {expected}, got none: {why}")
        if _is_dataset(folder):
            raise ValueError(f"{folder}: expected images alone, or a dataset that can be read, got: {why}")
        return [Source("", folder.absolute().name, folder)]
    if images:
        beside = "a dataset" if known else counted(len(videos), "video file")
        note = f"{counted(len(images), 'image')} beside {beside} left out"
        print(f"note: {folder}: {note}: a folder of images alone is one recording", file=sys.stderr)
    return [Source(one.subject, one.name, one.source(root), one.rate) for one in known] + videos


def _is_dataset(folder: Path) -> bool:
    try:
        recognise(folder)
    except ValueError:
        return False
    return True


def _files(folder: Path, types: Sequence[str]) -> list[Path]:
    """The files in a folder whose names end so, in natural order; hidden ones are left out."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in types and path.name[0] != "."]
    return sorted(found, key=lambda path: natural_key(path.name))
