"""The table of docs/spotting.md, from the results of `benchmarks.spotting`."""

import json
from collections.abc import Sequence
from pathlib import Path

FILE = "rendered/spotting.json"
HEADER = ("rendered recordings", "found", "missed", "false", "F1")


def rows(folder: Path) -> list[Sequence[str]]:
    """The people that the threshold was chosen on, other people, and recordings without an expression."""
    path = folder / FILE
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    figure, choosing, alone = found["figure"], found["choosing"], found["distractors alone"]
    chosen = choosing["f1 by factor"][f"{found['factor']:g}"][str(found["floor"])]
    lines: list[Sequence[str]] = [
        (f"{choosing['recordings']}, to choose the threshold", "", "", "", f"{chosen:.3f}"),
        (f"{figure['recordings']} of other people", *_counts(figure)),
    ]
    if recognised := found.get("recognised"):
        text = f"the same, spotted and recognised by {recognised['model']}: STRS {recognised['strs']:.3f}"
        lines.append((f"{text}, UF1 {recognised['uf1']:.3f}", *_counts(recognised)))
    name = f"{alone['minutes']:g} minutes of blinks, talking and head turns alone"
    return [*lines, (name, "", "", f"{alone['intervals']}, {alone['a minute']:g} a minute", "")]


def _counts(scores: dict[str, float]) -> tuple[str, str, str, str]:
    return f"{scores['tp']}", f"{scores['fn']}", f"{scores['fp']}", f"{scores['f1']:.3f}"
