"""Threads and processes that an interrupted command does not wait for longer than it must."""

import os
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, up to `depth` of them fetched early by a thread. Errors of `items` are raised here."""
    taken: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                taken.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        end: BaseException = StopIteration()
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
        except BaseException as error:
            end = error
        finally:
            # Here, because the contexts that it has entered (a stream, a device) belong to this thread.
            if isinstance(items, Generator):
                items.close()
        put((None, end))

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, end = taken.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
