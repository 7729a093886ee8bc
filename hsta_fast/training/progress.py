"""How far the trainings of a command are: bars on a terminal, lines elsewhere, and the events of the log."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from .run_folder import FoldFolder
from .run_log import RunLog
from .scalars import FoldScalars

_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_LINE_INTERVAL = 60.0  # seconds between two lines where there is no terminal
_BAR_INTERVAL = 0.2
_DISK_INTERVAL = 2.0  # between two looks at what other workers have done
_SHOWN = ("train_loss", "train_acc", "test_loss", "test_acc", "loss")
Item = TypeVar("Item")


class Folds(Protocol):
    """What `RunProgress` asks of the folder of a run."""

    def fold(self, number: int) -> FoldFolder:
        """The folder of fold `number`."""
        ...


class _TimeLeft:
    """Epochs done of `total`, whole and parts, and the time left at the rate since `start`."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.initial, self.began = total, 0.0, 0.0, time.monotonic()

    def seconds(self) -> float | None:
        """The seconds left; None before anything is done."""
        gained = self.done - self.initial
        if gained <= 0:
            return None
        return max(0.0, self.total - self.done) * (time.monotonic() - self.began) / gained

    def text(self) -> str:
        """The share that is done, and the time left."""
        left = self.seconds()
        share = f"{100 * self.done / self.total:.0f} %" if self.total else "100 %"
        return f"{share}, {duration(left)} left" if left else share

    def show(self, bar: "tqdm[Any] | None") -> None:
        """Draw `bar`; it computes the time left as here."""
        if bar is not None:
            bar.total, bar.n, bar.initial = self.total, self.done, self.initial
            bar.refresh()


class RunProgress:
    """The progress of all requested folds of one run, or of the runs of several seeds, in epochs.

    Epochs that were trained before this start are done, and do not count in the rate. With several workers
    the epochs of the others count too, as far as they are on disk.

    Args:
        num_runs: the number of runs, one per seed.
        shown: whether this process shows it.
        shared: whether other workers train the same run.
    """

    def __init__(self, num_runs: int = 1, *, shown: bool = False, shared: bool = False) -> None:
        self.log = RunLog()
        self.after_epoch: Callable[[], None] = lambda: None
        self._shown, self._shared, self._runs_left = shown, shared, num_runs
        self._of_earlier_runs = 0.0
        self._size: dict[int, float] = {}  # epochs of each requested fold of the current run
        self._done: dict[int, float] = {}
        self._run: Folds | None = None
        self._time_left: _TimeLeft | None = None
        self._title = "run" if num_runs == 1 else f"all {num_runs} seeds"
        self._bar: tqdm[Any] | None = None
        self._last_shown = self._last_look = -float("inf")
        self._last_line: float | None = None

    def start_run(
        self,
        run: Folds,
        numbers: Sequence[int],
        epochs: int,
        log: RunLog,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin the next run, with the folds `numbers` of at most `epochs` epochs each.

        after_epoch: called after each epoch that this process trains.
        """
        self.log, self._run, self.after_epoch = log, run, after_epoch
        self._of_earlier_runs += sum(self._size.values())
        self._runs_left -= 1
        self._size = dict.fromkeys(numbers, float(epochs))
        self._done = {number: self._on_disk(number) for number in numbers}
        if self._time_left is None:  # not before: the time that the data took to read says nothing of epochs
            self._time_left = _TimeLeft(0.0)
        if self._shown and is_terminal():
            self._bar = new_bar(self._title)
            self._bar.start_t -= time.monotonic() - self._time_left.began  # of the first run
        self._time_left.initial += sum(self._done.values())
        self._update()

    @contextmanager
    def training(
        self,
        number: int,
        title: str,
        epochs: int,
        *,
        before: int = 0,
        last: bool = True,
        scalars: Callable[[], FoldScalars] | None = None,
    ) -> "Iterator[Progress]":
        """The progress of one training of fold `number`, inside the context.

        Args:
            number: the fold.
            title: names the training.
            epochs: its epochs.
            before: epochs of the fold's earlier trainings, on its inner folds.
            last: whether the fold has no training after this one.
            scalars: makes the writer of scalars, once metrics.jsonl has only the epochs that count.
        """
        if last and number in self._size:
            self._size[number] = float(before + epochs)
        progress = Progress(self, number, title, epochs, before, scalars)
        try:
            yield progress
        finally:
            progress.close()

    def say(self, text: str) -> None:
        """Write one line to the log and, in the process that shows progress, to standard error."""
        self.log.event(text)
        self.show_line(text)

    def show_line(self, text: str) -> None:
        """Write one line to standard error, above the bars, with how far the run is."""
        if self._shown:
            whole = f"; {self._title}: {self._time_left.text()}" if self._time_left is not None else ""
            tqdm.write(text + whole, file=sys.stderr)
            self._last_line = time.monotonic()

    def resumed(self, number: int, done: float) -> None:
        """Fold `number` continues after `done` epochs, which do not count in the rate."""
        if number in self._done and self._time_left is not None:
            self._time_left.initial += done - self._done[number]
        self.move(number, done)

    def move(self, number: int, done: float) -> None:
        """Fold `number` has `done` epochs now."""
        if number in self._done:
            self._done[number] = done
            self.look_at_others(number)

    def epochs_left(self) -> float:
        """Epochs that are still to train, by all workers; 0 before the first run has begun."""
        return 0.0 if self._time_left is None else self._time_left.total - self._time_left.done

    def look_at_others(self, own: int | None = None) -> None:
        """Count the epochs of other workers, and show them; `own` is the fold that this process trains."""
        now = time.monotonic()
        if self._shown and self._shared and now - self._last_look > _DISK_INTERVAL:
            self._last_look = now
            self._done |= {number: self._on_disk(number) for number in self._done if number != own}
        self._update()

    def line_is_due(self, *, epoch: bool) -> bool:
        """Whether it is time for a line: there is no terminal, and there was none for a while.

        epoch: whether an epoch has just ended; the first one is worth a line.
        """
        if self._bar is not None or not self._shown or self._time_left is None:
            return False
        if self._last_line is None and epoch:
            return True
        return time.monotonic() - (self._last_line or self._time_left.began) > _LINE_INTERVAL

    def bar(self, title: str) -> "tqdm[Any] | None":
        """A bar for one training; None where there is no terminal."""
        return None if self._bar is None else new_bar(title)

    def close(self) -> None:
        """Remove the bar, so that others can print; the next run has a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _on_disk(self, number: int) -> float:
        assert self._run is not None
        fold = self._run.fold(number)
        size = self._size[number]
        return size if fold.finished else min(size, float(fold.epochs_recorded()))

    def _update(self) -> None:
        if self._time_left is None:
            return
        size = sum(self._size.values())
        self._time_left.done = self._of_earlier_runs + sum(self._done.values())
        self._time_left.total = self._of_earlier_runs + size * (1 + self._runs_left)
        if self._bar is not None and time.monotonic() - self._last_shown > _BAR_INTERVAL:
            self._last_shown = time.monotonic()
            self._time_left.show(self._bar)


class Progress:
    """The progress of one training: what the training script tells of itself."""

    def __init__(
        self,
        run: RunProgress | None = None,
        number: int = 0,
        title: str = "",
        epochs: int = 0,
        before: int = 0,
        scalars: Callable[[], FoldScalars] | None = None,
    ) -> None:
        """Of `RunProgress.training`; without arguments one that is shown nowhere."""
        self._run = run or RunProgress()
        self._number, self._title, self._before = number, title, before
        self._time_left = _TimeLeft(epochs)
        self._epochs_done = 0
        self._metrics = ""
        self._make_scalars = scalars
        self._scalars: FoldScalars | None = None
        self._bar: tqdm[Any] | None = None
        self._last_shown = -float("inf")

    def start(self, epochs_done: int) -> None:
        """Training starts, or continues after `epochs_done` epochs."""
        self._epochs_done = epochs_done
        self._time_left.done = self._time_left.initial = epochs_done
        self._run.resumed(self._number, self._before + epochs_done)
        if epochs_done:
            self._run.say(f"{self._title}: resumed at epoch {epochs_done} of {self._time_left.total}")
        else:
            self._run.log.event(f"{self._title}: started, {self._time_left.total} epochs")
        self._scalars = self._make_scalars() if self._make_scalars is not None else None
        self._bar = self._run.bar(self._title)

    def batches(self, batches: Iterable[Item], num_batches: int, first: int = 0) -> Iterator[Item]:
        """Pass on the batches of an epoch; each moves the progress on when the next one is asked for.

        first: how many of the `num_batches` are done already.
        """
        for number, batch in enumerate(batches, start=first + 1):
            yield batch
            self._move(self._epochs_done + number / num_batches)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """An epoch is trained and tested, with these metrics."""
        self._epochs_done += 1
        self._metrics = ", ".join(f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
        leaky = " (leaky)" if "leaky" in metrics else ""
        speed = f"lr {metrics['lr']:.3g}, {metrics['clips_per_second']:.1f} clips/s"
        where = f"{self._title}: epoch {self._epochs_done} of {self._time_left.total}"
        self._run.log.event(f"{where}: {self._metrics}{leaky}, {speed}")
        if self._scalars is not None:
            self._scalars.epoch(metrics)
        self._move(self._epochs_done)
        self._run.after_epoch()

    def epochs_left(self) -> float:
        """Epochs of the run that are still to train, by all workers; without a run, of this training."""
        return max(self._time_left.total - self._time_left.done, self._run.epochs_left())

    def say(self, text: str) -> None:
        """One line about this training, in the log and on standard error."""
        self._run.say(f"{self._title}: {text}")

    def close(self) -> None:
        """The training has ended, or failed."""
        if self._bar is not None:
            self._bar.close()
        if self._scalars is not None:
            self._scalars.close()

    def _move(self, done: float) -> None:
        self._time_left.done = done
        self._run.move(self._number, self._before + done)
        # At the end of an epoch its number, and inside the next one that of the next.
        where = f"{self._title}, epoch {math.ceil(done)} of {self._time_left.total}"
        if self._run.line_is_due(epoch=done == self._epochs_done):
            metrics = f", {self._metrics}" if self._metrics else ""
            self._run.show_line(f"{where}{metrics}: {self._time_left.text()}")
        if self._bar is not None and time.monotonic() - self._last_shown > _BAR_INTERVAL:
            self._last_shown = time.monotonic()
            self._bar.set_description_str(where, refresh=False)
            self._bar.set_postfix_str(self._metrics, refresh=False)
            self._time_left.show(self._bar)


def is_terminal() -> bool:
    """Whether bars can be drawn on standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def new_bar(title: str) -> "tqdm[Any]":
    """A bar that is drawn when `_TimeLeft.show` says so, and leaves nothing behind."""
    return tqdm(desc=title, total=1, bar_format=_BAR_FORMAT, leave=False, dynamic_ncols=True)


def duration(seconds: float) -> str:
    """A time as 06:50 or 1:02:03."""
    return tqdm.format_interval(round(seconds))
