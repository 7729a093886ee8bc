"""A run on disk: its settings, its progress, its results.

Every file is complete at any moment, except a fold's metrics.jsonl, to which lines are appended.

runs/<name>/config.json        the resolved configuration, classes, folds and notes
            clips.csv          the clips used; faults.csv: what was wrong with the dataset
            folds.csv          the clips that each fold tests or leaves out; it trains on the others
            folds/<n>/         metrics.jsonl, a line per epoch; state.pt while training, then
                               model.safetensors and predictions.csv; inner/<k>/ of its inner folds, with
                               answers.npy: the classes predicted after each epoch
            .launch            which launch started or continued it, for torchrun's restarts
            predictions.csv    all finished folds; metrics.jsonl, curves.png, confusion.png, summary.json,
                               report.html
"""

import contextlib
import json
import os
import sys
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch

from ..checkpoint import read_weights
from ..clips import KEY
from ..files import check_writable, lock_file, make_folder, open_lock, write_atomically, write_text
from ..protocol import FOLD_COLUMNS, read_predictions

# Fields that may change on --resume; `check_clips` verifies the data.
MAY_CHANGE = (
    *("data", "more_data", "annotation", "runs", "name", "only", "save_every", "strict", "device"),
    *("cache", "cache_gb"),
)
_IDENTITY = [*KEY, "apex", "offset", "label"]
_MOST_CHANGES = 8  # that a message lists

# What a run writes, in the order in which it is deleted: without its predictions, which come first, a fold is
# not finished; without config.json, which comes last, a folder is not a run.
_FILES = (
    *("predictions.csv", "answers.npy", "model.safetensors", "state.pt", "metrics.jsonl", "summary.json"),
    *("report.html", "curves.png", "confusion.png", "faults.csv", "folds.csv", "clips.csv", ".writing.lock"),
    *(".launch", "config.json"),
)
_FOLDERS = ("folds", "folds/[0-9]*", "folds/[0-9]*/inner", "folds/[0-9]*/inner/[0-9]*")
_RESULTS = {"predictions.csv", "answers.npy", "model.safetensors", "state.pt", "summary.json"}


class RunFolder:
    """The folder of one run, locked for one process, or for one group of workers, until it ends.

    On a disk without locks one process may train, with a warning, and several may not.

    Args:
        path: the folder.
        config: what config.json will hold.
        resume: continue the run, if there is one; otherwise there may be none with a checkpoint.
        overwrite: delete the run that there is.
        shared: whether other workers open the folder too.
        is_main: False in those other workers, which open the folder after the main process.

    Raises:
        ValueError: `check_run` says so, or the run is in use.
        OSError: the folder cannot be created, or there are other workers and its disk has no locks.
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
    ) -> None:
        self.path = path
        config_file = path / "config.json"
        if is_main:
            make_folder(path, "--runs", path.parent)
        self.alone = is_main and not shared
        self._lock = _lock_run(path, shared=not is_main, alone=self.alone)
        weakref.finalize(self, self._lock.close)
        if not is_main:
            _check_settings(config_file, config)
            return
        check_run(path, config, resume=resume, overwrite=overwrite)
        _delete_temporary_files(path)
        if not resume and config_file.exists():
            finished = delete_run(path)
            if overwrite:
                print(f"{path}: the run that was here is deleted, {finished} finished folds (--overwrite)")
        if not config_file.exists():
            write_text(config_file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        write_text(path / ".launch", _launcher())
        if shared:
            lock_file(self._lock, shared=True)

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
        path, columns = self.path / "folds.csv", list(FOLD_COLUMNS)
        if not path.exists():
            self.write_table("folds.csv", folds)
            return
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
        if before[columns].to_numpy().tolist() != folds[columns].astype(str).to_numpy().tolist():
            raise ValueError(
                f"{self.path} was started on other folds than those made now: give the same --folds, --seed "
                "and data, or another --name"
            )

    def fold(self, number: int) -> "FoldFolder":
        """The folder of fold `number` (0, 1, ...)."""
        return FoldFolder(fold_folder(self.path, number), alone=self.alone)

    @contextmanager
    def exclusive_writer(self) -> Iterator[None]:
        """Inside, only this process writes the files that pool all folds."""
        with open_lock(self.path / ".writing.lock") as file:
            _lock(file, alone=self.alone)
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
    """The files of one training, in a folder of its own that one process at a time can lock.

    Args:
        path: the folder.
        alone: whether no other process trains the run; then a disk without locks is enough.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self.path, self.alone = path, alone
        self.state_file = path / "state.pt"

    @property
    def finished(self) -> bool:
        """Whether the fold is trained and tested: its predictions are written last."""
        return (self.path / "predictions.csv").exists()

    @contextmanager
    def try_acquire(self) -> Iterator[bool]:
        """Lock the fold inside; False: another process has it.

        The operating system releases the lock however the process ends, kill -9 included.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open_lock(self.path / ".lock") as file:
            acquired = _lock(file, alone=self.alone, wait=False)
            if acquired:
                _delete_temporary_files(self.path)
            yield acquired

    def inner(self, number: int) -> "FoldFolder":
        """The folder of inner fold `number` (0, 1, ...)."""
        return FoldFolder(self.path / "inner" / f"{number + 1:02d}", alone=self.alone)

    def save_state(self, state: dict[str, Any]) -> None:
        """Save what training needs to continue from here: {"epoch": int, "model": ..., "optimizer": ...}."""
        write_atomically(self.state_file, lambda file: torch.save(state, file))

    def load_state(self) -> dict[str, Any] | None:
        """The last saved state, or None."""
        return read_weights(self.state_file) if self.state_file.exists() else None

    def finish(self, predictions: pd.DataFrame) -> None:
        """Write the fold's predictions, which marks it finished."""
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
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"could not write {path}: {error.strerror}; --resume continues the run") from error


def fold_folder(run: Path, number: int) -> Path:
    """The folder of fold `number` (0, 1, ...). Not named after the fold: its name may contain a slash."""
    return run / "folds" / f"{number + 1:02d}"


def _lock(file: IO[Any], *, alone: bool, wait: bool = True) -> bool:
    """`lock_file`; a process that is alone goes on where there are no locks."""
    try:
        return lock_file(file, wait=wait)
    except OSError:
        if not alone:
            raise
        return True


def _lock_run(path: Path, *, shared: bool, alone: bool) -> IO[str]:
    """Lock a run for this process, or (shared) for all its workers, until the process ends."""
    file = open_lock(path / ".lock")
    try:
        locked = lock_file(file, shared=shared, wait=False)
    except OSError as error:
        if not alone:
            file.close()
            raise OSError(f"{error}; --runs expected a disk with locks, for several processes") from error
        print(f"{error}; make sure that no other process trains this run", file=sys.stderr)
        locked = True
    if not locked:
        file.close()
        raise ValueError(f"{path} is in use: another process is training this run")
    return file


def _delete_temporary_files(path: Path) -> None:
    """Delete temporary files left by a killed writer; `path` must be locked by this process."""
    for temporary in path.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def check_clips(
    path: Path, clips: pd.DataFrame, *, decoded: bool = True, unknown: Collection[str] = ()
) -> None:
    """Raise ValueError unless the clips and labels in `path`, a run's clips.csv, are those of `clips`.

    decoded: False: their frames have yet to be decoded, which may leave out some of `clips`.
    unknown: columns that are known only then.
    """
    columns = [column for column in _IDENTITY if column not in unknown]
    before, now = (
        list(table[columns].astype(str).itertuples(index=False, name=None))
        for table in (pd.read_csv(path, dtype=str, keep_default_na=False), clips)
    )
    known = set(before)
    if before == (now if decoded else [clip for clip in now if clip in known]):
        return
    shared = len(known & set(now))
    if shared == len(before) == len(now):
        raise ValueError(
            f"{path.parent} was started on these clips in another order: give the datasets in that order"
        )
    raise ValueError(
        f"{path.parent} was started on other clips, apexes or labels: of its {len(before)} clips {shared} "
        f"are among the {len(now)} clips found now"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        ValueError: it does not exist or is damaged.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} is not a run: it has no config.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'} expected a JSON object, got {type(config).__name__}")
    return config


def as_read(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON returns it: tuples become lists."""
    return json.loads(json.dumps(config))


def differing(before: dict[str, Any], now: dict[str, Any], ignore: Collection[str] = MAY_CHANGE) -> list[str]:
    """The names of the settings in `now` that differ from those in `before`, except `ignore`."""
    return [name for name, value in now.items() if name not in ignore and before.get(name) != value]


def check_run(path: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool = False) -> None:
    """Check that a run can be started at `path`, or continued with `settings`.

    A run that ended before its first checkpoint does not stand in the way of a new one.

    Raises:
        ValueError: a run with results is there, and neither `resume` nor `overwrite` is given; with `resume`,
            it has other settings; or the folder holds other runs, or files of these names but no run.
    """
    if (path / "config.json").exists():
        read_config(path)  # raises if it is damaged
    if not is_run(path):
        if any(is_run(child) and has_results(child) for child in path.glob("*")):
            raise ValueError(f"{path} holds several runs, of --seeds or of ablate: give another --name")
        others = [name for name in _FILES if not name.startswith(".") and (path / name).exists()]
        others += [str(folder.relative_to(path)) for folder in path.glob("folds/[0-9]*")]
        if others:
            raise ValueError(f"--name expected a run or a new folder, got {path} with {', '.join(others)}")
    elif resume:
        _check_settings(path / "config.json", settings)
    elif has_results(path) and not overwrite:
        raise ValueError(
            f"{path} exists: give --resume to continue it, --overwrite to delete it and start again, or "
            "another --name"
        )


def check_folders(path: Path) -> None:
    """Raise OSError if a folder of the run at `path`, which may be another user's, cannot be written."""
    for pattern in _FOLDERS:
        for folder in path.glob(pattern):
            check_writable(folder, "--name", folder)


def check_free(path: Path) -> None:
    """Raise ValueError if another process is training the run at `path`."""
    if not (path / ".lock").is_file():
        return
    with open_lock(path / ".lock") as file, contextlib.suppress(OSError):  # a disk without locks
        if not lock_file(file, wait=False):
            raise ValueError(f"{path} is in use: another process is training this run")


def is_run(path: Path) -> bool:
    """Whether there is a run at `path`; False for a config.json that is damaged or of something else."""
    try:
        return {"classes", "num_folds"} <= read_config(path).keys()
    except ValueError:
        return False


def _launcher() -> str:
    """What tells this launch from others: the process that starts the workers, again after one ended."""
    return str(os.getppid())


def is_of_this_launch(path: Path) -> bool:
    """Whether the run at `path` was last started, or continued, by the launcher of this process."""
    file = path / ".launch"
    return file.is_file() and file.read_text("utf-8") == _launcher()


def has_results(path: Path) -> bool:
    """Whether the run at `path` has a checkpoint, or anything that comes after one."""
    folders = [path, *(folder for pattern in _FOLDERS for folder in path.glob(pattern))]
    return any((folder / name).exists() for folder in folders for name in _RESULTS)


def delete_run(path: Path) -> int:
    """Delete the run at `path`, which must be locked by this process; returns how many folds were finished.

    Only files and folders that a run writes: others stay. Of a link, the link itself.
    """
    finished = len(list(path.glob("folds/[0-9]*/predictions.csv")))
    for pattern in _FOLDERS:
        for folder in path.glob(pattern):
            if folder.is_symlink():
                folder.unlink()
    for pattern in reversed(_FOLDERS):
        for folder in path.glob(pattern):
            for name in (*_FILES, ".lock"):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds other files
                folder.rmdir()
    for name in _FILES:
        (path / name).unlink(missing_ok=True)
    return finished


def _check_settings(config_file: Path, config: dict[str, Any]) -> None:
    """Raise ValueError naming each setting that differs from those in config.json."""
    before, now = read_config(config_file.parent), as_read(config)
    differ = differing(before, now)
    if differ:
        changes = "; ".join(
            f"{key} was {_short(before.get(key))}, is {_short(now[key])}" for key in differ[:_MOST_CHANGES]
        )
        if len(differ) > _MOST_CHANGES:
            changes += f"; and {len(differ) - _MOST_CHANGES} more"
        path = config_file.parent
        again = "" if has_results(path) else "; it has no checkpoint, so without --resume it starts again"
        raise ValueError(
            f"{path} was started with other settings, so it cannot be continued: {changes}{again}"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
