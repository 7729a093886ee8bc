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

    `print(report)` shows the table. Modules whose names differ by a number alone share a line.

    Attributes:
        rows: one per module that attends or embeds patches, in the order of the model.
        others: number of all other modules, by class; they are as they were.
    """

    rows: list[Row]
    others: Counter[str]
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
            cells.append((_joined([r.name for r in group]), first.kind, first.became or "left", first.why))
        widths = [max(len(line[i]) for line in cells) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip()
            for line in cells
        ]
        others = ", ".join(f"{n} {kind}" for kind, n in self.others.most_common())
        left = len(self.rows) - len(self.switched)
        lines.append(f"{len(self.switched)} switched, {left} left; as they were: {others or 'no others'}")
        return "\n".join(lines)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def _numbers_out(name: str) -> str:
    return _NUMBER.sub("#", name)


def _joined(names: list[str]) -> str:
    """layer.0.attn, ..., layer.11.attn -> layer.0-11.attn."""
    first = names[0] or "(the model)"
    if len(names) == 1:
        return first
    columns = list(zip(*(_NUMBER.findall(name) for name in names), strict=True))
    spans = iter(c[0] if len(set(c)) == 1 else f"{c[0]}-{c[-1]}" for c in columns)
    return _NUMBER.sub(lambda _: next(spans), first)
