"""Where frames are: folders of numbered images, and the folders of a dataset's subjects."""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ...clips import words_key
from ...files import as_on_disk, inside, reason
from .tree import IMAGE_TYPE, MAX_DEPTH, NoFolderError, levels, some, without_numbers

# A frame's file name without its type; group 1 is the frame number.
ANY_NUMBERED = re.compile(r"(?:.*[^0-9])?([0-9]{1,15})", re.DOTALL)

# Not the files that a system leaves, such as .DS_Store and ._img46.jpg.
IMAGE_NAME = re.compile(rf"(?!\.).*(?:{IMAGE_TYPE.pattern})", re.IGNORECASE | re.DOTALL)

# Folders of images that are computed from the frames, or recorded beside them, under the same names.
_DERIVED = re.compile(r"flow|depth|mask|landmark", re.IGNORECASE)

Found = TypeVar("Found")


def check_folder(root: Path | str) -> Path:
    """`root` as a path (see `as_on_disk`); ValueError if it is not a folder."""
    path = as_on_disk(root)
    if not os.path.isdir(path):
        raise ValueError(f"{root}: expected the folder of a dataset, got no such folder")
    return path


def remembered(known: dict[str, Found | ValueError], name: str, find: Callable[[str], Found]) -> Found:
    """`find(name)`, called once for each name; what it raised is raised again."""
    if name not in known:
        try:
            known[name] = find(name)
        except ValueError as error:
            known[name] = error
    found = known[name]
    if isinstance(found, ValueError):
        raise found
    return found


@dataclass(frozen=True)
class Listing:
    """The numbered images of one folder: number -> file name, and number -> why an image is unusable."""

    files: dict[int, str]
    unusable: dict[int, str]

    @cached_property
    def numbers(self) -> list[int]:
        """All usable numbers, ascending."""
        return sorted(self.files)


class FrameFolders:
    """The folders of numbered images below `root`, each listed once.

    number: matches a whole file name without its type; group 1 is the frame number.
    """

    def __init__(self, root: Path, number: re.Pattern[str]) -> None:
        self.root, self.number = root, number
        self._listed: dict[str, Listing | ValueError] = {}

    def listing(self, folder: str) -> Listing:
        """The images in `folder`, a path relative to the root; ValueError if it cannot be listed."""
        return remembered(self._listed, folder, self._list)

    def all_files(self, folder: str) -> dict[int, str]:
        """Frame number -> file name of a folder that is one clip.

        Raises ValueError if the folder cannot be listed, holds no numbered image, or holds an unusable one.
        """
        listing = self.listing(folder)
        for what in listing.unusable.values():
            raise ValueError(what)
        if not listing.files:
            raise ValueError(f"{folder}: expected numbered images, got none")
        return listing.files

    def frames(self, folder: str, onset: int, offset: int) -> tuple[str, ...]:
        """The paths of frames onset..offset, relative to the root; ValueError if some are missing."""
        listing = self.listing(folder)
        for number, what in listing.unusable.items():
            if onset <= number <= offset:
                raise ValueError(what)
        # Counted without a loop over onset..offset: an annotation error can make that billions long.
        numbers = listing.numbers
        found = numbers[bisect_left(numbers, onset) : bisect_right(numbers, offset)]
        missing = offset - onset + 1 - len(found)
        if missing:
            first = next(
                (onset + i for i, number in enumerate(found) if number != onset + i), onset + len(found)
            )
            raise ValueError(
                f"frames missing on disk: {missing} of {offset - onset + 1}, "
                f"first {folder}/{self._likely_name(first, listing)} "
                f"(the folder holds {len(numbers)} numbered images)"
            )
        return tuple(f"{folder}/{listing.files[number]}" for number in found)

    def _likely_name(self, number: int, listing: Listing) -> str:
        """The likely file name of a missing frame, from the names of its neighbours."""
        if not listing.files:
            return f"{number}.jpg"
        nearest = min(listing.numbers, key=lambda other: abs(other - number))
        stem, suffix = os.path.splitext(listing.files[nearest])
        match = self.number.fullmatch(stem)
        assert match is not None
        width = len(match[1]) if match[1].startswith("0") else 0
        return f"{stem[: match.start(1)]}{number:0{width}d}{suffix}"

    def _list(self, folder: str) -> Listing:
        listing = Listing({}, {})
        try:
            place = inside(self.root, folder)
        except ValueError as error:
            raise NoFolderError(folder, str(error), "a link out of the folder") from error
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    match = self.number.fullmatch(stem)
                    if match is None or not IMAGE_TYPE.fullmatch(suffix) or stem.startswith("."):
                        continue
                    number = int(match[1])
                    try:
                        if not is_there(self.root, folder, entry, entry.is_file):
                            continue
                    except ValueError as error:
                        listing.unusable[number] = str(error)
                        continue
                    if number in listing.files:
                        both = f"{listing.files[number]} and {entry.name}"
                        raise ValueError(f"{folder}: frame {number} expected one image, got {both}")
                    listing.files[number] = entry.name
        except OSError as error:
            what = f"{folder}: expected a folder of images, got: {reason(error)}"
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise NoFolderError(folder, what) from error
            if isinstance(error, PermissionError):
                raise NoFolderError(folder, what, reason(error)) from error
            raise ValueError(what) from error
        return listing


def is_there(root: Path, folder: str, entry: os.DirEntry[str], is_kind: Callable[[], bool]) -> bool:
    """Whether an entry of `folder` is a file or folder as asked by `is_kind`, its `is_file` or `is_dir`.

    Raises ValueError if that is unknown, its name is not UTF-8, or it is a link that leads out of the root.
    """
    path = posix_join(folder, entry.name)
    try:
        if not is_kind():
            return False
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"name expected UTF-8, got {os.fsencode(path)!r}") from error
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file or folder, got: {reason(error)}") from error
    if entry.is_symlink():
        inside(root, path)
    return True


class FolderNames:
    """Folder names as spelled on disk, for the spellings of an annotation (see `words_key`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, list[str]]] = {}  # folder -> `words_key` -> names

    def on_disk(self, folder: str, name: str) -> str:
        """The folder in `folder` called `name`, else the one with another spelling of it, else `name`.

        Raises ValueError if there are several other spellings.
        """
        if folder not in self._names:
            self._names[folder] = set(subfolders(self.root, folder))
        if name in self._names[folder]:
            return name
        if folder not in self._spellings:
            spellings = self._spellings[folder] = {}
            for other in sorted(self._names[folder]):
                spellings.setdefault(words_key(other), []).append(other)
        found = self._spellings[folder].get(words_key(name), [])
        if len(found) > 1:
            raise ValueError(f"{folder or '.'}: expected one folder for {name!r}, got {', '.join(found)}")
        return found[0] if found else name

    def path(self, folder: str, *names: str) -> str:
        """`folder/name/...`, each name as spelled on disk (see `on_disk`)."""
        for name in names:
            folder = posix_join(folder, self.on_disk(folder, name))
        return folder


class ClipFolders:
    """The folders of clips, by name: for datasets whose clips lie below other folders than the subject's.

    clip: matches the name of a clip's folder.
    parents: the folders that hold clips' folders, nearest to the root first.
    """

    def __init__(
        self, root: Path, clip: re.Pattern[str], skip: Callable[[str], bool] = lambda parent: False
    ) -> None:
        self.parents = [folder for folder in find_subjects(root, clip) if not skip(folder)]
        self._inside = {
            parent: [*filter(clip.fullmatch, subfolders(root, parent))] for parent in self.parents
        }
        self._folders = self._by_name()

    def _by_name(self) -> dict[str, list[str]]:
        """`words_key` of a clip -> its folders."""
        folders: dict[str, list[str]] = {}
        for parent in self.parents:
            for name in self._inside[parent]:
                folders.setdefault(words_key(name), []).append(posix_join(parent, name))
        return folders

    def choose_copy(
        self, clips: Iterable[str], copy_of: Callable[[str], str] = lambda parent: parent
    ) -> list[str]:
        """Keep one copy of the clips of a table, and return remarks on the others.

        copy_of: the folder of the copy, or of the part of one, that a parent belongs to.

        Two that share a clip are copies, others are parts of one. The copy with the most clips of the table
        is kept, then the nearest; those of derived images (see `is_derived`) only if there are no others.
        """
        wanted = set(map(words_key, clips))
        names: dict[str, set[str]] = {}
        for parent in self.parents:
            if here := wanted.intersection(map(words_key, self._inside[parent])):
                names.setdefault(copy_of(parent), set()).update(here)

        def rank(folder: str, beside: str = "") -> tuple[bool, int, int, int, bool, str]:
            # Further parts are those beside the part that is kept, not those of another copy.
            common = os.path.commonpath([folder, beside])
            depth = len(Path(folder).parts)
            is_cropped = "crop" in folder.casefold()
            return is_derived(folder), -len(common), -len(names[folder]), depth, not is_cropped, folder

        first = min(names, key=rank, default="")
        kept: list[str] = []
        others: dict[str, list[str]] = {}  # copy that is kept -> those that share clips with it
        for folder in sorted(names, key=lambda folder: (folder != first, rank(folder, first))):
            same = next((copy for copy in kept if names[copy] & names[folder]), None)
            if same is None and is_derived(folder) == is_derived(first):
                kept.append(folder)
            elif same is not None:
                others.setdefault(same, []).append(folder)
        if names:
            self.parents = [parent for parent in self.parents if copy_of(parent) in kept]
            self._folders = self._by_name()
        return [read_from(copy, folders, "clips") for copy, folders in others.items()]

    def only(self, clip: str, prefer: Callable[[str], bool] = lambda folder: False) -> str:
        """The folder of a clip in any spelling; of several, the nearest of those that `prefer` accepts.

        Raises NoFolderError if there is none, ValueError if there are several.
        """
        found = self._folders.get(words_key(clip), [])
        found = list(filter(prefer, found)) or found
        found = [folder for folder in found if folder.count("/") == min(path.count("/") for path in found)]
        if not found:
            folder = posix_join(next(iter(self.parents), ""), clip)
            raise NoFolderError(folder, f"filename expected a folder named {clip!r}, got none")
        if len(found) > 1:
            raise ValueError(f"filename expected one folder named {clip!r}, got {', '.join(found)}")
        return found[0]


def subfolders(root: Path, folder: str) -> list[str]:
    """Names of the folders in `folder` that are inside the root, sorted; none if it cannot be read."""
    return list_subfolders(root, folder)[0]


def list_subfolders(root: Path, folder: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the folders in `folder`, sorted, and (name, reason) of every unreadable entry.

    If `folder` itself is unreadable, the name is "".
    """
    names: list[str] = []
    errors: list[tuple[str, str]] = []
    try:
        with os.scandir(inside(root, folder)) as entries:
            for entry in entries:
                try:
                    if is_there(root, folder, entry, entry.is_dir):
                        names.append(entry.name)
                except ValueError as error:
                    errors.append((entry.name.encode(errors="replace").decode(), str(error)))
    except OSError as error:
        errors.append(("", f"{folder or '.'}: expected a readable folder, got: {reason(error)}"))
    except ValueError as error:
        errors.append(("", str(error)))
    return sorted(names), sorted(errors)


def find_subjects(root: Path, subject: re.Pattern[str], *, depth: int = MAX_DEPTH) -> list[str]:
    """The folders, at most `depth` levels below the root, that hold a folder whose name matches `subject`.

    Paths relative to the root, "" for the root itself, nearest first, but those of derived images last (see
    `is_derived`). Which folders are searched: see `tree`; a long series of folders is searched wholly if one
    of its first has such a folder in it.
    """
    whole: set[tuple[str, str]] = set()
    while True:
        listed = [folder for level in levels(root, subject, depth=depth, whole=whole) for folder in level]
        found = [folder.path for folder in listed if any(map(subject.fullmatch, folder.folders))]
        above = {
            (posix_join(*parts[:number]) if number else "", without_numbers(parts[number]))
            for parts in (path.split("/") for path in found)
            for number in range(len(parts))
        }
        series = {(folder.path, name) for folder in listed for name in folder.long_series()}
        if not (above & series) - whole:
            return sorted(found, key=is_derived)
        whole |= above & series


def near_subjects(root: Path, subject: re.Pattern[str]) -> list[str]:
    """`find_subjects`, without those more than two levels below the root if there are nearer ones.

    Nearer ones of derived images do not count.
    """
    found = find_subjects(root, subject)
    near = [folder for folder in found if is_near(folder)]
    return found if all(map(is_derived, near)) else near


def is_near(folder: str) -> bool:
    """Whether a folder is at most two levels below the root; what is there wins over what lies deeper."""
    return folder.count("/") < 2


def posix_join(folder: str, *names: str) -> str:
    """`folder/name/...`, where a `folder` of "" is the root itself."""
    return "/".join((folder, *names) if folder else names)


def is_derived(folder: str) -> bool:
    """Whether a folder's path below the root says that its images are flow, depth, masks or landmarks."""
    return _DERIVED.search(folder) is not None


def in_order(found: Mapping[str, Sequence[str]], order: Sequence[str]) -> dict[str, list[str]]:
    """The versions that have folders, in this order, but those of derived images alone last."""
    there = {version: [*found[version]] for version in order if found.get(version)}
    return dict(sorted(there.items(), key=lambda version: is_derived(version[1][0])))


def first_image(root: Path, folder: str, subject: re.Pattern[str], name: re.Pattern[str] = IMAGE_NAME) -> str:
    """The first image in `<subject>/<clip>` below `folder`, in lower case; "" if there is none.

    subject: matches the names of the subjects' folders; name: those of the images.
    """
    for person in filter(subject.fullmatch, subfolders(root, folder)):
        for clip in subfolders(root, posix_join(folder, person)):
            with suppress(OSError):  # it cannot be read
                names = sorted(filter(name.fullmatch, os.listdir(root / folder / person / clip)))
                if names:
                    return names[0].lower()
    return ""


def read_from(folder: str, others: Sequence[str], what: str) -> str:
    """The remark that of several folders with the same subjects or clips (`what`) one is read."""
    holds = "holds" if len(others) == 1 else "hold"
    return f"frames are read from {folder or 'the folder itself'}; {some([*others])} {holds} the same {what}"
