"""The recordings that words of a command line name: video files, folders of images, folders of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..clips import natural_key
from ..data.frames.decode import IMAGE_TYPES
from ..data.frames.video import VIDEO_TYPES
from ..data.recordings import recordings


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

    A folder with images in it is one recording; any other folder is that of a dataset, or of video files.

    Raises:
        ValueError: a folder holds neither.
    """
    found: list[Source] = []
    for path in paths:
        if not path.is_dir() or _files(path, IMAGE_TYPES):
            found.append(Source("", path.absolute().name if path.is_dir() else path.stem, path))
        else:
            found += _of_folder(path)
    return found


def _of_folder(folder: Path) -> list[Source]:
    """The recordings of a dataset, and the video files in its folder that its table does not name."""
    videos = _files(folder, VIDEO_TYPES)
    try:
        known, table = recordings(folder)
    except ValueError as error:
        if not videos:
            raise ValueError(
                f"{folder}: expected images, video files or a dataset in a folder, got none: {error}"
            ) from error
        return [Source("", path.stem, path) for path in videos]
    named = {table.root / recording.path for recording in known}
    found = [Source(one.subject, one.name, one.source(table.root), one.rate) for one in known]
    return found + [Source("", path.stem, path) for path in videos if path not in named]


def _files(folder: Path, types: Sequence[str]) -> list[Path]:
    """The files in a folder whose names end so, in natural order; hidden ones are left out."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in types and path.name[0] != "."]
    return sorted(found, key=lambda path: natural_key(path.name))
