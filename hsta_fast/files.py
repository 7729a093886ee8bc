"""Plain files: open safely, write atomically, lock, and keep paths inside a root."""

import errno
import os
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CAN_LOCK = fcntl is not None  # whether this operating system has the locks of `lock_file`

# Errors that are not about the file: the process has too many files open, or no memory.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Errors of a path that a file cannot have, whatever room its disk has.
_NOT_OF_THE_DISK = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def reason(error: OSError) -> str:
    """The system's words for an error, such as "no such file or directory", for a message."""
    return error.strerror.lower() if error.strerror else str(error)


def one_line(text: object) -> str:
    r"""The text on one line, though a file's name in it may have several: its line breaks as \n."""
    return r"\n".join(str(text).splitlines())


@contextmanager
def open_plain(path: Path, wanted: str) -> Iterator[BufferedReader]:
    """Open the plain file at `path` for reading; `wanted` says in messages what it should be.

    Raises:
        ValueError: it cannot be opened or read, or is a folder, a pipe or a device.
        OSError: the process cannot open another file.
    """
    try:
        # Without O_NONBLOCK, which Windows lacks, opening a pipe would wait for ever.
        nonblock = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblock)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"expected {wanted}, got: not a plain file")
            yield file
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise ValueError(f"expected {wanted}, got: {reason(error)}") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _umask()  # read once, on import: to read it one must set it, which other threads would see


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    After a kill, a full disk or an error in `write`, `path` is unchanged.

    Raises:
        OSError: the file cannot be written; the one-line message names it.
    """
    try:
        if not path.parent.exists():  # a file there is found out below, in clearer words
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise OSError(f"could not write {path}: {reason(error)}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # torch reports a full disk as a RuntimeError of its zip writer.
        if isinstance(error, OSError | RuntimeError):
            why = reason(error) if isinstance(error, OSError) else str(error)
            if getattr(error, "errno", None) not in _NOT_OF_THE_DISK:
                why += f" ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free on its disk)"
            raise OSError(f"could not write {path}: {why}; what was there before is untouched") from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8, atomically.

    A name from a disk may hold bytes that are no UTF-8; these are written as \udce9, in JSON its escape.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def make_folder(path: Path, flag: str, value: Path) -> None:
    """Create the folder `path` and its parents, which the argument `flag` asks for with `value`.

    Raises:
        OSError: it cannot be created; one line naming the argument.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{flag} expected a folder that can be created, got {value}: {reason(error)}"
        ) from error


def check_writable(path: Path, flag: str, value: Path) -> None:
    """Check that the folder `path`, for which the argument `flag` has `value`, can be created and written.

    Nothing is created: a nameless file is written to it, or to the nearest folder above it that exists.

    Raises:
        OSError: it cannot; one line naming the argument.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)) as file:
            file.write(bytes(4096))
    except OSError as error:
        what = f"a folder that can be created and written, got {value}"
        raise OSError(f"{flag} expected {what}: {reason(error)}") from error


def check_outputs(outputs: Iterable[tuple[str, Path | None]], inputs: Sequence[Path] = ()) -> None:
    """Check that files can be written, and that each is another than the others and than those of `inputs`.

    Args:
        outputs: argument and file; None: it is not given.
        inputs: what is read.

    Raises:
        ValueError: one is a folder, is one of the inputs, or is given twice; one line naming the argument.
        OSError: its folder cannot be written.
    """
    taken: dict[Path, str] = {}
    for flag, path in outputs:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{flag} expected a file to write, got the folder {path}")
        check_not_read(path, flag, inputs)
        check_writable(path.absolute().parent, flag, path)
        if (other := taken.setdefault(path.resolve(), flag)) != flag:
            raise ValueError(f"{flag} expected another file than {other}, got {path} for both")


def check_not_read(path: Path, flag: str, inputs: Iterable[Path]) -> None:
    """Raise ValueError, naming the argument, if the file `path` exists, and is or may be read.

    Of `inputs` a folder may be read with all that is in it. A new file in such a folder is no fault.
    """
    if not path.exists():
        return
    for one in inputs:
        if one.exists() and path.samefile(one):
            raise ValueError(f"{flag} expected another file than one that is read, got {path}")
        if one.is_dir() and one.resolve() in path.resolve().parents:
            raise ValueError(
                f"{flag} expected a new file in {one}, which is read, or one elsewhere, got {path}"
            )


def _nearest(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if _is_there(folder))


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_plain_name(name: str) -> bool:
    """Whether `name` is one file or folder name: no separator, no drive, no `..`, on any system."""
    path = PureWindowsPath(name)
    return path.parts == (name,) and not path.anchor and name != ".." and "\0" not in name


def inside(root: Path, relative: str) -> Path:
    """`root / relative`; ValueError if it is not below `root` once links are followed."""
    path = root / relative
    # realpath, not Path.resolve: the latter raises RuntimeError on a loop of links.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"expected a path inside the root, {relative!r} leads out of it")
    return path


def as_on_disk(path: Path | str, root: Path | str = "") -> Path:
    """`path`, relative to `root`, with each name in the Unicode form, composed or not, that it has on disk.

    A Mac stores "é" as two characters, a table or a command line mostly holds one. A name that is there as it
    is written, or in no other form or in several, stays.
    """
    found = Path()
    for name in Path(path).parts:
        if not name.isascii() and not os.path.lexists(root / found / name):
            wanted = unicodedata.normalize("NFC", name)
            with suppress(OSError):
                there = [n for n in os.listdir(root / found) if unicodedata.normalize("NFC", n) == wanted]
                name = there[0] if len(there) == 1 else name
        found /= name
    return found


def share(path: Path, folder: Path, most: int) -> None:
    """Give the file at `path` those permissions of `folder` that are in `most`, whatever the umask."""
    with suppress(OSError):  # some file systems have no permissions
        path.chmod(folder.stat().st_mode & most)


def open_lock(path: Path) -> IO[str]:
    """Open the file that processes lock; create it, if absent, for all who may write to its folder.

    Another user's file is opened for reading, which is enough to lock it.

    Raises:
        OSError: it cannot be opened, or its folder cannot be written.
    """
    try:
        file = path.open("x")
    except FileExistsError:
        try:
            # Without O_CREAT, which Linux refuses for another user's file in a folder like /tmp.
            return path.open("r+")
        except PermissionError:
            if not os.access(path.parent, os.W_OK, effective_ids=True):
                raise
            return path.open()
    share(path, path.parent, 0o666)
    return file


def lock_file(file: IO[Any], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file against other processes until it is closed or this process ends, kill -9 included.

    Args:
        file: the open file.
        shared: several processes may hold a shared lock at once, none beside an exclusive one.
        wait: wait for the lock; otherwise return False at once where another process holds it.

    Raises:
        OSError: the file system, or the operating system, has no such locks.
    """
    if fcntl is None:
        raise OSError(f"{file.name} cannot be locked: this operating system has no flock")
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(f"{file.name} cannot be locked on this file system: {error.strerror}") from error
    return True
