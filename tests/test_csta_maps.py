"""The maps are the softmax weights of the last CSTA, and looking at them changes nothing."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hsta_fast
from hsta_fast import HSTA, AttentionMaps, attention_maps

from .called_modules import called_csta, called_embeddings, called_usta, heads

SMALL: dict[str, Any] = {"num_classes": 3, "widths": (24, 32), "num_heads": (3, 4), "num_layers": 2}
GRIDS = {0: (1, 3, 4), 1: (2, 2, 3)}  # of 2 and 4 frames of 36 x 48, patches of 12 and 16 pixels


def model(**changes: Any) -> HSTA:
    """With weights so large that the softmax is far from uniform."""
    torch.manual_seed(0)
    made = HSTA(hsta_fast.HSTAConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 4, 36, 48), dtype=torch.uint8, generator=generator)
    return frames, frames[:, :, ::2]


def specified(made: HSTA, video: Tensor, special: Tensor) -> AttentionMaps:
    """Eq. 8 and 9 with every submodule called."""
    states = called_embeddings(made, video, special)
    *before, last = made.blocks
    layer: Any
    for layer in before:
        states = called_csta(layer.csta, called_usta(layer, states))
    states = called_usta(last, states)
    csta: Any = last.csta
    maps, own = [], []
    for a, b in ((0, 1), (1, 0)):
        block = csta.fusion[a]
        rows = torch.cat([csta.projs[a](states[a][:, 0]).unsqueeze(1), states[b][:, 1:]], dim=1)
        y = block.norm1(rows)
        q, k = heads(block.attn.wq(y[:, :1]), block.num_heads), heads(block.attn.wk(y), block.num_heads)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)[:, :, 0]
        own.append(weights[:, :, 0])
        maps.append(weights[:, :, 1:].reshape(*weights.shape[:2], *GRIDS[b]))
    return AttentionMaps(*maps, *own)


def assert_same(came: AttentionMaps, expected: AttentionMaps) -> None:
    for one, other in zip(came, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_maps_are_the_weights_of_the_softmax() -> None:
    made = model()
    maps = attention_maps(made, *clip())
    assert_same(maps, specified(made, *clip()))
    assert maps.special.shape == (2, 4, *GRIDS[1]) and maps.video.shape == (2, 3, *GRIDS[0])
    for tokens, itself in ((maps.special, maps.special_itself), (maps.video, maps.video_itself)):
        torch.testing.assert_close(tokens.sum((2, 3, 4)) + itself, torch.ones_like(itself))
    assert maps.special.amax((2, 3, 4)).mean() > 0.2, "the weights are far from uniform"


def test_the_packed_clip_gives_the_same() -> None:
    made, (video, special) = model(), clip()
    assert_same(
        attention_maps(made, torch.cat([video, special], dim=2)), attention_maps(made, video, special)
    )


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda attn: attn.wk.register_forward_hook(lambda module, given, out: out.sin()),
    "parametrised": lambda attn: parametrizations.weight_norm(attn.wk),
    "pruned": lambda attn: prune.random_unstructured(attn.wq, "weight", amount=0.5),
    "replaced": lambda attn: setattr(attn, "wk", nn.Sequential(nn.Linear(32, 32).double(), nn.Tanh())),
}


@pytest.mark.filterwarnings("ignore:.* is not a plain ")
@pytest.mark.parametrize("change", CHANGES)
def test_replaced_projections_are_called(change: str) -> None:
    made = model()
    before = attention_maps(made, *clip())
    CHANGES[change](made.get_submodule("blocks.1.csta.fusion.0.attn"))
    maps = attention_maps(made, *clip())
    assert_same(maps, specified(made, *clip()))
    assert not torch.equal(maps.special, before.special) and torch.equal(maps.video, before.video)


@pytest.mark.filterwarnings("ignore:.* is not a plain ")
def test_a_cross_attention_of_another_class_is_refused() -> None:
    made = model()
    csta: Any = made.get_submodule("blocks.1.csta")
    csta.fusion[0].attn = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(
        ValueError, match="^attn expected a CrossAttention with its own forward, got Sequential$"
    ):
        attention_maps(made, *clip())
    assert not csta._forward_pre_hooks, "no hook is left after an error"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_model_is_the_same_afterwards(mode: Callable[[], Any]) -> None:
    made = model()
    state, logits = copy.deepcopy(made.state_dict()), made(*clip())
    with mode():
        maps = attention_maps(made, *clip())
    assert not any(x.requires_grad for x in maps)
    torch.testing.assert_close(made.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(made(*clip()), logits)
    assert not any(module._forward_pre_hooks for module in made.modules())
    made(*clip()).sum().backward()  # a table of positions made here serves training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_float32(dtype: torch.dtype) -> None:
    """And under autocast, and of a 16-bit model."""
    made = model().float()
    exact = attention_maps(copy.deepcopy(made).double(), *clip())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        maps = attention_maps(made, *clip())
    halves = attention_maps(copy.deepcopy(made).to(dtype), *clip())
    for came in (maps, halves):
        assert all(x.dtype == torch.float32 for x in came)
        torch.testing.assert_close(came.video.sum((2, 3, 4)) + came.video_itself, torch.ones(2, 3))
    if dtype == torch.float32:
        torch.testing.assert_close([x.double() for x in maps], list(exact), rtol=0, atol=1e-4)


def test_another_thread_may_run_the_model() -> None:
    made, (video, special) = model(), clip()
    expected, began, ended = attention_maps(made, video, special), threading.Event(), threading.Event()

    def other() -> None:
        began.wait()
        made(video.flip(0), special.flip(0))
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()

    def wait(*_: Any) -> None:
        if threading.current_thread() is not thread and not ended.is_set():
            began.set()
            ended.wait()

    hook = made.norm["0"].register_forward_pre_hook(wait)  # after the last CSTA
    assert_same(attention_maps(made, video, special), expected)
    hook.remove()
    thread.join()


def test_errors_are_one_line() -> None:
    video, special = clip()
    for changes, got in (
        ({"branches": ("video",)}, r"branches \('video',\) and csta=True"),
        ({"csta": False}, r"branches \('special', 'video'\) and csta=False"),
    ):
        with pytest.raises(
            ValueError, match=f"^model expected both branches and CSTA, got {got}: without CSTA"
        ):
            attention_maps(model(**changes), video, special)
    with pytest.raises(ValueError, match="^model expected an HSTA, got Sequential: give the HSTA inside it"):
        attention_maps(nn.Sequential(model()), video, special)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^special expected 2 frames, got 4$"):
        attention_maps(model(), video, video)
