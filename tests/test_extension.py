"""The build of the extension: concurrent, killed, without a writable cache, a compiler or a working one."""

import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from hsta_fast import extension, toolchain
from hsta_fast.cpu_speed import has_bfloat16_instruction

from .compiler import LOAD, finish, needs_compiler, script, start, write_nvcc, write_sources
from .forked import ROOT


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "csrc")


@needs_compiler
def test_two_processes_at_once_build_once(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [start(LOAD, sources, HSTA_FAST_CACHE=str(cache)) for _ in range(2)]
    ended = [finish(process) for process in both]
    assert ended[0][0] == ended[1][0] and Path(ended[0][0]).parent == cache
    assert sorted(err.count("hsta_fast: building") for _, err in ended) == [0, 1]
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    again = finish(start(LOAD, sources, HSTA_FAST_CACHE=str(cache)))
    assert again == (ended[0][0], "")


def slow_compiler(folder: Path) -> Path:
    """A compiler that signals when it starts compiling, and waits until the file `go` exists."""
    real = shutil.which("c++") or shutil.which("g++")
    return script(
        folder / "slow++",
        f'case "$*" in *one.cpp*) touch {folder}/started\n'
        f'while [ ! -e {folder}/go ]; do sleep 0.05; done;; esac\nexec {real} "$@"',
    )


@needs_compiler
def test_a_killed_build_does_not_block_the_next(sources: Path, tmp_path: Path) -> None:
    environment = {"HSTA_FAST_CACHE": str(tmp_path / "cache"), "CXX": str(slow_compiler(tmp_path))}
    killed = start(LOAD, sources, **environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    cache = tmp_path / "cache"
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1 and not list(cache.glob("*.so"))
    (tmp_path / "go").touch()
    library, _ = finish(start(LOAD, sources, **environment))
    left = {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}
    assert left == {Path(library).name, Path(library).with_suffix(".sha256").name}


@needs_compiler
def test_a_cache_that_cannot_be_written(sources: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    if os.geteuid() == 0:  # root ignores permissions: a file blocks the folder's path
        locked.write_text("")
        locked = locked / "cache"
    else:
        locked.mkdir(mode=0o555)
    library, err = finish(start(LOAD, sources, HSTA_FAST_CACHE=str(locked)))
    assert err.count("Warning") == 1 and f"{locked} cannot be written" in err
    assert not Path(library).exists()  # the folder was deleted with its process


@needs_compiler
def test_any_letters_in_the_paths(tmp_path: Path) -> None:
    """Of torch, the sources and the cache."""
    odd = tmp_path / """a b'c"d$HOME`,é"""
    (odd / "site").mkdir(parents=True)
    (odd / "site/torch").symlink_to(toolchain._TORCH)
    sources = write_sources(odd / "csrc")
    (sources / "one.cpp").write_text("#include <c10/macros/Macros.h>\n")
    environment = {"HSTA_FAST_CACHE": str(odd / "cache"), "PYTHONPATH": f"{odd / 'site'}:{ROOT}"}
    command = [sys.executable, "-c", f"{LOAD}; print(e.torch.__file__)", str(sources)]  # not forked
    ran = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    library, torch_file = ran.stdout.splitlines()
    assert Path(library).parent == odd / "cache" and Path(torch_file).parent == odd / "site/torch"
    assert "Warning" not in ran.stderr


@needs_compiler
def test_a_cached_library_needs_no_write_access(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    library, _ = finish(start(LOAD, sources, HSTA_FAST_CACHE=str(cache)))
    code = LOAD.replace("e.SOURCES =", "e._writable = e._build_lock = None; e.SOURCES =")
    assert finish(start(code, sources, HSTA_FAST_CACHE=str(cache))) == (library, "")


@needs_compiler
@pytest.mark.parametrize("left", [b"", b"garbage", None])
def test_a_damaged_library_is_rebuilt(sources: Path, tmp_path: Path, left: bytes | None) -> None:
    """Loading a truncated one would crash the process."""
    cache = str(tmp_path / "cache")
    library, _ = finish(start(LOAD, sources, HSTA_FAST_CACHE=cache))
    whole = Path(library).read_bytes()
    Path(library).write_bytes(whole[: len(whole) // 2] if left is None else left)
    again, err = finish(start(LOAD, sources, HSTA_FAST_CACHE=cache))
    assert again == library and "building" in err


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for name in ("HSTA_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert extension.cache_folder() == Path(tempfile.gettempdir()) / "hsta_fast"


def test_the_cuda_binding_implements_what_the_schemas_name() -> None:
    """A CPU build of torch cannot check this by a build: the CUDA part needs a CUDA build of torch."""
    named = set(re.findall(r'm\.def\(\s*"(\w+)\(', (extension.SOURCES / "schemas.cpp").read_text()))
    for binding in extension.SOURCES.glob("*_cuda.cpp"):
        implemented = re.findall(r'm\.impl\(\s*"(\w+)"', binding.read_text())
        assert implemented and set(implemented) <= named


@needs_compiler
def test_the_key_follows_sources_flags_and_tools(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has its own."""
    monkeypatch.setattr(extension, "SOURCES", sources)
    nvcc = write_nvcc(tmp_path / "nvcc")
    before: dict[str, str] = {}

    def tools(compiler: object, nvcc: object) -> None:
        monkeypatch.setattr(extension, "_TOOLS", toolchain.Tools(str(compiler), str(nvcc)))

    def keys() -> dict[str, str]:
        return {part: extension._plan.__wrapped__(part).library.name for part in extension.PARTS}

    def changed() -> list[str]:
        nonlocal before
        after = keys()
        parts = [part for part in extension.PARTS if after[part] != before[part]]
        before = after
        return parts

    tools(shutil.which("c++"), nvcc)
    before = keys()
    assert changed() == []
    for name, parts in {"one.cpp": ["cpu"], "two.cu": ["cuda"], "two_cuda.cpp": ["cuda"]}.items():
        (sources / name).write_text("")
        assert changed() == parts
    (sources / "shared.h").write_text("")
    assert changed() == ["cpu", "cuda"]
    write_nvcc(nvcc, release=100)
    assert changed() == ["cuda"]
    write_nvcc(nvcc, release=100, libraries=(tmp_path,))
    (tmp_path / "libcudart.so.100").touch()
    assert changed() == ["cuda"]
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-allow-unsupported-compiler")
    assert changed() == ["cuda"]
    tools("/bin/sh", nvcc)
    assert changed() == ["cpu", "cuda"]
    monkeypatch.setattr(toolchain, "FLAGS", ("-O0",))
    assert changed() == ["cpu", "cuda"]
    monkeypatch.setattr("torch.__version__", "0.0")
    assert changed() == ["cpu", "cuda"]


def test_build_says_what_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['hsta-fast', 'build']; from hsta_fast.cli import main; main()"
    process = start(code, HSTA_FAST_CACHE=str(tmp_path), PATH="/nowhere", CXX="")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: the extension cannot be built: no C++ compiler was found (CXX, ")
    assert err.count("\n") == 1


def test_a_wheel_holds_the_sources_and_the_template(tmp_path: Path) -> None:
    """Built from a copy, as `pip wheel` leaves its build folder behind."""
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "data", "runs", "__pycache__")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "-w", str(tmp_path), str(copy)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {Path(name).name for name in names if name.startswith("hsta_fast/csrc/")}
    assert held == {
        path.name for path in (ROOT / "csrc").iterdir() if path.suffix in (".cpp", ".h", ".cu", ".cuh")
    }
    assert "hsta_fast/protocol/report.html.j2" in names


needs_bfloat16 = pytest.mark.skipif(not has_bfloat16_instruction(), reason="the CPU lacks AVX512_BF16")
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="the CPU lacks AVX-512 VNNI")


@needs_compiler
@pytest.mark.parametrize(
    ("driver", "target"),
    [
        ("csrc_patches.cpp", "native"),
        ("csrc_patches.cpp", "x86-64"),
        pytest.param("csrc_attention_pool.cpp", "native", marks=pytest.mark.full),
        ("csrc_attention_pool.cpp", "x86-64"),
        ("csrc_space_time_attention.cpp", "native"),
        ("csrc_space_time_attention.cpp", "x86-64"),
        pytest.param("csrc_int8_linear.cpp", "native", marks=[pytest.mark.full, needs_vnni]),
        pytest.param("csrc_bfloat16.cpp", "native", marks=[pytest.mark.full, needs_bfloat16]),
    ],
)
def test_under_the_sanitizers(tmp_path: Path, driver: str, target: str) -> None:
    """With the processor's own instructions, and without AVX-512 if it has that."""
    if target == "x86-64" and platform.machine() != "x86_64":
        target = "native"
    flags = [flag for flag in toolchain.FLAGS if flag not in ("-O3", "-march=native", "-fopenmp")]
    strict = [
        "-O0",  # and without -g, which doubles the time of the compiler: a report names functions, not lines
        f"-march={target}",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    program = tmp_path / "driver"
    compiler = shlex.split(str(toolchain.find_tools().compiler))
    includes = [word for folder in include_paths() for word in ("-isystem", folder)]
    libraries = [word for folder in library_paths() for word in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    files = ["-I", str(ROOT / "csrc"), str(ROOT / "tests" / driver), "-o", str(program)]
    if driver != "csrc_patches.cpp":
        libraries += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([*compiler, *flags, *strict, *includes, *files, *libraries], check=True, timeout=300)
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "0 failures\n"), ran.stdout[:1000] + ran.stderr[:3000]


@needs_compiler
def test_no_warnings(tmp_path: Path) -> None:
    """All sources in one unit, which reads torch's headers once; each in a namespace of its own."""
    lines = [f'#include "{path}"' for path in sorted((ROOT / "csrc").glob("*.h"))]
    for path in sorted((ROOT / "csrc").glob("*.cpp")):
        own = f"of_{path.stem}"
        lines += [f"namespace {own} {{ using namespace hsta_fast; }}", f"#define hsta_fast {own}"]
        lines += [f'#include "{path}"', "#undef hsta_fast"]
    (tmp_path / "all.cpp").write_text("\n".join([*lines, ""]))
    compiler = shlex.split(str(toolchain.find_tools().compiler))
    includes = [word for folder in include_paths() for word in ("-isystem", folder)]
    command = [*compiler, *toolchain.FLAGS, "-Werror", "-fsyntax-only", *includes, str(tmp_path / "all.cpp")]
    subprocess.run(command, check=True, timeout=300)
