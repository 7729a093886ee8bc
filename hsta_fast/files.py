"""Writing files whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _umask()  # read once, on import: reading it means setting it, which threads would see


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    A killed process, a full disk or an error in `write` leaves `path` as it was.

    Raises:
        OSError: the file cannot be written; one line naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
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
            free = shutil.disk_usage(path.parent).free / 2**20
            reason = f"{error} ({free:.0f} MiB free on its disk)"
            raise OSError(f"could not write {path}: {reason}; what was there before is untouched") from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())
