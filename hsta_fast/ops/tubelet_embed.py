"""tubelet_embed: checks, autograd and choice of implementation. The specification is in `reference`.

With the extension, forward and weight gradient are registered ops, so torch.compile sees each as one node.
The C++ and CUDA code is built and loaded when such an op first runs. If that fails and `impl` is "auto", the
op computes the same with torch.

Bytes become (x - shift) * scale by channel, shift = 255 mean and scale = 1 / (255 std). On the CPU this
happens in float32 while the patches are gathered. Elsewhere, and in float64, the bytes themselves, exact even
in bfloat16, are multiplied by W' = W scale, and sum(W' shift), with W' as rounded, is subtracted from the
bias.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .. import extension, reference
from .checks import DTYPES, autocast_dtype, check, check_shape, no_autocast, product_dtype, unexpected
from .choice import Choice, check_supported, resolve
from .registration import plain_backward, plain_gradients, register

_OP = "tubelet_embed"
IMPLS = ("extension", "torch")
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_MIN_MAJOR = 8
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # shift and scale of pixels that are not normalised
_MIDDLE = 128.0  # byte - 128 is exact in bfloat16, and sums of such values stay small
_AMX = torch.cpu._is_amx_tile_supported()
_PATCH_BYTES = 1 << 28  # of the patches of one step of a weight gradient


def _unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension does not support such inputs; None if it does."""
    if device.type == "cuda" and torch.version.hip is not None:
        return "ROCm is not CUDA"
    reason = extension.unsupported_reason(device.type)
    if reason is not None:
        return reason
    if dtype not in _DTYPES[device.type]:
        return (
            f"{dtype} is not one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES[device.type])}"
        )
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)  # a constant for torch.compile
        if properties.major < _MIN_MAJOR:
            return f"compute capability {properties.major}.{properties.minor} is below {_MIN_MAJOR}.0"
    return None


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for video on this device and a result of this dtype."""
    reason = _unsupported_reason(device, dtype)
    if reason is None and device.type == "cpu" and _AMX and dtype == torch.bfloat16:
        reason = "AMX multiplies bfloat16, and the extension computes in float32"
    if reason is None:
        return Choice("extension", "from bytes to tokens in one pass; built when first used")
    return Choice("torch", f"torch's conv3d: {reason}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _by_channel(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Each channel of x (C, 3, ...) times its factor. Factors are Python numbers: no copy to the device."""
    return torch.stack([x.select(1, c) * factors[c] for c in range(3)], 1)


def fold(
    weight: Tensor, bias: Tensor, shift: Sequence[float], scale: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight W' (C, 3, t, p, p) in `dtype` and bias (C,) in float32 or float64 to be applied to raw bytes.

    The bias is computed from the rounded W', so that W' x + b' is W' applied to the normalised pixels: the
    rounding error of a weight is then multiplied by the distance from the mean, not by the brightness.
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
    products = product_dtype(video.device, dtype)
    with no_autocast(video):
        tokens = reference.tubelet_embed(
            video,
            weight.to(products),
            bias.to(products),
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
        # The product returns float32: rounding it before undoing the fold would lose most of the precision.
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
    """The gradient of float video: zero outside whole patches."""
    t, p, q = weight.shape[2:]
    grid = [size // n for size, n in zip(video.shape[2:], (t, p, q), strict=True)]
    products = product_dtype(dout.device, dout.dtype)
    patches = dout.to(products) @ weight.to(products).flatten(1)
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
    needs_video, needs_weight, needs_bias, needs_cls, needs_pos, *_ = ctx.needs_input_grad
    rows = dout if ctx.cls_dtype is None else dout[:, 1:]
    wide = _wide(dout.dtype)
    dvideo = dweight = dbias = dcls = dpos = None
    if plain_backward(dout):

        def tokens(video: Tensor, weight: Tensor) -> Tensor:
            no_bias = weight.new_zeros(len(weight))
            return _forward_on_torch(video, weight, no_bias, None, None, ctx.shift, ctx.scale, dout.dtype)

        needed = needs_video, needs_weight
        dvideo, dweight = plain_gradients(tokens, (video, weight), needed, rows)
        needs_video = needs_weight = False
    if needs_video:
        dvideo = _dvideo(rows, weight, video)
    if needs_weight:
        patch = list(weight.shape[2:])
        dweight = _dweight(rows, video, patch, ctx.shift, ctx.scale, ctx.impl).to(weight.dtype)
    if needs_bias:
        dbias = rows.sum((0, 1), dtype=wide).to(ctx.bias_dtype)
    if needs_cls:
        dcls = dout[:, :1].sum(0, keepdim=True, dtype=wide).to(ctx.cls_dtype)
    if needs_pos:
        dpos = dout.sum(0, keepdim=True, dtype=wide).to(ctx.pos_dtype)
    return dvideo, dweight, dbias, dcls, dpos, None, None, None, None


_fwd = register(_OP, _forward, _fake_forward, backward=_autograd, setup_context=_setup_context)
_dweight = register(f"{_OP}_dweight", _weight_gradient, _fake_weight_gradient)


def _three(name: str, given: Sequence[float] | Tensor) -> list[float]:
    try:
        three = [float(x) for x in given]
    except (TypeError, ValueError):
        three = []
    check(len(three) == 3, name, "three floats", given)
    return three


def _affine(
    video: Tensor, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None
) -> Any:
    """(shift, scale) by channel of (x / 255 - mean) / std = (x - shift) * scale."""
    pixels = video.dtype == torch.uint8
    known = "uint8, float16, bfloat16, float32 or float64"
    check(pixels or video.dtype in DTYPES, "video", known, video.dtype)
    check((mean is None) == (std is None), "mean and std", "both or neither", "one of them")
    check(mean is None or pixels, "mean and std", "None for float video (normalise it first)", "both")
    if mean is None or std is None:
        return _PLAIN
    means, stds = _three("mean", mean), _three("std", std)
    check(all(stds), "std", "three floats other than 0", stds)
    return [255 * m for m in means], [1 / (255 * s) for s in stds]


def normalize(
    video: Tensor,
    mean: Sequence[float] | Tensor | None,
    std: Sequence[float] | Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Video (B, 3, T, H, W), uint8 or float, as `tubelet_embed` sees it: (x / 255 - mean) / std in `dtype`.

    Raises:
        ValueError: another shape or dtype, mean and std with float video or one without the other.
    """
    check_shape("video", video, (None, 3, None, None, None), "(B, 3, T, H, W)")
    shift, scale = _affine(video, mean, std)
    if (shift, scale) == _PLAIN:
        return video.to(dtype)
    x = video.to(_wide(dtype))
    return torch.stack([(x[:, c] - shift[c]) * scale[c] for c in range(3)], dim=1).to(dtype)


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
    """Video to tokens: normalise, project tubelets (t, p, p), prepend the CLS, add positions (sec. 3.2).

    Args:
        video: (B, 3, T, H, W), or (B, T, H, W, 3) with layout "BTHWC"; uint8 or float.
        weight: (C, 3, t, p, p), as Conv3d's.
        bias: (C,).
        mean: three floats on the 0..1 scale, for uint8 video: pixels become (x / 255 - mean) / std.
            Without mean and std, uint8 is used as 0..255. Float video must already be normalised.
        std: as `mean`.
        cls_token: (1, 1, C), or None for no CLS row.
        pos_embed: (1, N, C), or (1, N + 1, C) with a CLS; added to the tokens.
        layout: "BCTHW" or "BTHWC".
        impl: "auto", "extension" or "torch". The extension returns float32, bfloat16 and float16 on the CPU
            and on CUDA devices of compute capability >= 8.0, float64 on the CPU, if a C++ compiler (for CUDA
            also nvcc) can build it. "auto" is the extension where it can run, else torch's conv3d.

    Returns:
        (B, N, C), or (B, N + 1, C) with a CLS, in the weight's dtype or autocast's. Tokens are ordered by t,
        then h, then w. Trailing rows, columns and frames that fill no whole patch are unused, as in Conv3d.

    Raises:
        ValueError: shapes, dtypes or devices that do not match, mean and std with float video or one without
            the other, an unknown `impl`, or "extension" where it cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    if layout not in ("BCTHW", "BTHWC"):
        raise unexpected("layout", '"BCTHW" or "BTHWC"', repr(layout))
    check_shape("weight", weight, (None, 3, None, None, None), "(C, 3, t, p, p)")
    C, _, *patch = weight.shape
    if weight.numel() == 0:
        raise unexpected("weight", "at least one element", tuple(weight.shape))
    check_shape("bias", bias, (C,), "(C,)")
    if layout == "BCTHW":
        check_shape("video", video, (None, 3, None, None, None), "(B, 3, T, H, W)")
    else:
        check_shape("video", video, (None, None, None, None, 3), "(B, T, H, W, 3)")
    shift, scale = _affine(video, mean, std)
    sizes = video.shape[2:] if layout == "BCTHW" else video.shape[1:4]
    grid = [size // p for size, p in zip(sizes, patch, strict=True)]
    if min(grid) == 0:
        raise unexpected("video", f"T, H, W of at least one tubelet {tuple(patch)}", tuple(sizes))
    rows = grid[0] * grid[1] * grid[2]
    if cls_token is not None:
        check_shape("cls_token", cls_token, (1, 1, C), "(1, 1, C)")
        rows += 1
    if pos_embed is not None:
        check_shape("pos_embed", pos_embed, (1, rows, C), "(1, N, C), N with the CLS")
    tensors = {"video": video, "weight": weight, "bias": bias, "cls_token": cls_token, "pos_embed": pos_embed}
    devices = {name: x.device for name, x in tensors.items() if x is not None}
    check(len(set(devices.values())) == 1, "inputs", "one device", devices)
    for name, x in tensors.items():
        if x is not None and name != "video":
            check(x.is_floating_point(), name, "a floating dtype", x.dtype)
    cast = autocast_dtype(weight)
    dtype = weight.dtype if cast is None or weight.dtype == torch.float64 else cast  # as autocast does
    chosen = resolve(impl, auto_choice(video.device, dtype), IMPLS)
    frames = video if layout == "BCTHW" else video.permute(0, 4, 1, 2, 3)
    if chosen == "extension":
        check_supported("extension", _unsupported_reason(video.device, dtype))
        return _fwd(frames, weight, bias, cls_token, pos_embed, shift, scale, dtype, impl)
    if impl == "auto" and video.device.type in _DTYPES and not torch.compiler.is_compiling():
        reason = extension.unsupported_reason(video.device.type)
        if reason is not None:
            extension.warn_of(reason)
    if product_dtype(video.device, dtype) != dtype:
        return _forward_on_torch(frames, weight, bias, cls_token, pos_embed, shift, scale, dtype)
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
