"""What `accelerate` did to each module, as a table; and its undoing."""

import re
from collections import Counter
from dataclasses import dataclass, field

from .switching import Undo


@dataclass(frozen=True)
class Row:
    """One module.

    Attributes:
        name: its name in the model.
        kind: the name of its class.
        became: what it became; None: it was left as it is.
        why: why it was left, or when the original forward still runs; "" if there is nothing to say.
    """

    name: str
    kind: str
    became: str | None
    why: str = ""


@dataclass
class Report:
    """What `accelerate` switched and what it left.

    `print(report)` shows the table. Modules whose names differ by numbers alone share a line.

    Attributes:
        rows: one per module that attends or embeds patches, in the order of the model.
        others: number of all other modules that hold parameters, by class; they are as they were.
        on_cuda: whether the model has parameters on a CUDA device.
    """

    rows: list[Row]
    others: Counter[str]
    on_cuda: bool = False
    _undo: list[Undo] = field(default_factory=list, repr=False)

    @property
    def switched(self) -> list[Row]:
        """The rows of the modules that became something else."""
        return [row for row in self.rows if row.became is not None]

    def revert(self) -> None:
        """Make every module what it was. Does nothing the second time.

        Raises:
            ValueError: something else changed a module's class since; the others are reverted.
        """
        problems = []
        while self._undo:
            try:
                self._undo.pop()()
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))

    def __str__(self) -> str:
        cells = [("module", "was", "became", "")]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((_numbers_out(row.name), row.kind, row.became or "", row.why), []).append(row)
        for group in groups.values():
            first = group[0]
            cells += [(name, first.kind, first.became or "left", first.why) for name in _joined(group)]
        widths = [max(len(line[i]) for line in cells) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip()
            for line in cells
        ]
        others = ", ".join(f"{n} {kind}" for kind, n in self.others.most_common())
        left = len(self.rows) - len(self.switched)
        lines.append(f"{len(self.switched)} switched, {left} left; as they were: {others or 'no others'}")
        if self.on_cuda and self.switched:
            lines.append("in eager code on CUDA, calls of less than 1e11 operations run as before")
        return "\n".join(lines)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def _numbers_out(name: str) -> str:
    return _NUMBER.sub("#", name)


def _joined(rows: list[Row]) -> list[str]:
    """layer.0.attn, ..., layer.11.attn -> layer.0-11.attn; as many names as it takes to name no others."""
    pattern = rows[0].name or "(the model)"
    numbers = [tuple(map(int, _NUMBER.findall(row.name))) for row in rows]
    names = []
    for line in _lines(numbers):
        columns = iter(line)
        names.append(_NUMBER.sub(lambda _, columns=columns: next(columns), pattern))  # type: ignore[misc]
    return names


def _lines(numbers: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Columns of numbers in few words: (0, 1), (0, 2), (1, 1) -> ("0", "1-2"), ("1", "1")."""
    if not numbers[0]:
        return [()]
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, found in rests.items():
        alike.setdefault(tuple(found), []).append(first)
    return [(_span(firsts), *line) for rest, firsts in alike.items() for line in _lines(list(rest))]


def _span(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
