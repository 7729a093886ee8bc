"""Shared by tests of the extension's build: small sources, failing compilers, separate processes.

Tests that build the extension are skipped if a tool is missing, and only then: a failing build fails them.
"""

import os
import subprocess
from pathlib import Path

import pytest

from hsta_fast.extension import missing

from .forked import Forked
from .tolerance import DEVICE

needs_compiler = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
needs_extension = pytest.mark.skipif(missing(DEVICE) is not None, reason=str(missing(DEVICE)))

# Makes torch look like a CUDA build.
WITH_CUDA = "import torch; torch.version.cuda = '99.0'\n"
# Loads a part from the sources in a folder, and prints the path of the library.
LOAD = (
    "import sys, hsta_fast.extension as e; from pathlib import Path\n"
    "e.SOURCES = Path(sys.argv[1]); print(e.load('cpu'))"
)
LOAD_CUDA = WITH_CUDA + LOAD.replace("'cpu'", "'cuda'")


def start(code: str, *args: object, preload: str = "", **environment: str) -> Forked:
    """Start a process that runs `code`."""
    return Forked(code, args, environment={**os.environ, **environment}, preload=preload)


def finish(process: Forked, status: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a process that must end with this status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out.strip(), err


def script(path: Path, body: str) -> Path:
    """Write a shell script that replaces a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def write_sources(folder: Path) -> Path:
    """A small csrc that compiles fast: a CPU part, and a CUDA part that calls the CUDA runtime."""
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    (folder / "two.cu").write_text(
        'extern "C" int cudart_release();\nextern "C" int two() { return cudart_release(); }\n'
    )
    (folder / "two_cuda.cpp").write_text('extern "C" int three() { return 3; }\n')
    return folder


def write_cudart(file: Path, release: int, soname: str | None = None) -> Path:
    """Build a CUDA runtime with one function, which returns its release."""
    file.parent.mkdir(parents=True, exist_ok=True)
    source = file.parent / "cudart.cpp"
    source.write_text(f'extern "C" int cudart_release() {{ return {release}; }}\n')
    name = f"-Wl,-soname,{soname or f'libcudart.so.{release}'}"
    subprocess.run(["c++", "-shared", "-fPIC", name, str(source), "-o", str(file)], check=True)
    source.unlink()
    return file


def write_nvcc(
    path: Path, *, release: int = 99, libraries: tuple[Path, ...] = (), compiling: str = ""
) -> Path:
    """A fake nvcc: prints what nvcc prints, compiles as C++; `compiling` is shell code to run before that."""
    flags = " ".join(f'"-L{folder}"' for folder in libraries)
    return script(
        path,
        f'case "$1" in\n'
        f'--version) echo "Cuda compilation tools, release {release}.0, V{release}.0.1"; exit;;\n'
        f'--list-gpu-code) echo "sm_80 sm_90"; exit;;\n'
        f"--dryrun) echo '#$ LIBRARIES=  {flags}' >&2; exit;;\n"
        f"esac\n{compiling}\n"
        'while [ "$1" != -c ]; do shift; done\nexec c++ -fPIC -x c++ -c "$2" -o "$4"',
    )
