"""Rendered data shared by the tests that train."""

from pathlib import Path

import pytest

from hsta_fast.data import SynthConfig, render


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered data set: 4 subjects of 6 clips, 48 pixels; for tests of the machinery."""
    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=4, clips_per_subject=6, size=48, processes=1))
