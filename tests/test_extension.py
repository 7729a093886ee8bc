"""The build of the extension: two at once, killed, without a place to write, a compiler, or a good one."""

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
from torch.utils.cpp_extension import include_paths, library_paths

from hsta_fast import extension

from .compiler import needs_compiler

ROOT = Path(__file__).parent.parent
# Loads an extension of one small file, and says where it is.
LOAD = (
    "import sys, hsta_fast.extension as e; from pathlib import Path\n"
    "e.SOURCES = Path(sys.argv[1]); print(e.load())"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A csrc that compiles in a moment."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    return folder


def start(code: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, **environment}
    return subprocess.Popen(command, text=True, env=env, cwd=ROOT, start_new_session=True, **pipes)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """(stdout, stderr) of a process that must succeed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


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
    """A compiler that says when it starts compiling, and takes its time until the file `go` is there."""
    script = folder / "slow++"
    real = shutil.which("c++") or shutil.which("g++")
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *one.cpp*) touch {folder}/started\n'
        f'while [ ! -e {folder}/go ]; do sleep 0.05; done;; esac\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    return script


@needs_compiler
def test_a_killed_build_leaves_nothing_in_the_way(sources: Path, tmp_path: Path) -> None:
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
    if os.geteuid() == 0:  # whom no permission stops: a file stands where the folder would be
        locked.write_text("")
        locked = locked / "cache"
    else:
        locked.mkdir(mode=0o555)
    library, err = finish(start(LOAD, sources, HSTA_FAST_CACHE=str(locked)))
    assert err.count("Warning") == 1 and f"{locked} cannot be written" in err
    assert not Path(library).exists()  # the folder went with its process


@needs_compiler
def test_a_full_cache_needs_no_writing(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    library, _ = finish(start(LOAD, sources, HSTA_FAST_CACHE=str(cache)))
    code = LOAD.replace("e.SOURCES =", "e._writable = lambda _: False; e.SOURCES =")
    assert finish(start(code, sources, HSTA_FAST_CACHE=str(cache))) == (library, "")


@needs_compiler
@pytest.mark.parametrize("left", [b"", b"garbage", None])
def test_a_damaged_library_is_built_anew(sources: Path, tmp_path: Path, left: bytes | None) -> None:
    """Loading a truncated one would end the process."""
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
    assert extension._cache() == Path(tempfile.gettempdir()) / "hsta_fast"


def test_the_cuda_binding_implements_what_the_schemas_name() -> None:
    """No build here joins the two: the CUDA part needs a CUDA build of torch."""
    named = set(re.findall(r'm\.def\(\s*"(\w+)\(', (extension.SOURCES / "schemas.cpp").read_text()))
    for binding in extension.SOURCES.glob("*_cuda.cpp"):
        implemented = re.findall(r'm\.impl\(\s*"(\w+)"', binding.read_text())
        assert implemented and set(implemented) <= named


@needs_compiler
def test_a_compiler_that_fails_is_an_error_that_names_its_log(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cpp").write_text("this is no C++\n")
    process = start(LOAD, sources, HSTA_FAST_CACHE=str(tmp_path / "cache"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("hsta_fast.extension.BuildError: the extension could not be built")
    assert "this is no C++" in Path(last.split("see ")[1]).read_text()
    assert not list((tmp_path / "cache").glob("*.so"))


@needs_compiler
@pytest.mark.parametrize("answers", [True, False])
def test_a_program_that_is_no_compiler(sources: Path, tmp_path: Path, answers: bool) -> None:
    fake = tmp_path / "fake++"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\nexit 1\n' if answers else "#!/bin/sh\nexit 1\n"
    )
    fake.chmod(0o755)
    process = start(LOAD, sources, HSTA_FAST_CACHE=str(tmp_path / "cache"), CXX=str(fake))
    _, err = process.communicate(timeout=300)
    assert "BuildError" in err.strip().splitlines()[-1]


@needs_compiler
def test_the_key_follows_sources_flags_and_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, compiler = [sources / "one.cpp"], str(extension.find_tools().compiler)
    keys = [extension._key(one, compiler, None, [])]
    assert extension._key(one, compiler, None, []) == keys[0]
    keys.append(extension._key(one, compiler, None, ["-gencode=x"]))
    keys.append(extension._key(one, "/bin/sh", None, []))
    monkeypatch.setattr(extension, "FLAGS", ("-O0",))
    keys.append(extension._key(one, compiler, None, []))
    (sources / "one.cpp").write_text("")
    keys.append(extension._key(one, compiler, None, []))
    monkeypatch.setattr("torch.__version__", "0.0")
    keys.append(extension._key(one, compiler, None, []))
    assert len(set(keys)) == len(keys)


def test_build_says_what_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['hsta-fast', 'build']; from hsta_fast.cli import main; main()"
    process = start(code, HSTA_FAST_CACHE=str(tmp_path), PATH="/nowhere", CXX="")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: the extension cannot be built: no C++ compiler was found (CXX, ")
    assert err.count("\n") == 1


def test_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CXX goes before PATH, CUDA_HOME before an nvcc on PATH; ninja may stand beside the interpreter."""
    for name in ("c++", "g++", "my++", "nvcc", "bin/nvcc", "ninja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = (tmp_path / "c++", tmp_path / "ninja", tmp_path / "nvcc")
    assert extension.find_tools() == tuple(map(str, expected))
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "ninja").unlink()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "scripts"))
    assert extension.find_tools() == (str(tmp_path / "my++"), None, str(tmp_path / "bin/nvcc"))
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    for none in ("no++", "my++ -pipe", "'x", " "):
        monkeypatch.setenv("CXX", none)
        assert extension.find_tools() == (None, None, None)


def test_gencode(tmp_path: Path) -> None:
    """Architectures that nvcc does not know are left out; 90a only from release 12 on."""
    nvcc = tmp_path / "nvcc"
    for release, known, expected in (
        ("13.0", "sm_80 sm_90 sm_100 sm_120", ["80", "90a", "100", "120"]),
        ("12.4", "sm_80 sm_90", ["80", "90a"]),
        ("11.8", "sm_80 sm_90", ["80", "90"]),
    ):
        nvcc.write_text(
            f'#!/bin/sh\n[ "$1" = --list-gpu-code ] && echo "{known}" || echo "release {release}, V"\n'
        )
        nvcc.chmod(0o755)
        flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in expected]
        assert extension.gencode(str(nvcc)) == [*flags, "-gencode=arch=compute_80,code=compute_80"]


def test_a_wheel_holds_the_sources(tmp_path: Path) -> None:
    """Built from a copy, as `pip wheel` leaves its build folder behind."""
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "data", "runs", "__pycache__")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "-w", str(tmp_path), str(copy)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    held = {
        Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hsta_fast/csrc/")
    }
    assert held == {
        path.name for path in (ROOT / "csrc").iterdir() if path.suffix in (".cpp", ".h", ".cu", ".cuh")
    }


@needs_compiler
@pytest.mark.parametrize(
    ("driver", "target"),
    [
        ("csrc_patches.cpp", "native"),
        ("csrc_patches.cpp", "x86-64"),
        pytest.param("csrc_attention_pool.cpp", "native", marks=pytest.mark.full),
        ("csrc_attention_pool.cpp", "x86-64"),
    ],
)
def test_under_the_sanitizers(tmp_path: Path, driver: str, target: str) -> None:
    """With the processor's own instructions, and without them where these are those of AVX-512."""
    if target == "x86-64" and platform.machine() != "x86_64":
        target = "native"
    flags = [flag for flag in extension.FLAGS if flag not in ("-O3", "-march=native", "-fopenmp")]
    strict = [
        "-O0",
        "-g",
        f"-march={target}",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    program = tmp_path / "driver"
    compiler = shlex.split(str(extension.find_tools().compiler))
    includes = [word for folder in include_paths() for word in ("-isystem", folder)]
    libraries = [word for folder in library_paths() for word in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    files = ["-I", str(ROOT / "csrc"), str(ROOT / "tests" / driver), "-o", str(program)]
    libraries += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"] if "pool" in driver else []
    subprocess.run([*compiler, *flags, *strict, *includes, *files, *libraries], check=True, timeout=300)
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "0 failures\n"), ran.stdout[:1000] + ran.stderr[:3000]


@needs_compiler
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc").glob("*.cpp")))
def test_no_warnings(source: str) -> None:
    compiler = shlex.split(str(extension.find_tools().compiler))
    includes = [word for folder in include_paths() for word in ("-isystem", folder)]
    command = [
        *compiler,
        *extension.FLAGS,
        "-Werror",
        "-fsyntax-only",
        *includes,
        str(ROOT / "csrc" / source),
    ]
    subprocess.run(command, check=True, timeout=300)
