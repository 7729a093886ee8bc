"""The specification against torch's own modules and against the equations written out."""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from hsta_fast import reference


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_space_time_attention_is_multi_head_attention() -> None:
    B, N, H, D = 2, 7, 3, 4
    module = nn.MultiheadAttention(H * D, H, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(H * D))
    x = rand(B, N, H * D)
    qkv = rearrange(x @ module.in_proj_weight.T, "b n (three h d) -> b n three h d", three=3, h=H)
    expected, _ = module(x, x, x)
    got = reference.space_time_attention(qkv)
    torch.testing.assert_close(rearrange(got, "b n h d -> b n (h d)"), expected)
    torch.testing.assert_close(reference.space_time_attention(*qkv.unbind(2)), got)


def test_space_time_attention_element_by_element() -> None:
    q, k, v = rand(1, 2, 1, 3), rand(1, 4, 1, 3, seed=1), rand(1, 4, 1, 3, seed=2)
    out = reference.space_time_attention(q, k, v, scale=-0.7)
    for i in range(2):
        weights = [math.exp(-0.7 * sum((q[0, i, 0] * k[0, j, 0]).tolist())) for j in range(4)]
        for d in range(3):
            expected = sum(w * v[0, j, 0, d].item() for j, w in enumerate(weights)) / sum(weights)
            assert out[0, i, 0, d].item() == pytest.approx(expected, rel=1e-12)


def test_attention_pool_element_by_element() -> None:
    B, R, N, C, eps = 1, 2, 3, 5, 1e-6
    query, tokens, extra = rand(B, R, C), rand(B, N, C, seed=1) * 3 + 1, rand(B, C, seed=2)
    pooled, weights = reference.attention_pool(query, tokens, extra=extra, eps=eps, return_weights=True)
    rows = [extra[0].tolist(), *tokens[0].tolist()]
    z = []
    for row in rows:
        mean = sum(row) / C
        variance = sum((x - mean) ** 2 for x in row) / C
        z.append([(x - mean) / math.sqrt(variance + eps) for x in row])
    for r in range(R):
        scores = [math.exp(sum(u * x for u, x in zip(query[0, r].tolist(), row, strict=True))) for row in z]
        shares = [s / sum(scores) for s in scores]
        assert weights[0, r].tolist() == pytest.approx(shares, rel=1e-12)
        expected = [sum(p * row[c] for p, row in zip(shares, z, strict=True)) for c in range(C)]
        assert pooled[0, r].tolist() == pytest.approx(expected, rel=1e-11)


def test_attention_pool_of_plain_tokens_and_of_the_extra_row_alone() -> None:
    query, tokens = torch.zeros(2, 3, 4, dtype=torch.float64), rand(2, 5, 4)
    plain = reference.attention_pool(query, tokens, normalize=False)
    torch.testing.assert_close(plain, tokens.mean(1, keepdim=True).expand(-1, 3, -1))
    extra = rand(2, 4, seed=1)
    alone = reference.attention_pool(query, tokens[:, :0], extra=extra, normalize=False)
    torch.testing.assert_close(alone, extra.unsqueeze(1).expand(-1, 3, -1))


def test_attention_pool_weights_carry_no_gradient() -> None:
    query, tokens = rand(1, 2, 4).requires_grad_(), rand(1, 5, 4, seed=1).requires_grad_()
    pooled, weights = reference.attention_pool(query, tokens, return_weights=True)
    assert pooled.requires_grad and not weights.requires_grad
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, dtype=torch.float64))


def test_cls_cross_attention_is_multi_head_attention_with_one_query() -> None:
    B, N, C, H = 2, 6, 12, 3
    norm = nn.LayerNorm(C, eps=1e-6, dtype=torch.float64)
    module = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(rand(C)), norm.bias.copy_(rand(C, seed=1))
        module.in_proj_bias.copy_(rand(3 * C, seed=2))
        module.out_proj.weight.copy_(torch.eye(C))
        module.out_proj.bias.zero_()
    cls, tokens = rand(B, C, seed=3), rand(B, N, C, seed=4)
    y = norm(torch.cat([cls.unsqueeze(1), tokens], 1))
    expected, _ = module(y[:, :1], y, y)
    (wq, wk, wv), (bq, bk, bv) = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    got = reference.cls_cross_attention(
        cls,
        tokens,
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        q_weight=wq,
        q_bias=bq,
        k_weight=wk,
        k_bias=bk,
        v_weight=wv,
        v_bias=bv,
        num_heads=H,
    )
    torch.testing.assert_close(got, expected[:, 0])


@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
def test_tubelet_embed_tubelet_by_tubelet(layout: str) -> None:
    B, C, T, H, W, t, p = 2, 5, 5, 9, 10, 2, 4
    weight, bias = rand(C, 3, t, p, p), rand(C, seed=1)
    cls_token, pos_embed = rand(1, 1, C, seed=2), rand(1, 2 * 2 * 2 + 1, C, seed=3)
    pixels = torch.randint(0, 256, (B, 3, T, H, W), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), torch.tensor([0.2, 0.3, 0.1])
    video = pixels if layout == "BCTHW" else rearrange(pixels, "b c t h w -> b t h w c")
    out = reference.tubelet_embed(
        video, weight, bias, mean=mean, std=std, cls_token=cls_token, pos_embed=pos_embed, layout=layout
    )
    assert out.shape == (B, 9, C)
    normal = (pixels.double() / 255 - torch.tensor(mean).double().view(3, 1, 1, 1)) / std.double().view(
        3, 1, 1, 1
    )
    for token, (i, j, k) in enumerate((i, j, k) for i in range(2) for j in range(2) for k in range(2)):
        tubelet = normal[:, :, i * t : i * t + t, j * p : j * p + p, k * p : k * p + p]
        expected = (tubelet.unsqueeze(1) * weight).sum((2, 3, 4, 5)) + bias + pos_embed[0, token + 1]
        torch.testing.assert_close(out[:, token + 1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[:, 0], (cls_token + pos_embed[:, :1])[:, 0].expand(B, -1))


def test_bytes_without_mean_and_std_are_0_to_255() -> None:
    video = torch.full((1, 3, 1, 2, 2), 200, dtype=torch.uint8)
    weight, bias = torch.ones(1, 3, 1, 2, 2), torch.zeros(1)
    assert reference.tubelet_embed(video, weight, bias).item() == 200 * 12
