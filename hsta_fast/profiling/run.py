"""`hsta-fast profile`: measure, then write the results."""

import gc
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..environment import info
from ..files import make_folder, write_bytes, write_text
from ..memory import largest_batch
from ..model import SPECIAL_FRAMES
from ..protocol import import_matplotlib
from ..training.setup import pick_device
from ..training.step_graph import SHARE_OF_MEMORY
from . import page
from .ceilings import measure_ceilings
from .config import OURS, ProfileConfig
from .measure import Measurement
from .memory_used import available_bytes, check_fits, estimated_batch, held_bytes, largest_by_trial
from .progress import ProfileProgress
from .results import cell_facts, part_facts, sentences
from .steps import DATA

_ABOVE = 1.1  # of a ceiling: more than its noise
_USED = 0.95  # of the free memory, in an estimate: the rest is in pieces too small to use


def profile(config: ProfileConfig) -> str:
    """Profile a model on this machine, and write profile.json, trace.json.gz, figures and profile.html.

    Nothing is written before all is measured.

    Returns:
        A summary of several lines.

    Raises:
        ValueError: a setting that cannot be, or a device that does not exist.
        OSError: the folder cannot be created or written.
    """
    config.check()
    device, dtype, why = pick_device(config.device, config.dtype)
    config.check_machine(device.type)
    if device.type == "cpu":  # on CUDA a training step that does not fit ends with an error of its own
        check_fits(config, dtype, available_bytes())
    # Kineto, torch's profiler, prints a line at each start and stop unless its level is above all of its own.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    progress = ProfileProgress()
    try:
        facts, trace = _measure(config, device, dtype, why, progress)
    finally:
        progress.close()
    _write(config.out, facts, trace)
    return f"{page.as_text(facts)}\nresults: {config.out / 'profile.html'}"


def _measure(
    config: ProfileConfig, device: torch.device, dtype: torch.dtype, why: str, progress: ProfileProgress
) -> tuple[dict[str, Any], bytes]:
    load = os.getloadavg()
    measured = Measurement(config, device, dtype, progress)
    progress.planned = measured.planned()
    with progress.job("what the machine reaches", 0.0):
        ceilings = measure_ceilings(device, dtype)
    measured.warm_up()
    measured.time_rounds()
    traced, profiler = measured.trace()
    trace = _trace_bytes(profiler)
    with progress.job("what the machine reaches, again", 0.0):
        ceilings = ceilings.best_of(measure_ceilings(device, dtype))
    largest = [] if config.quick else _largest(measured)
    threads = torch.get_num_threads()
    facts: dict[str, Any] = {
        "model": config.model,
        "image_size": config.image_size,
        "memory": config.memory,
        "dtype": str(dtype).removeprefix("torch."),
        "data": DATA,
        "compared_with": [name for name in measured.models if name != OURS],
        "machine": {
            "name": machine_name(device),
            "device": str(device),
            "threads": threads,
            "dtype": f"{str(dtype).removeprefix('torch.')} ({why})",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load before": f"{load[0]:.2f} processes ran in the minute before",
            **{name: version for name, version in info()["versions"].items() if version},
            "python": platform.python_version(),
        },
        "ceilings": ceilings.to_json(),
        "cells": cell_facts(measured),
        "parts": [part_facts(measured, call, ceilings) for call in traced],
        "largest_batch": largest,
    }
    facts["notes"] = _notes(load[0], facts)
    facts["summary"] = sentences(facts)
    return facts, trace


def _notes(load: float, facts: dict[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    if facts["machine"]["device"] == "cpu" and load > 0.5 * facts["machine"]["threads"]:
        notes.append(f"The machine was busy ({load:.1f} processes ran before): times are longer, and vary.")
    rows = [row for call in facts["parts"] for row in call["parts"]]
    above = dict.fromkeys(row["part"] for row in rows if row.get("reached", 0.0) > _ABOVE)
    if above:
        notes.append(
            f"More than 100 % of a ceiling ({', '.join(above)}): data stayed in a cache, or other programs "
            "disturbed the measurement of the ceiling."
        )
    return notes


def _largest(measured: Measurement) -> list[dict[str, Any]]:
    """The largest batch of a training step of our model, for each number of frames."""
    found = []
    device = measured.device
    for frames in dict.fromkeys(count for _, count in measured.shapes):
        if device.type == "cuda":
            found.append(_largest_on_cuda(measured, frames))
            continue
        available = available_bytes()
        if available is None:
            continue
        with measured.progress.job(f"largest batch at {frames} frames", 0.0):
            batch = largest_batch(
                measured.architecture,
                available,
                num_frames=frames,
                image_size=measured.config.image_size,
                dtype=measured.dtype,
                memory=measured.config.memory,
                device="cpu",
            )
        how = f"an estimate by account, for the {available / 1e9:.0f} GB available"
        found.append({"frames": frames, "batch": batch, "how": how, "graph_batch": None})
    return found


def _largest_on_cuda(measured: Measurement, frames: int) -> dict[str, Any]:
    """The largest batch by a few tries from an estimate, and about the largest that runs as a CUDA graph."""
    device, config, dtype = measured.device, measured.config, measured.dtype
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    held = held_bytes(measured.models[OURS].step.optimizer, state=True)  # the account has it, too
    with measured.progress.job(f"largest batch at {frames} frames", 0.0):
        estimate = estimated_batch(config, frames, dtype, _USED * free + held)
        in_graph = estimated_batch(config, frames, dtype, SHARE_OF_MEMORY * total)
    batch, too_large = largest_by_trial(lambda b: _fits(measured, b, frames), estimate)
    how = f"tried; {too_large} do not fit" if too_large else "tried; more may fit"
    graph_batch = min(batch, in_graph) if config.memory == "fast" else None
    return {"frames": frames, "batch": batch, "how": how, "graph_batch": graph_batch}


def _fits(measured: Measurement, batch: int, frames: int) -> bool:
    """Whether a training step of this batch runs in the memory of the CUDA device."""
    step, size, device = measured.models[OURS].step, measured.config.image_size, measured.device
    try:
        with measured.progress.job(f"largest batch at {frames} frames: {batch}", 0.0):
            # The loader makes two more in advance.
            held = [
                {
                    name: torch.zeros(batch, 3, count, size, size, dtype=torch.uint8, device=device)
                    for name, count in (("video", frames), ("special", SPECIAL_FRAMES))
                }
                for _ in range(3)
            ]
            step.model.train()
            step.backward(held[0], torch.zeros(batch, dtype=torch.int64, device=device))
            step.update(0.0)
            torch.cuda.synchronize(device)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        held = []
        step.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def machine_name(device: torch.device) -> str:
    """The name of the processor or of the CUDA device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _trace_bytes(profiler: torch.profiler.profile) -> bytes:
    """The trace for Perfetto, compressed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()


def _write(out: Path, facts: dict[str, Any], trace: bytes) -> None:
    import_matplotlib()
    from ..protocol.plots import png
    from . import plots

    figures = {
        "parts.png": png(plots.parts_figure(facts)),
        "roofline.png": png(plots.roofline_figure(facts)),
    }
    if plots.has_scaling(facts):
        figures["scaling.png"] = png(plots.scaling_figure(facts))
    html = page.render(facts, figures)
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    make_folder(out, "--out", out)
    write_text(out / "profile.json", text)
    write_bytes(out / "trace.json.gz", trace)
    if "scaling.png" not in figures:
        (out / "scaling.png").unlink(missing_ok=True)  # of an earlier profile
    for name, figure in figures.items():
        write_bytes(out / name, figure)
    write_text(out / "profile.html", html)
