"""The C++ and CUDA extension: built from csrc/ on first use, kept in a cache, loaded once per process.

Nothing is compiled or loaded by an import. The code is built for the processor at hand (-march=native): it is
never carried to another machine, every loop is vectorised without variants and their dispatch, and the cache
key holds the processor's instruction sets, so that a home folder shared by different machines holds one each.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = Path(__file__).parent / "csrc"
# Vectors are passed to nobody outside: how, where the processor has none of their size, does not matter.
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-Wall", "-Wextra", "-Wno-psabi")
_CUDA_FLAGS = ("-O3", "-std=c++20", "--threads=4")
_ARCHITECTURES = (80, 90, 100, 120)  # a build for 80 also runs on 86 and 89, one for 100 on 103, 120 on 121


class BuildError(RuntimeError):
    """The compiler is there and failed; the message names its log."""


class Tools(NamedTuple):
    """Where the compilers are; None for one that is not there."""

    compiler: str | None
    ninja: str | None
    nvcc: str | None


def find_tools() -> Tools:
    """The compilers that the environment names, CXX and CUDA_HOME before what is on PATH.

    CXX is one program, as torch takes it: not one with arguments.
    """
    wished = os.environ.get("CXX")
    compiler = shutil.which(wished) if wished else shutil.which("c++") or shutil.which("g++")
    # pip puts ninja beside the interpreter, which need not be on PATH.
    ninja = shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")
    return Tools(compiler, ninja, nvcc or (None if home else shutil.which("/usr/local/cuda/bin/nvcc")))


# Looked up once: torch.compile then sees constants.
_TOOLS = find_tools()
_NO_COMPILER = (
    "no C++ compiler was found (CXX, which names one program, or else c++ or g++ on PATH)"
    if _TOOLS.compiler is None
    else "ninja was not found (pip install ninja)"
    if _TOOLS.ninja is None
    else None
)
_NO_CUDA = (
    f"torch {torch.__version__} is not built for CUDA"
    if torch.version.cuda is None
    else "nvcc was not found (CUDA_HOME, or nvcc on PATH)"
    if _TOOLS.nvcc is None
    else None
)


def obstacle(device_type: str) -> str | None:
    """What the extension lacks to run on "cpu" or "cuda"; None if nothing. Builds and loads nothing."""
    if device_type not in ("cpu", "cuda"):
        return f"{device_type} is neither CPU nor CUDA"
    return _NO_COMPILER or (_NO_CUDA if device_type == "cuda" else None)


_mutex = threading.Lock()
_library: Path | None = None
_warned = False


def warn_of(reason: str) -> None:
    """Say once per process why ops run on torch where the extension would be the faster one."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"hsta_fast runs on torch without its C++ extension: {reason}", stacklevel=3)


def load() -> Path:
    """Load the extension, building it before if the cache does not hold it; returns the library's path.

    Raises:
        BuildError: a compiler is missing, or fails.
    """
    global _library
    with _mutex:
        if _library is None:
            if _NO_COMPILER is not None:
                raise BuildError(f"the extension cannot be built: {_NO_COMPILER}")
            _library = _load()
        return _library


def _load() -> Path:
    compiler, nvcc = str(_TOOLS.compiler), None if _NO_CUDA else _TOOLS.nvcc
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".cu", ".cuh"))
    if nvcc is None:
        sources = [path for path in sources if path.suffix != ".cu" and not path.stem.endswith("_cuda")]
    cuda_flags = [] if nvcc is None else [*_CUDA_FLAGS, *gencode(nvcc)]
    key = _key(sources, compiler, nvcc, cuda_flags)
    cache = _cache()
    library = cache / f"hsta_fast-{key}.so"
    if not _whole(library) and not _writable(cache):
        wanted, cache = cache, Path(tempfile.mkdtemp(prefix="hsta_fast-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        warnings.warn(
            f"{wanted} cannot be written: the extension is built for this process alone "
            "(HSTA_FAST_CACHE names another folder)",
            stacklevel=4,
        )
        library = cache / library.name
    if not _whole(library):
        with (cache / f".{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system however this process ends
            if not _whole(library):
                for litter in cache.glob(f".{key}-*"):  # of a process that was killed while building
                    shutil.rmtree(litter, ignore_errors=True)
                _build(library, sources, compiler, cuda_flags)
    torch.ops.load_library(library)
    return library


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _whole(library: Path) -> bool:
    """Whether the library is there as it was built: a damaged one would end the process when loaded."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == _digest_of(library).read_text()
    except OSError:
        return False


def _build(library: Path, sources: list[Path], compiler: str, cuda_flags: list[str]) -> None:
    """Compile into a folder of its own and move the library into place: it is there whole, or not at all."""
    start = time.perf_counter()
    with_cuda = ", with CUDA: some minutes" if cuda_flags else ""
    print(f"hsta_fast: building {library}, once{with_cuda} ... ", end="", file=sys.stderr, flush=True)
    key = library.stem.removeprefix("hsta_fast-")
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=f".{key}-") as work, _environment(compiler):
        from torch.utils import cpp_extension

        try:
            # Loads what it built, too: a library that does not load is never moved into place.
            cpp_extension.load(
                name="hsta_fast_ops",
                sources=[str(path) for path in sources if path.suffix in (".cpp", ".cu")],
                extra_cflags=list(FLAGS),
                extra_cuda_cflags=cuda_flags,
                build_directory=work,
                with_cuda=bool(cuda_flags),
                is_python_module=False,
            )
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print("failed", file=sys.stderr)
            log = library.with_suffix(".log")
            log.write_text(f"{error}\n")
            raise BuildError(f"the extension could not be built with {compiler}; see {log}") from error
        (built,) = Path(work).glob("*.so")
        with built.open("rb") as file:
            os.fsync(file.fileno())
        digest = Path(work) / "digest"
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        digest.replace(_digest_of(library))
        built.replace(library)
    library.with_suffix(".log").unlink(missing_ok=True)  # of an earlier failure
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def _environment(compiler: str) -> Iterator[None]:
    """What cpp_extension reads from the environment: the compiler, and ninja on PATH."""
    before = {name: os.environ.get(name) for name in ("CXX", "PATH")}
    os.environ["CXX"] = compiler
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(str(_TOOLS.ninja)), before["PATH"] or os.defpath])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def gencode(nvcc: str) -> list[str]:
    """The -gencode flags for every architecture that this nvcc knows, Hopper with its own instructions."""
    known = _output(nvcc, "--list-gpu-code").split()
    release = re.search(r"release (\d+)", _output(nvcc, "--version"))
    has_90a = release is not None and int(release[1]) >= 12
    names = [f"{n}a" if n == 90 and has_90a else str(n) for n in _ARCHITECTURES if f"sm_{n}" in known]
    # And what the driver can compile for any other device from sm_80 on.
    names_and_codes = [(name, f"sm_{name}") for name in names] + [("80", "compute_80")]
    return [f"-gencode=arch=compute_{name},code={code}" for name, code in names_and_codes]


def _key(sources: list[Path], compiler: str, nvcc: str | None, cuda_flags: list[str]) -> str:
    """A hash of all that decides what the library holds."""
    facts = [torch.__version__, *FLAGS, *cuda_flags]
    for tool in (compiler, *([nvcc] if nvcc else ())):
        facts += [tool, _output(tool, "--version")]
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts += sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*", cpuinfo, re.M)))
    digest = hashlib.sha256("\0".join(facts).encode())
    for path in sources:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    if named := os.environ.get("HSTA_FAST_CACHE"):
        return Path(os.path.expanduser(named)).absolute()
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home is known
        home = Path(tempfile.gettempdir())
    return (home / "hsta_fast").absolute()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
