"""What became of every key of the files and of the model, as a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Fate = Literal["loaded", "resampled", "folded", "dropped", "left at its initialisation"]


@dataclass(frozen=True)
class Row:
    """One key of a file, or one of the model that no file gave.

    Attributes:
        setting: which file: "init" or "init_special"; empty for what was left.
        fate: loaded as it is; resampled: for other patches; folded: with a constant of the source; dropped;
            or left at its initialisation.
        file_key: in the file; empty for what was left.
        model_key: the parameters that it became, with commas between them; empty if it was dropped.
        why: the reason, or what was done.
    """

    setting: str
    fate: Fate
    file_key: str = ""
    model_key: str = ""
    why: str = ""


@dataclass(frozen=True)
class InitReport:
    """How a model was initialised from files.

    Attributes:
        heading: what each file is, and what the model took from its source.
        rows: every key of the files, then what was left at its initialisation.
    """

    heading: tuple[str, ...]
    rows: tuple[Row, ...]

    def counts(self) -> dict[str, int]:
        """The number of rows with each fate."""
        found = Counter(row.fate for row in self.rows)
        return {fate: found[fate] for fate in get_args(Fate) if found[fate]}

    def left(self) -> list[str]:
        """The parts of the model with parameters that no file gave, such as "CSTA"."""
        left = [row.model_key for row in self.rows if row.fate == "left at its initialisation"]
        return list(dict.fromkeys(map(part_of, left)))

    def __str__(self) -> str:
        lines = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        return "\n".join([*self.heading, "", *table])


def part_of(key: str) -> str:
    """The part of the model that a parameter belongs to, in words."""
    names = key.split(".")
    if names[0] == "head":
        return "head"
    if names[0] == "blocks":
        return "CSTA" if names[2] == "csta" else f"USTA layers ({_branch(names[3])})"
    return f"{_PARTS[names[0]]} ({_branch(names[1])})"


_PARTS = {"patch_embed": "patch embedding", "cls_token": "CLS", "norm": "last norm"}


def _branch(digit: str) -> str:
    return ("special", "video")[int(digit)]


def _cells(row: Row) -> Sequence[str]:
    return row.setting or "-", row.fate, row.file_key or "-", "->", row.model_key or "-", row.why
