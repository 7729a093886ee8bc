"""What the recipes of the pictures are worth on rendered faces: --crop-face, --stabilise, --magnify.

    python -m benchmarks.face_recipes --folder face-recipes

Renders 36 people with 12 clips each, the same clips in each of four ways (faces that fill the frame;
somewhere in 640 x 480; with more drift of the head; with movements of half a pixel), and trains and tests
three folds of whole people with and without each recipe. All trainings start from one model, pretrained on
clips without labels of 40 other people whose faces fill the frame, so that few clips are enough. Everything
but the recipe is the same: clips, seeds, folds and epochs. The margin and the number of epochs were chosen
on 18 people of another seed. One core, about an hour and a half; a second start goes on where the first was
ended. Results:
benchmarks/results/rendered/face-recipes.json, from which `make docs` writes the tables of docs/faces.md.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from hsta_fast.files import write_text
from hsta_fast.pretraining.run import pretrain
from hsta_fast.pretraining.settings import PretrainConfig
from hsta_fast.protocol import compare_runs, score
from hsta_fast.protocol.predictions import read_predictions
from hsta_fast.synth import SynthConfig, render
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig

RESULTS = ROOT / "benchmarks/results/rendered/face-recipes.json"
NOTE = "Rendered faces: these scores prove the machinery and say nothing about people."
PEOPLE: dict[str, Any] = {"subjects": 36, "clips_per_subject": 12, "seed": 2}
OTHERS: dict[str, Any] = {"subjects": 40, "clips_per_subject": 24, "seed": 0}  # without labels
# The Makefile's model and recipe, with 4 frames instead of 6.
MODEL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 2, "n_video": 1, "image_size": 112, "num_frames": 4},
    **{"dtype": "float32", "device": "cpu", "clip_grad": 1.0, "flip": True, "crop": 2, "warmup_epochs": 1},
}
PRETRAINING = MODEL | {"epochs": 8, "batch_size": 32, "lr": 1e-3}
TRAINING = MODEL | {
    **{"labels": "emotion3", "protocol": "kfold", "folds": 3, "epochs": 20, "lr": 5e-4, "batch_size": 18},
    **{"balance": "matched", "gallery": 0},
}
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One training: the rendered data, and the recipe, as settings of `synth` and of `train`."""

    question: str
    data: str
    recipe: dict[str, Any]


DATA: dict[str, dict[str, Any]] = {
    "centred": {},
    "anywhere": {"scene": "640x480"},
    "drift": {"drift": 8.0},
    "half a pixel": {"strength": (0.5, 0.5)},
}
CASES: dict[str, Case] = {
    "faces fill the frame": Case("crop", "centred", {}),
    "anywhere in 640 x 480, cropped": Case("crop", "anywhere", {"crop_face": 0.15}),
    "anywhere in 640 x 480, shown whole": Case("crop", "anywhere", {}),
    "the head drifts": Case("stabilise", "drift", {}),
    "the head drifts, held still": Case("stabilise", "drift", {"stabilise": True}),
    "movements of half a pixel": Case("magnify", "half a pixel", {}),
    "enlarged 4 times": Case("magnify", "half a pixel", {"magnify": 4.0}),
    "enlarged 10 times": Case("magnify", "half a pixel", {"magnify": 10.0}),
}


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """The results so far, after each case. What `folder` holds of an earlier start is not done again."""
    own: dict[str, Any] = {"runs": folder / "runs"}
    others = render(SynthConfig(out=folder / "data" / "others", processes=1, **OTHERS))
    start = own["runs"] / "start" / "model.safetensors"
    if not start.exists():
        pretrain(PretrainConfig(**PRETRAINING, **own, data=others, name="start", overwrite=True))
    first: dict[str, Path] = {}
    cases: list[dict[str, Any]] = []
    for number, (name, case) in enumerate(CASES.items()):
        data = folder / "data" / case.data.replace(" ", "-")
        render(SynthConfig(out=data, processes=1, **PEOPLE, **DATA[case.data]))
        settings = {**TRAINING, **case.recipe, **own, "data": data, "name": f"case{number}", "init": start}
        resume = (own["runs"] / f"case{number}" / "config.json").exists()
        run = runner.main(TrainConfig(**settings, resume=resume))
        entry: dict[str, Any] = {"question": case.question, "name": name}
        entry |= {"data": DATA[case.data], "recipe": case.recipe}
        entry |= {"uf1": round(uf1_of(run), 4)}
        if case.question in first:
            entry |= difference(first[case.question], run)
        first.setdefault(case.question, run)
        cases.append(entry)
        yield {"note": NOTE, "people": PEOPLE, "others": OTHERS, "training": TRAINING, "cases": cases}


def uf1_of(run: Path) -> float:
    """The UF1 of a run, pooled over its folds."""
    found = read_predictions(run / "predictions.csv")
    return score(found["label"], found["predicted"], CLASSES, absent="zero").uf1


def difference(one: Path, other: Path) -> dict[str, float]:
    """How much higher the UF1 of `other` is, with its 95 % interval, paired over people."""
    [found] = compare_runs([one, other]).differences
    assert found.interval is not None
    low, high = found.interval["uf1"]
    return {"more": round(found.values["uf1"], 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Measure, and write the results after each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True, help="for the rendered data and the runs")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for results in measure(given.folder):
        print(results["cases"][-1], flush=True)
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
