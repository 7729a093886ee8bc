"""The most memory that a call holds, and the largest batch that fits into a device."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..memory import account
from .config import ProfileConfig

_MANY = 256  # clips: so many that the peak is that of activations, not of gradients
_MOST = 4096  # clips, more than are tried


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that `run` holds at once, beyond those that were allocated before.

    On the CPU by torch's profiler, which sees allocations inside custom ops too, but not the buffers of
    libraries.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


def held_bytes(optimizer: torch.optim.Optimizer, *, state: bool) -> int:
    """The bytes of the parameters that `optimizer` trains, and with `state` of its own state."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    if state:
        own = (x for values in optimizer.state.values() for x in values.values())
        tensors += [x for x in own if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def available_bytes() -> int | None:
    """The memory of this machine that a process can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:  # of a container
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # none, or "max": no limit
        return free
    return min(free, limit - used)


def check_fits(config: ProfileConfig, dtype: torch.dtype, available: int | None) -> None:
    """Check that the largest shape of a profile on the CPU fits into `available` bytes, by the account.

    Raises:
        ValueError: it does not, as far as an estimate can tell.
    """
    if available is None:
        return
    shapes, size = config.shapes("cpu"), config.image_size
    batch, frames = max(b for b, _ in shapes), max(t for _, t in shapes)

    def needed(clips: int) -> int:
        # Two batches of frames are there first. Where these are too many, nothing else need be known.
        given = 2 * clips * 3 * frames * size**2
        if given > available:
            return given
        return account(
            config.architecture(),
            batch=clips,
            num_frames=frames,
            image_size=size,
            dtype=dtype,
            memory=config.memory,
            device="cpu",
        ).peak

    if (most := needed(batch)) <= available:
        return
    if batch > 1 and needed(1) <= available:
        flag, got = "--batch-sizes", f"{batch} clips of {frames} frames"
    elif frames > 2 and frames * 224 > 16 * size:
        flag, got = "--frames", f"{frames} frames"
    else:
        flag, got = "--image-size", f"{size} pixels"
    fits = f"training steps that fit into the {available / 1e9:.3g} GB available"
    raise ValueError(f"{flag} expected {fits}, got {got}, which take about {most / 1e9:.3g} GB at least")


def estimated_batch(config: ProfileConfig, frames: int, dtype: torch.dtype, limit: float) -> int:
    """About the largest batch whose step on CUDA fits into `limit` bytes, by one account; 0: none does."""
    size, memory = config.image_size, config.memory
    known = account(
        config.architecture(), batch=_MANY, num_frames=frames, image_size=size, dtype=dtype, memory=memory
    )
    return max(0, int((limit - known.weights - known.optimizer) / known.per_clip))


def largest_by_trial(fits: Callable[[int], bool], estimate: int, tries: int = 6) -> tuple[int, int | None]:
    """The largest batch for which `fits`, and the smallest known for which not, in few tries.

    They are 1 in 16 apart, unless the tries do not suffice because the estimate is far off.

    Args:
        fits: whether a step with such a batch runs in the memory there is.
        estimate: a batch to begin with.
        tries: calls of `fits` at most.
    """
    good, bad = 0, None
    batch = max(1, min(estimate, _MOST))
    away = max(1, batch // 16)
    for _ in range(tries):
        if fits(batch):
            good = batch
        else:
            bad = batch
        if bad is None:
            if good >= _MOST:
                break
            batch, away = min(good + away, _MOST), 2 * away
        elif good == 0:
            if bad == 1:
                break
            batch, away = max(1, bad - away), 2 * away
        elif bad - good <= max(1, good // 16):
            break
        else:
            batch = (good + bad) // 2
    return good, bad
