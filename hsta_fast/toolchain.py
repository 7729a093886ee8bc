"""The installed compilers, and the commands that build a library from C++ and CUDA sources.

Used instead of torch.utils.cpp_extension for three reasons: that one needs ninja; it takes the folder above
nvcc for CUDA's, even if nvcc is a script; it links -lcudart, which torch's wheels lack under that name.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .threads import thread_pool

# -Wno-psabi: no vector is passed to code outside, so how it would be passed does not matter.
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-Wall", "-Wextra", "-Wno-psabi")
_CUDA_FLAGS = ("-O3", "-std=c++20", "--threads=4", "-Xcompiler=-fPIC")
_ARCHITECTURES = (80, 90, 100, 120)  # a build for 80 also runs on 86 and 89, one for 100 on 103, 120 on 121
# On macOS the linker would report the symbols of torch's OpenMP, which is not linked, as missing.
_SHARED = ("-shared", *(("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()))
_TORCH = Path(torch.__file__).absolute().parent


class ToolError(RuntimeError):
    """Commands failed. The message holds them and what they printed."""


class Tools(NamedTuple):
    """Paths of the compilers; None for one that was not found."""

    compiler: str | None
    nvcc: str | None


class Recipe(NamedTuple):
    """How to build a library: the sources, and the command for each suffix and for linking."""

    sources: list[Path]
    compile: dict[str, list[str]]
    link: list[str]


def find_tools() -> Tools:
    """Find the compilers: first those named by CXX and CUDA_HOME, then those on PATH.

    CXX is the name of one program, without arguments.
    """
    cxx = os.environ.get("CXX")
    compiler = _which(cxx) if cxx else _which("c++") or _which("g++")
    home = _cuda_home()
    nvcc = _which(f"{home}/bin/nvcc") if home else _which("nvcc")
    return Tools(compiler, nvcc or (None if home else _which("/usr/local/cuda/bin/nvcc")))


def _which(program: str) -> str | None:
    """The absolute path of a program: it runs in another folder."""
    found = shutil.which(program)
    return found and os.path.abspath(found)


def cpp_recipe(sources: list[Path], compiler: str) -> Recipe:
    """C++ against torch. OpenMP is not linked: torch has loaded one, and two would not share threads."""
    return Recipe(sources, {".cpp": [compiler, *FLAGS]}, [compiler, "-lc10", "-ltorch_cpu"])


def cuda_recipe(sources: list[Path], compiler: str, nvcc: str) -> Recipe:
    """CUDA and its bindings, for our architectures that nvcc knows; nvcc's host compiler is `compiler`."""
    nvcc_command = [nvcc, f"-ccbin={compiler}", *_CUDA_FLAGS, *gencode(nvcc)]
    # libtorch refers to the other libraries of this torch, including CUDA's.
    link = [compiler, "-Wl,--no-as-needed", "-lc10", "-ltorch", *link_cudart(nvcc)]
    return Recipe(sources, {".cpp": [compiler, *FLAGS], ".cu": nvcc_command}, link)


def facts(recipe: Recipe) -> list[str]:
    """Everything that the result of a recipe depends on except the sources: commands, versions, processor."""
    commands = [*recipe.compile.values(), recipe.link]
    found = [torch.__version__, *(word for command in commands for word in command)]
    found += [output(tool, "--version") for tool in dict.fromkeys(command[0] for command in commands)]
    if ".cu" in recipe.compile:
        found += [f"{name}={os.environ.get(name)}" for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")]
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return found + sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*", cpuinfo, re.M)))


def make(recipe: Recipe, folder: Path) -> Path:
    """Compile and link in `folder`; returns the library there. The sources are in one other folder.

    Raises:
        ToolError: a command fails.
    """
    # Names are relative to `folder`: nvcc passes them to a shell, which would expand a $ in one.
    (folder / "csrc").symlink_to(recipe.sources[0].parent.absolute())
    objects = [f"{path.name}.o" for path in recipe.sources]
    options = {".cpp": ["-fPIC", "-isystem", str(_TORCH / "include")], ".cu": []}
    compiling = [
        [*recipe.compile[path.suffix], *options[path.suffix], "-c", f"csrc/{path.name}", "-o", out]
        for path, out in zip(recipe.sources, objects, strict=True)
    ]
    _run(compiling, folder)
    compiler, *flags = recipe.link
    _run([[compiler, *_SHARED, *objects, "-o", "library.so", f"-L{_TORCH / 'lib'}", *flags]], folder)
    return folder / "library.so"


def _run(commands: Iterable[list[str]], folder: Path) -> None:
    def one(command: list[str]) -> str | None:
        try:
            ran = subprocess.run(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            return f"$ {shlex.join(command)}\n{error}\n"
        return f"$ {shlex.join(command)}\n{ran.stdout.decode(errors='replace')}" if ran.returncode else None

    with thread_pool() as pool:
        failed = [output for output in pool.map(one, commands) if output is not None]
    if failed:
        raise ToolError("\n".join(failed))


def gencode(nvcc: str) -> list[str]:
    """The -gencode flags for our architectures that this nvcc knows; Hopper as sm_90a if possible."""
    known = output(nvcc, "--list-gpu-code").split()
    has_90a = int(_release(nvcc) or 0) >= 12
    names = [f"{n}a" if n == 90 and has_90a else str(n) for n in _ARCHITECTURES if f"sm_{n}" in known]
    # And PTX, which the driver can compile for any other device from sm_80 on.
    names_and_codes = [(name, f"sm_{name}") for name in names] + [("80", "compute_80")]
    return [f"-gencode=arch=compute_{name},code={code}" for name, code in names_and_codes]


def link_cudart(nvcc: str) -> list[str]:
    """The flags that link the CUDA runtime of nvcc's own release, and a run path for the loader.

    It is passed as a file: -lcudart would look for libcudart.so, which torch's wheels lack.
    """
    release = _release(nvcc)
    for folder in _library_folders(nvcc):
        for file in sorted(folder.glob("libcudart.so*")):
            version = re.fullmatch(r"libcudart\.so(?:\.(\d+).*)?", file.resolve().name)
            if version and (release is None or version[1] in (None, release)):
                if "," in str(folder):  # where -Wl splits
                    return [str(file), "-Xlinker", "-rpath", "-Xlinker", str(folder)]
                return [str(file), f"-Wl,-rpath,{folder}"]
    return ["-lcudart"]  # the linker may find it in a system folder


def _library_folders(nvcc: str) -> Iterator[Path]:
    found = re.search(r"^#\$ LIBRARIES=(.*)", output(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
    for quoted, bare in re.findall(r'"-L([^"]+)"|-L(\S+)', found[1]) if found else ():
        yield Path(quoted or bare).resolve()
    machine = platform.machine()
    targets = [f"targets/{name}-linux/lib" for name in (machine, *(["sbsa"] if machine == "aarch64" else []))]
    if home := _cuda_home():
        yield from (Path(home) / name for name in ("lib64", *targets, "lib"))
    wheels = _TORCH.parent / "nvidia"
    yield from sorted(wheels.glob("cu[0-9]*/lib"))
    yield wheels / "cuda_runtime/lib"
    if conda := os.environ.get("CONDA_PREFIX"):
        yield from (Path(conda) / name for name in ("lib", *targets))


def _cuda_home() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return home and os.path.abspath(home)


def _release(nvcc: str) -> str | None:
    found = re.search(r"release (\d+)", output(nvcc, "--version"))
    return found[1] if found else None


def output(*command: str) -> str:
    """What a command prints; empty if it cannot be started."""
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except OSError:
        return ""
    return ran.stdout.decode(errors="replace")
