"""Tests that build the extension are skipped where it cannot be built, and only there."""

import pytest

from hsta_fast.extension import obstacle

from .yardstick import DEVICE

needs_compiler = pytest.mark.skipif(obstacle("cpu") is not None, reason=str(obstacle("cpu")))
needs_extension = pytest.mark.skipif(obstacle(DEVICE) is not None, reason=str(obstacle(DEVICE)))
