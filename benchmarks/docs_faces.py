"""The tables of docs/faces.md, from the results of `benchmarks.face_recipes`."""

import json
from collections.abc import Sequence
from pathlib import Path

FILE = "rendered/face-recipes.json"
HEADER = ("pictures", "UF1", "difference, 95 %")


def rows(folder: Path, question: str) -> list[Sequence[str]]:
    """The trainings of one question ("crop", "stabilise" or "magnify"); differences are from the first."""
    path = folder / FILE
    if not path.exists():
        return []
    found: list[Sequence[str]] = []
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        if case["question"] == question:
            more = (
                f"{case['more']:+.3f} ({case['low']:+.3f} to {case['high']:+.3f})" if "more" in case else ""
            )
            found.append((case["name"], f"{case['uf1']:.3f}", more))
    return found
