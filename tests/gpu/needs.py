"""Tests that read clips or write reports are skipped where packages for that are missing, and only there."""

import pytest

from benchmarks.wheels import DATA, missing

_MISSING = ", ".join(missing(DATA))
needs_data_packages = pytest.mark.skipif(
    bool(_MISSING), reason=f"not installed: {_MISSING} (benchmarks/gpu.py --wheels)"
)
