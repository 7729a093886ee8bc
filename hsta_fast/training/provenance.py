"""How a run was made: command, code, versions and device. One entry for each start of the run.

Nothing here says who ran it: no name of a user or a machine, and no path but those that the user typed.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import hsta_fast

from ..environment import info
from ..model import HSTA, HSTAConfig

_GIT_SECONDS = 5.0  # a clone on a slow disk must not hold up a run


class Start:
    """One start of a run, as an entry of `provenance` in config.json.

    Args:
        clock: `time.monotonic()` when it began.
        device, dtype: what trains.
        architecture: of the model, whose parameters are counted.
        workers: processes that train the run together.
        pretrained: the files that the models start from, a line each; empty: they start from random weights.
    """

    def __init__(
        self,
        *,
        clock: float,
        device: torch.device,
        dtype: torch.dtype,
        architecture: HSTAConfig,
        workers: int,
        pretrained: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        began = datetime.now(UTC) - timedelta(seconds=time.monotonic() - clock)
        self._entry: dict[str, Any] = {
            "started": began.isoformat(timespec="seconds"),
            "ended": None,
            "seconds": 0.0,
            "command": command_line(sys.argv),
            "hsta_fast": hsta_fast.__version__,
            **source_version(Path(hsta_fast.__file__).resolve().parent.parent),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "triton": _version("triton"),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "av": _version("av"),
            "device": device_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "workers": workers,
            "parameters": num_parameters(architecture),
            "pretrained": list(pretrained),
        }

    def continues(self, entries: Sequence[Mapping[str, Any]]) -> torch.dtype:
        """Take the dtype of the run's other starts, `entries` (see `dtype_of_run`); returns what is taken."""
        self._entry["dtype"] = dtype_of_run(entries, self._entry["device"]) or self._entry["dtype"]
        dtype: torch.dtype = getattr(torch, self._entry["dtype"])
        return dtype

    def entry(self, ended: str | None = None) -> dict[str, Any]:
        """The entry now.

        ended: "finished", or the error that ended this start; None while it goes on, and after a kill.
        Its "seconds" are those of the clock since the start, with reading the data and testing.
        """
        return self._entry | {"ended": ended, "seconds": round(time.monotonic() - self._clock, 1)}

    def text(self) -> str:
        """The entry's main parts in one line."""
        entry = self._entry
        commit = f" of commit {entry['commit']}" if entry["commit"] else ""
        modified = ", modified" if entry["modified"] else ""
        return (
            f"hsta_fast {entry['hsta_fast']}{commit}{modified}, torch {entry['torch']}, {entry['device']}, "
            f"{entry['dtype']}, {entry['threads']} threads, {entry['parameters']} parameters; "
            f"command: {entry['command'] or 'another program'}"
        )


def dtype_of_run(entries: Sequence[Mapping[str, Any]], device: str) -> str | None:
    """The dtype that a run was started with on this kind of device; None if it was not.

    With --dtype auto it holds for all folds, whatever another machine, or another measurement, would choose.

    Args:
        entries: of "provenance" in its config.json, the oldest first.
        device: a torch.device as text, or `device_name`.
    """
    kind = device.partition(":")[0]
    dtypes = (entry["dtype"] for entry in entries if entry["device"].partition(":")[0] == kind)
    return next(dtypes, None)


def command_line(argv: list[str]) -> str | None:
    """The command of hsta-fast in `argv`, as typed into a shell; None if another program calls it."""
    program = Path(argv[0]) if argv else Path()
    if program.name == "__main__.py" and program.parent.name == "hsta_fast":
        return shlex.join(["python", "-m", "hsta_fast", *argv[1:]])
    if program.stem == "hsta-fast":
        return shlex.join(["hsta-fast", *argv[1:]])
    return None


@cache
def source_version(root: Path) -> Mapping[str, Any]:
    """The git commit of the clone that the package runs from, and whether its files are modified.

    Returns:
        {"commit": 40 digits, or None for an installed package; "modified": None if git cannot tell}
    """
    try:
        is_clone = 'name = "hsta_fast"' in (root / "pyproject.toml").read_text(encoding="utf-8")
        commit = _commit(root / ".git") if is_clone else None
    except (OSError, ValueError):
        commit = None
    return {"commit": commit, "modified": commit and _is_modified(root)}


def _commit(git: Path) -> str | None:
    """The commit that is checked out, read from git's own files, so that git need not be there."""
    if git.is_file():  # of a worktree: it names the folder
        git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return _checked(head)
    name = head.removeprefix("ref:").strip()
    shared = git / "commondir"
    folders = [git, git / shared.read_text(encoding="utf-8").strip()] if shared.exists() else [git]
    for folder in folders:
        if (folder / name).is_file():
            return _checked((folder / name).read_text(encoding="utf-8").strip())
    packed = folders[-1] / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.exists() else []
    return next((_checked(line.split()[0]) for line in lines if line.endswith(f" {name}")), None)


def _checked(commit: str) -> str | None:
    return commit if re.fullmatch("[0-9a-f]{40,64}", commit) else None


def _is_modified(root: Path) -> bool | None:
    """Whether files under version control differ from the commit; None if git is absent or fails."""
    # Variables such as GIT_DIR, set inside a hook, would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """The name of the processor or GPU."""
    devices = info()["devices"]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return f"cuda:{index}: {devices[f'cuda:{index}']}"
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return f"cpu: {', '.join([*models[:1], devices['cpu']])}"


@cache
def num_parameters(architecture: HSTAConfig) -> int:
    """The number of parameters of a model; nothing is allocated, and no random number drawn."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in HSTA(architecture).parameters())
