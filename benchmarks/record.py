"""benchmarks/results/<machine>.json: the machine, the versions, and the last figures of every group.

    {"machine": {"name", "cores", "threads", "simd", "slug"}, "versions": {package: version},
     "groups": [entry of `benchmarks.compare.measure`, ...]}

A run replaces the groups that it measures and keeps the others, so a file may be filled in several runs.
Figures of other versions of the packages are dropped.
"""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.entries import Entry
from hsta_fast.environment import info
from hsta_fast.files import write_text

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def machine() -> dict[str, Any]:
    """This machine's processor, and the name of its file."""
    name = _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "slug": f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}-{cores}-cores",
        "name": name,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = info()
    packages = {name: version for name, version in found["versions"].items() if version}
    return {"python": found["python"], **packages}


class Recorder:
    """Collects the groups of a run, and writes the file after each of them.

    Attributes:
        folder: of the results file; None: nothing is written.
        entries: the groups measured in this run.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.record: Record = {"machine": machine(), "versions": versions()}

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.record['machine']['slug']}.json"

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self.path is None:
            return
        before = read(self.path) if self.path.exists() else None
        same = before is not None and all(before[key] == self.record[key] for key in self.record)
        groups = {e["group"]: e for e in before["groups"]} if before is not None and same else {}
        write(self.path, self.record | {"groups": list((groups | {entry["group"]: entry}).values())})


def write(path: Path, record: Record) -> None:
    """One line per group, so that a change of the file shows what was measured again."""
    groups = ",\n".join(f"  {json.dumps(entry)}" for entry in record["groups"])
    head = "".join(f" {json.dumps(key)}: {json.dumps(record[key])},\n" for key in ("machine", "versions"))
    write_text(path, f'{{\n{head} "groups": [\n{groups}\n ]\n}}\n')


def read(path: Path) -> Record | None:
    """A results file of a CPU; None if it is not one, such as those of `make gpu`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} expected JSON, got {error}; delete it and measure again") from None
    return found if isinstance(found, dict) and "groups" in found else None


def records(folder: Path = RESULTS) -> list[Record]:
    """All results of CPUs, by file name."""
    found = (read(path) for path in sorted(folder.glob("*.json")))
    return [record for record in found if record is not None]
