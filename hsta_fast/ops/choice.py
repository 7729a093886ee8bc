"""Which implementation of an op runs, and why."""

from typing import NamedTuple


class Choice(NamedTuple):
    """The implementation that runs and the reason, as `hsta_fast.info()` shows them."""

    impl: str
    reason: str


def resolve(op: str, impl: str, auto: Choice, known: tuple[str, ...]) -> str:
    """Turn `impl` as asked for into the implementation to run.

    Raises:
        ValueError: if `impl` is neither "auto" nor in `known`.
    """
    if impl == "auto":
        return auto.impl
    if impl not in known:
        raise ValueError(f"{op} wants impl in {('auto', *known)}, got {impl!r}")
    return impl
