"""Trains and tests every fold of a run, alone or with other workers, and keeps its report up to date."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from ..clips import KEY
from ..files import check_writable, write_text
from ..protocol import (
    SEED_FILES,
    import_matplotlib,
    read_predictions,
    score,
    score_table,
    table,
    write_report,
    write_seeds,
)
from . import stopping
from .config import TrainConfig, leak_columns, settled
from .distributed import FollowedFold, Team, team
from .dry_run import dry_run, print_experiment
from .fold import epochs_of_fold, fold_title, train_fold
from .progress import RunProgress, duration
from .provenance import Start
from .run_checks import (
    check_clips,
    check_folders,
    check_free,
    check_run,
    delete_run,
    has_results,
    is_of_this_launch,
    is_run,
    read_config,
    read_starts,
)
from .run_folder import FoldFolder, RunFolder, fold_folder
from .run_log import RunLog, describe_error
from .scalars import check_tensorboard
from .setup import (
    AS_STARTED,
    Experiment,
    Plan,
    caveats,
    decode,
    describe,
    describe_settings,
    known_after_decoding,
    plan,
    remarks_and_faults,
)
from .splits import fold_parts
from .step import out_of_memory_in_words
from .workers import workers

# The least time between two reports, in seconds: writing one may take longer than a fold.
_REPORT_INTERVAL = 30.0
_ENTRY_INTERVAL = 1.0  # likewise between two entries of how the run was made


Told = int | Literal["finished", "stopped"]  # the number of a fold to train, or why there is none


@dataclass(frozen=True)
class _Run:
    """A run that has been opened, and what is told of it."""

    exp: Experiment
    folder: RunFolder
    log: RunLog
    start: Start
    progress: RunProgress
    team: Team


def main(cfg: TrainConfig) -> Path:
    """Train and test every fold, pool the predictions, write the report; returns the run's folder.

    With several workers (see `workers`), each trains the folds that it acquires. With several seeds, each
    seed is a run in a folder of its own inside the run's folder, and a table shows the scores of all.

    Raises:
        ValueError: invalid settings or data, or a run folder that was made with other settings.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss became NaN or infinite.
        MemoryError: a CUDA device ran out of memory.
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
    if "tensorboard" in cfg.log:
        check_tensorboard()
    folder = cfg.runs / cfg.name
    check_writable(cfg.runs, "--runs", cfg.runs)
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
        if not run.join:
            check_free(path)
        check_run(path, settled(run), resume=run.resume or run.join, overwrite=run.overwrite)
        if not ((run.resume or run.join) and (path / "config.json").exists()):
            run.check_warm_up()
        check_writable(path, "--name", path)
        check_folders(path)
    if inside and is_run(folder) and not cfg.dry_run:  # one that ended before its first checkpoint
        delete_run(folder)


def train_runs(cfg: TrainConfig, runs: Sequence[TrainConfig]) -> Path:
    """`main` after its checks."""
    folder, group = cfg.runs / cfg.name, workers()
    writes = group.is_main and not cfg.dry_run
    shared = cfg.join or (cfg.distribute == "folds" and group.size > 1)
    with closing(RunProgress(len(runs), shown=group.is_main, shared=shared)) as progress:
        if cfg.seeds == 1:
            return train_run(runs[0], progress)
        if writes and runs[0].overwrite:
            for name in SEED_FILES:
                (folder / name).unlink(missing_ok=True)
        paths = {run.seed: train_run(run, progress) for run in runs}
    if writes and all(map(is_finished, runs)):
        print(f"\n{write_seeds(folder, paths)}\n\neach seed: {folder / 'seeds.csv'}")
    return folder


def is_finished(cfg: TrainConfig) -> bool:
    """Whether all requested folds of the run are finished; with --join others may still train some."""
    path = cfg.runs / cfg.name
    numbers = requested_folds(cfg, list(read_config(path)["train_counts"]))
    return all(FoldFolder(fold_folder(path, number)).finished for number in numbers)


def requested_folds(cfg: TrainConfig, names: Sequence[str]) -> list[int]:
    """The numbers of the folds in `cfg.only`; all if it is empty."""
    return [number for number, name in enumerate(names) if not cfg.only or name in cfg.only]


def train_run(cfg: TrainConfig, progress: RunProgress) -> Path:
    """Train and test the folds of the run of one seed."""
    group, clock = workers(), time.monotonic()
    names = [f"process {os.getpid()}"] * cfg.join + [f"worker {group.rank}"] * (group.size > 1)
    log = RunLog(" ".join(names))
    with log.recording():
        before = cfg.runs / cfg.name if cfg.resume or cfg.join else None
        planned = plan(cfg, device=group.device(cfg.device), run=before)
        group.main_process_first(partial(check_before_decoding, planned))
        start = Start(
            clock=clock,
            device=planned.device,
            dtype=planned.dtype,
            architecture=planned.initial.architecture(len(planned.labels.classes)),
            workers=group.size,
            pretrained=planned.initial.lines(),
        )
        exp = decode(planned)
        if cfg.dry_run:
            with out_of_memory_in_words(cfg):
                group.main_process_first(partial(dry_run, exp))
            return cfg.runs / cfg.name
        folder, exp = group.main_process_first(partial(open_run, exp, start, log))
        run = _Run(exp, folder, log, start, progress, team(cfg.distribute, exp.device, exp.dtype))
        try:
            with run.team.in_words(), out_of_memory_in_words(cfg), stopping.deferred():
                report_is_old = train_folds(run) if run.team.is_main else follow(run)
        except BaseException as error:
            if group.is_main:
                with suppress(OSError):
                    folder.write_start(start.entry(describe_error(error)))
            raise
        end_run(run, report_is_old)
    return folder.path


def end_run(run: _Run, report_is_old: bool) -> None:
    """Update the report for the last time; the main process prints the scores and what they took."""
    if not workers().is_main:
        if report_is_old:
            update_report(run.exp, run.folder)
        run.log.event("ended: all requested folds are finished")
        return
    entry = run.start.entry("finished")
    run.folder.write_start(entry)
    update_report(run.exp, run.folder)
    run.progress.close()
    if not is_finished(run.exp.cfg):
        text = "no free fold is left; other processes train the rest"
        run.log.event(f"ended: {text}")
        print(f"{run.folder.path}: {text}")
        return
    trained = run.folder.trained(len(run.exp.folds))
    took = (
        f"{trained['epochs']} epochs trained in {duration(trained['seconds'])}, "
        f"{trained['clips_per_second']:.1f} clips/s; {duration(entry['seconds'])} since the start"
    )
    run.log.event(f"ended: all requested folds are finished; {took}")
    path = run.folder.path
    print(f"\n{took}\n\n{table(path)}\n\nreport: {path / 'report.html'}")


def check_before_decoding(planned: Plan, is_main: bool) -> None:
    """Raise ValueError for a run that cannot be continued on the clips of the annotation."""
    cfg = planned.cfg
    path = cfg.runs / cfg.name
    if is_main and (cfg.resume or cfg.join) and (path / "clips.csv").exists():
        settings = describe_settings(cfg, planned.labels, planned.sampling, planned.initial)
        check_run(path, settings, resume=True)
        unknown = known_after_decoding(cfg)
        check_clips(path / "clips.csv", planned.clips.clips, decoded=False, unknown=unknown)


def open_run(exp: Experiment, start: Start, log: RunLog, is_main: bool) -> tuple[RunFolder, Experiment]:
    """Open the run's folder, or create it; the main process writes its tables and prints what is trained.

    With --dtype auto, `exp` gets the dtype of the first process that started the run (see `dtype_of_run`).
    """
    cfg, clips = exp.cfg, exp.data.table
    path, shared = cfg.runs / cfg.name, workers().size > 1
    resumed = (cfg.resume or cfg.join) and (path / "config.json").exists()
    run = RunFolder(
        path,
        describe(exp),
        resume=cfg.resume,
        overwrite=cfg.overwrite,
        shared=shared,
        is_main=is_main,
        join=cfg.join,
    )
    log.open(path)
    run.write_or_check_clips(clips.clips.assign(**leak_columns(exp.leaks)))
    if is_main:
        columns = [*KEY, "what", "action"]
        faults = pd.DataFrame([asdict(fault) for fault in clips.faults], columns=columns)
        run.write_or_check_folds(fold_parts(clips, exp.folds).assign(**leak_columns(exp.leaks)))
        run.write_table("faults.csv", faults.assign(**leak_columns(exp.leaks)))
        if exp.initial.report is not None:
            write_text(run.path / "init.txt", f"{exp.initial.report}\n")
        run.write_start(start.entry())  # takes its place among processes that join: the first decides
    exp = with_dtype_of_run(exp, start, path)
    if is_main:
        run.write_start(start.entry())
        print_experiment(exp, f", all in {run.path / 'faults.csv'}")
        update_report(exp, run)  # a killed process may have finished a fold since the last report
    log_start(exp, start, log, "resumed" if resumed else "started")
    return run, exp


def with_dtype_of_run(exp: Experiment, start: Start, path: Path) -> Experiment:
    """`exp` with the dtype that the run at `path` has on this kind of device, if --dtype is auto."""
    if exp.cfg.dtype != "auto" or (dtype := start.continues(read_starts(path))) == exp.dtype:
        return exp
    return replace(exp, dtype=dtype, why=AS_STARTED)


def log_start(exp: Experiment, start: Start, log: RunLog, how: str) -> None:
    """Write to the log how this process starts, and what a reader of the scores must know."""
    log.event(f"{how}: {start.text()}")
    if workers().is_main:
        for line in (*(f"LEAKY: {reason}" for reason in exp.leaks), *caveats(exp.cfg), *exp.remarks):
            log.event(line)
        for line in remarks_and_faults(exp.data.table, ", all in faults.csv"):
            log.event(line)


def train_folds(run: _Run) -> bool:
    """Train the requested folds that no other process trains; return when all are finished.

    With --join it returns when none is free. The other ranks of the team `follow`.

    Returns:
        Whether there are folds that the report does not have yet.
    """
    exp, folder, progress = run.exp, run.folder, run.progress
    report_is_old, last_report = False, time.monotonic()
    requested = requested_folds(exp.cfg, [fold.name for fold in exp.folds])
    after_epoch = entry_writer(folder, run.start) if workers().is_main else lambda: None
    progress.start_run(folder, requested, epochs_of_fold(exp.cfg), run.log, after_epoch)
    tested: dict[int, pd.DataFrame] = {}
    while unfinished := [n for n in requested if not folder.fold(n).finished]:
        trained_one = False
        for number in unfinished:
            if stopping.asked():
                tell(run.team, "stopped")
                raise stopping.Stopped(f"SIGUSR1 between two folds; {stopping.SAVED}")
            fold = folder.fold(number)
            with fold.try_acquire() as acquired:
                if not acquired or fold.finished:
                    continue
                tell(run.team, number)
                train_fold(exp, fold, number, progress, run.team)
            progress.say(f"{fold_title(exp, number)}: finished; {score_so_far(exp, folder, tested)}")
            trained_one = report_is_old = True
            if time.monotonic() - last_report > _REPORT_INTERVAL:
                update_report(exp, folder)
                report_is_old, last_report = False, time.monotonic()
        if not trained_one:
            if exp.cfg.join and (workers().size == 1 or run.team.size > 1):
                break
            progress.look_at_others()
            time.sleep(0.2)  # other workers train the rest; the fold of one that dies is released
    tell(run.team, "finished")
    return report_is_old


def follow(run: _Run) -> bool:
    """Train, as the main process says, each fold that it has acquired; nothing is written here."""
    while (told := tell(run.team)) != "finished":
        if told == "stopped":
            raise stopping.Stopped(f"SIGUSR1 between two folds; {stopping.SAVED}")
        train_fold(run.exp, FollowedFold(), told, team=run.team)
    return False


def tell(team: Team, what: Told = "finished") -> Told:
    """What the main process tells the other ranks to do next."""
    return team.from_main(lambda: what)


def entry_writer(folder: RunFolder, start: Start) -> Callable[[], None]:
    """Writes how long this start has taken, at most once a second: a kill leaves the last of them."""
    last = -_ENTRY_INTERVAL

    def write() -> None:
        nonlocal last
        if time.monotonic() - last > _ENTRY_INTERVAL:
            folder.write_start(start.entry())
            last = time.monotonic()

    return write


def score_so_far(exp: Experiment, folder: RunFolder, tested: dict[int, pd.DataFrame]) -> str:
    """The pooled UF1 (of units: mean F1) of the finished folds in words; `tested` keeps their predictions."""
    for number in range(len(exp.folds)):
        if number not in tested and folder.fold(number).finished:
            table_of_fold = read_predictions(folder.fold(number).path / "predictions.csv")
            tested[number] = table_of_fold
    pooled = pd.concat(tested.values())
    so_far = f"of {len(tested)} of {len(exp.folds)} folds"
    leaky = " (leaky)" if exp.leaks else ""
    if exp.cfg.task == "units":
        return f"mean F1 {so_far} {score_table(pooled, exp.labels.classes).f1:.3f}{leaky}"
    answers, number = (pooled["label"], pooled["predicted"]), len(exp.labels.classes)
    scores = score(*answers, number, absent="zero", unscored=int(exp.cfg.with_neutral))
    return f"UF1 {so_far} {scores.uf1:.3f}{leaky}"


def update_report(exp: Experiment, run: RunFolder) -> None:
    """Pool the predictions of the finished folds and write the report on them."""
    with run.exclusive_writer():
        if run.pool_predictions(len(exp.folds)):
            write_report(run.path, run.trained(len(exp.folds)))
