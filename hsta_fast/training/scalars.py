"""The metrics of every epoch as scalars for TensorBoard (`--log tensorboard`)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

_SCALARS = ("train_loss", "train_acc", "test_loss", "test_acc", "lr", "clips_per_second")


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def check_tensorboard() -> None:
    """Raise ValueError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--log tensorboard expected the package tensorboard, got: {error}; "
            "pip install 'hsta_fast[tensorboard]'"
        ) from error


class FoldScalars:
    """Writes the metrics of one fold into an event file. Those of a leaky run are named leaky/test_acc etc.

    The file is made anew from metrics.jsonl, so that after --resume it has each epoch once, also those that
    an earlier start trained without TensorBoard.

    Args:
        folder: of this fold's event file; older ones in it are deleted.
        lines: those of metrics.jsonl.
    """

    def __init__(self, folder: Path, lines: Iterable[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
        self._writer: _Writer = SummaryWriter(str(folder))
        for line in lines:
            self._add(json.loads(line))
        self._writer.flush()

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of one epoch; they are on disk when this returns."""
        self._add(metrics)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, metrics: Mapping[str, Any]) -> None:
        prefix = "leaky/" if "leaky" in metrics else ""
        for name in _SCALARS:
            self._writer.add_scalar(prefix + name, metrics[name], metrics["epoch"])
