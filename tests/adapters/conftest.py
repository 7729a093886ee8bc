"""The models here are small: fast forms run at shapes at which they do not pay."""

from collections.abc import Iterator

import pytest

from hsta_fast.adapters import worth


@pytest.fixture(autouse=True)
def at_any_shape() -> Iterator[None]:
    with worth.always():
        yield
