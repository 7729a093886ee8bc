"""A run on disk: what it was asked to do, how far it is, what it found.

Every file is whole at any moment but a fold's metrics.jsonl, to which lines are appended.

runs/<name>/config.json        the resolved configuration, classes, folds and notes
            clips.csv          the clips used; faults.csv: what was wrong with the data set
            folds.csv          the clips that each fold tests or leaves out; it trains on the others
            folds/<n>/         metrics.jsonl, a line per epoch; state.pt while training, then
                               model.safetensors and predictions.csv; inner/<k>/ of its inner folds
            predictions.csv    all finished folds; metrics.jsonl, curves.png, confusion.png, summary.json,
                               report.html
"""

import fcntl
import json
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch

from ..checkpoint import read_weights
from ..clips import KEY
from ..files import write_atomically, write_text
from ..protocol import FOLD_COLUMNS, read_predictions

# Where things are and how the run is cut up. Whether the data are the same, their clips tell (`same_clips`).
MAY_CHANGE = (
    *("data", "more_data", "annotation", "runs", "name", "only", "save_every", "strict", "device"),
    *("cache", "cache_gb"),
)
_IDENTITY = [*KEY, "apex", "offset", "label"]


class RunFolder:
    """The folder of one run, held by one process or one team of processes at a time.

    Args:
        path: the folder.
        config: what config.json is to hold.
        resume: continue a run that is there; otherwise the folder must be new.
        team: let others of the same team in.
        leads: false for those others, who come in after the one who leads.

    Raises:
        ValueError: the run exists and `resume` is false, was made with other settings, or is in use.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], *, resume: bool, team: bool = False, leads: bool = True
    ) -> None:
        self.path = path
        config_file = path / "config.json"
        if not leads:
            self._lock = _lock(path / ".lock", fcntl.LOCK_SH)
            weakref.finalize(self, self._lock.close)
            _same_settings(config_file, config)
            return
        if config_file.exists() and not resume:
            raise ValueError(f"{path} exists: give --resume to continue it, or another --name")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path / ".lock", fcntl.LOCK_EX)
        weakref.finalize(self, self._lock.close)
        _clear_litter(path)
        if config_file.exists():
            _same_settings(config_file, config)
        else:
            write_text(config_file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if team:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a csv, whole or not at all."""
        write_text(self.path / name, table.to_csv(index=False))

    def same_clips(self, clips: pd.DataFrame) -> None:
        """Keep the clips of a new run in clips.csv; a run that has them already must be given the same ones.

        Raises:
            ValueError: clips, their order, apexes or labels differ from those that the run was started on.
        """
        path = self.path / "clips.csv"
        if path.exists():
            check_clips(path, clips)
        else:
            write_text(path, clips.drop(columns="frames").to_csv(index=False))

    def same_folds(self, folds: pd.DataFrame) -> None:
        """Keep the folds of a new run in folds.csv; a run that has them already must be given the same ones.

        Raises:
            ValueError: they differ.
        """
        path, columns = self.path / "folds.csv", list(FOLD_COLUMNS)
        if not path.exists():
            self.write_table("folds.csv", folds)
            return
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
        if before[columns].to_numpy().tolist() != folds[columns].astype(str).to_numpy().tolist():
            raise ValueError(f"{self.path} was started on other folds than those made now")

    def fold(self, number: int) -> "FoldFolder":
        """What fold `number` (0, 1, ...) leaves; fold names may hold a slash, so they name no folder."""
        return FoldFolder(fold_folder(self.path, number))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While inside, this process alone writes what is pooled over folds."""
        with (self.path / ".writing.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def collect(self, num_folds: int) -> int:
        """Write predictions.csv of all finished folds, in their order, and metrics.jsonl of all folds.

        Returns how many folds are finished; nothing is written where there is none.
        """
        folds = [self.fold(n) for n in range(num_folds)]
        finished = [fold for fold in folds if fold.finished]
        if finished:
            parts = [read_predictions(fold.path / "predictions.csv") for fold in finished]
            write_text(
                self.path / "metrics.jsonl", "".join(line for fold in folds for line in fold.metrics())
            )
            self.write_table("predictions.csv", pd.concat(parts, ignore_index=True))
        for fold in finished:  # their models are saved
            (fold.path / "state.pt").unlink(missing_ok=True)
        return len(finished)


class FoldFolder:
    """What one training leaves, in a folder of its own that one process at a time may take."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        """Whether the fold is trained and tested. Its predictions are written last."""
        return (self.path / "predictions.csv").exists()

    @contextmanager
    def take(self) -> Iterator[bool]:
        """Whether the fold is this process's while inside; false: another has it.

        The system gives it back however the process ends, kill -9 included.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            taken = _try_lock(file, fcntl.LOCK_EX)
            if taken:
                _clear_litter(self.path)  # of the worker that had it before and was killed
            yield taken

    def inner(self, number: int) -> "FoldFolder":
        """The folder of inner fold `number` (0, 1, ...)."""
        return FoldFolder(self.path / "inner" / f"{number + 1:02d}")

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep what training needs to go on from here: {"epoch": int, "model": ..., "optimizer": ...}."""
        write_atomically(self.path / "state.pt", lambda file: torch.save(state, file))

    def load_state(self) -> dict[str, Any] | None:
        """The last state that was saved, or None."""
        path = self.path / "state.pt"
        return read_weights(path) if path.exists() else None

    def finish(self, predictions: pd.DataFrame) -> None:
        """Write the fold's predictions, which marks it finished."""
        write_text(self.path / "predictions.csv", predictions.to_csv(index=False))

    def metrics(self) -> list[str]:
        """The lines of metrics.jsonl; one cut short by a kill is left out."""
        path, lines = self.path / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                json.loads(line)
            except json.JSONDecodeError:
                continue
            lines.append(line + "\n")
        return lines

    def keep_metrics(self, epoch: int) -> None:
        """Drop the lines beyond `epoch`, to be trained again."""
        kept = [line for line in self.metrics() if json.loads(line)["epoch"] <= epoch]
        write_text(self.path / "metrics.jsonl", "".join(kept))

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"could not write {path}: {error.strerror}; --resume continues the run") from error


def fold_folder(run: Path, number: int) -> Path:
    """The folder of fold `number` (0, 1, ...) of a run."""
    return run / "folds" / f"{number + 1:02d}"


def _lock(path: Path, kind: int) -> IO[str]:
    """Take the run for this process (LOCK_EX) or its team (LOCK_SH), until the process ends."""
    file = path.open("w")
    if not _try_lock(file, kind):
        file.close()
        raise ValueError(f"{path.parent} is in use: another process is training this run")
    return file


def _clear_litter(path: Path) -> None:
    """Remove what a process that was killed while writing has left below a folder that is this process's."""
    for litter in path.rglob(".*.tmp"):
        litter.unlink(missing_ok=True)


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(f"{file.name} cannot be locked on this file system: {error.strerror}") from error
    return True


def check_clips(path: Path, clips: pd.DataFrame) -> None:
    """Raise ValueError unless the clips and labels in `path`, a run's clips.csv, are those of `clips`."""
    before, now = (
        list(table[_IDENTITY].astype(str).itertuples(index=False, name=None))
        for table in (pd.read_csv(path, dtype=str, keep_default_na=False), clips)
    )
    if before == now:
        return
    shared = len(set(before) & set(now))
    if shared == len(before) == len(now):
        raise ValueError(f"{path.parent} was started on these clips in another order: give the data as then")
    raise ValueError(
        f"{path.parent} was started on other clips, apexes or labels: of its {len(before)} clips {shared} "
        f"are among the {len(now)} clips found now"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} is no run: it has no config.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'} wants an object, got {type(config).__name__}")
    return config


def as_read(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it comes back from config.json: tuples as lists."""
    return json.loads(json.dumps(config))


def differing(before: dict[str, Any], now: dict[str, Any], free: Collection[str] = MAY_CHANGE) -> list[str]:
    """The settings of `now` that differ from those on record, but for `free`, which may."""
    return [name for name, value in now.items() if name not in free and before.get(name) != value]


def _same_settings(config_file: Path, config: dict[str, Any]) -> None:
    """Raise ValueError naming each setting that differs from the run's own."""
    before, now = read_config(config_file.parent), as_read(config)
    differ = differing(before, now)
    if differ:
        changes = "; ".join(f"{key} was {_short(before.get(key))}, is {_short(now[key])}" for key in differ)
        raise ValueError(f"{config_file.parent} was started otherwise, so it cannot be continued: {changes}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
