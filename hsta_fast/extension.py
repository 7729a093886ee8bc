"""The C++ and CUDA extension: built from csrc/ on first use, kept in a cache, loaded once per process.

It has two parts, each its own library: "cpu" with the schemas of all ops, and "cuda", which needs "cpu".
If a part cannot be built or loaded, ops run without it. The log of the failure is kept in the cache under the
part's key, and no process tries again until the key changes or `hsta-fast build` is run.

Importing this module compiles and loads nothing. The code is built for the local processor (-march=native),
so one plain loop is vectorised for it and needs no variants. The cache key contains the processor's
instruction sets, so a home folder shared by different machines holds one library for each.
"""

import atexit
import functools
import glob
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from . import toolchain
from .files import CAN_LOCK, lock_file, open_lock, share

PARTS = ("cpu", "cuda")
SOURCES = Path(__file__).parent / "csrc"
_NEEDS = {"cpu": ("cpu",), "cuda": ("cpu", "cuda")}  # in the order of loading
_TAIL = 20  # lines


class BuildError(RuntimeError):
    """A part cannot be built or loaded. The message is one line and names the log, if there is one."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log

    def tail(self) -> str:
        """The last lines of the log, which say what failed; empty without a log."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines() if self.log else []
        except OSError:
            lines = []
        return "\n".join(lines[-_TAIL:])


# Looked up once, so that torch.compile sees constants.
_TOOLS = toolchain.find_tools()
_NO_COMPILER = (
    "it is built on Linux and macOS only"
    if not CAN_LOCK
    else "no C++ compiler was found (CXX, the name of one program, or c++ or g++ on PATH)"
    if _TOOLS.compiler is None
    else None
)
_NO_CUDA = (
    f"torch {torch.__version__} is not built for CUDA"
    if torch.version.cuda is None
    else "nvcc was not found (CUDA_HOME, or nvcc on PATH)"
    if _TOOLS.nvcc is None
    else None
)

_mutex = threading.RLock()
_libraries: dict[str, Path] = {}
_failures: dict[str, str] = {}  # part -> reason; torch.compile guards on it
_warned: set[str] = set()


def missing(part: str) -> str | None:
    """What is missing to build "cpu" or "cuda": a tool, or a build of torch; None if nothing."""
    if part not in PARTS:
        return f"{part} is neither CPU nor CUDA"
    return _NO_COMPILER or (_NO_CUDA if part == "cuda" else None)


def unsupported_reason(part: str) -> str | None:
    """Why "cpu" or "cuda" cannot run: what is missing, or how it failed; None if no reason is known.

    Builds and loads nothing. Does not look into the cache while torch.compile traces.
    """
    absent = missing(part)
    if absent is not None:
        return absent
    if not torch.compiler.is_compiling():
        _recall(part)
    return _failures.get("cpu") or _failures.get(part)


def warn_of(reason: str) -> None:
    """Warn, once per process and reason, that ops run on torch although the extension would be faster."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"hsta_fast runs on torch without its C++ extension: {reason}", stacklevel=3)


def usable(part: str, impl: str) -> bool:
    """Load a part for an op that is about to run. If that fails and `impl` is "auto", warn and return False.

    Raises:
        BuildError: loading fails and `impl` is "extension".
    """
    try:
        load(part)
    except BuildError:
        if impl == "extension":
            raise
        warn_of(str(unsupported_reason(part)))
        return False
    return True


def load(part: str, *, again: bool = False) -> Path:
    """Load "cpu" or "cuda", first building what is not in the cache; returns the path of its library.

    Args:
        part: "cpu" or "cuda".
        again: retry what failed before.

    Raises:
        BuildError: something is missing, the build or the loading fails, or failed before.
    """
    absent = missing(part)
    if absent is not None:
        raise BuildError(f"the extension cannot be built: {absent}")
    with _mutex:
        for needed in _NEEDS[part]:
            if needed in _libraries:
                continue
            if needed in _failures and not again:
                raise BuildError(_failures[needed])
            try:
                _libraries[needed] = _load(needed, again)
            except BuildError as error:
                _remember(needed, error)
                raise
            except OSError as error:
                problem = BuildError(f"the extension's {needed.upper()} part could not be built: {error}")
                _remember(needed, problem)
                raise problem from error
            _failures.pop(needed, None)
        return _libraries[part]


@functools.cache
def _recall(part: str) -> None:
    """Look up whether a build with the same key has failed before. Once is enough: later `load` knows."""
    with _mutex:
        for needed in _NEEDS[part]:
            library = _plan(needed).library
            known = needed in _libraries or needed in _failures or os.path.exists(library)
            if not known and (error := _failed_before(library)):
                _remember(needed, error)


def _remember(part: str, error: BuildError) -> None:
    _failures[part] = f"{error} (`hsta-fast build` tries again)"


class _Plan(NamedTuple):
    recipe: toolchain.Recipe
    library: Path


@functools.cache
def _plan(part: str) -> _Plan:
    """How a part is built, and its path in the cache, with a hash of everything that it depends on."""
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".cu", ".cuh"))
    of_cuda = {path for path in files if path.suffix in (".cu", ".cuh") or path.stem.endswith("_cuda")}
    headers = {path for path in files if path.suffix == ".h"}
    read = [path for path in files if path in headers or (path in of_cuda) == (part == "cuda")]
    sources = [path for path in read if path.suffix in (".cpp", ".cu")]
    recipe = (
        toolchain.cpp_recipe(sources, str(_TOOLS.compiler))
        if part == "cpu"
        else toolchain.cuda_recipe(sources, str(_TOOLS.compiler), str(_TOOLS.nvcc))
    )
    digest = hashlib.sha256("\0".join(toolchain.facts(recipe)).encode())
    for path in read:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return _Plan(recipe, cache_folder() / f"hsta_fast-{part}-{digest.hexdigest()[:16]}.so")


def kept(library: Path) -> bool:
    """Whether other processes will find the library. False if the cache cannot be written."""
    return library.parent == cache_folder()


def library_name(part: str) -> str | None:
    """The name of a part's library, which changes with all that it depends on; None if `missing`."""
    return None if missing(part) else _plan(part).library.stem


def _load(part: str, again: bool) -> Path:
    recipe, library = _plan(part)
    if _settled(library, again):
        return library
    if not _writable(library.parent):
        library = _private_folder(library.parent) / library.name
    with _build_lock(library) as locked:
        if _settled(library, again):  # another process may have built it meanwhile
            return library
        if locked:
            for leftover in library.parent.glob(f"{glob.escape(_work_prefix(library))}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return _build(part, library, recipe)


@contextmanager
def _build_lock(library: Path) -> Iterator[bool]:
    """Wait until no other process builds the library; yields False where that cannot be known.

    Some file systems have no locks. Then two processes may build at once, which costs their time only: each
    moves a whole library into place.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(open_lock(library.with_suffix(".lock")))
            locked = lock_file(lock)  # the system releases it however this process ends
        except OSError:
            locked = False
        yield locked


def _work_prefix(library: Path) -> str:
    """How the names of temporary folders begin in which this machine builds the library.

    Machines that share a disk may not see each other's locks, so none deletes another's folders.
    """
    return f".{library.stem}-{platform.node()}-"


def _settled(library: Path, again: bool) -> bool:
    """Whether the library exists and loads. Raises BuildError if it failed before, unless `again`."""
    if _whole(library):
        try:
            torch.ops.load_library(library)
            return True
        except OSError:  # a library that it needs has moved: a new build may find it
            pass
    if not again and (error := _failed_before(library)):
        raise error
    return False


def _failed_before(library: Path) -> BuildError | None:
    log = library.with_suffix(".log")
    try:
        first, _, _ = log.read_text("utf-8", "replace").partition("\n")
    except OSError as error:
        if not os.path.exists(log):  # or the cache belongs to another user, who alone may look into it
            return None
        first = f"the extension could not be built before; its log cannot be read ({error.strerror})"
    # An empty log comes from a process that was killed before writing it.
    return BuildError(f"{first}; see {log}", log) if first else None


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _whole(library: Path) -> bool:
    """Whether the library is complete and unchanged: loading a damaged one could crash the process."""
    try:
        return hashlib.sha256(library.read_bytes()).digest() == _digest_of(library).read_bytes()
    except OSError:
        return False


def _build(part: str, library: Path, recipe: toolchain.Recipe) -> Path:
    """Compile in a temporary folder, load, then move into place: the cache never holds a partial library.

    Returns the library's path: in a private folder, if another user's file is in its place.
    """
    start = time.perf_counter()
    long = ": some minutes" if part == "cuda" else ""
    print(f"hsta_fast: building {library}, once{long} ... ", end="", file=sys.stderr, flush=True)
    log = library.with_suffix(".log")
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=_work_prefix(library)) as work:
        did = "built"
        try:
            built = toolchain.make(recipe, Path(work))
            did = "loaded"
            torch.ops.load_library(built)
        except (toolchain.ToolError, OSError) as error:
            print("failed", file=sys.stderr)
            tools = " and ".join(dict.fromkeys(command[0] for command in recipe.compile.values()))
            summary = f"the extension's {part.upper()} part could not be {did} with {tools}"
            # If a library does not load, torch's error names its path; the loader's reason is the cause.
            details = f"{error}\n{error.__cause__}" if error.__cause__ else str(error)
            try:
                log.write_text(f"{summary}\n{details}\n", "utf-8")
                share(log, log.parent, 0o644)
            except OSError:
                print(details, file=sys.stderr)
                raise BuildError(f"{summary}; its log {log} cannot be written") from error
            raise BuildError(f"{summary}; see {log}", log) from error
        with built.open("rb") as file:
            os.fsync(file.fileno())
        digest = Path(work) / "digest"
        digest.write_bytes(hashlib.sha256(built.read_bytes()).digest())
        share(built, library.parent, 0o755)
        share(digest, library.parent, 0o644)
        try:
            digest.replace(_digest_of(library))
            built.replace(library)
        except OSError:
            library = Path(shutil.move(built, _private_folder(library) / library.name))
        with suppress(OSError):
            log.unlink()  # left by an earlier failure
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
    return library


def cache_folder() -> Path:
    """Where libraries, and what was measured of this CPU, are kept."""
    if named := os.environ.get("HSTA_FAST_CACHE"):
        return Path(os.path.expanduser(named)).absolute()
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the home folder is unknown
        home = Path(tempfile.gettempdir())
    return (home / "hsta_fast").absolute()


@functools.cache
def _private_folder(refused: Path) -> Path:
    """A folder for this process, because it cannot write `refused`: the cache, or a library in it."""
    folder = Path(tempfile.mkdtemp(prefix="hsta_fast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"{refused} cannot be written: the extension is built for this process only "
        "(set HSTA_FAST_CACHE to another folder)",
        stacklevel=4,
    )
    return folder


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
