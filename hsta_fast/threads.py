"""Threads and processes that an interrupted command does not wait for longer than it must."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """A pool of a thread for each processor core; after an error or Ctrl-C inside, it begins nothing more."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def ctrl_c_kept_from_children() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C: who started them ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # A new process inherits the signals that its parent's thread blocks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
