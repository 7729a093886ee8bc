"""A run on disk: its settings, its progress, its results.

Every file is complete at any moment, except a fold's metrics.jsonl and run.log, to which lines are appended.

runs/<name>/config.json        the resolved configuration, classes, folds, notes; how the run was made
            run.log            a line for each event, appended to
            clips.csv          the clips used; faults.csv: what was wrong with the dataset
            init.txt           with --init: what became of every key of the files and of the model
            folds.csv          the clips that each fold tests or leaves out; it trains on the others
            folds/<n>/         metrics.jsonl, a line per epoch; state.pt while training, then
                               model.safetensors, gallery.json (pictures of misclassified clips) and
                               predictions.csv; inner/<k>/ of its inner folds, with answers.npy: the classes
                               predicted after each epoch
            tensorboard/<n>/   scalars of the folds, with --log tensorboard
            .launch            which launch started or continued it, for torchrun's restarts
            .lock, .lock.*     here and in each fold's folder: who works on it (see `locks`)
            predictions.csv    all finished folds; metrics.jsonl, summary.json, report.html, and the figures
                               curves, confusion, of several datasets confusion-datasets, as png and svg
"""

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..checkpoint import read_weights
from ..files import make_folder, write_atomically, write_text
from ..locks import Lock, lock, locked
from ..protocol import FOLD_COLUMNS, read_predictions
from .run_checks import check_clips, check_run, check_settings, delete_run, launcher, read_config


class RunFolder:
    """The folder of one run, locked for one process, or for those that work on it together, until they end.

    Args:
        path: the folder.
        config: what config.json will hold.
        resume: continue the run, if there is one; otherwise there may be none with a checkpoint.
        overwrite: delete the run that there is.
        shared: whether other workers open the folder too.
        is_main: False in those other workers, which open the folder after the main process.
        join: create the run, or continue it, beside any other processes that do the same.

    Raises:
        ValueError: `check_run` says so, or the run is in use.
        OSError: the folder cannot be created.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool = False,
        shared: bool = False,
        is_main: bool = True,
        join: bool = False,
    ) -> None:
        self.path = path
        self._place_of_start: int | None = None
        config_file = path / "config.json"
        if is_main:
            make_folder(path, "--runs", path.parent)
        with locked(path / ".opening.lock") if join and is_main else nullcontext():
            self._lock, joined = _lock_run(path, shared=not is_main, join=join)
            weakref.finalize(self, self._lock.release)
            if joined:
                check_settings(config_file, config)
                return
            check_run(path, config, resume=resume or join, overwrite=overwrite)
            _delete_temporary_files(path)
            if not (resume or join) and config_file.exists():
                finished = delete_run(path)
                if overwrite:
                    print(
                        f"{path}: the run that was here is deleted, {finished} finished folds (--overwrite)"
                    )
            if not config_file.exists():
                write_text(config_file, _json(config))
            write_text(path / ".launch", launcher())
            if self._lock.by_claims:
                print(
                    f"{path}: its disk has no locks, so claim files keep other processes out", file=sys.stderr
                )
            if shared or join:
                self._lock.share()

    def write_start(self, entry: dict[str, Any]) -> None:
        """Write how this start of the run was made: an entry of "provenance" in config.json.

        It is no setting, so --resume does not compare it. Only the main process writes it, and each process
        that joined the run has an entry of its own.
        """
        with self.exclusive_writer():
            config = read_config(self.path)
            entries = config.setdefault("provenance", [])
            if self._place_of_start is None:
                self._place_of_start = len(entries)
                entries.append(entry)
            entries[self._place_of_start] = entry
            write_text(self.path / "config.json", _json(config))

    def trained(self, num_folds: int) -> dict[str, float]:
        """What all trainings so far took, over all starts and workers, without reading and testing.

        Epochs that a kill undid count once, when they are trained again.

        Returns:
            {"epochs": int, "seconds": float, "clips_per_second": float}
        """
        lines = [
            json.loads(line)
            for number in range(num_folds)
            for training in self.fold(number).trainings()
            for line in training.metrics()
        ]
        seconds = sum(line["seconds"] for line in lines)
        clips = sum(line["seconds"] * line["clips_per_second"] for line in lines)
        return {
            "epochs": len(lines),
            "seconds": seconds,
            "clips_per_second": clips / seconds if seconds else 0.0,
        }

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a csv, whole or not at all."""
        write_text(self.path / name, table.to_csv(index=False))

    def write_or_check_clips(self, clips: pd.DataFrame) -> None:
        """Write clips.csv in a new run; in one that has it, check that the clips are the same.

        Raises:
            ValueError: clips, their order, apexes or labels differ from those in clips.csv.
        """
        path = self.path / "clips.csv"
        if path.exists():
            check_clips(path, clips)
        else:
            self.write_table("clips.csv", clips.drop(columns="frames"))

    def write_or_check_folds(self, folds: pd.DataFrame) -> None:
        """Write folds.csv in a new run; in one that has it, check that the folds are the same.

        Raises:
            ValueError: the folds differ from those in folds.csv.
        """
        if (path := self.path / "folds.csv").exists():
            check_folds(path, folds)
        else:
            self.write_table("folds.csv", folds)

    def fold(self, number: int) -> "FoldFolder":
        """The folder of fold `number` (0, 1, ...)."""
        return FoldFolder(fold_folder(self.path, number))

    @contextmanager
    def exclusive_writer(self) -> Iterator[None]:
        """Inside, only this process writes the files that pool all folds."""
        with locked(self.path / ".writing.lock"):
            yield

    def pool_predictions(self, num_folds: int) -> int:
        """Write predictions.csv of all finished folds, in their order, and metrics.jsonl of all folds.

        Returns the number of finished folds; writes nothing if there is none. Deletes state.pt of finished
        folds, whose models are saved.
        """
        folds = [self.fold(n) for n in range(num_folds)]
        finished = [fold for fold in folds if fold.finished]
        if finished:
            parts = [read_predictions(fold.path / "predictions.csv") for fold in finished]
            write_text(
                self.path / "metrics.jsonl", "".join(line for fold in folds for line in fold.metrics())
            )
            self.write_table("predictions.csv", pd.concat(parts, ignore_index=True))
        for fold in finished:
            fold.state_file.unlink(missing_ok=True)
        return len(finished)


class FoldFolder:
    """The files of one training, in a folder of its own that one process at a time can lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_file = path / "state.pt"
        self._lock: Lock | None = None

    @property
    def finished(self) -> bool:
        """Whether the fold is trained and tested: its predictions are written last."""
        return (self.path / "predictions.csv").exists()

    @contextmanager
    def try_acquire(self) -> Iterator[bool]:
        """Lock the fold inside; False: another process has it.

        The lock of a process that is killed becomes free by itself (see `locks`).
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path / ".lock", wait=False)
        if self._lock is None:
            yield False
            return
        try:
            _delete_temporary_files(self.path)
            yield True
        finally:
            self._lock.release()
            self._lock = None

    def check_lock(self) -> None:
        """Raise OSError if another process has taken over the fold that this one has acquired."""
        if self._lock is not None:
            self._lock.check()

    def trainings(self) -> "list[FoldFolder]":
        """This folder and those of its inner folds."""
        inner = sorted(self.path.glob("inner/[0-9]*"))
        return [self, *map(FoldFolder, inner)]

    def epochs_recorded(self) -> int:
        """The epochs in metrics.jsonl, with those of the inner folds."""
        return sum(len(training.metrics()) for training in self.trainings())

    def inner(self, number: int) -> "FoldFolder":
        """The folder of inner fold `number` (0, 1, ...)."""
        inner = FoldFolder(self.path / "inner" / f"{number + 1:02d}")
        inner._lock = self._lock
        return inner

    def save_state(self, state: dict[str, Any]) -> None:
        """Save what training needs to continue from here: {"epoch": int, "model": ..., "optimizer": ...}."""
        self.check_lock()
        write_atomically(self.state_file, lambda file: torch.save(state, file))

    def load_state(self) -> dict[str, Any] | None:
        """The last saved state, or None."""
        return read_weights(self.state_file) if self.state_file.exists() else None

    def finish(self, predictions: pd.DataFrame) -> None:
        """Write the fold's predictions, which marks it finished."""
        self.check_lock()
        write_text(self.path / "predictions.csv", predictions.to_csv(index=False))

    def metrics(self) -> list[str]:
        """The lines of metrics.jsonl, without one that a kill has cut short."""
        path, lines = self.path / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                json.loads(line)
            except json.JSONDecodeError:
                continue
            lines.append(line + "\n")
        return lines

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the lines after `epoch`: those epochs are trained again."""
        kept = [line for line in self.metrics() if json.loads(line)["epoch"] <= epoch]
        write_text(self.path / "metrics.jsonl", "".join(kept))

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        self.check_lock()
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"could not write {path}: {error.strerror}; --resume continues the run") from error


def check_folds(path: Path, folds: pd.DataFrame) -> None:
    """Raise ValueError unless the folds in `path`, a run's folds.csv, are those of `folds`."""
    before, columns = pd.read_csv(path, dtype=str, keep_default_na=False), list(FOLD_COLUMNS)
    if before[columns].to_numpy().tolist() != folds[columns].astype(str).to_numpy().tolist():
        raise ValueError(
            f"{path.parent} was started on other folds than those made now: give the same --folds, --seed "
            "and data, or another --name"
        )


def fold_folder(run: Path, number: int) -> Path:
    """The folder of fold `number` (0, 1, ...). Not named after the fold: its name may contain a slash."""
    return run / "folds" / f"{number + 1:02d}"


def scalars_folder(run: Path, number: int) -> Path:
    """The folder of the TensorBoard scalars of fold `number`."""
    return run / "tensorboard" / f"{number + 1:02d}"


def _json(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _lock_run(path: Path, *, shared: bool, join: bool) -> tuple[Lock, bool]:
    """The lock on a run, until this process ends, and whether others hold it too."""
    held = lock(path / ".lock", shared=shared, wait=False)
    if held is not None:
        return held, shared
    if join and (held := lock(path / ".lock", shared=True, wait=False)) is not None:
        return held, True
    without = " without --join" if join else ""
    raise ValueError(f"{path} is in use: another process is training this run{without}")


def _delete_temporary_files(path: Path) -> None:
    """Delete temporary files left by a killed writer; `path` must be locked by this process."""
    for temporary in path.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)
