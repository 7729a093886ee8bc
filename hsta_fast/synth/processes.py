"""Work on numbered subjects, done by several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import cv2

from ..threads import ctrl_c_kept_from_children


def _one_thread() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism


Result = TypeVar("Result")


def in_processes(
    work: Callable[[int], Result], numbers: Sequence[int], processes: int
) -> Generator[tuple[int, Result]]:
    """Each number and `work` of it, in the order in which they are finished.

    work: can be pickled, as a function of a module or a `functools.partial` of one can.
    processes: how many at most; 1 = only this one, 0 = one for each processor core.
    """
    processes = min(processes or os.cpu_count() or 1, len(numbers))
    if processes == 1:
        for number in numbers:
            yield number, work(number)
        return
    # Spawned, not forked: the caller may have threads (torch, OpenCV) that do not survive a fork.
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        try:
            with ctrl_c_kept_from_children():
                waiting = {pool.submit(work, number): number for number in numbers}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # what they have written counts for nothing without the last file
            raise
