"""Peak memory on the CPU according to torch's profiler, which also sees allocations inside custom ops."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that `run` holds at once, its result included, beyond those allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert changes, "the profiler saw no allocation"
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
