"""A comparison of runs as text and as LaTeX."""

from collections.abc import Iterator, Sequence

from ..clips import counted
from .compare import Compared, Comparison, Difference
from .findings import ONE_NAME
from .latex import SCORES, escape, numbers, remarks, tabular

_MEANING = (
    "Interval: 95 % of a bootstrap over subjects, the same for both; 0 in it: neither is shown better.\n"
    "p: McNemar's exact test. It takes clips as independent; those of a person are not: p may be too small."
)
_CORRECTED = "p (Holm) is corrected for the {count} comparisons, the intervals are not."


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    lines = [f"{_extent(found)} that all {len(found.runs)} runs predict"]
    if not found.datasets_known:
        lines.append(f"note: {ONE_NAME}")
    for run in found.runs:
        lines += [f"LEAKY: {run.name}: {reason}" for reason in run.leaky]
        lines += [f"note: {run.name}: {note}" for note in run.notes]
        if run.num_clips > found.num_clips:
            lines.append(f"note: {run.name}: {run.num_clips - found.num_clips} of its clips are left out")
    if absent := [name for name, n in zip(found.classes, found.runs[0].scores.support, strict=True) if not n]:
        lines.append(f"note: no clip of {', '.join(absent)}: counted as 0 in UF1 and UAR")
    names = [_name(run) for run in found.runs]
    width = max(
        24, *(len(f"{d.second} - {d.first}") + 2 for d in found.differences), *(len(n) + 2 for n in names)
    )

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<{width}}" + "".join(f"{cell:>18}" for cell in cells)

    lines += ["", line("", ("UF1", "UAR", "ACC"))]
    lines += [line(name, numbers(_values(run))) for name, run in zip(names, found.runs, strict=True)]
    for own in found.differences:
        lines += ["", line(f"{own.second} - {own.first}", [f"{own.values[name]:+.3f}" for name in SCORES])]
        if own.interval is not None:
            ends = [own.interval[name] for name in SCORES]
            lines.append(line("95 % over subjects", [f"{low:+.3f} to {high:+.3f}" for low, high in ends]))
        alone = f"{own.first_alone} clips in {own.first}, {own.second_alone} in {own.second}"
        lines.append(f"right in one alone: {alone}; {_p(own, found)}")
    return "\n".join([*lines, "", *_explained(found)])


def comparison_latex(found: Comparison) -> str:
    """The comparison as a LaTeX table, see `latex.tabular`."""
    scores = [
        [escape(run.name) + " (leaky)" * bool(run.leaky), *numbers(_values(run)), ""] for run in found.runs
    ]
    groups = [scores]
    for own in found.differences:
        rows = [
            [
                f"{escape(own.second)} $-$ {escape(own.first)}",
                *(f"${own.values[n]:+.3f}$" for n in SCORES),
                f"{own.p_holm:.2g}",
            ]
        ]
        if own.interval is not None:
            ends = [own.interval[name] for name in SCORES]
            rows.append(
                [r"95\,\% over subjects", *(f"$[{low:+.3f}, {high:+.3f}]$" for low, high in ends), ""]
            )
        groups.append(rows)
    extent = f"{_extent(found)} that all runs predict."
    notes = [
        text
        for run in found.runs
        for text in remarks(
            [f"{run.name}: {reason}" for reason in run.leaky], [f"{run.name}: {note}" for note in run.notes]
        )
    ]
    p = "$p$ (Holm)" if len(found.differences) > 1 else "$p$"
    return tabular(["", "UF1", "UAR", "ACC", p], groups, [extent, *_explained(found), *notes])


def _extent(found: Comparison) -> str:
    return f"{counted(found.num_clips, 'clip')} of {counted(found.num_subjects, 'subject')}"


def _explained(found: Comparison) -> Iterator[str]:
    yield from _MEANING.split("\n")
    if len(found.differences) > 1:
        yield _CORRECTED.format(count=len(found.differences))


def _p(own: Difference, found: Comparison) -> str:
    more = f", p (Holm) = {own.p_holm:.3g}" if len(found.differences) > 1 else ""
    return f"p = {own.p:.3g}{more}"


def _name(run: Compared) -> str:
    return run.name + (" (leaky)" if run.leaky else "")


def _values(run: Compared) -> dict[str, float]:
    return {name: float(getattr(run.scores, name)) for name in SCORES}
