"""The memory of a training step, accounted without running it: an estimate where no device can measure it.

The step runs on tensors without data (torch's FakeTensorMode), and a ledger adds up the bytes of the storages
that are alive after each operation. So the account has what a step of the model really keeps, each storage
once: weights, gradients, states of the optimiser, tensors saved for the backward, and temporaries of the
backward too. It has not what libraries allocate inside an operation, the context of the device (0.5 GB on
CUDA), and memory that the allocator holds in pieces too small to use: leave a tenth for them.
"""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from .crossmodal import CrossAttentionBlock, CrossmodalSpaceTimeAttention
from .model import HSTA, SPECIAL_FRAMES, HSTAConfig
from .ops.checks import check, short
from .ops.choice import without_data
from .presets import model_config
from .recompute import Memory, apply_memory

_FEW = 8  # clips
_MOST = 1e15  # bytes
_LINES = 8  # batches accounted before the search halves
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEADER = """\
| T | `--memory` | saved, GB | peak, GB | per clip, MB | largest batch in {limit:.0f} GB |
|---|---|---|---|---|---|"""


@dataclass(frozen=True, kw_only=True)
class MemoryAccount:
    """Bytes of a training step with AdamW, of one process.

    Attributes:
        batch: clips of a step.
        weights: parameters, float32.
        gradients: of the parameters, float32.
        optimizer: AdamW's two moments, float32.
        saved: what is alive at the end of the forward for the backward's sake, with the frames; of one
            micro-batch.
        peak: the most that is alive at once.
    """

    batch: int
    weights: int
    gradients: int
    optimizer: int
    saved: int
    peak: int

    @property
    def per_clip(self) -> float:
        """The part of the peak that grows with the batch, for one clip."""
        return (self.peak - self.weights - self.optimizer) / self.batch


class _Ledger(FakeTensorMode):
    """Adds up the bytes of the storages that its operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self._depth = 0
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._depth += 1
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if self._depth == 0:  # not inside an operation that is one on the device
            tree_map_only(Tensor, self._enter, out)
        return out

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._known.get(id(storage)) is storage:
            return
        self._known[id(storage)] = storage
        weakref.finalize(storage, self._leave, storage.nbytes())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _leave(self, nbytes: int) -> None:
        self.live -= nbytes


class _LayerNormOfCuda(nn.LayerNorm):
    """Autocast on CUDA normalises in float32; that of the CPU, where the fakes are, in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def account(
    config: HSTAConfig,
    *,
    batch: int,
    num_frames: int = 6,
    image_size: int = 224,
    dtype: torch.dtype = torch.bfloat16,
    memory: Memory = "fast",
    accumulate: int = 1,
    device: str = "cuda",
) -> MemoryAccount:
    """The memory of one training step of a model of `config`, in steady state; takes a second or two.

    Args:
        config: the model; its weights are float32.
        batch: clips of the step.
        num_frames: T.
        image_size: height and width of the frames, in pixels.
        dtype: of autocast; float32: no autocast.
        memory: as for `hsta_fast.set_memory`.
        accumulate: micro-batches of the batch.
        device: "cuda": the implementations that a CUDA device of compute capability >= 8.0 takes; or "cpu".

    Raises:
        ValueError: a batch below 1 or `accumulate`, sizes that no clip has, or another dtype, device or
            memory.
    """
    is_config = isinstance(config, HSTAConfig)
    check(is_config, "config", 'an HSTAConfig, such as model_config("hsta_base")', short(config))
    whole = f"a whole number from 1 to batch {batch}"
    check(_is_whole(batch) and batch >= 1, "batch", "a whole number >= 1", short(batch))
    check(_is_whole(accumulate) and 1 <= accumulate <= batch, "accumulate", whole, short(accumulate))
    depth, least = config.tubelet_depth, max(config.patch_sizes)
    is_depth = _is_whole(num_frames) and num_frames >= depth and num_frames % depth == 0
    check(is_depth, "num_frames", f"a multiple of {depth}, the tubelet's frames", short(num_frames))
    is_size = _is_whole(image_size) and image_size >= least
    check(is_size, "image_size", f"a whole number >= {least}, a patch", short(image_size))
    known = ", ".join(map(str, _DTYPES))
    check(isinstance(dtype, torch.dtype) and dtype in _DTYPES, "dtype", f"one of {known}", short(dtype))
    check(device in ("cuda", "cpu"), "device", "cuda or cpu", short(device))
    modes = get_args(Memory)
    check(isinstance(memory, str) and memory in modes, "memory", f"one of {', '.join(modes)}", short(memory))
    clips = -(-batch // accumulate)
    with torch.device("meta"):
        model = HSTA(config).train()
    with _Ledger() as ledger, without_data(device):
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        _run_as_on(model, device)
        apply_memory(model, memory)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        optimizer = 2 * weights
        ledger.peak = 0
        # With micro-batches, the gradients of the first are there while the second is computed.
        for _ in range(min(2, accumulate)):
            before = ledger.live
            frames = {"video": num_frames, "special": SPECIAL_FRAMES}
            inputs = {
                name: torch.empty(clips, 3, frames[name], image_size, image_size, dtype=torch.uint8)
                for name in config.branches
            }
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(**inputs).float().square().sum()
            saved = ledger.live - before
            loss.backward()
            del loss, inputs
        ledger.cache_clear()  # of what the mode noted of these shapes: megabytes, kept by its class
        peak = optimizer + ledger.peak
    return MemoryAccount(
        batch=batch, weights=weights, gradients=weights, optimizer=optimizer, saved=saved, peak=peak
    )


def largest_batch(config: HSTAConfig, limit: float, **settings: Any) -> int:
    """The largest batch whose step fits into `limit` bytes by `account`; 0: not even one clip does.

    settings: those of `account`, but for batch and accumulate.

    Raises:
        ValueError: a limit that is not a number of bytes, or as `account`.
    """
    _check_limit(limit)
    known = {batch: account(config, batch=batch, **settings).peak for batch in (_FEW, 2 * _FEW)}
    while True:
        low = max((batch for batch in known if known[batch] <= limit), default=0)
        high = min((batch for batch in known if known[batch] > limit), default=None)
        if high == low + 1:
            return low
        guess = _next_guess(known, limit, low, high)
        known[guess] = account(config, batch=guess, **settings).peak


def _next_guess(known: dict[int, int], limit: float, low: int, high: int | None) -> int:
    """A batch above `low`, the largest known to fit, and below `high`, the smallest known not to, if any.

    The peak of few clips is that of the gradients; then it grows evenly with each clip. So a line through two
    batches meets the limit after a few tries; the middle, or the double, if it does not.
    """
    if low == 0 and high is not None:
        return high // 2
    near, far = sorted(known)[-2:] if high is None else (low, high)
    per_clip = (known[far] - known[near]) / (far - near)
    if len(known) > _LINES or per_clip <= 0:
        return 2 * low if high is None else (low + high) // 2
    guess = max(low + 1, far + math.floor((limit - known[far]) / per_clip))
    return guess if high is None else min(guess, high - 1)


def table(name: str, *, batch: int, limit: float, frames: Sequence[int] = (6, 16, 32, 64, 128)) -> str:
    """`account` of a named model in bfloat16 on CUDA over frames and `Memory`, as a table in Markdown.

    limit: bytes of the device, for the largest batch that fits.

    Raises:
        ValueError: as `account`, `largest_batch` and `model_config`.
    """
    check(isinstance(name, str), "name", "a name of a model, such as hsta_base", short(name))
    is_frames = isinstance(frames, Sequence) and not isinstance(frames, str)
    check(is_frames, "frames", "a list of whole numbers", short(frames))
    _check_limit(limit)
    config, lines = model_config(name), []
    for num_frames in frames:
        for memory in get_args(Memory):
            got = account(config, batch=batch, num_frames=num_frames, memory=memory)
            fits = largest_batch(config, limit, num_frames=num_frames, memory=memory)
            lines.append(
                f"| {num_frames} | {memory} | {got.saved / 1e9:.1f} | {got.peak / 1e9:.1f} "
                f"| {got.per_clip / 1e6:.0f} | {fits} |"
            )
    return "\n".join([_HEADER.format(limit=limit / 1e9), *lines])


def _check_limit(limit: object) -> None:
    known = isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit <= _MOST
    check(known, "limit", f"bytes > 0 and <= {_MOST:.0e}", short(limit))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _run_as_on(model: HSTA, device: str) -> None:
    """Give `model` what it would do without the ledger's mode, and on `device`."""
    plain = []
    for module in model.modules():
        if isinstance(module, CrossmodalSpaceTimeAttention):
            # It copies its states under a mode, which might be one that records.
            vars(module)["writes_into_states"] = lambda: True
        elif isinstance(module, CrossAttentionBlock):
            module.impl = "torch"  # all save the same, and this one needs no compiler
            plain.append(module.norm1)  # its weights are read
        elif isinstance(module, nn.LayerNorm) and device == "cuda" and module not in plain:
            module.__class__ = _LayerNormOfCuda
