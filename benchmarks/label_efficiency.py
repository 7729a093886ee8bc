"""How many labelled subjects the rendered task takes, with and without pretraining on clips without labels.

    python -m benchmarks.label_efficiency --data faces60

`--data` holds 60 rendered subjects (hsta-fast synth --subjects 60 --out faces60). The last 12 are only
tested. The others are the clips without labels of the pretraining (`hsta-fast pretrain`); some or all of
them have labels in a training, drawn by the seed, the same ones with and without pretraining. The epochs are
fixed in advance. The target was chosen with other subjects, but DESIGNS and the mask ratio were compared on
these 12 (docs/pretraining.md), so the scores favour the default a little. One core, about 25 minutes; a
second start goes on where the first was ended. Results: benchmarks/results/rendered/label-efficiency.json,
docs/label-efficiency.png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor

from hsta_fast.clips import natural_key
from hsta_fast.files import write_bytes, write_text
from hsta_fast.pretraining.run import pretrain
from hsta_fast.pretraining.settings import PretrainConfig
from hsta_fast.protocol import Fold, score
from hsta_fast.protocol.plots import as_shipped, new_figure, png
from hsta_fast.training.config import TrainConfig
from hsta_fast.training.initial import InitialWeights
from hsta_fast.training.loop import build, predict, train_epoch
from hsta_fast.training.progress import Progress
from hsta_fast.training.run_folder import FoldFolder
from hsta_fast.training.setup import Experiment, set_up

ROOT = Path(__file__).parent.parent
RESULTS, FIGURE = (
    ROOT / "benchmarks/results/rendered/label-efficiency.json",
    ROOT / "docs/label-efficiency.png",
)
TEST_SUBJECTS = 12
EPOCHS = {4: 20, 8: 15, 48: 4}  # of a training, by its number of labelled subjects
SEEDS = (0, 1, 2)
# The Makefile's model and recipe, with 4 frames instead of 6.
MODEL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 2, "n_video": 1, "image_size": 112, "num_frames": 4},
    **{"dtype": "float32", "device": "cpu", "clip_grad": 1.0, "flip": True, "crop": 2, "warmup_epochs": 1},
}
TRAINING = MODEL | {"labels": "emotion3", "lr": 5e-4, "batch_size": 18, "balance": "matched"}
# What was tried, each at 8 labelled subjects with seed 0. The first is the default, and that of the curve.
DESIGNS: dict[str, dict[str, Any]] = {
    "difference": {"target": "difference", "mask_ratio": 0.5, "visible_weight": 1.0},
    "difference, hidden tokens only": {"target": "difference", "mask_ratio": 0.5, "visible_weight": 0.0},
    "pixels, hidden tokens only (VideoMAE)": {"target": "pixels", "mask_ratio": 0.9, "visible_weight": 0.0},
}
DEFAULT, DESIGN_SUBJECTS = "difference", 8
NOTE = "Rendered faces: these scores prove the machinery and say nothing about people."


def subjects_of(exp: Experiment) -> tuple[list[str], list[str]]:
    """The subjects to train on and those to test on.

    Raises:
        ValueError: too few or too many of them.
    """
    known = sorted(set(map(str, exp.data.subjects)), key=natural_key)
    if len(known) != (wanted := max(EPOCHS) + TEST_SUBJECTS):
        raise ValueError(f"--data expected {wanted} subjects, got {len(known)}")
    return known[:-TEST_SUBJECTS], known[-TEST_SUBJECTS:]


def pretrained(root: Path, runs: Path, name: str, test: list[str], **changes: Any) -> tuple[Path, float]:
    """The file of a pretrained model, which is made if it is not there, and the seconds it took."""
    path = runs / name / "model.safetensors"
    if not path.exists():
        settings = MODEL | {"epochs": 10, "batch_size": 32, "lr": 1e-3} | changes
        settings |= {"data": root, "runs": runs, "name": name, "leave_out": tuple(test)}
        print(pretrain(PretrainConfig(**settings, overwrite=True)), flush=True)
    lines = (path.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return path, sum(json.loads(line)["seconds"] for line in lines)


def trained_score(exp: Experiment, runs: Path, number: int, seed: int, start: Path | None) -> float:
    """The UF1 on the test subjects of a model trained on `number` labelled subjects."""
    known, test = subjects_of(exp)
    chosen = np.random.default_rng(seed).permutation(known)[:number]
    rows = [np.flatnonzero(np.isin(exp.data.subjects, names)) for names in (chosen, test)]
    fold = Fold(name="test", train=rows[0], test=rows[1])
    cfg = replace(exp.cfg, epochs=EPOCHS[number], seed=seed, init=start)
    exp = replace(exp, cfg=cfg, initial=InitialWeights(cfg))
    training = build(exp, FoldFolder(runs / "training"), fold, (number,))
    for epoch in range(EPOCHS[number]):
        train_epoch(training, epoch, Progress())
    predicted: Tensor = predict(exp, training.model, fold.test).argmax(1)
    return score(exp.data.labels[fold.test], predicted.numpy(), len(exp.labels.classes), absent="zero").uf1


def measure(root: Path, runs: Path) -> dict[str, Any]:
    """All of it, as plain values. What `runs` holds of an earlier start is not measured again."""
    # The folds are not used, but must be possible.
    exp = set_up(TrainConfig(**TRAINING, data=root, runs=runs, protocol="kfold", folds=2))
    known, test = subjects_of(exp)
    done = runs / "done.json"
    entries: list[dict[str, Any]] = json.loads(done.read_text("utf-8")) if done.exists() else []

    def add(entry: dict[str, Any], file: Path | None) -> None:
        if any(entry.items() <= other.items() for other in entries):
            return
        uf1 = trained_score(exp, runs, entry["subjects"], entry["seed"], file)
        entries.append(entry | {"uf1": round(uf1, 4)})
        write_text(done, json.dumps(entries))
        print(entries[-1], flush=True)

    seconds = {}
    for seed in SEEDS:
        file, seconds[f"seed {seed}"] = pretrained(root, runs, f"seed{seed}", test, seed=seed)
        for number in EPOCHS:
            for design, start in (("none", None), (DEFAULT, file)):
                add({"subjects": number, "seed": seed, "pretraining": design}, start)
    for number, (design, changes) in enumerate(DESIGNS.items()):
        if design != DEFAULT:
            file, seconds[design] = pretrained(root, runs, f"design{number}", test, **changes)
            add({"subjects": DESIGN_SUBJECTS, "seed": 0, "pretraining": design}, file)
    return {
        "note": NOTE,
        "clips_per_subject": len(exp.data) // (len(known) + len(test)),
        "pretraining_subjects": len(known),
        "test_subjects": len(test),
        "epochs": {str(subjects): epochs for subjects, epochs in EPOCHS.items()},
        "designs": DESIGNS,
        "seconds_of_pretraining": {name: round(value) for name, value in seconds.items()},
        "trainings": entries,
    }


@as_shipped
def figure_of(results: dict[str, Any]) -> bytes:
    """UF1 over the number of labelled subjects: a point for each seed, a line for their means."""
    figure = new_figure(6.2, 3.8, "Rendered faces, 12 unseen subjects")
    axes = figure.subplots()
    for design, color, label in (
        (DEFAULT, "#0072B2", "pretrained without labels"),
        ("none", "#D55E00", "from nothing"),
    ):
        own = [entry for entry in results["trainings"] if entry["pretraining"] == design]
        numbers = sorted({entry["subjects"] for entry in own})
        means = [mean(entry["uf1"] for entry in own if entry["subjects"] == n) for n in numbers]
        axes.plot(numbers, means, color=color, label=label)
        axes.scatter([entry["subjects"] for entry in own], [entry["uf1"] for entry in own], color=color, s=14)
    axes.axhline(1 / 3, color="#57606a", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.set_ylim(0, 1)
    axes.set_xlabel("labelled subjects (24 clips each)")
    axes.set_ylabel("UF1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return png(figure)


def main() -> None:
    """Measure, and write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="60 rendered subjects")
    parser.add_argument("--runs", type=Path, default=Path("runs/label-efficiency"), help="folder of the runs")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(given.data, given.runs)
    except ValueError as error:
        parser.error(str(error))
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_bytes(FIGURE, figure_of(results))


if __name__ == "__main__":
    main()
