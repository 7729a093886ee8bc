"""A part of the extension that cannot be built or loaded: ops run on torch, one warning, no second try."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .compiler import (
    LOAD,
    LOAD_CUDA,
    WITH_CUDA,
    finish,
    needs_compiler,
    script,
    start,
    write_cudart,
    write_nvcc,
    write_sources,
)
from .forked import ROOT

pytestmark = needs_compiler

# The message of Apple's clang.
NO_OPENMP = (
    'case "$*" in *-fopenmp*) echo "clang: error: unsupported option \'-fopenmp\'" >&2; exit 1;; esac\n'
    'exec c++ "$@"'
)
BUILD = "; sys.argv = ['hsta-fast', 'build']; from hsta_fast.cli import main; main()"
# Every op, forward and backward, with impl="auto" and impl="torch": twice, first meeting the failure and then
# knowing of it. sys.argv: how to run it each time.
BOTH = """
import itertools, sys, torch, hsta_fast

def leaf(*shape):
    return torch.randn(shape, requires_grad=True)

def pool(impl, query, tokens, extra):
    return hsta_fast.attention_pool(query, tokens, extra=extra, impl=impl)

def embed(impl, video, weight, bias, cls_token, pos_embed):
    return hsta_fast.tubelet_embed(video, weight, bias, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.2],
                                   cls_token=cls_token, pos_embed=pos_embed, impl=impl)

def embed_floats(impl, video, weight, bias):
    return hsta_fast.tubelet_embed(video, weight, bias, impl=impl)

torch.manual_seed(0)
video = torch.randint(0, 256, (2, 3, 3, 17, 16), dtype=torch.uint8)
CASES = {
    pool: (leaf(2, 3, 16), leaf(2, 5, 16), leaf(2, 16)),
    embed: (video, leaf(4, 3, 2, 8, 8), leaf(4), leaf(1, 1, 4), leaf(1, 5, 4)),
    embed_floats: (leaf(2, 3, 3, 17, 16), leaf(4, 3, 2, 8, 8), leaf(4)),
}
for how, function, known in itertools.product(sys.argv[1:], CASES, (False, True)):
    tensors = CASES[function]
    if not known:
        hsta_fast.extension._failures.clear()
    call = torch.compile(function, fullgraph=True, backend="aot_eager") if how == "compiled" else function
    leaves = [x for x in tensors if x.requires_grad]
    came = []
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        for impl in ("auto", "torch"):
            out = (call if impl == "auto" else function)(impl, *tensors)
            came.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    eps = torch.finfo(torch.bfloat16 if how == "autocast" else torch.float32).eps
    for ours, plain in zip(*came, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=8 * eps * plain.abs().max().item())
for impl_of in (pool, embed):
    try:
        impl_of("extension", *CASES[impl_of])
    except (ValueError, hsta_fast.extension.BuildError) as error:
        print(type(error).__name__, error)
print(hsta_fast.info()["ops"]["cpu"]["attention_pool"])
"""


@pytest.mark.parametrize("how", [("eager", "autocast"), ("compiled",)])
def test_a_cpp_compiler_that_refuses_a_flag(how: tuple[str, ...], tmp_path: Path) -> None:
    """Correct values, whether the build fails before a trace, while a graph runs, or in another process."""
    environment = {
        "CXX": str(script(tmp_path / "clang++", NO_OPENMP)),
        "HSTA_FAST_CACHE": str(tmp_path / "cache"),
    }
    for first in (True, False):
        out, err = finish(start(BOTH, *how, **environment))
        assert err.count("hsta_fast: building") == int(first)
        assert err.count("Warning: hsta_fast runs on torch without its C++ extension: ") == 1
        assert "`hsta-fast build` tries again" in err
        *refused, choice = out.splitlines()
        (log,) = (tmp_path / "cache").glob("hsta_fast-cpu-*.log")
        assert len(refused) == 2 and all(f"see {log}" in line for line in refused)
        assert "'impl': 'torch'" in choice and f"see {log}" in choice
        assert "unsupported option '-fopenmp'" in log.read_text()


def test_an_explicit_impl_is_an_error_at_once(tmp_path: Path) -> None:
    """One line, also if nothing has failed before."""
    code = (
        "import torch, hsta_fast; x = torch.ones(1, 2, 8); hsta_fast.attention_pool(x, x, impl='extension')"
    )
    compiler = script(tmp_path / "clang++", NO_OPENMP)
    _, err = finish(start(code, CXX=str(compiler), HSTA_FAST_CACHE=str(tmp_path / "cache")), status=1)
    (log,) = (tmp_path / "cache").glob("*.log")
    expected = f"the extension's CPU part could not be built with {compiler}; see {log}"
    assert err.splitlines()[-1] == f"hsta_fast.extension.BuildError: {expected}"


@pytest.mark.parametrize(
    "body", ["printf '\\377'; exit 1", '[ "$1" = --version ] && exit 0\nexit 1', "exec c++ --version"]
)
def test_a_program_that_is_no_compiler(tmp_path: Path, body: str) -> None:
    sources, fake = write_sources(tmp_path / "csrc"), script(tmp_path / "fake++", body)
    environment = {"HSTA_FAST_CACHE": str(tmp_path / "cache"), "CXX": str(fake)}
    for builds in (1, 0):
        _, err = finish(start(LOAD, sources, **environment), status=1)
        expected = (
            r"hsta_fast\.extension\.BuildError: the extension's CPU part could not be (built|loaded) with "
        )
        assert re.match(expected, err.splitlines()[-1]) and err.count("hsta_fast: building") == builds
    (log,) = (tmp_path / "cache").glob("*.log")
    log.write_text("")  # as left by a process killed at this point
    assert finish(start(LOAD, sources, **environment), status=1)[1].count("hsta_fast: building") == 1


def test_two_processes_at_once_fail_once(tmp_path: Path) -> None:
    sources, cache = write_sources(tmp_path / "csrc"), str(tmp_path / "cache")
    (sources / "one.cpp").write_text("this is no C++\n")
    slow = str(script(tmp_path / "slow++", 'sleep 2; exec c++ "$@"'))  # both have started by then
    both = [start(LOAD, sources, HSTA_FAST_CACHE=cache, CXX=slow) for _ in range(2)]
    errors = [finish(process, status=1)[1] for process in both]
    assert sorted(err.count("hsta_fast: building") for err in errors) == [0, 1]
    assert len({err.splitlines()[-1] for err in errors}) == 1


# How nvcc, or what it needs, fails -> what the log then contains.
TRIGGERS = {
    "no C++20": "Value 'c++20' is not defined for option 'std'",
    "host compiler too new": "unsupported GNU version! gcc versions later than 12 are not supported!",
    "no -lcudart": "cannot find -lcudart",
    "no libcudart.so at load": "libcudart.so.98: cannot open shared object file",
}


def failing_cuda(trigger: str, folder: Path) -> dict[str, str]:
    """The environment of a process whose CUDA part fails."""
    lib = folder / "toolkit/lib"
    if trigger == "no -lcudart":
        lib.mkdir(parents=True)
    else:
        write_cudart(lib / "libcudart.so.99", 99, "libcudart.so.98" if "at load" in trigger else None)
    compiling = {
        "no C++20": f'echo "nvcc fatal   : {TRIGGERS["no C++20"]}"; exit 1',
        "host compiler too new": f'echo "#error -- {TRIGGERS["host compiler too new"]}" >&2; exit 1',
    }.get(trigger, "")
    write_nvcc(folder / "toolkit/bin/nvcc", libraries=(lib,), compiling=compiling)
    return {"CUDA_HOME": str(folder / "toolkit"), "HSTA_FAST_CACHE": str(folder / "cache")}


# Asks what a CUDA tensor would run on, embeds one as far as possible without a device, uses both parts.
AFTERWARDS = f"""
{WITH_CUDA}
import sys, hsta_fast, hsta_fast.extension as e; from pathlib import Path
from torch._subclasses.fake_tensor import FakeTensorMode
from hsta_fast.ops.tubelet_embed import auto_choice
e.SOURCES = Path(sys.argv[1])
if sys.argv[2] == "first":
    assert not e.usable("cuda", "auto")
print(auto_choice(torch.device("cuda"), torch.bfloat16))
with FakeTensorMode():
    video, weight = (torch.empty(1, 3, 2, 8, 8, device="cuda") for _ in range(2))
    print(hsta_fast.tubelet_embed(video, weight, torch.empty(1, device="cuda")).shape)
assert not e.usable("cuda", "auto") and e.usable("cpu", "auto")
"""


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_cuda_part_that_fails(trigger: str, tmp_path: Path) -> None:
    """The CPU part still works; another process reads the failure from the cache."""
    sources, environment = write_sources(tmp_path / "csrc"), failing_cuda(trigger, tmp_path)
    for process, builds in (("first", 2), ("second", 0)):
        out, err = finish(start(AFTERWARDS, sources, process, **environment))
        assert err.count("hsta_fast: building") == builds, err
        assert err.count("Warning: hsta_fast runs on torch") == 1
        (log,) = (tmp_path / "cache").glob("*.log")
        assert log.name.startswith("hsta_fast-cuda-") and TRIGGERS[trigger] in log.read_text()
        choice, shape = out.splitlines()
        assert f"see {log}" in choice and "impl='torch'" in choice and shape == "torch.Size([1, 1, 1])"


def test_build_shows_the_end_of_the_log(tmp_path: Path) -> None:
    sources, environment = write_sources(tmp_path / "csrc"), failing_cuda("no C++20", tmp_path)
    lines = "\n".join(f"echo line {i} of many >&2" for i in range(30))
    for attempt in range(2):  # it always tries again
        write_nvcc(
            tmp_path / "toolkit/bin/nvcc", libraries=(tmp_path / "toolkit/lib",), compiling=f"{lines}\nexit 1"
        )
        out, err = finish(start(WITH_CUDA + LOAD + BUILD, sources, **environment), status=1)
        assert "the extension's CPU part is " in out and "CUDA" not in out
        assert err.count("hsta_fast: building") == (2, 1)[attempt]
        assert re.search(r"^error: the extension's CUDA part could not be built with .*; see /", err, re.M)
        assert "line 29 of many" in err and "line 3 of many" not in err
    write_nvcc(tmp_path / "toolkit/bin/nvcc", libraries=(tmp_path / "toolkit/lib",))
    assert (
        finish(start(LOAD_CUDA, sources, **environment), status=1)[1].count("building") == 0
    )  # the same key
    out, err = finish(start(WITH_CUDA + LOAD + BUILD, sources, **environment))
    assert "the extension's CUDA part is " in out and not list((tmp_path / "cache").glob("*.log"))
    assert finish(start(LOAD_CUDA, sources, **environment))[1] == ""


def test_another_nvcc_is_tried(tmp_path: Path) -> None:
    sources, environment = write_sources(tmp_path / "csrc"), failing_cuda("no C++20", tmp_path)
    finish(start(LOAD_CUDA, sources, **environment), status=1)
    lib = write_cudart(tmp_path / "toolkit/lib/libcudart.so.98", 98).parent
    write_nvcc(tmp_path / "toolkit/bin/nvcc", release=98, libraries=(lib,))
    library, err = finish(start(LOAD_CUDA, sources, **environment))
    assert err.count("hsta_fast: building") == 1 and Path(library).name.startswith("hsta_fast-cuda-")


def test_a_library_that_no_longer_loads(tmp_path: Path) -> None:
    """It is rebuilt once, which helps if its runtime has moved; then the failure is remembered."""
    sources, environment = write_sources(tmp_path / "csrc"), failing_cuda("", tmp_path)
    lib = tmp_path / "toolkit/lib"
    shutil.copy(lib / "libcudart.so.99", lib / "libcudart.so")
    library, _ = finish(start(LOAD_CUDA, sources, **environment))
    (lib / "libcudart.so.99").rename(lib / "away")
    for builds in (1, 0):
        _, err = finish(start(LOAD_CUDA, sources, **environment), status=1)
        assert err.count("hsta_fast: building") == builds
        assert "the extension's CUDA part could not be loaded with " in err.splitlines()[-1]
    (lib / "away").rename(lib / "libcudart.so.99")
    assert finish(start(LOAD_CUDA, sources, **environment)) == (library, "")


def test_a_cpu_tensor_does_not_start_nvcc(tmp_path: Path) -> None:
    script(tmp_path / "bin/nvcc", f"touch {tmp_path}/asked; exit 1")
    code = (
        f"{WITH_CUDA}import hsta_fast; x = torch.ones(1, 2, 8); print(hsta_fast.attention_pool(x, x).sum())\n"
        "video = torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)\n"
        "print(hsta_fast.tubelet_embed(video, torch.ones(4, 3, 1, 8, 8), torch.ones(4)).sum())\n"
        "assert hsta_fast.extension._NO_CUDA is None and list(hsta_fast.extension._libraries) == ['cpu']"
    )
    out, _ = finish(start(code, CUDA_HOME=str(tmp_path)))
    assert out.count("tensor") == 2 and not (tmp_path / "asked").exists()


def test_needs_no_ninja(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "csrc")
    path = f"{script(tmp_path / 'bin/ninja', 'exit 1').parent}:/usr/local/bin:/usr/bin:/bin"
    finish(start(LOAD, sources, HSTA_FAST_CACHE=str(tmp_path / "cache"), PATH=path))


def test_where_there_is_no_fcntl(tmp_path: Path) -> None:
    """As on Windows, which also lacks O_NONBLOCK and the other Unix modules."""
    code = (
        "import os, sys; from pathlib import Path; del os.O_NONBLOCK\n"
        "sys.modules |= dict.fromkeys(('fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'syslog'))\n"
        "import torch, hsta_fast; x = torch.ones(1, 2, 8)\n"
        "print(hsta_fast.attention_pool(x, x, normalize=False).sum().item())\n"
        "from hsta_fast.files import open_plain, write_text\n"
        "write_text(Path(sys.argv[1]) / 'plain', 'text')\n"
        "with open_plain(Path(sys.argv[1]) / 'plain', 'text') as file: assert file.read() == b'text'\n"
        "print(hsta_fast.info()['ops']['cpu']['attention_pool']['reason'])\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path),
    ]  # not forked: torch is imported this way too
    environment = {**os.environ, "HSTA_FAST_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    err = ran.stderr
    total, reason = ran.stdout.splitlines()
    assert total == "16.0" and reason.endswith("it is built on Linux and macOS only")
    assert err.count("Warning: hsta_fast runs on torch without its C++ extension") == 1
    assert not (tmp_path / "cache").exists()


def test_a_log_of_another_user(tmp_path: Path) -> None:
    """It cannot be read or written, as in a shared cache; here a folder, because root can read any file."""
    sources, environment = write_sources(tmp_path / "csrc"), {"HSTA_FAST_CACHE": str(tmp_path / "cache")}
    (sources / "one.cpp").write_text("this is no C++\n")
    finish(start(LOAD, sources, **environment), status=1)
    (log,) = (tmp_path / "cache").glob("*.log")
    log.unlink()
    log.mkdir()
    _, err = finish(start(LOAD, sources, **environment), status=1)
    assert "building" not in err and "its log cannot be read (Is a directory)" in err.splitlines()[-1]
    again = LOAD.replace("e.load('cpu')", "e.load('cpu', again=True)")
    _, err = finish(start(again, sources, **environment), status=1)
    assert "this is no C++" in err and f"its log {log} cannot be written" in err.splitlines()[-1]


def test_build_fails_if_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sources, environment = write_sources(tmp_path / "csrc"), {"HSTA_FAST_CACHE": str(tmp_path / "file/cache")}
    out, err = finish(start(LOAD + BUILD, sources, **environment), status=1)
    assert "part is" not in out and err.endswith(
        "error: the extension's CPU part builds, but cannot be kept\n"
    )
