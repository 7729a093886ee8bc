"""The command `spot`: recordings one after the other, and where their results go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from ..clips import counted
from ..data.frames.stream import open_frames
from ..files import check_writable, write_bytes, write_text
from ..protocol.plots import png
from .report import as_json, as_text, figure, rows, table
from .settings import SpotSettings
from .sources import sources
from .spotter import spot


def spot_all(
    paths: Sequence[Path],
    settings: SpotSettings,
    *,
    fps: float | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    json: bool = False,
) -> int:
    """Spot in each recording, print what was found and write it; returns how many could not be read.

    A recording that cannot be read is one line on the standard error, and the others follow.

    Raises:
        ValueError: a folder holds no recording, or there are several and one picture is asked for.
        OSError: a result cannot be written.
    """
    for flag, path in (("--out", out), ("--plot", plot)):
        if path is not None:
            check_writable(path.absolute().parent, flag, path)
    found = sources(paths)
    if plot is not None and len(found) != 1:
        raise ValueError(f"--plot expected one recording, got {len(found)}")
    all_rows: list[dict[str, Any]] = []
    recordings: list[dict[str, Any]] = []
    failed = 0
    for source in found:
        try:
            stream = open_frames(
                source.frames, fps=fps or (source.rate if _lacks_rate(source.frames) else None)
            )
            spotted = spot(stream, settings=settings, progress=not json)
        except ValueError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        all_rows += rows(source, stream, spotted)
        recordings.append(as_json(source, stream, spotted))
        if out is not None:
            write_text(out, table(all_rows).to_csv(index=False, lineterminator="\n"))
        if plot is not None:
            write_bytes(plot, png(figure(source, stream, spotted)))
        if not json:
            print(as_text(source, stream, spotted))
    if json:
        print(dumps({"recordings": recordings}, indent=2, ensure_ascii=False))
    elif len(found) > 1:
        print(f"{counted(len(all_rows), 'interval')} in {counted(len(found) - failed, 'recording')}")
    return failed


def _lacks_rate(frames: Path | list[Path]) -> bool:
    """Whether a recording is images, which do not tell their frames a second."""
    return isinstance(frames, list) or frames.is_dir()
