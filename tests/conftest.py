"""Triton's mode, set before any test imports a kernel, and rendered data shared by the tests that train."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Triton decides at import whether @triton.jit compiles or interprets. Without a CUDA device kernels are
# interpreted, on CPU tensors; with one, the same tests run the compiled kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        from tests.interpreter import quicken

        quicken()


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered dataset: 4 subjects with 6 clips each, 48 pixels; not enough to learn from."""
    from hsta_fast.synth import SynthConfig, render

    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=4, clips_per_subject=6, size=48, processes=1))
