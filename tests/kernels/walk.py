"""Every launch that the ops make on every kind of card, up to the launch itself (see `fake_driver`).

python -m tests.kernels.walk --capability 86 90
python -m tests.kernels.walk --quick
"""

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

import hsta_fast
from hsta_fast.ops.attention_pool import Saved, pool_bwd, pool_fwd

from .fake_driver import fake_driver

CAPABILITIES = (80, 86, 89, 90, 100, 120)
HEADS = 12
Shape = tuple[int, int]  # batch, tokens
# What the first calls compile must serve all others. Attention pooling takes one step for a batch that
# fills a device and two for a smaller one.
_ATTEND_FIRST: tuple[Shape, ...] = ((2, 589),)
_POOL_FIRST: tuple[Shape, ...] = ((64, 589), (1, 589))
_THEN: tuple[Shape, ...] = (
    *((1, 1), (1, 17), (2, 325), (5, 16), (1, 3137), (32, 1569), (8, 6273), (1, 12545)),
    *((16, 12545), (1024, 588), (65536, 1), (65536, 588), (65536, 12545)),
)


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for. Other lengths and batches must not need another compilation."""

    capability: int
    op: str
    width: int
    dtype: torch.dtype
    layout: str

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"sm_{self.capability} {self.op}, width {self.width}, {kind}, {self.layout}"


@dataclass
class Walked:
    """The result of one case."""

    case: Case
    launches: int
    compiled: int
    spilling: set[str]
    faults: list[str]


Part = Callable[[], object]


def _attend(case: Case, device: torch.device, shape: Shape) -> Iterator[tuple[str, Part]]:
    """Forward and backward of the packed projection, of three tensors, or of a projection of odd strides."""
    (B, N), H, D = shape, HEADS, case.width

    def new(*size: int) -> Tensor:
        return torch.empty(size, dtype=case.dtype, device=device)

    k = v = None
    M = N
    if case.layout == "packed":
        q = new(B, N, 3, H, D)
    elif case.layout == "separate":
        M = N + 3
        q, k, v = new(B, N, H, D), new(B, M, H, D), new(B, M, H, D)
    else:
        q = new(B, N, 3 * H * D + 1).narrow(2, 1, 3 * H * D).unflatten(2, (3, H, D))
    yield "forward", lambda: hsta_fast.space_time_attention(q, k, v, impl="triton")
    backward = torch.ops.hsta_fast.space_time_attention_backward
    dout, out, lse = new(B, N, H, D), new(B, N, H, D), torch.empty(B, H, N, device=device)
    yield "backward", lambda: backward(dout, q, k, v, out, lse, D**-0.5)


def _pool(case: Case, device: torch.device, shape: Shape) -> Iterator[tuple[str, Part]]:
    """As crossmodal attention pools a state, with an extra row and a gradient to add to; or plain tokens."""
    (B, N), C = shape, case.width

    def new(*size: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def saved(R: int, rows: int, normalize: bool) -> Saved:
        kept = rows if normalize else 0
        sizes = ((B, R, C), (B, R), (B, kept), (B, kept))
        return tuple(new(*size, dtype=torch.float32) for size in sizes)  # type: ignore[return-value]

    if case.layout == "state":
        query, extra = new(B, HEADS, C), new(B, C)
        tokens, dtokens, dstate = (new(B, N + 1, C).narrow(1, 1, N) for _ in range(3))
        yield "forward", lambda: pool_fwd(query, tokens, extra, True, 1e-6, "triton")
        kept = saved(HEADS, N + 1, True)
        yield (
            "backward",
            lambda: pool_bwd(
                query, query, tokens, extra, kept, True, 1e-6, "triton", dtokens=dtokens, accumulate=dstate
            ),
        )
        return
    # More than one group of 16 queries: the second group adds to the gradients of the first.
    normalize = case.layout == "strided"
    query = new(B, 17, C)
    tokens = new(B, N, C + 1).narrow(2, 1, C) if case.layout == "strided" else new(B, N, C)
    weights = case.layout == "plain"
    yield (
        "forward",
        lambda: hsta_fast.attention_pool(
            query, tokens, normalize=normalize, return_weights=weights, impl="triton"
        ),
    )
    pooled, lse, mean, rstd = saved(17, N, normalize)
    yield (
        "backward",
        lambda: torch.ops.hsta_fast.attention_pool_backward(
            query, query, tokens, None, pooled, lse, mean, rstd, normalize, 1e-6, True, "triton"
        ),
    )


def _apart_from_strides(key: str) -> str:
    """A kernel's key without the information which of its arguments are multiples of 16."""
    return key.replace("'D'", "''")


def walk(case: Case) -> Walked:
    """Call the op of `case` at every length and batch; warnings, such as of a smaller choice, are faults.

    Widths and layouts whose strides are multiples of 16 only at some lengths are compiled for both kinds.
    """
    attends = case.op == "space_time_attention"
    first = _ATTEND_FIRST if attends else _POOL_FIRST
    even = case.layout != "strided" and case.width % 16 == 0
    faults: list[str] = []
    with warnings.catch_warnings(), fake_driver(case.capability) as seen:
        warnings.simplefilter("error")
        for shape in (*first, *_THEN):
            for name, part in (_attend if attends else _pool)(case, seen.device, shape):
                known, before = {_apart_from_strides(key) for key in seen.compiled}, len(seen.compiled)
                try:
                    part()
                except Exception as error:  # any error of a launcher or compiler is a fault
                    faults.append(f"{case}, {shape}, {name}: {type(error).__name__}: {error}")
                if shape not in first:
                    new = [k for k in seen.compiled[before:] if even or _apart_from_strides(k) not in known]
                    faults += [f"{case}, {shape}, {name} compiles {key}" for key in new]
    return Walked(
        case=case,
        launches=len(seen.launches),
        compiled=len(seen.compiled),
        spilling={launch.kernel for launch in seen.launches if launch.stack},
        faults=faults,
    )


def cases(capability: int) -> Iterator[Case]:
    """Every width and dtype in HSTA's layout, and some in the other layouts.

    Odd widths of attention pooling omit float16, whose launches are those of bfloat16.
    """
    halves = (torch.bfloat16, torch.float16)
    for width, dtype in itertools.product((16, 24, 32, 64, 80, 128), (*halves, torch.float32)):
        yield Case(capability, "space_time_attention", width, dtype, "packed")
    for width, layout in itertools.product((24, 64), ("separate", "strided")):
        yield Case(capability, "space_time_attention", width, torch.bfloat16, layout)
    for width, dtype in itertools.product((8, 200, 384, 768, 1000, 1024), (*halves, torch.float32)):
        if width in (384, 768, 1024) or dtype != torch.float16:
            yield Case(capability, "attention_pool", width, dtype, "state")
    for width, layout in ((384, "plain"), (1000, "plain"), (384, "strided"), (768, "strided")):
        yield Case(capability, "attention_pool", width, torch.bfloat16, layout)


QUICK = (
    Case(86, "space_time_attention", 64, torch.bfloat16, "packed"),
    Case(90, "space_time_attention", 24, torch.float16, "packed"),
    Case(86, "attention_pool", 768, torch.bfloat16, "state"),
)


def main() -> None:
    """Walk all cases in a pool of processes; exits with status 1 if there are faults."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    chosen = QUICK if arguments.quick else tuple(c for n in arguments.capability for c in cases(n))
    done: list[Walked] = []
    faults: list[str] = []
    with get_context("fork").Pool() as processes:
        for walked in processes.imap_unordered(walk, chosen):
            spilling = f", spilling: {', '.join(sorted(walked.spilling))}" if walked.spilling else ""
            print(
                f"{walked.case}: {walked.launches} launches, {walked.compiled} kernels{spilling}", flush=True
            )
            done.append(walked)
            faults += walked.faults
    print(
        f"{sum(w.launches for w in done)} launches of {sum(w.compiled for w in done)} kernels in {len(done)} "
        f"cases, {len(faults)} faults"
    )
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
