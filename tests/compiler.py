"""Tests that build the extension are skipped where it cannot be built, and only there."""

import pytest

from hsta_fast.extension import obstacle

needs_compiler = pytest.mark.skipif(obstacle("cpu") is not None, reason=str(obstacle("cpu")))
