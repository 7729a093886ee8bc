"""What this machine reaches at best: products of large matrices, and reading and writing memory."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch

_ADAMW = 7  # reads parameter, gradient and two moments; writes all but the gradient


@dataclass(frozen=True)
class Ceilings:
    """The best of several tries.

    Attributes:
        products: operations per second of a matrix product, by the name of the dtype.
        memory: bytes per second, read and written, by a copy or by AdamW, whichever moves more. AdamW writes
            over what it has read. A copy on a CPU may read the memory that it writes too, which its bytes
            do not count.
    """

    products: dict[str, float]
    memory: float

    def best_of(self, other: "Ceilings") -> "Ceilings":
        """Of each the higher one: other programs can only make a measurement lower."""
        products = {name: max(rate, other.products[name]) for name, rate in self.products.items()}
        return Ceilings(products, max(self.memory, other.memory))

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return asdict(self)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure for about a second: products in float32, bfloat16 and `dtype`, and memory.

    All tensors are far larger than any cache.
    """
    cuda = device.type == "cuda"
    side, size = (8192, 1 << 30) if cuda else (1024, 1 << 27)
    products = {}
    for kind in dict.fromkeys((torch.float32, torch.bfloat16, dtype)):
        products[str(kind).removeprefix("torch.")] = _product(side, kind, device)
    numbers = size // 4
    copied = 2 * size / _best(_copy(numbers, device), device)
    updated = _ADAMW * size / _best(_adamw(numbers, device), device)
    return Ceilings(products, max(copied, updated))


def _copy(numbers: int, device: torch.device) -> Callable[[], object]:
    source = torch.ones(numbers, device=device)
    return partial(torch.empty_like(source).copy_, source)


def _adamw(numbers: int, device: torch.device) -> Callable[[], object]:
    """A step of the optimiser with one large parameter."""
    parameter = torch.ones(numbers, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW([parameter], lr=1e-7, fused=True).step


def _product(side: int, dtype: torch.dtype, device: torch.device) -> float:
    # Random numbers: on CUDA the clock depends on the bits that change.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of at least 3 calls, in seconds, after one that is not counted; about 0.3 s if that do."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - begun < 0.3 and len(times) < 50):
        times.append(seconds_of(run, device))
    return min(times[1:])


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
