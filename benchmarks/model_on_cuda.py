"""Whole models on a CUDA device, for `make gpu`: hsta_base in bfloat16 against the published formulation.

Training steps and forwards at B = 32 under autocast, and the latency of a forward at B = 1 with parameters in
bfloat16. Our step is that of `hsta-fast train`: a CUDA graph, of compiled code. What is compiled is compiled
layer by layer (ours) or block by block (the peer's): equal ones share the code, so that a case takes seconds
(`--compile` compiles the whole model at once, and so do both sides of the latency). At 6 frames the compiled
peer is also timed in a graph.
"""

import functools
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend

import hsta_fast
from benchmarks.bench_model import SIDE, clips, ours_compiled, step
from benchmarks.cases import Case, Place, Step
from hsta_fast.model import HSTA
from hsta_fast.presets import model_config
from hsta_fast.profiling.work import flops_of
from hsta_fast.published import PublishedHSTA
from hsta_fast.training.optim import Loss
from hsta_fast.training.step import TrainStep
from hsta_fast.training.step_graph import StepGraph

BATCH = 32
# Frames of the training step, and the peers: attention written out keeps all scores, which 80 GB hold up to
# 16 frames; compiled, each costs eight compilations.
PEERS = {
    6: ("published", "published compiled", "published compiled, graph"),
    16: ("published", "published compiled"),
    32: ("sdpa", "published compiled"),
    64: ("sdpa",),
}
FORWARD = (6, 16)  # frames


def _model(place: Place) -> HSTA:
    torch.manual_seed(0)
    with torch.device(place.device):
        return hsta_fast.create_model("hsta_tiny" if place.tiny else "hsta_base")


def _peer(name: str, model: HSTA, backend: str) -> nn.Module:
    peer = PublishedHSTA(model, attention="materialised" if name == "published" else "sdpa")
    if "compiled" in name:
        peer.compile_blocks(backend)
    return peer


def _graphed_step(model: nn.Module, given: dict[str, Tensor]) -> Step:
    """A training step as `hsta-fast train` runs it, with its graph captured on a CUDA device."""
    device = given["video"].device.type
    label = torch.arange(given["video"].shape[0], device=device) % 7
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    train = TrainStep(
        model.train(),
        Loss("ce"),
        torch.optim.AdamW(groups, lr=1e-5, fused=True),
        GradScaler(device, enabled=False),
        lambda: torch.autocast(device, torch.bfloat16, enabled=device == "cuda"),
        graph=StepGraph(model.parameters()),
    )

    def run() -> None:
        train.backward(given, label)
        train.update(1e-5)

    for _ in range(5 if device == "cuda" else 0):
        run()
    return run


def _maker(name: str, T: int, train: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        model = _model(place)
        given = clips(*(1, T, 32) if place.tiny else (BATCH, T, SIDE), place.device)
        if name == "ours":
            return (
                _graphed_step(ours_compiled(model, place.backend), given)
                if train
                else step(model, given, False)
            )
        peer = _peer(name, model, place.backend)
        return _graphed_step(peer, given) if name.endswith("graph") else step(peer, given, train)

    return make


def _latency(name: str, place: Place) -> Step:
    """A forward of one clip of 6 frames."""
    dtype = torch.float32 if place.tiny else torch.bfloat16
    model = _model(place).to(dtype).eval()
    given = clips(1, 6, 32 if place.tiny else SIDE, place.device)
    if name == "ours":
        return functools.partial(hsta_fast.GraphedModel(cast(nn.Module, place.compile(model))), **given)
    called: Callable[..., object] = PublishedHSTA(model, attention="sdpa").eval()
    if name == "reduce-overhead":
        with torch.inference_mode():
            called(**given)  # keeps its tables of positions, which would be compiled anew
        called = place.compile(called, mode="reduce-overhead")

    @torch.inference_mode()
    def run() -> object:
        return called(**given)

    return run


def cuda_cases() -> Iterator[Case]:
    """Training steps, forwards, and the latency."""
    config = model_config("hsta_base")
    runs = [(T, True, peers) for T, peers in PEERS.items()] + [(T, False, ("published",)) for T in FORWARD]
    for T, train, peers in runs:
        for name in ("ours", *peers):
            yield Case(
                group=f"hsta_base T={T} B={BATCH} {'train step' if train else 'forward'}",
                name=name,
                peer=name != "ours",
                make=_maker(name, T, train),
                compiled="compiled" in name or (name == "ours" and train),
                forced=SDPBackend.CUDNN_ATTENTION if name == "sdpa" or "compiled" in name else None,
                may_lack_memory=name != "ours",
                # Of our formulation: the same for all, so that rates compare as times do.
                flop=flops_of(config, BATCH, T, SIDE, training=train),
            )
    for name in ("ours", "published", "reduce-overhead"):
        yield Case(
            group="hsta_base T=6 B=1 latency",
            name=name,
            peer=name != "ours",
            make=functools.partial(_latency, name),
            compiled=name != "published",
            latency=True,
        )
