"""Trains and tests every fold of a run, alone or with other workers, and keeps its report up to date."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..checkpoint import save_model
from ..clips import KEY
from ..files import check_locks, check_writable, write_atomically
from ..protocol import best_epoch, import_matplotlib, table, write_report, write_seeds
from .config import TrainConfig, leak_columns, to_json
from .dry_run import dry_run, print_experiment
from .evaluate import predictions_table
from .loop import fit, predict
from .run_checks import (
    check_clips,
    check_folders,
    check_free,
    check_run,
    delete_run,
    has_results,
    is_of_this_launch,
    is_run,
)
from .run_folder import FoldFolder, RunFolder
from .setup import (
    Experiment,
    Plan,
    caveats,
    decode,
    describe,
    describe_settings,
    known_after_decoding,
    plan,
)
from .splits import fold_parts, inner_of
from .workers import workers

# The least time between two reports, in seconds: writing one may take longer than a fold.
_REPORT_INTERVAL = 30.0


def main(cfg: TrainConfig) -> Path:
    """Train and test every fold, pool the predictions, write the report; returns the run's folder.

    With several workers (see `workers`), each trains the folds that it acquires. With several seeds, each
    seed is a run in a folder of its own inside the run's folder, and a table shows the scores of all.

    Raises:
        ValueError: invalid settings or data, or a run folder that was made with other settings.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    runs = seed_runs(cfg)
    workers().main_process_first(partial(check_before_reading, cfg, runs))
    return train_runs(cfg, runs)


def seed_runs(cfg: TrainConfig) -> list[TrainConfig]:
    """The run of each seed, `cfg` itself if there is one seed."""
    cfg.check()
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    runs = [cfg] if cfg.seeds == 1 else [cfg.child_run(f"seed{n}", seed=n, seeds=1) for n in seeds]
    if workers().restarts == 0:
        return runs
    # The launcher starts the workers again: they continue what they began, and nothing older.
    began = [is_of_this_launch(run.runs / run.name) for run in runs]
    return [
        replace(run, resume=True, overwrite=False) if ours else run
        for run, ours in zip(runs, began, strict=True)
    ]


def check_before_reading(cfg: TrainConfig, runs: Sequence[TrainConfig], is_main: bool) -> None:
    """Check, before any data are read, that all runs of `cfg` can be started, or continued, and written.

    A run of one seed that ended before its first checkpoint makes room for runs of several.

    Raises:
        ValueError: --resume without a run, or `check_run` or `TrainConfig.check_warm_up` of a run says so.
        OSError: the folder of the runs cannot be written.
    """
    if not is_main:
        return
    import_matplotlib()
    folder = cfg.runs / cfg.name
    check_writable(cfg.runs, "--runs", cfg.runs)
    if workers().size > 1:
        check_locks(cfg.runs, "--runs")
    check_writable(folder, "--name", folder)
    begun = (folder / "config.json").exists()
    inside = any((run.runs, run.name) != (cfg.runs, cfg.name) for run in runs)  # runs of seeds, of a table
    if inside:
        if begun and not (is_run(folder) and not has_results(folder)):
            raise ValueError(f"{folder} is a run of one seed: give another --name")
        check_free(folder)
        begun = any(is_run(path) for pattern in ("*", "*/*") for path in folder.glob(pattern))
    if cfg.resume and not begun:
        raise ValueError(f"--resume expected a run in {folder}, got none: without --resume it is started")
    for run in runs:
        path = run.runs / run.name
        check_free(path)
        check_run(path, to_json(run), resume=run.resume, overwrite=run.overwrite)
        if not (run.resume and (path / "config.json").exists()):
            run.check_warm_up()
        check_writable(path, "--name", path)
        check_folders(path)
    if inside and is_run(folder) and not cfg.dry_run:  # one that ended before its first checkpoint
        delete_run(folder)


def train_runs(cfg: TrainConfig, runs: Sequence[TrainConfig]) -> Path:
    """`main` after its checks."""
    folder = cfg.runs / cfg.name
    if cfg.seeds == 1:
        return train_run(*runs)
    writes = workers().is_main and not cfg.dry_run
    if writes and runs[0].overwrite:
        (folder / "seeds.csv").unlink(missing_ok=True)
    paths = {run.seed: train_run(run) for run in runs}
    if writes:
        print(f"\n{write_seeds(folder, paths)}\n\neach seed: {folder / 'seeds.csv'}")
    return folder


def train_run(cfg: TrainConfig) -> Path:
    """Train and test the folds of the run of one seed."""
    group = workers()
    planned = plan(cfg, device=group.device(cfg.device))
    group.main_process_first(partial(check_before_decoding, planned))
    exp = decode(planned)
    if cfg.dry_run:
        group.main_process_first(partial(dry_run, exp))
        return cfg.runs / cfg.name
    run = group.main_process_first(partial(open_run, exp))
    train_folds(exp, run)
    if group.is_main:
        if group.size > 1:  # another worker may have finished the last fold after this one's last report
            update_report(exp, run)
        print(f"\n{table(run.path)}\n\nreport: {run.path / 'report.html'}")
    return run.path


def check_before_decoding(planned: Plan, is_main: bool) -> None:
    """Raise ValueError for a run that cannot be continued on the clips of the annotation."""
    cfg = planned.cfg
    path = cfg.runs / cfg.name
    if is_main and cfg.resume and (path / "clips.csv").exists():
        settings = describe_settings(cfg, planned.labels, planned.sampling)
        check_run(path, settings, resume=True)
        unknown = known_after_decoding(cfg)
        check_clips(path / "clips.csv", planned.clips.clips, decoded=False, unknown=unknown)


def open_run(exp: Experiment, is_main: bool) -> RunFolder:
    """Open the run's folder, or create it; the main process writes its tables and prints what is trained."""
    cfg, clips = exp.cfg, exp.data.table
    path, shared = cfg.runs / cfg.name, workers().size > 1
    run = RunFolder(
        path, describe(exp), resume=cfg.resume, overwrite=cfg.overwrite, shared=shared, is_main=is_main
    )
    run.write_or_check_clips(clips.clips.assign(**leak_columns(cfg)))
    if is_main:
        columns = [*KEY, "what", "action"]
        faults = pd.DataFrame([asdict(fault) for fault in clips.faults], columns=columns)
        run.write_or_check_folds(fold_parts(clips, exp.folds).assign(**leak_columns(cfg)))
        run.write_table("faults.csv", faults.assign(**leak_columns(cfg)))
        print_experiment(exp, f", all in {run.path / 'faults.csv'}")
        update_report(exp, run)  # a killed process may have finished a fold since the last report
    return run


def train_folds(exp: Experiment, run: RunFolder) -> None:
    """Train the requested folds that no other worker trains; return when all are finished."""
    report_is_old, last_report = False, time.monotonic()
    requested = [n for n, fold in enumerate(exp.folds) if not exp.cfg.only or fold.name in exp.cfg.only]
    while unfinished := [n for n in requested if not run.fold(n).finished]:
        trained_one = False
        for number in unfinished:
            with run.fold(number).try_acquire() as acquired:
                if not acquired or run.fold(number).finished:
                    continue
                train_fold(exp, run.fold(number), number)
            trained_one = report_is_old = True
            if time.monotonic() - last_report > _REPORT_INTERVAL:
                update_report(exp, run)
                report_is_old, last_report = False, time.monotonic()
        if not trained_one:
            time.sleep(0.2)  # other workers train the rest; the fold of one that dies is released
    if report_is_old:
        update_report(exp, run)


def train_fold(exp: Experiment, folder: FoldFolder, number: int) -> None:
    """Train fold `number` up to the epoch to test; save its model and predictions."""
    cfg, fold = exp.cfg, exp.folds[number]
    title = f"fold {fold.name} ({number + 1} of {len(exp.folds)})"
    epochs = choose_epoch(exp, folder, number, title) if cfg.select == "inner" else cfg.epochs
    model, predicted = fit(exp, folder, fold, (number,), epochs, title)
    if cfg.select == "best-test-epoch":
        epochs = best_epoch(exp.data.labels[fold.test], predicted, len(exp.labels.classes)) + 1
    notes = leak_columns(cfg) | ({"caveats": " ".join(of_data)} if (of_data := caveats(cfg)) else {})
    save_model(model, folder.path / "model.safetensors", inputs=exp.model_inputs(), notes=notes)
    predictions = predictions_table(exp, fold, predict(exp, model, fold.test))
    folder.finish(predictions.assign(epoch=epochs, **leak_columns(cfg)))


def choose_epoch(exp: Experiment, folder: FoldFolder, number: int, title: str) -> int:
    """The epoch (1, 2, ...) with the best UF1, pooled over inner folds of the training subjects."""
    truth, predictions = [], []
    for i, inner in enumerate(inner_of(exp.cfg, exp.data.table, exp.folds[number])):
        inner_folder = folder.inner(i)
        path = inner_folder.path / "answers.npy"
        if not path.exists():
            # The trailing 1: SeedSequence ignores trailing zeros, so without it the seed of the weights,
            # (seed, number, i + 1, 0), would equal that of epoch i + 1 of the outer fold.
            stream, name = (number, i + 1, 1), f"{title}, inner {inner.name}"
            _, predicted = fit(exp, inner_folder, inner, stream, exp.cfg.epochs, name)
            write_atomically(path, partial(np.save, arr=predicted))
        inner_folder.state_file.unlink(missing_ok=True)
        truth.append(exp.data.labels[inner.test])
        predictions.append(np.load(path))
    classes = len(exp.labels.classes)
    return best_epoch(np.concatenate(truth), np.concatenate(predictions, axis=1), classes) + 1


def update_report(exp: Experiment, run: RunFolder) -> None:
    """Pool the predictions of the finished folds and write the report on them."""
    with run.exclusive_writer():
        if run.pool_predictions(len(exp.folds)):
            write_report(run.path)
