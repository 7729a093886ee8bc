"""tubelet_embed: checks, autograd and choice of implementation. The specification is in `reference`.

The extension's path is two registered ops, forward and weight gradient, so that torch.compile sees each as
one node. The C++ and CUDA code is built and loaded when such an op first runs. Where that fails and nobody
asked for the extension by name, the op does the same on torch.

Bytes become (x - shift) * scale by channel, shift = 255 mean and scale = 1 / (255 std). On the CPU that is
done in float32 as the patches are gathered. Elsewhere, and in float64, the bytes themselves are multiplied,
exact even in bfloat16, by W' = W scale, and sum(W' shift) of the W' that was rounded is taken off the bias.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .. import extension, reference
from .checks import autocast_dtype, no_autocast, want, want_shape
from .choice import Choice, resolve
from .registration import register

_OP = "tubelet_embed"
IMPLS = ("extension", "torch")
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_MIN_MAJOR = 8
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # shift and scale of pixels that are taken as they are
_MIDDLE = 128.0  # bytes less 128 are exact in bfloat16, and their sums stay small
_AMX = torch.cpu._is_amx_tile_supported()
_PATCH_BYTES = 1 << 28  # of one slice of the patches that a weight gradient is summed over


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension cannot take such inputs; None if it can."""
    missing = extension.obstacle(device.type)
    if missing is not None:
        return missing
    if dtype not in _DTYPES[device.type]:
        return f"{dtype} is none of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES[device.type])}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)  # which torch.compile folds
        if properties.major < _MIN_MAJOR:
            return f"compute capability {properties.major}.{properties.minor} is below {_MIN_MAJOR}.0"
    return None


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for video on this device and this dtype of the result."""
    obstacle = _obstacle(device, dtype)
    if obstacle is None and device.type == "cpu" and _AMX and dtype in (torch.bfloat16, torch.float16):
        obstacle = f"AMX multiplies {dtype}, and the extension sums in float32"
    if obstacle is None:
        return Choice("extension", "from bytes to tokens in one pass; built when first used")
    return Choice("torch", f"torch's conv3d: {obstacle}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _by_channel(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Each channel of x (C, 3, ...) times its factor. Factors go as arguments: no copy to the device."""
    return torch.stack([x.select(1, c) * factors[c] for c in range(3)], 1)


def fold(
    weight: Tensor, bias: Tensor, shift: Sequence[float], scale: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weight W' (C, 3, t, p, p) in `dtype`, and the bias (C,) in float32 or float64, that take raw bytes.

    The bias is made from the rounded W', so that W' x + b' is W' on the normalised pixels: what the rounding
    of a weight did is then multiplied by the distance from the mean, not by the brightness.
    """
    if (tuple(shift), tuple(scale)) == _PLAIN:
        return weight.to(dtype).contiguous(), bias.to(_wide(dtype))
    folded = _by_channel(weight, scale).to(dtype)
    sums = _by_channel(folded.sum((2, 3, 4), dtype=_wide(dtype)), shift).sum(1)
    return folded, bias.to(_wide(dtype)) - sums


def _forward(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    cls_token: Tensor | None,
    pos_embed: Tensor | None,
    shift: Sequence[float],
    scale: Sequence[float],
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    """(B, N, C), or (B, N + 1, C) with a CLS, of video (B, 3, T, H, W), in `dtype`."""
    if not extension.usable(video.device.type, impl):
        return _forward_on_torch(video, weight, bias, cls_token, pos_embed, shift, scale, dtype)
    ops = torch.ops.hsta_fast
    cls_row = None if cls_token is None else cls_token.reshape(-1)
    positions = None if pos_embed is None else pos_embed[0]
    if video.dtype not in (torch.uint8, torch.float32):
        video = video.to(dtype)
    if video.device.type == "cpu" and _wide(dtype) == torch.float32:
        if video.dtype != torch.uint8:
            video = video.to(torch.float32)
        weight, bias = weight.to(torch.float32).contiguous(), bias.to(torch.float32)
        return ops.tubelet_tokens_normalized(video, weight, bias, cls_row, positions, shift, scale).to(dtype)
    weight, bias = fold(weight, bias, shift, scale, dtype)
    return ops.tubelet_tokens(video, weight, bias, cls_row, positions)


def _forward_on_torch(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    cls_token: Tensor | None,
    pos_embed: Tensor | None,
    shift: Sequence[float],
    scale: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    plain = (tuple(shift), tuple(scale)) == _PLAIN
    with no_autocast(video):
        tokens = reference.tubelet_embed(
            video,
            weight.to(dtype),
            bias.to(dtype),
            mean=None if plain else [s / 255 for s in shift],
            std=None if plain else [1 / (255 * s) for s in scale],
            cls_token=cls_token,
            pos_embed=pos_embed,
        )
    return tokens.to(dtype).contiguous()


def _fake_forward(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    cls_token: Tensor | None,
    pos_embed: Tensor | None,
    shift: Sequence[float],
    scale: Sequence[float],
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    rows = int(cls_token is not None)
    grid = [size // p for size, p in zip(video.shape[2:], weight.shape[2:], strict=True)]
    return weight.new_empty(
        (video.shape[0], grid[0] * grid[1] * grid[2] + rows, weight.shape[0]), dtype=dtype
    )


def _patches_on_torch(video: Tensor, patch: Sequence[int], dtype: torch.dtype, shift: float) -> Tensor:
    """`tubelet_patches` of csrc/schemas.cpp."""
    t, p, q = patch
    T, H, W = (size - size % n for size, n in zip(video.shape[2:], patch, strict=True))
    pattern = "b c (gt t) (gh p) (gw q) -> (b gt gh gw) (c t p q)"
    return rearrange(video[:, :, :T, :H, :W].to(dtype) - shift, pattern, t=t, p=p, q=q)


def _weight_gradient(
    dout: Tensor,
    video: Tensor,
    patch: Sequence[int],
    shift: Sequence[float],
    scale: Sequence[float],
    impl: str,
) -> Tensor:
    """The weight's gradient (C, 3, t, p, p) from dout (B, N, C), summed in float32 or float64."""
    built = extension.usable(video.device.type, impl)
    ops = torch.ops.hsta_fast
    wide = _wide(dout.dtype)
    if video.dtype not in (torch.uint8, torch.float32):
        video = video.to(dout.dtype)
    B, _, C = dout.shape
    if dout.numel() == 0:
        return dout.new_zeros((C, 3, *patch), dtype=wide)
    if dout.device.type == "cpu" and wide == torch.float32:
        if video.dtype != torch.uint8:
            video = video.to(torch.float32)
        dout = dout.to(torch.float32)
        if dout.stride(2) != 1:  # a row of one element counts as contiguous with any stride
            dout = dout.clone(memory_format=torch.contiguous_format)
        if built:
            return ops.tubelet_weight_grad(dout, video, patch, shift, scale)
    patches_of = ops.tubelet_patches if built else _patches_on_torch
    middle = _MIDDLE if video.dtype == torch.uint8 else 0.0
    total = dout.new_zeros((C, 3 * patch[0] * patch[1] * patch[2]), dtype=wide)
    step = max(1, _PATCH_BYTES // (dout.shape[1] * total.shape[1] * dout.element_size()))
    for b in range(0, B, step):
        rows = dout[b : b + step].reshape(-1, C)
        patches = patches_of(video[b : b + step], patch, dout.dtype, middle)
        # Float32 out of the product: rounded before it is unfolded, the gradient would lose the most.
        total += rows.T @ patches if dout.dtype == wide else torch.mm(rows.T, patches, out_dtype=wide)
    grad = total.view(C, 3, *patch)
    if (tuple(shift), tuple(scale)) == _PLAIN and middle == 0.0:
        return grad
    rest = torch.stack([dout.sum((0, 1), dtype=wide) * (middle - s) for s in shift], 1)
    return _by_channel(grad + rest[:, :, None, None, None], scale)


def _fake_weight_gradient(
    dout: Tensor,
    video: Tensor,
    patch: Sequence[int],
    shift: Sequence[float],
    scale: Sequence[float],
    impl: str,
) -> Tensor:
    return dout.new_empty((dout.shape[2], 3, *patch), dtype=_wide(dout.dtype))


def _dvideo(dout: Tensor, weight: Tensor, video: Tensor) -> Tensor:
    """The gradient of float video: zero where no whole patch lies."""
    t, p, q = weight.shape[2:]
    grid = [size // n for size, n in zip(video.shape[2:], (t, p, q), strict=True)]
    patches = dout @ weight.to(dout.dtype).flatten(1)
    pattern = "b (t h w) (c dt p q) -> b c (t dt) (h p) (w q)"
    grad = rearrange(patches, pattern, t=grid[0], h=grid[1], c=3, dt=t, p=p, q=q)
    unused = [(0, size - have) for size, have in zip(video.shape[2:], grad.shape[2:], strict=True)]
    return F.pad(grad, list(itertools.chain(*reversed(unused)))).to(video.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    video, weight, bias, cls_token, pos_embed, ctx.shift, ctx.scale, _, ctx.impl = inputs
    ctx.save_for_backward(video, weight)
    ctx.bias_dtype = bias.dtype
    ctx.cls_dtype = None if cls_token is None else cls_token.dtype
    ctx.pos_dtype = None if pos_embed is None else pos_embed.dtype


def _autograd(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    video, weight = ctx.saved_tensors
    wants_video, wants_weight, wants_bias, wants_cls, wants_pos, *_ = ctx.needs_input_grad
    rows = dout if ctx.cls_dtype is None else dout[:, 1:]
    wide = _wide(dout.dtype)
    dvideo = _dvideo(rows, weight, video) if wants_video else None
    dweight = dbias = dcls = dpos = None
    if wants_weight:
        patch = list(weight.shape[2:])
        dweight = _dweight(rows, video, patch, ctx.shift, ctx.scale, ctx.impl).to(weight.dtype)
    if wants_bias:
        dbias = rows.sum((0, 1), dtype=wide).to(ctx.bias_dtype)
    if wants_cls:
        dcls = dout[:, :1].sum(0, keepdim=True, dtype=wide).to(ctx.cls_dtype)
    if wants_pos:
        dpos = dout.sum(0, keepdim=True, dtype=wide).to(ctx.pos_dtype)
    return dvideo, dweight, dbias, dcls, dpos, None, None, None, None


_fwd = register(_OP, _forward, _fake_forward, backward=_autograd, setup_context=_setup_context)
_dweight = register(f"{_OP}_dweight", _weight_gradient, _fake_weight_gradient)


def _three(name: str, given: Sequence[float] | Tensor) -> list[float]:
    try:
        three = [float(x) for x in given]
    except (TypeError, ValueError):
        three = []
    want(len(three) == 3, _OP, f"{name} of three floats", given)
    return three


def _affine(mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None) -> Any:
    """(shift, scale) by channel of (x / 255 - mean) / std = (x - shift) * scale."""
    if mean is None or std is None:
        return _PLAIN
    means, stds = _three("mean", mean), _three("std", std)
    want(all(stds), _OP, "std of three floats that are not zero", stds)
    return [255 * m for m in means], [1 / (255 * s) for s in stds]


def tubelet_embed(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    cls_token: Tensor | None = None,
    pos_embed: Tensor | None = None,
    layout: str = "BCTHW",
    impl: str = "auto",
) -> Tensor:
    """Video to tokens: normalise, project tubelets (t, p, p), put the CLS in front, add positions (sec. 3.2).

    Args:
        video: (B, 3, T, H, W), or (B, T, H, W, 3) with layout "BTHWC"; uint8 or float.
        weight: (C, 3, t, p, p), as Conv3d's.
        bias: (C,).
        mean: three floats on the 0..1 scale, for uint8 video: pixels become (x / 255 - mean) / std.
            Without mean and std uint8 is used as 0..255. Float video is taken as normalised.
        std: as `mean`.
        cls_token: (1, 1, C), or None for no CLS row.
        pos_embed: (1, N, C), or (1, N + 1, C) with a CLS; added to the tokens.
        layout: "BCTHW" or "BTHWC".
        impl: "auto", "extension" or "torch". The extension gives float32, bfloat16 and float16 on the CPU and
            on CUDA devices of compute capability 8.0 on, float64 on the CPU, where a C++ compiler can
            build it (for CUDA nvcc, too). "auto" is the extension where it can run, else torch's conv3d.

    Returns:
        (B, N, C), or (B, N + 1, C) with a CLS, in the weight's dtype or autocast's. Tokens run over t, then
        h, then w. Trailing rows, columns and frames that fill no whole patch are unused, as in Conv3d.

    Raises:
        ValueError: shapes or dtypes that do not belong together, mean and std with float video or one without
            the other, tensors on several devices, an unknown `impl`, or "extension" where it cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    want(layout in ("BCTHW", "BTHWC"), _OP, 'layout "BCTHW" or "BTHWC"', repr(layout))
    want_shape(_OP, "weight", weight, (None, 3, None, None, None), "(C, 3, t, p, p)")
    C, _, *patch = weight.shape
    want(weight.numel() > 0, _OP, "a weight of at least one element", tuple(weight.shape))
    want_shape(_OP, "bias", bias, (C,), "(C,)")
    shape = (None, 3, None, None, None) if layout == "BCTHW" else (None, None, None, None, 3)
    want_shape(_OP, "video", video, shape, "(" + ", ".join(layout.replace("C", "3")) + ")")
    pixels = video.dtype == torch.uint8
    want(pixels or video.is_floating_point(), _OP, "video of uint8 or a floating dtype", video.dtype)
    want((mean is None) == (std is None), _OP, "both mean and std, or neither", "one of them")
    want(
        mean is None or pixels, _OP, "no mean and std with float video, which is taken as normalised", "both"
    )
    sizes = video.shape[2:] if layout == "BCTHW" else video.shape[1:4]
    grid = [size // p for size, p in zip(sizes, patch, strict=True)]
    want(min(grid) > 0, _OP, f"T, H, W of at least one tubelet {tuple(patch)}", tuple(sizes))
    rows = grid[0] * grid[1] * grid[2]
    if cls_token is not None:
        want_shape(_OP, "cls_token", cls_token, (1, 1, C), "(1, 1, C)")
        rows += 1
    if pos_embed is not None:
        want_shape(_OP, "pos_embed", pos_embed, (1, rows, C), "(1, tokens with the CLS, C)")
    affine = _affine(mean, std)
    tensors = {"video": video, "weight": weight, "bias": bias, "cls_token": cls_token, "pos_embed": pos_embed}
    devices = {name: x.device for name, x in tensors.items() if x is not None}
    want(len(set(devices.values())) == 1, _OP, "one device", devices)
    for name, x in tensors.items():
        if x is not None and name != "video":
            want(x.is_floating_point(), _OP, f"{name} of a floating dtype", x.dtype)
    cast = autocast_dtype(weight)
    dtype = weight.dtype if cast is None or weight.dtype == torch.float64 else cast  # as autocast has it
    chosen = resolve(_OP, impl, auto_choice(video.device, dtype), IMPLS)
    obstacle = _obstacle(video.device, dtype)
    if chosen == "extension":
        want(obstacle is None, _OP, 'inputs that impl="extension" can take', obstacle)
        frames = video if layout == "BCTHW" else video.permute(0, 4, 1, 2, 3)
        return _fwd(frames, weight, bias, cls_token, pos_embed, *affine, dtype, impl)
    if impl == "auto" and video.device.type in _DTYPES and not torch.compiler.is_compiling():
        missing = extension.obstacle(video.device.type)
        if missing is not None:
            extension.warn_of(missing)
    tokens = reference.tubelet_embed(
        video,
        weight,
        bias.to(weight.dtype),
        mean=mean,
        std=std,
        cls_token=cls_token,
        pos_embed=pos_embed,
        layout=layout,
    )
    return tokens.to(dtype)
