"""timm's modules: switched where they are known, left with the reason where they are not."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import hsta_fast
from tests.adapters.checks import call, check_same, counted, named_rows, randomise

timm: Any = pytest.importorskip("timm")
layers: Any = pytest.importorskip("timm.layers")
from timm.models.cait import ClassAttn  # noqa: E402
from timm.models.crossvit import CrossAttention  # noqa: E402

FUSED, ABSORBED = "space_time_attention", "few_query_attention"
TOKENS = torch.randn(2, 17, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
IMAGE = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


@pytest.mark.parametrize(
    ("options", "became"),
    [
        ({}, FUSED),
        ({"qkv_bias": True, "proj_bias": False, "proj_drop": 0.2}, FUSED),
        ({"attn_head_dim": 8, "dim_out": 20}, FUSED),
        ({"scale_norm": True, "norm_layer": nn.LayerNorm}, FUSED),
        ({"attn_drop": 0.3}, f"{FUSED}; as before in training: attention dropout 0.3"),
        ({"qk_norm": True, "norm_layer": nn.LayerNorm}, "left: norms of queries, keys or values"),
        ({"gated": True}, "left: a gate on the attended values"),
    ],
)
def test_self_attention(options: dict[str, Any], became: str) -> None:
    switched = not became.startswith("left")
    check_same(
        lambda: layers.Attention(48, num_heads=4, **options),
        [TOKENS],
        rows={"": became},
        calls={FUSED: 1} if switched else {},
        compile_backend="eager" if "proj_bias" in options else None,
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [CrossAttention, ClassAttn])
def test_class_attention(kind: Any, fused: bool) -> None:
    def build() -> nn.Module:
        module = kind(48, num_heads=4, qkv_bias=fused, proj_drop=0.1)
        module.fused_attn = fused
        return module

    check_same(build, [TOKENS], rows={"": ABSORBED}, calls={ABSORBED: 1})


@pytest.mark.parametrize(
    ("options", "became"),
    [
        ({}, ABSORBED),
        ({"q_proj": False, "qkv_bias": False}, ABSORBED),
        ({"latent_len": 3, "pool_type": "avg", "norm_layer": nn.LayerNorm, "drop": 0.1}, ABSORBED),
        ({"latent_len": 2, "pool_type": "", "latent_dim": 24}, ABSORBED),
        ({"out_features": 0}, ABSORBED),
        ({"out_features": 32, "pos_embed": "abs", "feat_size": 65, "mlp_ratio": 1.0}, ABSORBED),
        ({"qk_norm": True}, "left: norms of queries, keys or values"),
        (
            {"latent_len": 20},
            "left: only its own forward would run: linear layers that are not plain, or too many queries",
        ),
    ],
)
def test_attention_pool_latent(options: dict[str, Any], became: str) -> None:
    tokens = torch.randn(2, 65, 48, dtype=torch.float64)
    check_same(
        lambda: layers.AttentionPoolLatent(48, num_heads=4, **options),
        [tokens],
        rows={"": became},
        calls={} if became.startswith("left") else {ABSORBED: 1},
        compile_backend="eager" if options.get("latent_len") == 3 else None,
    )


def test_vision_transformer() -> None:
    """Its blocks hand `attn_mask=None` to each attention."""
    check_same(
        lambda: timm.create_model("vit_tiny_patch16_224", **TINY, drop_path_rate=0.2, global_pool="map"),
        [IMAGE],
        rows={"blocks.0.attn": FUSED, "blocks.1.attn": FUSED, "attn_pool": ABSORBED},
        calls={FUSED: 2, ABSORBED: 1},
    )


def test_crossvit() -> None:
    model = lambda: timm.create_model(  # noqa: E731
        "crossvit_tiny_240", img_size=48, embed_dim=(24, 48), num_heads=(2, 2), num_classes=5,
        depth=((1, 1, 1),), mlp_ratio=(2, 2, 1), img_scale=(1.0, 1.0),
    )  # fmt: skip
    check_same(
        model,
        [torch.randn(2, 3, 48, 48, dtype=torch.float64)],
        rows={
            **{f"blocks.0.blocks.{branch}.0.attn": FUSED for branch in (0, 1)},
            **{f"blocks.0.fusion.{branch}.0.attn": ABSORBED for branch in (0, 1)},
        },
        calls={FUSED: 2, ABSORBED: 2},
        autocast=False,
    )


def test_cait() -> None:
    check_same(
        lambda: timm.create_model("cait_xxs24_224", **TINY, depth_token_only=1),
        [IMAGE],
        rows={
            "blocks.0.attn": "left: scores mixed between heads",
            "blocks.1.attn": "left: scores mixed between heads",
            "blocks_token_only.0.attn": ABSORBED,
        },
        calls={ABSORBED: 1},
    )


@pytest.mark.parametrize(
    ("name", "options", "kind", "why"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "embed_dim": 24,
                "depths": (1,),
                "num_heads": (2,),
            },
            "WindowAttention",
            "score bias (relative positions)",
        ),
        ("beit_base_patch16_224", TINY, "Attention", "score bias (relative positions)"),
        (
            "eva02_tiny_patch14_224",
            TINY,
            "EvaAttention",
            "rotary positions between the projection and the scores",
        ),
        ("levit_128s", {}, "Attention", "score bias (relative positions)"),
    ],
)
def test_models_that_are_left(name: str, options: dict[str, Any], kind: str, why: str) -> None:
    model = timm.create_model(name, **options)
    report = hsta_fast.accelerate(model)
    assert report.switched == []
    assert {(row.kind, row.why) for row in report.rows if row.kind == kind} == {(kind, why)}


def test_attention_with_rotary_positions_is_left() -> None:
    model = layers.AttentionRope(48, num_heads=4)
    assert named_rows(hsta_fast.accelerate(model)) == {
        "": "left: rotary positions between the projection and the scores"
    }


def test_a_model_built_with_ours() -> None:
    from hsta_fast.adapters.timm_models import SpaceTimeAttention

    original = randomise(timm.create_model("vit_tiny_patch16_224", **TINY)).double().eval()
    ours = timm.create_model("vit_tiny_patch16_224", **TINY, attn_layer=SpaceTimeAttention).double().eval()
    ours.load_state_dict(original.state_dict(), strict=True)
    with counted() as counts:
        came = call(ours, [IMAGE])
    assert counts == {FUSED: 2}
    expected = call(original, [IMAGE])
    torch.testing.assert_close(came, expected, rtol=1e-10, atol=1e-10)
    again = copy.deepcopy(ours)
    assert type(again.blocks[0].attn) is SpaceTimeAttention
    assert torch.equal(call(again, [IMAGE])[0], came[0])
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    masked = [m.get_submodule("blocks.0.attn")(TOKENS, attn_mask=mask) for m in (original, ours)]
    assert torch.equal(*masked)
