"""A pretraining on disk. Every file is complete at any moment, except metrics.jsonl and run.log, which grow.

runs/<name>/config.json         the settings; how it was made
            clips.csv           the clips used; faults.csv: what was wrong with the dataset
            metrics.jsonl       a line per epoch; run.log: a line for each event
            state.pt            while it is trained, then
            reconstruction.png  what was hidden, and what the model makes of it; loss.png
            model.safetensors   the model, written last
            .lock               who works on it
"""

import json
from pathlib import Path
from typing import Any

from ..files import write_text
from ..training.run_checks import FILES as FILES_OF_RUNS
from ..training.run_checks import check_settings, has_results, read_config
from ..training.run_folder import FoldFolder
from ..training.run_log import NAME as LOG

OBJECTIVE = "masked tube reconstruction"
FILES = (
    *("model.safetensors", "state.pt", "metrics.jsonl", "reconstruction.png", "loss.png", "faults.csv"),
    *("clips.csv", LOG, "config.json"),
)


class PretrainFolder(FoldFolder):
    """The folder of a pretraining, which is like that of a run's one fold."""

    @property
    def finished(self) -> bool:
        """Whether the model is there: it is written last."""
        return (self.path / "model.safetensors").exists()

    def fold(self, number: int) -> "PretrainFolder":
        """The folder itself, for `RunProgress`."""
        return self

    def start(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make room for a new pretraining, or check the one that is continued; the folder is acquired.

        Raises:
            ValueError: as `check_folder`.
        """
        check_folder(self.path, settings, resume=resume, overwrite=overwrite)
        if not resume:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            self._write_config(settings)

    def write_start(self, entry: dict[str, Any], *, new: bool) -> None:
        """Write how this start was made: the last entry of "provenance" in config.json, or a new one."""
        config = read_config(self.path)
        entries = config.setdefault("provenance", [])
        config["provenance"] = [*(entries if new else entries[:-1]), entry]
        self._write_config(config)

    def _write_config(self, config: dict[str, Any]) -> None:
        write_text(self.path / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def is_pretraining(path: Path) -> bool:
    """Whether there is a pretraining at `path`."""
    try:
        return read_config(path).get("objective") == OBJECTIVE
    except ValueError:
        return False


def check_folder(path: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check that a pretraining can be started at `path`, or continued with `settings`.

    One that ended before its first checkpoint does not stand in the way of a new one.

    Raises:
        ValueError: one with results is there, and neither `resume` nor `overwrite` is given; with `resume`,
            there is none or it has other settings; or the folder holds a run, or files of these names.
    """
    if not is_pretraining(path):
        if resume:
            raise ValueError(
                f"--resume expected a pretraining in {path}, got none: without it, one is started"
            )
        others = [name for name in dict.fromkeys((*FILES, *FILES_OF_RUNS, "folds")) if (path / name).exists()]
        others = [name for name in others if not name.startswith(".")]
        if others:
            got = f"{path} with {', '.join(others)}"
            raise ValueError(f"--name expected a pretraining or a new folder, got {got}")
    elif resume:
        check_settings(path / "config.json", settings)
    elif has_results(path) and not overwrite:
        raise ValueError(
            f"{path} exists: give --resume to continue it, --overwrite to delete it and start again, or "
            "another --name"
        )
