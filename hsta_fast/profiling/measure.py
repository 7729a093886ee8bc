"""Times and memory of forward and training step over batch sizes and frames; all models take turns."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Literal

import torch

from ..data import Batch
from ..model import HSTA, HSTAConfig
from ..published import PublishedHSTA
from ..recompute import apply_memory
from .ceilings import seconds_of
from .config import OURS, Peer, ProfileConfig
from .memory_used import held_bytes, peak_bytes
from .parts import StepTimes, profile_step
from .progress import ProfileProgress
from .steps import Timed, batches, random_clips
from .work import flops_of

What = Literal["forward", "training step"]
WHATS: tuple[What, What] = ("forward", "training step")
_ROUNDS = (2, 20)  # the fewest and the most
_STEPS = 5  # whose median is compared with a profiled one
_SHORT = 0.05  # seconds: calls that take less are timed several at a time


@dataclass
class Cell:
    """One model at one shape.

    Attributes:
        peer: the model: "eager" is this package's as it is.
        what: "forward" (without gradients) or "training step".
        batch: B.
        frames: T, video frames.
        times: seconds of a call in each round; the same rounds for all cells.
        memory: bytes of weights, of the optimiser's state in a training step, and of all that a call
            allocates on top at its peak.
        compile_seconds: what the first call took, if it compiles.
        graph: whether forward and backward of the timed steps were one CUDA graph, as in a training. The
            memory is that of a step without it.
    """

    peer: Peer
    what: What
    batch: int
    frames: int
    times: list[float] = field(default_factory=list)
    memory: int = 0
    compile_seconds: float | None = None
    graph: bool = False

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.times)

    @property
    def clips_per_second(self) -> float:
        """At the median."""
        return self.batch / self.seconds

    def slower_than(self, other: "Cell") -> float:
        """The median over the rounds of this one's time over that of `other`."""
        return median(mine / theirs for mine, theirs in zip(self.times, other.times, strict=True))


@dataclass(frozen=True)
class Traced:
    """One profiled call.

    Attributes:
        peer: the model.
        what: "forward" or "training step".
        batch: B.
        frames: T.
        seconds: the median without the profiler, of the same call: without a CUDA graph.
        times: seconds by part.
    """

    peer: Peer
    what: What
    batch: int
    frames: int
    seconds: float
    times: StepTimes


class Measurement:
    """The models of a profile, and what is measured of them.

    Args:
        config: what is asked for.
        device: where.
        dtype: of the products.
        progress: told of each call.
    """

    def __init__(
        self, config: ProfileConfig, device: torch.device, dtype: torch.dtype, progress: ProfileProgress
    ) -> None:
        self.config, self.device, self.dtype, self.progress = config, device, dtype, progress
        self.architecture: HSTAConfig = config.architecture()
        self.shapes = config.shapes(device.type)
        torch.manual_seed(0)
        model = HSTA(self.architecture).to(device)
        apply_memory(model, config.memory)
        names = config.peers()
        self.models = {name: self._timed(name, model) for name in names}
        self.given: dict[tuple[int, int], Iterator[Batch]] = {}
        self.cells = [
            Cell(name, what, batch, frames)
            for batch, frames in self.shapes
            for what in WHATS
            for name in names
        ]

    def _timed(self, name: Peer, model: HSTA) -> Timed:
        if name == "compiled":
            # One graph for each shape; the limit is meant for programs that are compiled by mistake.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            call = torch.compile(model, fullgraph=True, dynamic=False)
            return Timed(model, self.device, self.dtype, call)
        if name == "published":
            return Timed(PublishedHSTA(model), self.device, self.dtype)
        if name == "published-sdpa":
            return Timed(PublishedHSTA(model, attention="sdpa"), self.device, self.dtype)
        return Timed(model, self.device, self.dtype)

    def call(self, peer: Peer, what: What, batch: int, frames: int) -> Callable[[], None]:
        """One call of a model: a forward or a training step on the next batch."""
        if (batch, frames) not in self.given:
            clips = random_clips(2 * batch, frames, self.config.image_size)
            self.given[batch, frames] = batches(clips, batch, self.device)
        timed = self.models[peer]
        return partial(timed.forward if what == "forward" else timed.train, self.given[batch, frames])

    def cost(self, what: What, batch: int, frames: int) -> float:
        """What the progress expects of a call: operations."""
        size = self.config.image_size
        return flops_of(self.architecture, batch, frames, size, training=what == "training step")

    def warm_up(self) -> None:
        """Run each cell once, for its memory. What is built, compiled or allocated once is not timed."""
        with self.progress.job("first call, which builds the extension where it is not built yet", 0.0):
            clip = torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8, device=self.device)
            for timed in self.models.values():
                with timed.step.autocast():
                    logits = timed.model(video=clip, special=clip)
                logits.sum().backward()
                timed.step.optimizer.step()  # from now on it has its state, as in all but the first step
        for cell in self.cells:
            run = self.call(cell.peer, cell.what, cell.batch, cell.frames)
            optimizer = self.models[cell.peer].step.optimizer
            optimizer.zero_grad(set_to_none=True)
            title = f"{cell.peer}, {cell.what}, {cell.frames} frames, batch {cell.batch}"
            if cell.peer == "compiled":
                with self.progress.job(f"{title}: compiling", 0.0):
                    cell.compile_seconds = seconds_of(run, self.device)
                optimizer.zero_grad(set_to_none=True)
            with self.progress.job(title, self._cost_of(cell)):
                before = held_bytes(optimizer, state=cell.what == "training step")
                cell.memory = before + peak_bytes(run, self.device)
                optimizer.zero_grad(set_to_none=True)

    def time_rounds(self) -> None:
        """Time all cells in turn, round by round, for about `config.seconds`."""
        started, rounds = time.perf_counter(), 0
        fewest, most = _ROUNDS
        most = fewest if self.config.quick else most
        while rounds < fewest or (rounds < most and self._another(started, rounds)):
            for cell in self.cells:
                with self.progress.job(f"round {rounds + 1}, {cell.frames} frames", self._cost_of(cell)):
                    self._time(cell)
            rounds += 1
            if rounds == 1:  # how many more will follow
                more = min(most, max(fewest, int(self.config.seconds / (time.perf_counter() - started))))
                self.progress.planned += (more - fewest) * sum(map(self._cost_of, self.cells))

    def _time(self, cell: Cell) -> None:
        """Time a call as a training or a prediction would run it."""
        run = self.call(cell.peer, cell.what, cell.batch, cell.frames)
        if not self._may_be_graph(cell):
            cell.times.append(self._seconds_of_one(run))
            return
        timed = self.models[cell.peer]
        cell.graph = timed.capture(run)
        cell.times.append(self._seconds_of_one(run))
        timed.release()

    def _may_be_graph(self, cell: Cell) -> bool:
        """Whether `hsta-fast train` would capture this step, if its memory permits that."""
        ours = cell.peer in (OURS, "compiled") and cell.what == "training step"
        return ours and self.device.type == "cuda" and self.config.memory == "fast"

    def _seconds_of_one(self, run: Callable[[], object]) -> float:
        seconds = seconds_of(run, self.device)
        if seconds < _SHORT:
            number = min(50, int(_SHORT / seconds) + 1)
            seconds = seconds_of(lambda: [run() for _ in range(number)], self.device) / number
        return seconds

    def _another(self, started: float, rounds: int) -> bool:
        """Whether one more round would end in time."""
        return (time.perf_counter() - started) * (rounds + 1) / rounds <= self.config.seconds

    def planned(self) -> float:
        """The cost of the warm-up, of the fewest rounds and of the traces."""
        calls = sum(self._cost_of(cell) for cell in self.cells)
        return calls * (1 + _ROUNDS[0]) + sum(self.cost(*key[1:]) for key in self.traced_keys())

    def _cost_of(self, cell: Cell) -> float:
        return self.cost(cell.what, cell.batch, cell.frames)

    def traced_keys(self) -> list[tuple[Peer, What, int, int]]:
        """What is profiled: the largest batch at the fewest and the most frames."""
        batch = max(batch for batch, _ in self.shapes)
        frames = sorted({frames for _, frames in self.shapes})
        names = [name for name in self.models if name != "compiled"]  # whose parts are fused
        return [
            (name, what, batch, count)
            for count in dict.fromkeys((frames[0], frames[-1]))
            for what in reversed(WHATS)
            for name in names
        ]

    def trace(self) -> tuple[list[Traced], torch.profiler.profile]:
        """Profile the calls of `traced_keys`; also the profiler of the first, a training step of ours."""
        found, first = [], None
        for key in self.traced_keys():
            run, cell = self.call(*key), self.cell(*key)
            with self.progress.job(f"time by part, {key[0]}, {key[1]}, {key[3]} frames", self.cost(*key[1:])):
                seconds = cell.seconds
                if cell.graph:
                    run()
                    seconds = median(self._seconds_of_one(run) for _ in range(_STEPS))
                times, profiler = profile_step(run, self.device)
            found.append(Traced(*key, seconds, times))
            first = first or profiler
        assert first is not None
        return found, first

    def cell(self, peer: Peer, what: What, batch: int, frames: int) -> Cell:
        """The cell of these."""
        return next(
            c for c in self.cells if (c.peer, c.what, c.batch, c.frames) == (peer, what, batch, frames)
        )
