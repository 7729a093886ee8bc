"""Skip tests that read clips or write reports if a package for that is missing, and only then."""

import pytest

from benchmarks.wheels import DATA, missing

_MISSING = ", ".join(missing(DATA))
needs_data_packages = pytest.mark.skipif(
    bool(_MISSING), reason=f"not installed: {_MISSING} (benchmarks/gpu.py --wheels)"
)
