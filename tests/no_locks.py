"""A library for `Forked(preload=...)`, with which flock fails as on a file system without locks."""

import errno
import functools
import subprocess
import tempfile
from pathlib import Path

# What file systems answer: NFS without its lock service, Lustre mounted without flock, some of FUSE, others.
ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int operation) {
    const char* number = getenv("NO_LOCKS");
    (void)file, (void)operation;
    errno = number ? atoi(number) : ENOLCK;
    return -1;
}
"""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # deleted with this process


@functools.cache
def no_locks() -> str:
    """The path of the library. The environment variable NO_LOCKS is the error's number, ENOLCK by default."""
    source = Path(_folder().name) / "no_locks.c"
    source.write_text(_SOURCE)
    library = source.with_suffix(".so")
    command = ["c++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)
