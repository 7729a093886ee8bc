"""Finding the compilers and the CUDA runtime, in folder trees like those of toolkits, wheels and conda."""

import ctypes
import platform
import shutil
from pathlib import Path

import pytest

from hsta_fast import toolchain

from .compiler import needs_compiler, script, write_cudart, write_nvcc, write_sources


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)


def test_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CXX takes precedence over PATH, CUDA_HOME over an nvcc on PATH."""
    for name in ("c++", "g++", "my++", "nvcc", "bin/nvcc"):
        script(tmp_path / name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.find_tools() == (str(tmp_path / "c++"), str(tmp_path / "nvcc"))
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = (str(tmp_path / "my++"), str(tmp_path / "bin/nvcc"))
    assert toolchain.find_tools() == found
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "./my++")
    monkeypatch.setenv("CUDA_HOME", ".")
    assert toolchain.find_tools() == found  # absolute: they run in another folder
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    for none in ("no++", "my++ -pipe", "'x", " "):
        monkeypatch.setenv("CXX", none)
        assert toolchain.find_tools() == (None, None)


def test_gencode(tmp_path: Path) -> None:
    """Architectures that nvcc does not know are omitted; 90a only from release 12 on."""
    for release, known, expected in (
        ("13.0", "sm_80 sm_90 sm_100 sm_120", ["80", "90a", "100", "120"]),
        ("12.4", "sm_80 sm_90", ["80", "90a"]),
        ("11.8", "sm_80 sm_90", ["80", "90"]),
    ):
        nvcc = script(
            tmp_path / "nvcc",
            f'[ "$1" = --list-gpu-code ] && echo "{known}" || echo "release {release}, V"',
        )
        flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in expected]
        assert toolchain.gencode(str(nvcc)) == [*flags, "-gencode=arch=compute_80,code=compute_80"]


TARGET = f"targets/{platform.machine()}-linux/lib"
# What names the root, the folder below it, the file there; {} is the release.
LAYOUTS = {
    "nvcc's own": ("nvcc", "lib", "libcudart.so"),
    "CUDA_HOME, lib64": ("CUDA_HOME", "lib64", "libcudart.so"),
    "CUDA_HOME, lib": ("CUDA_HOME", "lib", "libcudart.so"),
    "CUDA_HOME, targets": ("CUDA_HOME", TARGET, "libcudart.so.{}.0.96"),
    "CUDA_PATH": ("CUDA_PATH", "lib64", "libcudart.so"),
    "torch's wheels": ("torch", "nvidia/cu{}/lib", "libcudart.so.{}"),
    "torch's wheels before release 13": ("torch", "nvidia/cuda_runtime/lib", "libcudart.so.{}"),
    "conda, lib": ("CONDA_PREFIX", "lib", "libcudart.so"),
    "conda, targets": ("CONDA_PREFIX", TARGET, "libcudart.so.{}.0.96"),
}


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_runtime_is_found_linked_and_loaded(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without an unversioned link; the name that the loader looks for is in the same folder.

    A comma, a space and a letter outside ASCII in its path.
    """
    release = 900 + list(LAYOUTS).index(layout)  # no loaded library has this release
    who, below, name = LAYOUTS[layout]
    root = tmp_path / "a root, in é"
    file = write_cudart(root / below.format(release) / f"libcudart.so.{release}", release)
    if name != "libcudart.so.{}":
        (file.parent / name.format(release)).symlink_to(file.name)
    if who.isupper():
        monkeypatch.setenv(who, str(root))
    installed = (root if who == "torch" else tmp_path) / "torch"
    installed.mkdir()
    (installed / "lib").symlink_to(toolchain._TORCH / "lib")
    monkeypatch.setattr(toolchain, "_TORCH", installed)
    nvcc = write_nvcc(
        tmp_path / "bin/nvcc",
        release=release,
        libraries=(tmp_path / "stubs", *([file.parent] if who == "nvcc" else [])),
    )
    sources = write_sources(tmp_path / "csrc")
    recipe = toolchain.cuda_recipe([sources / "two.cu"], str(shutil.which("c++")), str(nvcc))
    (tmp_path / "work").mkdir()
    made = toolchain.make(recipe, tmp_path / "work")
    assert ctypes.CDLL(str(made)).two() == release


def test_a_runtime_of_another_release_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lack functions that nvcc's code calls, or change their meaning."""
    monkeypatch.setattr(toolchain, "_TORCH", tmp_path / "site/torch")
    first, second = tmp_path / "first", tmp_path / "second"
    nvcc = str(write_nvcc(tmp_path / "nvcc", release=12, libraries=(first, second)))
    assert toolchain.link_cudart(nvcc) == ["-lcudart"]  # left to the linker
    for folder, name in (
        (first, "libcudart.so.13"),
        (first, "libcudart.so.120"),
        (second, "libcudart.so.12"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    (first / "libcudart.so").symlink_to("libcudart.so.13")
    found = second / "libcudart.so.12"
    assert toolchain.link_cudart(nvcc) == [str(found), f"-Wl,-rpath,{second}"]
    (first / "libcudart.so.12.9.79").touch()
    assert toolchain.link_cudart(nvcc)[0] == str(first / "libcudart.so.12.9.79")
    assert toolchain.link_cudart(str(script(tmp_path / "mute", "exit 1")))[0] == "-lcudart"


@needs_compiler
def test_a_dollar_in_the_paths(tmp_path: Path) -> None:
    """nvcc hands the names that it is given to a shell, in double quotes."""
    nvcc = script(
        tmp_path / "nvcc",
        'while [ "$1" != -c ]; do shift; done\nexec sh -c "c++ -fPIC -x c++ -c \\"$2\\" -o \\"$4\\""',
    )
    places = [tmp_path / f"{name} $HOME" for name in ("csrc", "work")]
    sources = write_sources(places[0])
    (sources / "shared.h").touch()
    (sources / "two.cu").write_text('#include "shared.h"\nextern "C" int two() { return 2; }\n')
    places[1].mkdir()
    recipe = toolchain.cuda_recipe([sources / "two.cu"], str(shutil.which("c++")), str(nvcc))
    assert ctypes.CDLL(str(toolchain.make(recipe._replace(link=["c++"]), places[1]))).two() == 2


@needs_compiler
def test_every_failed_command_is_reported(tmp_path: Path) -> None:
    for name in ("work", "other"):
        (tmp_path / name).mkdir()
    for name, text in (("one.cpp", "no C++ at all\n"), ("two.cpp", ""), ("three.cpp", "nor this\n")):
        (tmp_path / name).write_text(text)
    recipe = toolchain.cpp_recipe(sorted(tmp_path.glob("*.cpp")), str(shutil.which("c++")))
    with pytest.raises(toolchain.ToolError) as raised:
        toolchain.make(recipe, tmp_path / "work")
    assert "no C++ at all" in str(raised.value) and "nor this" in str(raised.value)
    assert str(raised.value).count("$ ") == 2
    with pytest.raises(toolchain.ToolError, match="No such file or directory: '/nowhere/c"):
        toolchain.make(toolchain.cpp_recipe([tmp_path / "two.cpp"], "/nowhere/c++"), tmp_path / "other")
