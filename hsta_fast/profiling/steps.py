"""What a profile times: forward and training step of a model on batches of random bytes, by the loader."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..data import Augment, Batch, ClipData, ClipTable, FrameStore, Sampling
from ..training.optim import Loss
from ..training.step import TrainStep
from ..training.step_graph import StepGraph
from .parts import part_range

_CLASSES = 7
_UNTIL_CAPTURED = 5  # steps, more than a graph needs
DATA = "random bytes, decoded frames in memory, through the loader, mirrored and shifted at random"


def random_clips(number: int, frames: int, image_size: int) -> ClipData:
    """Clips of random bytes, decoded and in memory, as a training has them after its first epoch."""
    rng = np.random.default_rng(0)
    paths = [[f"{clip}/{frame}" for frame in range(frames)] for clip in range(number)]
    rows = {path: row for row, path in enumerate(path for clip in paths for path in clip)}
    pixels = rng.integers(0, 256, (len(rows), 3, image_size, image_size), dtype=np.uint8)
    table = pd.DataFrame(
        {
            "dataset": "random",
            "subject": [str(clip) for clip in range(number)],
            "clip": [str(clip) for clip in range(number)],
            "onset": 0,
            "apex": frames // 2,
            "offset": frames - 1,
            "frames": paths,
            "label": np.arange(number) % _CLASSES,
        }
    )
    store = FrameStore(pixels, rows, {})
    return ClipData(ClipTable(Path(), table), store, Sampling(num_frames=frames))


def batches(data: ClipData, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Training batches without end."""
    epoch = 0
    while True:
        yield from data.batches(
            range(len(data)),
            batch_size=batch_size,
            seed=(epoch,),
            train=True,
            augment=Augment(flip=True, crop=4),
            device=device,
        )
        epoch += 1


class Timed:
    """Forward and training step of one model, with an optimiser of its own.

    Args:
        model: takes `video` and `special`.
        device: where it is.
        dtype: of the matrix products.
        call: what is called instead of the model, such as it compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        call: Callable[..., Tensor] | None = None,
    ) -> None:
        self.model, self.device = model, device
        # A tiny rate: random labels must not drive the weights to where numbers take longer.
        optimizer = torch.optim.AdamW(
            [{"params": list(model.parameters()), "lr_scale": 1.0}], lr=1e-7, fused=True
        )
        self.step = TrainStep(
            model if call is None else call,  # type: ignore[arg-type]
            Loss("ce").to(device),
            optimizer,
            GradScaler(device.type, enabled=dtype == torch.float16),
            lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        )

    def forward(self, given: Iterator[Batch]) -> None:
        """Logits of a batch, without gradients."""
        self.model.eval()
        with torch.inference_mode():
            inputs, _ = self._next(given)
            with part_range("head and loss"), self.step.autocast():
                self.step.model(**inputs)

    def train(self, given: Iterator[Batch]) -> None:
        """A batch, forward, loss, backward, and one step of the optimiser."""
        self.model.train()
        inputs, label = self._next(given)
        with part_range("head and loss"):
            self.step.backward(inputs, label)
        self.step.update(1e-7)

    def capture(self, run: Callable[[], object]) -> bool:
        """Let training steps run as `hsta-fast train` runs them on CUDA: forward and backward as one graph.

        Args:
            run: a training step, which is called some times.

        Returns:
            Whether there is a graph. There is none if the step takes too much of the device's memory.
        """
        self.step.graph = StepGraph(self.model.parameters())
        for _ in range(_UNTIL_CAPTURED):
            run()
        return self.step.graph.captured

    def release(self) -> None:
        """Let training steps run as they are again, and free the memory of the graph."""
        self.step.graph = None
        self.step.optimizer.zero_grad(set_to_none=True)

    def _next(self, given: Iterator[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        with part_range("data"):
            batch = next(given)
            inputs = {"video": batch.video, "special": batch.special}
            return {name: x.to(self.device) for name, x in inputs.items()}, batch.label.to(self.device)
