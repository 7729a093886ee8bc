"""Entries, one JSON object per line: the results of a stage of `make gpu` so far, kept if it is killed."""

import json
from pathlib import Path
from typing import Any

# Exit status of a process that can no longer use its device: a new process continues after the fault. Python
# and pytest use other statuses.
DEVICE_FAULT = 75
Entry = dict[str, Any]


def append(path: Path, entry: Entry) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def read(path: Path) -> list[Entry]:
    """The finished entries; a started one without an end counts as failed, because its process died in it."""
    lines = path.read_text().splitlines() if path.exists() else []
    found: list[Entry] = []
    started: dict[str, None] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the writer was killed within this line
            continue
        if "started" in entry:
            started[entry["started"]] = None
        else:
            started.pop(entry.get("case", ""), None)
            found.append(entry)
    return found + [{"case": case, "failed": "the process ended within it"} for case in started]
