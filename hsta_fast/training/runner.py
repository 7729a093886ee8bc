"""Training and testing under a subject-disjoint protocol: the one loop.

Every random draw is seeded from (seed, fold, epoch), so no fold depends on another, and a run that was killed
goes on as if it had not been.
"""

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..checkpoint import save_model
from ..clips import subject_ids
from ..data import describe_inputs
from ..environment import info_text
from ..files import write_atomically
from ..protocol import best_epoch, table, write_report, write_seeds
from .config import TrainConfig, stamp
from .loop import fit, predict, predictions_table
from .run_folder import FoldFolder, RunFolder
from .setup import Experiment, describe, first_faults, prepare
from .splits import fold_parts, inner_of
from .workers import team

_PUBLISH_EVERY = (
    30.0  # seconds at least between reports of an unfinished run: folds may take less than a report
)


def main(cfg: TrainConfig) -> Path:
    """Train and test every fold, pool the predictions, write the report; returns the run's folder.

    In a team of processes (see `team`) each trains the folds that it takes. Several seeds are as many runs in
    the folder, and a table of their scores.

    Raises:
        ValueError: data, settings or a run folder that do not fit.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss is nan or infinite.
    """
    cfg.check()
    if cfg.seeds == 1:
        return train_run(cfg)
    folder = cfg.runs / cfg.name
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is a run of one seed: give another --name")
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    runs = {n: train_run(cfg.part(f"seed{n}", seed=n, seeds=1)) for n in seeds}
    if team().leads:
        print(f"\n{write_seeds(folder, runs)}\n\neach seed: {folder / 'seeds.csv'}")
    return folder


def train_run(cfg: TrainConfig) -> Path:
    """`main` for one seed."""
    ours = team()
    cfg = replace(cfg, resume=cfg.resume or ours.restarts > 0)
    exp = prepare(cfg, device=ours.device(cfg.device))

    def open_run(leads: bool) -> RunFolder:
        path, config = cfg.runs / cfg.name, describe(exp)
        run = RunFolder(path, config, resume=cfg.resume, team=ours.size > 1, leads=leads)
        run.same_clips(exp.data.table.clips.assign(**stamp(cfg)))
        if leads:
            columns = ["dataset", "subject", "clip", "onset", "what", "action"]
            faults = [asdict(fault) for fault in exp.data.table.faults]
            run.same_folds(fold_parts(exp.data.table, exp.folds).assign(**stamp(cfg)))
            run.write_table("faults.csv", pd.DataFrame(faults, columns=columns).assign(**stamp(cfg)))
            print_experiment(exp, run)
            publish(exp, run)  # what a process that was killed had left undone
        return run

    run = ours.lead_first(open_run)
    train_folds(exp, run)
    if ours.leads:
        if ours.size > 1:  # the last fold may be another's, who is still writing
            publish(exp, run)
        print(f"\n{table(run.path)}\n\nreport: {run.path / 'report.html'}")
    return run.path


def train_folds(exp: Experiment, run: RunFolder) -> None:
    """Train every wanted fold that nobody else does; return when all are finished, by whomever."""
    unpublished, published = False, time.monotonic()
    wanted = [n for n, fold in enumerate(exp.folds) if not exp.cfg.only or fold.name in exp.cfg.only]
    while waiting := [n for n in wanted if not run.fold(n).finished]:
        took = False
        for number in waiting:
            with run.fold(number).take() as mine:
                if not mine or run.fold(number).finished:
                    continue
                train_fold(exp, run.fold(number), number)
            took = unpublished = True
            if time.monotonic() - published > _PUBLISH_EVERY:
                publish(exp, run)
                unpublished, published = False, time.monotonic()
        if not took:
            time.sleep(0.2)  # others have them; whoever dies gives them back
    if unpublished:
        publish(exp, run)


def publish(exp: Experiment, run: RunFolder) -> None:
    """Pool the predictions of the finished folds and write their report."""
    with run.writing():
        if run.collect(len(exp.folds)):
            write_report(run.path)


def print_experiment(exp: Experiment, run: RunFolder) -> None:
    """What runs, on what, with which clips."""
    clips, data = exp.data.table, exp.data
    print(f"{info_text(exp.dtype)}\n\ndevice {exp.device}, {exp.dtype}: {exp.why}")
    print("".join(f"LEAKY: {reason}\n" for reason in exp.cfg.leaks()), end="")
    counts = zip(exp.class_counts(np.arange(len(data))), exp.labels.classes, strict=True)
    print(
        f"{len(data)} clips of {subject_ids(clips.clips).nunique()} subjects:",
        ", ".join(f"{n} {c}" for n, c in counts),
    )
    recipe = describe_inputs(data.sampling, exp.cfg.image_size, exp.cfg.apex)
    print("\n".join(f"{name}: {_words(how)}" for name, how in recipe.items()))
    if exp.dropped:
        print("outside the label set:", ", ".join(f"{n} {emotion}" for emotion, n in exp.dropped.items()))
    print("".join(f"{line}\n" for line in first_faults(clips, f", all in {run.path / 'faults.csv'}")), end="")


def _words(value: object) -> str:
    """Plain values of a recipe in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def train_fold(exp: Experiment, folder: FoldFolder, number: int) -> None:
    """Train fold `number` to the epoch that is to be tested; save its model and predictions."""
    cfg, fold = exp.cfg, exp.folds[number]
    title = f"fold {fold.name} ({number + 1} of {len(exp.folds)})"
    epochs = choose_epoch(exp, folder, number, title) if cfg.select == "inner" else cfg.epochs
    model, answers = fit(exp, folder, fold, (number,), epochs, title)
    if cfg.select == "best-test-epoch":
        epochs = best_epoch(exp.data.labels[fold.test], answers, len(exp.labels.classes)) + 1
    save_model(model, folder.path / "model.safetensors", notes=stamp(cfg))
    predictions = predictions_table(exp, fold, predict(exp, model, fold.test))
    folder.finish(predictions.assign(epoch=epochs, **stamp(cfg)))


def choose_epoch(exp: Experiment, folder: FoldFolder, number: int, title: str) -> int:
    """The epoch with the best UF1, pooled over inner folds of the training subjects; 1 is the first."""
    truth, answers = [], []
    for i, inner in enumerate(inner_of(exp.cfg, exp.data.table, exp.folds[number])):
        own = folder.inner(i)
        path = own.path / "answers.npy"
        if not path.exists():
            # Longer than any outer fold's numbers, so that no two trainings draw the same.
            _, seen = fit(exp, own, inner, (number, i + 1, 1), exp.cfg.epochs, f"{title}, inner {inner.name}")
            write_atomically(path, partial(np.save, arr=seen))
        (own.path / "state.pt").unlink(missing_ok=True)
        truth.append(exp.data.labels[inner.test])
        answers.append(np.load(path))
    classes = len(exp.labels.classes)
    return best_epoch(np.concatenate(truth), np.concatenate(answers, axis=1), classes) + 1
