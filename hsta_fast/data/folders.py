"""Where frames lie: folders of numbered images, video files, the folders that hold a dataset's subjects."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2

from .clips import inside
from .video import check_container

# What a frame's file name may be, without its type; group 1 is the frame number.
ANY_NUMBERED = re.compile(r"(?:.*[^0-9])?([0-9]{1,15})", re.DOTALL)
_IMAGE_TYPE = re.compile(r"\.(?:jpg|jpeg|png|bmp)", re.IGNORECASE)


def want_folder(root: Path | str) -> Path:
    """`root` as a path; ValueError where it is no folder."""
    if not os.path.isdir(root):
        raise ValueError(f"{root}: wanted the folder of a dataset, no such folder")
    return Path(root)


class FrameFolders:
    """The folders of numbered images below `root`, each listed once.

    number: matches a whole file name without its type; its group 1 is the frame number.
    """

    def __init__(self, root: Path, number: re.Pattern[str]) -> None:
        self.root, self.number = root, number
        self._listed: dict[str, dict[int, str] | ValueError] = {}

    def files(self, folder: str) -> dict[int, str]:
        """Frame number -> file name in `folder`, a path relative to the root; ValueError where unusable."""
        if folder not in self._listed:
            try:
                self._listed[folder] = self._list(folder)
            except ValueError as error:
                self._listed[folder] = error
        files = self._listed[folder]
        if isinstance(files, ValueError):
            raise files
        return files

    def frames(self, folder: str, onset: int, offset: int) -> tuple[str, ...]:
        """The paths of frames onset..offset, relative to the root; ValueError where some are not there."""
        files = self.files(folder)
        # Counted without walking onset..offset, which a slip of the annotation can make billions long.
        missing = offset - onset + 1 - sum(onset <= number <= offset for number in files)
        if missing:
            first = next(number for number in range(onset, offset + 1) if number not in files)
            raise ValueError(
                f"frames missing on disk: {missing} of {offset - onset + 1}, "
                f"first {folder}/{self._likely_name(first, files)} "
                f"(the folder holds {len(files)} numbered images)"
            )
        return tuple(f"{folder}/{files[number]}" for number in range(onset, offset + 1))

    def _likely_name(self, number: int, files: dict[int, str]) -> str:
        """What the file of a missing frame would be called, going by its neighbours."""
        if not files:
            return f"{number}.jpg"
        stem, suffix = os.path.splitext(files[min(files, key=lambda other: abs(other - number))])
        match = self.number.fullmatch(stem)
        assert match is not None
        width = len(match[1]) if match[1].startswith("0") else 0
        return f"{stem[: match.start(1)]}{number:0{width}d}{suffix}"

    def _list(self, folder: str) -> dict[int, str]:
        files: dict[int, str] = {}
        try:
            with os.scandir(inside(self.root, folder)) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    match = self.number.fullmatch(stem)
                    if match is None or not _IMAGE_TYPE.fullmatch(suffix) or stem.startswith("."):
                        continue
                    if entry.is_symlink():
                        inside(self.root, f"{folder}/{entry.name}")
                    if not entry.is_file():
                        continue
                    number = int(match[1])
                    if number in files:
                        raise ValueError(f"{folder}: frame {number} is both {files[number]} and {entry.name}")
                    files[number] = entry.name
        except OSError as error:
            raise ValueError(f"{folder}: wanted a folder of images, {error.strerror or error}") from error
        return files


class VideoFiles:
    """The video files below `root`, each opened once; their frames are 0, 1, 2, ..."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lengths: dict[str, int | ValueError] = {}

    def length(self, path: str) -> int:
        """The number of frames that the file declares; ValueError where OpenCV cannot open it."""
        if path not in self._lengths:
            try:
                self._lengths[path] = self._open(path)
            except ValueError as error:
                self._lengths[path] = error
        length = self._lengths[path]
        if isinstance(length, ValueError):
            raise length
        return length

    def frames(self, path: str, onset: int, offset: int) -> tuple[str, ...]:
        """Frames onset..offset as "path#number"; ValueError where the file has fewer."""
        length = self.length(path)
        if onset < 0 or offset >= length:
            raise ValueError(f"{path}: wanted frames {onset}..{offset} of a video that has 0..{length - 1}")
        return tuple(f"{path}#{number}" for number in range(onset, offset + 1))

    def _open(self, path: str) -> int:
        file = inside(self.root, path)
        try:
            check_container(file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        video = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
        try:
            length = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        finally:
            video.release()
        if length < 1:
            raise ValueError(f"{path}: wanted a video, OpenCV finds no frame in it")
        return length


class Names:
    """Folder names as they are on disk, where annotations write them in another case or with other zeros."""

    def __init__(self, root: Path, alike: Callable[[str], str]) -> None:
        self.root, self.alike = root, alike
        self._children: dict[str, list[str]] = {}

    def on_disk(self, folder: str, name: str) -> str:
        """The folder in `folder` that is called `name`, or else the only one alike; `name` where none is.

        Raises ValueError where several are alike and none is called `name`.
        """
        if folder not in self._children:
            self._children[folder] = subfolders(self.root, folder)
        names = self._children[folder]
        if name in names:
            return name
        found = [other for other in names if self.alike(other) == self.alike(name)]
        if len(found) > 1:
            raise ValueError(f"{folder or '.'}: wanted one folder for {name!r}, got {', '.join(found)}")
        return found[0] if found else name


def without_zeros(name: str) -> str:
    """A name without regard to case and leading zeros: "S01_ne_3" and "s1_ne_03" are alike."""
    return re.sub(r"[0-9]+", lambda digits: str(int(digits[0][-15:])), name.casefold())


def subfolders(root: Path, folder: str) -> list[str]:
    """Names of the folders in `folder` that lie inside the root, sorted; none where it cannot be read."""
    names = []
    try:
        with os.scandir(inside(root, folder)) as entries:
            for entry in entries:
                if entry.is_symlink():
                    try:
                        inside(root, f"{folder}/{entry.name}" if folder else entry.name)
                    except ValueError:
                        continue
                if entry.is_dir():
                    names.append(entry.name)
    except (OSError, ValueError):
        return []
    return sorted(names)


def find_subjects(root: Path, subject: re.Pattern[str], *, depth: int = 2) -> list[str]:
    """The folders, at most `depth` below the root, with a folder whose whole name matches `subject`.

    Paths relative to the root, "" for itself, nearest first.
    """
    found, level = [], [""]
    for _ in range(depth + 1):
        deeper = []
        for folder in level:
            names = subfolders(root, folder)
            if any(subject.fullmatch(name) for name in names):
                found.append(folder)
            deeper += [below(folder, name) for name in names if not subject.fullmatch(name)]
        level = deeper
    return found


def below(folder: str, *names: str) -> str:
    """`folder/name/...`, where "" is the root itself."""
    return "/".join((folder, *names) if folder else names)
