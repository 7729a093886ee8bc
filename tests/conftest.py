"""Triton's mode, set before any test imports a kernel, and rendered data shared by the tests that train."""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# A shell starts tests in the background without Ctrl-C; the commands that they interrupt would lack it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Torch reads these once. Each worker uses one core, and threads that a test requests do not spin.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | os.environ
import torch

# Triton decides at import whether @triton.jit compiles or interprets. Without a CUDA device kernels are
# interpreted, on CPU tensors; with one, the same tests run the compiled kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# The slowest files, to run first: started last, they would run alone at the end.
SLOW = (
    "training/test_learning.py",
    "training/",
    "test_failing_build.py",
    "test_extension.py",
    "kernels/",
    "ops/",
)


def pytest_configure(config: pytest.Config) -> None:
    """The quick suite runs a quicker interpreter; `make test-full` runs Triton's own."""
    quick = "not full" in config.getoption("markexpr")
    if quick and os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        from tests.interpreter import quicken

        quicken()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files as in SLOW, the others after them; xdist hands them out in this order (Makefile)."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, slow in enumerate(SLOW) if f"/tests/{slow}" in path), len(SLOW))

    items.sort(key=place)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Use several threads, for our code that gives each thread its own tile of rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered dataset: 4 subjects with 6 clips each, 48 pixels; not enough to learn from."""
    from hsta_fast.synth import SynthConfig, render

    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=4, clips_per_subject=6, size=48, processes=1))
