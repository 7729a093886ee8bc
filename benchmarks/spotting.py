"""How well movements are spotted in rendered recordings of unseen people.

    python -m benchmarks.spotting --out recordings [--model runs/demo] [--recordings 20]

Renders three groups of people into folders of `--out`, which are kept: one to choose the threshold on, one
of `--recordings` other people for the figure, and one with blinks, talking and head turns alone. Movement is
measured once a recording. The first group is scored with each of FACTORS and FLOORS, and the best are stated
beside the defaults of `SpotSettings`, with which the other two groups are scored. With `--model` the classes
of a run's models are scored too (STRS). A recording is half a minute at 200 frames a second and takes 70 s of
one core to render and 13 s to spot: with 20 recordings about 50 minutes of one core.
Results: benchmarks/results/rendered/spotting.json, and the table of docs/spotting.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from hsta_fast.data.frames.stream import open_frames
from hsta_fast.files import write_text
from hsta_fast.protocol import score_spotting
from hsta_fast.protocol.spotting import SpottingScores
from hsta_fast.spotting import SpotSettings
from hsta_fast.spotting.intervals import energy_of, intervals_of
from hsta_fast.spotting.movement import Movement, follow
from hsta_fast.synth import SynthConfig
from hsta_fast.synth.render import render

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/rendered/spotting.json"
MINUTES, EXPRESSIONS = 0.5, 8.0  # of a recording; expressions a minute
SEEDS = {"choosing": 10, "figure": 11, "distractors": 12}  # of other people each
CHOOSING, DISTRACTORS = 6, 6  # recordings
FACTORS, FLOORS = (4, 6, 8, 10, 12, 16, 20), (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
NOTE = "Rendered recordings: these scores prove the machinery and say nothing about people."


@dataclass(frozen=True)
class Measured:
    """A recording, its movement, and what measuring it cost in seconds of one core a frame."""

    subject: str
    path: Path
    rate: float
    count: int
    movement: Movement
    cost: float


def rendered(out: Path, group: str, recordings: int, expressions: float, processes: int) -> Path:
    """The folder of a group's recordings, rendered if it is not there."""
    config = SynthConfig(
        out=out / f"{group}{recordings}",
        long=True,
        subjects=recordings,
        minutes=MINUTES,
        expressions=expressions,
        seed=SEEDS[group],
        processes=processes,
    )
    config.check()
    return render(config)


def measured(folder: Path) -> list[Measured]:
    """The movement of every recording."""
    found = []
    for path in sorted(folder.glob("*.mp4")):
        start = time.process_time()
        stream = open_frames(path)
        assert stream.rate is not None
        movement = follow(stream, SpotSettings())
        cost = (time.process_time() - start) / stream.count
        found.append(Measured(path.stem.split("_")[0], path, stream.rate, stream.count, movement, cost))
        print(f"{path}: {1000 * cost:.2f} ms a frame", flush=True)
    return found


def spotted(found: Sequence[Measured], settings: SpotSettings) -> pd.DataFrame:
    """The intervals of all recordings as `score_spotting` takes them."""
    rows: list[dict[str, Any]] = []
    for one in found:
        for onset, apex, offset, _ in intervals_of(energy_of(one.movement, settings), settings):
            frames = {
                name: round(value * one.rate)
                for name, value in (("onset", onset), ("apex", apex), ("offset", offset))
            }
            rows.append({"subject": one.subject, "video": one.path.stem, **frames})
    return pd.DataFrame(rows, columns=["subject", "video", "onset", "apex", "offset"])


def truth_of(folder: Path, found: Sequence[Measured]) -> pd.DataFrame:
    """The annotated intervals; a recording without one has a row without onset and offset."""
    clips = pd.read_csv(folder / "clips.csv", dtype=str, keep_default_na=False)
    clips = clips.assign(video=clips["path"].str.removesuffix(".mp4"), **{"class": clips["emotion"]})
    missing = [one for one in found if one.path.stem not in set(clips["video"])]
    empty = [{"subject": one.subject, "video": one.path.stem, "onset": "", "offset": ""} for one in missing]
    columns = ["subject", "video", "onset", "offset", "class"]
    return pd.concat([clips[columns], pd.DataFrame(empty)], ignore_index=True).fillna("")


def counts(scores: SpottingScores) -> dict[str, Any]:
    """What the results file keeps of some scores."""
    kept = {name: getattr(scores, name) for name in ("tp", "fp", "fn")}
    return kept | {name: round(getattr(scores, name), 4) for name in ("precision", "recall", "f1")}


def predicted(found: Sequence[Measured], model: Path) -> pd.DataFrame:
    """The intervals that `predict` spots, with the class that it answers for each."""
    from hsta_fast.predicting.recording import predict

    rows = []
    for one in found:
        for interval in predict(model, one.path).intervals:
            rows.append(
                {
                    "subject": one.subject,
                    "video": one.path.stem,
                    "onset": interval.onset,
                    "offset": interval.offset,
                    "class": interval.predicted,
                }
            )
    return pd.DataFrame(rows)


def classes_of(truth: pd.DataFrame, model: Path) -> pd.DataFrame:
    """The truth with the classes of a run's label set instead of words."""
    from hsta_fast.data import label_set
    from hsta_fast.data.recordings import with_classes

    config = json.loads((model / "config.json").read_text("utf-8"))
    return with_classes(truth, label_set(config["labels"]), "the recordings")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rendered recordings")
    parser.add_argument("--recordings", type=int, default=20, help="recordings of the figure")
    parser.add_argument("--model", type=Path, help="a run whose models recognise the class")
    parser.add_argument(
        "--processes", type=int, default=0, help="processes that render; 0: one for each core"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    settings = SpotSettings()
    numbers = {"choosing": CHOOSING, "figure": args.recordings, "distractors": DISTRACTORS}
    groups = {
        name: rendered(args.out, name, number, EXPRESSIONS * (name != "distractors"), args.processes)
        for name, number in numbers.items()
    }
    found = {name: measured(folder) for name, folder in groups.items()}
    truth = {name: truth_of(folder, found[name]) for name, folder in groups.items()}
    tried = {
        (factor, floor): score_spotting(
            truth["choosing"], spotted(found["choosing"], replace(settings, factor=factor, floor=floor))
        )
        for factor in FACTORS
        for floor in FLOORS
    }
    best = max(scores.f1 for scores in tried.values())
    figure = score_spotting(truth["figure"], spotted(found["figure"], settings))
    alone = len(spotted(found["distractors"], settings))
    minutes = sum(one.count / one.rate for one in found["distractors"]) / 60
    results: dict[str, Any] = {
        "note": NOTE,
        "floor": settings.floor,
        "factor": settings.factor,
        "choosing": {
            "recordings": len(found["choosing"]),
            "f1 by factor": {
                str(factor): {str(floor): round(tried[factor, floor].f1, 4) for floor in FLOORS}
                for factor in FACTORS
            },
            "best floors by factor": {
                str(factor): [floor for floor in FLOORS if tried[factor, floor].f1 == best]
                for factor in FACTORS
            },
        },
        "figure": {"recordings": len(found["figure"]), **counts(figure)},
        "distractors alone": {
            "minutes": round(minutes, 2),
            "intervals": alone,
            "a minute": round(alone / minutes, 2),
        },
        "ms a frame": round(1000 * float(np.mean([one.cost for one in found["figure"]])), 2),
    }
    if args.model is not None:
        of_model = score_spotting(
            classes_of(truth["figure"], args.model), predicted(found["figure"], args.model)
        )
        assert of_model.uf1 is not None and of_model.strs is not None
        results["recognised"] = {
            "model": args.model.name,
            **counts(of_model),
            "uf1": round(of_model.uf1, 4),
            "strs": round(of_model.strs, 4),
        }
    text = json.dumps(results, indent=2) + "\n"
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
