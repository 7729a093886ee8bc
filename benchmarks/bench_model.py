"""Forward and training step of whole models against the published formulation in ordinary modules.

On the CPU: small batches in float32, against attention written out (as published) and torch's own; the
training step of 6 frames also with everything compiled. On a CUDA device: `model_on_cuda.py`.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hsta_fast
from benchmarks.cases import Step
from benchmarks.compare import OURS, Make
from hsta_fast.model import HSTA, HSTALayer
from hsta_fast.presets import model_config
from hsta_fast.profiling.work import flops_of
from hsta_fast.published import AttentionForm, PublishedHSTA

SIDE = 224
# On the CPU: model, batch, frames, side in pixels, whether a training step, rounds at least.
CPU_CASES = [
    ("hsta_base", 2, 6, SIDE, False, 5),
    ("hsta_base", 2, 6, SIDE, True, 4),
    ("hsta_base", 2, 16, SIDE, False, 3),
    ("hsta_tiny", 16, 6, 112, False, 5),
    ("hsta_tiny", 16, 6, 112, True, 5),
    ("hsta_base", 2, 16, SIDE, True, 2),
]


def clips(batch: int, frames: int, side: int, device: str) -> dict[str, Tensor]:
    """Random bytes: the time does not depend on their values."""
    shape = {"video": frames, "special": 2}
    return {
        name: torch.randint(0, 256, (batch, 3, n, side, side), dtype=torch.uint8, device=device)
        for name, n in shape.items()
    }


def step(model: nn.Module, given: dict[str, Tensor], train: bool) -> Step:
    """A forward in inference mode, or a whole training step; under bfloat16 autocast on CUDA."""
    video = given["video"]
    device = video.device.type
    label = torch.arange(video.shape[0], device=device) % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train(train)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model(**given)

    def run() -> None:
        if not train:
            with torch.inference_mode():
                forward()
            return
        F.cross_entropy(forward().float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


class InBfloat16(nn.Module):
    """A model under autocast to bfloat16, its parameters in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(video, special)


def ours_compiled(model: HSTA, backend: str) -> HSTA:
    """`model` with every HSTA layer compiled for its own shape; equal layers share the compiled code."""
    for module in model.modules():
        if isinstance(module, HSTALayer):
            module.compile(backend=backend, dynamic=False)
    return model


def published_compiled(model: HSTA, attention: AttentionForm) -> PublishedHSTA:
    peer = PublishedHSTA(model, attention=attention)
    peer.compile_blocks("inductor")
    return peer


# {name: what is timed, made from a model of ours with the same weights}
Variants = dict[str, Callable[[HSTA], nn.Module]]
EAGER: Variants = {
    OURS: lambda model: model,
    "published": lambda model: PublishedHSTA(model),
    "SDPA": lambda model: PublishedHSTA(model, attention="sdpa"),
}
INFERENCE = EAGER | {f"{OURS} bfloat16": InBfloat16, f"{OURS} int8": hsta_fast.quantize_int8}
COMPILED_ON_THE_CPU: Variants = {  # by layers or blocks: a whole model takes inductor a minute
    f"{OURS} compiled": lambda model: ours_compiled(model, "inductor"),
    "published compiled": lambda model: published_compiled(model, "materialised"),
    "SDPA compiled": lambda model: published_compiled(model, "sdpa"),
}


def _on_the_cpu(variants: Variants, name: str, sizes: tuple[int, int, int], train: bool) -> dict[str, Make]:
    """Every variant on the same clips, with weights and an optimiser of its own."""

    def maker(variant: Callable[[HSTA], nn.Module]) -> Make:
        def make() -> Step:
            torch.manual_seed(0)
            return step(variant(hsta_fast.create_model(name)), clips(*sizes, "cpu"), train)

        return make

    return {variant: maker(make) for variant, make in variants.items()}


def _group(name: str, batch: int, frames: int, train: bool) -> str:
    return f"model, {name}, B {batch}, T {frames}, {'training step' if train else 'forward'}"


# The training step of 16 frames last: it takes longest.
@pytest.mark.parametrize(
    ("name", "batch", "frames", "side", "train", "least"),
    CPU_CASES,
    ids=[f"{name}-T{frames}-{'step' if train else 'forward'}" for name, _, frames, _, train, _ in CPU_CASES],
)
def bench_cpu(
    compare: Callable[..., None], name: str, batch: int, frames: int, side: int, train: bool, least: int
) -> None:
    variants = INFERENCE if (name, train) == ("hsta_base", False) else EAGER
    work = flops_of(model_config(name), batch, frames, side, training=train)
    members = _on_the_cpu(variants, name, (batch, frames, side), train)
    operations = {variant: work for variant in members if variant in EAGER}
    group = _group(name, batch, frames, train)
    compare(group, members, flop=operations, floor=True, seconds=3.0, least=least)


def bench_compiled(compare: Callable[..., None]) -> None:
    """A training step, everything under torch.compile."""
    name, batch, frames = "hsta_base", 2, 6
    members = _on_the_cpu(COMPILED_ON_THE_CPU, name, (batch, frames, SIDE), True)
    work = flops_of(model_config(name), batch, frames, SIDE, training=True)
    group = f"{_group(name, batch, frames, True)}, compiled"
    compare(group, members, flop=work, floor=True, seconds=3.0, least=3)


def bench_frames(compare: Callable[..., None]) -> None:
    """Whether the cost grows as the arithmetic does: ours at 16 and 64 frames."""
    config = model_config("hsta_base")
    members, work = {}, {}
    for T in (16, 64):
        member = f"{OURS}, T {T}"
        members[member] = _on_the_cpu({OURS: EAGER[OURS]}, "hsta_base", (1, T, SIDE), False)[OURS]
        work[member] = flops_of(config, 1, T, SIDE, training=False)
    compare("model, hsta_base, B 1, forward by frames", members, flop=work, floor=True, least=2)
