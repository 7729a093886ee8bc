"""Models of other libraries before and after `hsta_fast.accelerate`: forward, training step, time, memory.

Built from their configurations with random weights. On the CPU in float32; on a CUDA device (`cuda_cases`,
for `make gpu STAGE=drop-in`) in bfloat16, with torch's own choice of an attention backend. A training step
here is forward and backward: an optimiser takes the same time before and after.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from benchmarks.cases import Case, Place, Step
from benchmarks.compare import OURS, Make

BEFORE = "the original"
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is timed.

    Attributes:
        name: its name in the results.
        library: what it is built with.
        build: (tiny) -> the module.
        inputs: (batch, tiny) -> the arguments of its forward, in float32 on the CPU.
        on_cpu: the batch there.
        on_cuda: the batch there.
        layer: whether it is one cross-attention layer, for which the goal is set.
        step_on_cpu: whether its training step is timed there.
    """

    name: str
    library: str
    build: Callable[[bool], nn.Module]
    inputs: Callable[[int, bool], Inputs]
    on_cpu: int
    on_cuda: int
    layer: bool = False
    step_on_cpu: bool = True


def _small(tiny: bool) -> dict[str, Any]:
    small = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 64, "num_hidden_layers": 1}
    return {**small, "image_size": 32} if tiny else {}


def _videomae(tiny: bool) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    return VideoMAEModel(VideoMAEConfig(**_small(tiny)))


def _vivit(tiny: bool) -> nn.Module:
    from transformers import VivitConfig, VivitModel

    return VivitModel(VivitConfig(**_small(tiny), num_frames=16), add_pooling_layer=False)


def _vjepa2(part: str, tiny: bool) -> nn.Module:
    from transformers import VJEPA2Config
    from transformers.models.vjepa2 import modeling_vjepa2

    settings: dict[str, Any] = {"attn_implementation": "sdpa"}
    if tiny:
        settings |= {"hidden_size": 48, "num_attention_heads": 3}
    config = VJEPA2Config(**settings)
    return getattr(modeling_vjepa2, part)(config)


def _siglip_head(tiny: bool) -> nn.Module:
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    return SiglipMultiheadAttentionPoolingHead(SiglipVisionConfig(**_small(tiny)))


def _latent(tiny: bool) -> nn.Module:
    from timm.layers.attention_pool import AttentionPoolLatent

    return AttentionPoolLatent(48 if tiny else 768, num_heads=3 if tiny else 12)


def _crossvit(tiny: bool) -> nn.Module:
    import timm

    return timm.create_model("crossvit_tiny_240" if tiny else "crossvit_base_240")


def _crossvit_layer(tiny: bool) -> nn.Module:
    from timm.models.crossvit import CrossAttention

    return CrossAttention(48 if tiny else 768, 3 if tiny else 12, qkv_bias=True)


def _video(batch: int, tiny: bool) -> Inputs:
    return (torch.randn(batch, 16, 3, *(32, 32) if tiny else (224, 224)),)


def _images(batch: int, tiny: bool) -> Inputs:
    return (torch.randn(batch, 3, 240, 240),)


def _tokens(number: int, width: int, batch: int, tiny: bool) -> Inputs:
    return (torch.randn(batch, 70, 48) if tiny else torch.randn(batch, number, width),)


def _query_and_tokens(number: int, batch: int, tiny: bool) -> Inputs:
    (tokens,) = _tokens(number, 1024, batch, tiny)
    return torch.randn(batch, 1, tokens.shape[2]), tokens, tokens


MODELS = (
    Model(
        name="VideoMAE-base, 16 frames",
        library="transformers",
        build=_videomae,
        inputs=_video,
        on_cpu=1,
        on_cuda=16,
    ),
    Model(
        name="ViViT-base, 16 frames",
        library="transformers",
        build=_vivit,
        inputs=_video,
        on_cpu=1,
        on_cuda=16,
    ),
    *(
        Model(
            name=f"V-JEPA 2 pooler's cross-attention, {number} tokens",
            library="transformers",
            build=partial(_vjepa2, "VJEPA2PoolerCrossAttention"),
            inputs=partial(_query_and_tokens, number),
            on_cpu=1,
            on_cuda=131072 // number,
            layer=True,
        )
        for number in (2048, 8192)
    ),
    *(
        Model(
            name=f"V-JEPA 2 pooler, {number} tokens",
            library="transformers",
            build=partial(_vjepa2, "VJEPA2AttentivePooler"),
            inputs=partial(_tokens, number, 1024),
            on_cpu=1,
            on_cuda=4,
            step_on_cpu=number == 2048,
        )
        for number in (2048, 8192)
    ),
    Model(
        name="SigLIP-base head, 196 tokens",
        library="transformers",
        build=_siglip_head,
        inputs=partial(_tokens, 196, 768),
        on_cpu=8,
        on_cuda=256,
    ),
    Model(
        name="timm AttentionPoolLatent, 196 tokens",
        library="timm",
        build=_latent,
        inputs=partial(_tokens, 196, 768),
        on_cpu=8,
        on_cuda=256,
    ),
    Model(
        name="CrossViT-base's cross-attention, 197 tokens",
        library="timm",
        build=_crossvit_layer,
        inputs=partial(_tokens, 197, 768),
        on_cpu=8,
        on_cuda=256,
        layer=True,
    ),
    Model(
        name="CrossViT-base, 240 x 240",
        library="timm",
        build=_crossvit,
        inputs=_images,
        on_cpu=2,
        on_cuda=32,
    ),
)


def group(model: Model, batch: int, training: bool) -> str:
    return f"drop-in, {model.name}, B {batch}, {'training step' if training else 'forward'}"


def make(model: Model, batch: int, after: bool, training: bool, place: Place) -> Step:
    """The step of one member: the same weights and inputs before and after."""
    dtype = torch.float32 if place.device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    module = model.build(place.tiny).to(place.device, dtype).train(training)
    inputs = model.inputs(batch, place.tiny)
    moved = {x: x.to(place.device, dtype) for x in inputs}  # keys stay the same tensor as values
    given = [moved[x] for x in inputs]
    if after:
        hsta_fast.accelerate(module)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def forward() -> Tensor:
        output = module(*given)
        return output if isinstance(output, Tensor) else output[0]

    @torch.no_grad()
    def infer() -> object:
        return forward()

    def train() -> object:
        return torch.autograd.grad(forward().float().square().mean(), parameters, allow_unused=True)

    return train if training else infer


def _itself(step: Step) -> Step:
    return step


CPU = Place(device="cpu")


@pytest.mark.parametrize("training", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def bench_drop_in(compare: Callable[..., None], model: Model, training: bool) -> None:
    pytest.importorskip(model.library)
    if training and not model.step_on_cpu:
        pytest.skip("a training step takes a minute on a CPU")
    from hsta_fast.profiling.memory_used import peak_bytes  # here: it needs packages that a device may lack

    sides = {OURS: True, BEFORE: False}
    steps = {name: make(model, model.on_cpu, after, training, CPU) for name, after in sides.items()}
    memory = {name: round(peak_bytes(step, torch.device("cpu")) / 2**20, 1) for name, step in steps.items()}
    members: dict[str, Make] = {name: partial(_itself, step) for name, step in steps.items()}
    compare(group(model, model.on_cpu, training), members, seconds=3.0, least=4, notes={"peak MiB": memory})


def cuda_cases() -> Iterator[Case]:
    """Those whose libraries are installed."""
    for model in MODELS:
        if importlib.util.find_spec(model.library) is None:
            continue
        for training in (False, True):
            for after in (True, False):
                batch = model.on_cuda

                def of(
                    place: Place, m: Model = model, b: int = batch, a: bool = after, t: bool = training
                ) -> Step:
                    return make(m, 2 if place.tiny else b, a, t, place)

                yield Case(
                    group=group(model, batch, training),
                    name=OURS if after else BEFORE,
                    peer=not after,
                    make=of,
                )
