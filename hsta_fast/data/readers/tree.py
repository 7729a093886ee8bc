"""The folders below a root that may hold a dataset's subjects or its annotation: a search that stays small.

A copy may lie several levels below the folder that a user gives. The search goes level by level, and does not
enter folders of frames, hidden folders, and links that lead out of the root. Of a long series of numbered
folders (subjects, clips) it enters the first few. So it takes milliseconds in a copy of any size, and ends
soon in any other folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...files import reason
from ..frames.decode import IMAGE_TYPES

MAX_DEPTH = 6  # levels below the root
MAX_FOLDERS = 2000  # that are listed
IMAGE_TYPE = re.compile("|".join(map(re.escape, IMAGE_TYPES)), re.IGNORECASE)

# A folder with more images is one of frames; pictures such as a cover or a sample may lie anywhere.
_MANY_IMAGES = 16

# So many folders whose names differ only in their numbers are subjects or clips, and alike inside. Fewer may
# be datasets: CASME2, CASME3.
_LONG_SERIES, _ENTERED_OF_SERIES = 8, 3


class NoFolderError(ValueError):
    """A folder of frames is not there, leads out of the root, or may not be read.

    folder: its path relative to the root, with the reason, unless it is not there.
    """

    def __init__(self, folder: str, what: str, why: str = "") -> None:
        super().__init__(what)
        self.folder = f"{folder} ({why})" if why else folder


@dataclass(frozen=True)
class Folder:
    """A listed folder: its path relative to the root, "" for the root itself, and the folders in it, sorted.

    of_frames: whether it holds so many images that it is a folder of frames; its folders are not listed then.
    """

    path: str
    folders: tuple[str, ...]
    of_frames: bool = False

    def long_series(self) -> set[str]:
        """The names (see `without_numbers`) that so many folders in it share that few are entered."""
        alike = Counter(map(without_numbers, self.folders))
        return {name for name, count in alike.items() if count >= _LONG_SERIES}


def levels(
    root: Path,
    stop: re.Pattern[str] | None = None,
    *,
    depth: int = MAX_DEPTH,
    whole: Collection[tuple[str, str]] = (),
) -> Iterator[list[Folder]]:
    """The folders of each level below the root, the root itself first, at most `MAX_FOLDERS` in all.

    stop: matches the names of folders that are not entered.
    whole: long series of which all folders are entered, (the folder that holds them, `without_numbers`).
    Folders that cannot be read are passed over.
    """
    real = os.path.realpath(root)
    seen, level, left = {real}, [("", real)], MAX_FOLDERS
    for below in range(depth + 1):
        listed: list[Folder] = []
        deeper: list[tuple[str, str]] = []
        for path, place in level[:left]:
            folder, places = _list(real, path, place, is_root=below == 0)
            listed.append(folder)
            in_long_series = folder.long_series()
            entered: Counter[str] = Counter()
            for name in folder.folders:
                if name.startswith((".", "__MACOSX")) or (stop is not None and stop.fullmatch(name)):
                    continue
                series = without_numbers(name)
                entered[series] += 1
                many = series in in_long_series and (path, series) not in whole
                if places[name] in seen or (many and entered[series] > _ENTERED_OF_SERIES):
                    continue
                seen.add(places[name])
                deeper.append((f"{path}/{name}" if path else name, places[name]))
        left -= len(listed)
        yield listed
        level = deeper
        if not level or not left:
            return


def _list(real: str, path: str, place: str, *, is_root: bool) -> tuple[Folder, dict[str, str]]:
    """The folder at `path`, whose real path is `place`, and the real paths of the folders in it."""
    places: dict[str, str] = {}
    images = 0
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if is_folder_inside(real, entry):
                    places[entry.name] = os.path.realpath(entry) if entry.is_symlink() else entry.path
                elif not is_root and IMAGE_TYPE.fullmatch(os.path.splitext(entry.name)[1]):
                    images += 1
                    if images > _MANY_IMAGES:
                        return Folder(path, (), of_frames=True), {}
    except OSError:
        pass  # it cannot be read; what was listed before the error counts
    return Folder(path, tuple(sorted(places))), places


def is_folder_inside(real: str, entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder whose name is UTF-8, and no link out of the root, whose path is `real`."""
    try:
        entry.name.encode()
        return entry.is_dir() and (
            not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(real)
        )
    except (UnicodeEncodeError, OSError):
        return False


def without_numbers(name: str) -> str:
    """A folder's name with # for each number, equal for all of a series: sub# for sub01, sub02."""
    return re.sub(r"[0-9]+", "#", name)


def searched(root: Path) -> str:
    """How much of a root is searched, for a message."""
    count = sum(len(level) for level in levels(root))
    most = ", no more: give the folder of the copy itself" if count >= MAX_FOLDERS else ""
    return f"up to {MAX_DEPTH} levels below ({count} folder{'' if count == 1 else 's'} searched{most})"


def contents(root: Path, folder: str = "") -> str:
    """What a folder below the root holds, for a message: its first folders, or else how many files."""
    try:
        with os.scandir(root / folder) as entries:
            names = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        return reason(error)
    folders = sorted(name for name, is_folder in names if is_folder)
    files = len(names) - len(folders)
    if not folders:
        return f"no folder, {files} file{'' if files == 1 else 's'}"
    why = {_why_closed(root, root / folder / name) for name in folders}
    return some(folders) + (f" ({why.pop()})" if len(why) == 1 and "" not in why else "")


def _why_closed(root: Path, folder: Path) -> str:
    """Why the search does not enter a folder, "" if it does."""
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        return "a link out of the folder: give its target"
    try:
        os.scandir(folder).close()
    except OSError as error:
        return reason(error)
    return ""


def some(names: list[str], most: int = 3) -> str:
    """The first of the names, and how many more there are: "a, b, c and 12 more"."""
    first = [name.encode(errors="replace").decode() for name in names[:most]]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
