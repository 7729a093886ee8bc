"""The C++ and CUDA extension: built from csrc/ on first use, kept in a cache, loaded once per process.

It has two parts, each a library of its own: "cpu" with the schemas of all ops, and "cuda", which needs it.
A part that cannot be built or loaded is left out: the log of the failure stands in the cache under the part's
key, and neither this process nor another tries again until the key changes or `hsta-fast build` asks for it.

Nothing is compiled or loaded by an import. The code is built for the processor at hand (-march=native): it is
never carried to another machine, every loop is vectorised without variants and their dispatch, and the cache
key holds the processor's instruction sets, so that a home folder shared by different machines holds one each.
"""

import atexit
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

try:
    from fcntl import LOCK_EX, flock
except ImportError:  # Windows, whose build of torch takes no library of a compiler that knows our flags
    flock = None  # type: ignore[assignment]

import torch

from . import toolchain

PARTS = ("cpu", "cuda")
SOURCES = Path(__file__).parent / "csrc"
_NEEDS = {"cpu": ("cpu",), "cuda": ("cpu", "cuda")}  # in the order of loading
_TAIL = 20  # lines


class BuildError(RuntimeError):
    """A part cannot be built or loaded; the message is one line, and names the log where there is one."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log

    def tail(self) -> str:
        """The last lines of the log, which say what failed; empty where there is none."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines() if self.log else []
        except OSError:
            lines = []
        return "\n".join(lines[-_TAIL:])


# Looked up once: torch.compile then sees constants.
_TOOLS = toolchain.find_tools()
_NO_COMPILER = (
    "it is built on Linux and macOS only"
    if flock is None
    else "no C++ compiler was found (CXX, which names one program, or else c++ or g++ on PATH)"
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
_failures: dict[str, str] = {}  # part -> reason: what torch.compile watches
_warned: set[str] = set()


def missing(part: str) -> str | None:
    """What "cpu" or "cuda" lacks to be built: a tool, or a build of torch; None if nothing."""
    if part not in PARTS:
        return f"{part} is neither CPU nor CUDA"
    return _NO_COMPILER or (_NO_CUDA if part == "cuda" else None)


def obstacle(part: str) -> str | None:
    """Why "cpu" or "cuda" cannot run: what is missing, or how it failed; None if nothing is known.

    Builds and loads nothing. What the cache remembers is not looked up while torch.compile traces.
    """
    lacks = missing(part)
    if lacks is not None:
        return lacks
    if not torch.compiler.is_compiling():
        _recall(part)
    return _failures.get("cpu") or _failures.get(part)


def warn_of(reason: str) -> None:
    """Say once per process and reason why ops run on torch where the extension would be the faster one."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"hsta_fast runs on torch without its C++ extension: {reason}", stacklevel=3)


def usable(part: str, impl: str) -> bool:
    """Load a part for an op that runs: False, with a warning, where that fails and `impl` is "auto".

    Raises:
        BuildError: it fails and `impl` is "extension".
    """
    try:
        load(part)
    except BuildError:
        if impl == "extension":
            raise
        warn_of(str(obstacle(part)))
        return False
    return True


def load(part: str, *, again: bool = False) -> Path:
    """Load "cpu" or "cuda", building what the cache does not hold; returns the part's library.

    Args:
        part: "cpu" or "cuda".
        again: try again what failed before.

    Raises:
        BuildError: something is missing, the build or the loading fails, or failed before.
    """
    lacks = missing(part)
    if lacks is not None:
        raise BuildError(f"the extension cannot be built: {lacks}")
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
    """Look whether a build has failed before under the same key; once, for after that `load` knows."""
    with _mutex:
        for needed in _NEEDS[part]:
            library = _plan(needed).library
            known = needed in _libraries or needed in _failures or library.exists()
            if not known and (error := _failed_before(library)):
                _remember(needed, error)


def _remember(part: str, error: BuildError) -> None:
    _failures[part] = f"{error} (`hsta-fast build` tries again)"


class _Plan(NamedTuple):
    recipe: toolchain.Recipe
    library: Path


@functools.cache
def _plan(part: str) -> _Plan:
    """How a part is built, and its place in the cache: named after a hash of all that decides on it."""
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
    return _Plan(recipe, _cache() / f"hsta_fast-{part}-{digest.hexdigest()[:16]}.so")


def kept(library: Path) -> bool:
    """Whether other processes will find the library: not where the cache cannot be written."""
    return library.parent == _cache()


def _load(part: str, again: bool) -> Path:
    recipe, library = _plan(part)
    if _settled(library, again):
        return library
    if not _writable(library.parent):
        library = _private_folder(library.parent) / library.name
    with library.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)  # given back by the system however this process ends
        if not _settled(library, again):  # by another process, meanwhile
            # What a process left that was killed while building.
            for litter in library.parent.glob(f".{library.stem}-*"):
                shutil.rmtree(litter, ignore_errors=True)
            _build(part, library, recipe)
    return library


def _settled(library: Path, again: bool) -> bool:
    """Whether the library is there and loads; raises BuildError where it failed before, unless `again`."""
    if _whole(library):
        try:
            torch.ops.load_library(library)
            return True
        except OSError:  # something that it needs has gone: built anew, it may find it elsewhere
            pass
    if not again and (error := _failed_before(library)):
        raise error
    return False


def _failed_before(library: Path) -> BuildError | None:
    log = library.with_suffix(".log")
    try:
        first, _, _ = log.read_text("utf-8", "replace").partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # of another user, as in a shared cache: there it is, all the same
        first = f"the extension could not be built before, and why cannot be read ({error.strerror})"
    return BuildError(f"{first}; see {log}", log) if first else None  # empty: killed before it was written


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _whole(library: Path) -> bool:
    """Whether the library is there as it was built: a damaged one would end the process when loaded."""
    try:
        return hashlib.sha256(library.read_bytes()).digest() == _digest_of(library).read_bytes()
    except OSError:
        return False


def _build(part: str, library: Path, recipe: toolchain.Recipe) -> None:
    """Compile into a folder of its own, load, move into place: the library is there whole, or not at all."""
    start = time.perf_counter()
    long = ": some minutes" if part == "cuda" else ""
    print(f"hsta_fast: building {library}, once{long} ... ", end="", file=sys.stderr, flush=True)
    log = library.with_suffix(".log")
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=f".{library.stem}-") as work:
        did = "built"
        try:
            built = toolchain.make(recipe, Path(work))
            did = "loaded"
            torch.ops.load_library(built)
        except (toolchain.ToolError, OSError) as error:
            print("failed", file=sys.stderr)
            tools = " and ".join(dict.fromkeys(command[0] for command in recipe.compile.values()))
            summary = f"the extension's {part.upper()} part could not be {did} with {tools}"
            # Of a library that does not load torch gives the path, and the loader's reason as the cause.
            said = f"{error}\n{error.__cause__}" if error.__cause__ else str(error)
            try:
                log.write_text(f"{summary}\n{said}\n", "utf-8")
            except OSError:
                print(said, file=sys.stderr)
                raise BuildError(f"{summary}; its log {log} cannot be written") from error
            raise BuildError(f"{summary}; see {log}", log) from error
        with built.open("rb") as file:
            os.fsync(file.fileno())
        digest = Path(work) / "digest"
        digest.write_bytes(hashlib.sha256(built.read_bytes()).digest())
        digest.replace(_digest_of(library))
        built.replace(library)
    log.unlink(missing_ok=True)  # of an earlier failure
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


def _cache() -> Path:
    if named := os.environ.get("HSTA_FAST_CACHE"):
        return Path(os.path.expanduser(named)).absolute()
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home is known
        home = Path(tempfile.gettempdir())
    return (home / "hsta_fast").absolute()


@functools.cache
def _private_folder(wanted: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hsta_fast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"{wanted} cannot be written: the extension is built for this process alone "
        "(HSTA_FAST_CACHE names another folder)",
        stacklevel=4,
    )
    return folder


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
