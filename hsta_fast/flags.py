"""A flag that may stand alone: `--crop-face`, or `--crop-face 0.2`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptionalValue:
    """Annotates a setting of the type `float | None` whose flag may be given without a value.

    Attributes:
        alone: what the flag alone means.
        metavar: the name of its value in the help.
    """

    alone: float
    metavar: str
