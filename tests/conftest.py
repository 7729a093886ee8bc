"""What must be so before any test imports a kernel, and rendered data shared by the tests that train."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Triton decides when imported whether @triton.jit compiles or interprets. Without a CUDA device kernels are
# interpreted, on CPU tensors; with one, the same tests run what is compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        from tests.interpreter import quicken

        quicken()


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered data set: 4 subjects of 6 clips, 48 pixels; for tests of the machinery."""
    from hsta_fast.synth import SynthConfig, render

    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=4, clips_per_subject=6, size=48, processes=1))
