"""The model with the linear layers of its USTA blocks in int8, for inference on the CPU.

Rounded are the four products of every USTA block (queries, keys and values; the output projection; the two of
the MLP): in hsta_base 87 % of the forward's operations at 6 frames, 74 % at 16. The rest stays in float32:
the embedding (2 % of them, its input bytes already), CSTA and the head (one row per clip), the norms, and
attention itself (11 % and 25 %), where an error of a score is a factor of its weight.
"""

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from . import extension, ops
from .layers import USTA, DropPath, Mlp, SpaceTimeAttention
from .model import HSTA
from .ops.checks import check, no_autocast, unexpected
from .ops.int8_linear import auto_choice, int8_linear, int8_mlp, pack
from .replaced import has_bias, what_replaces

# All that a USTA block consists of. DropPath and Dropout do nothing in eval mode, but may have hooks.
_PLAIN: dict[str, type[nn.Module]] = {
    "": USTA,
    "drop_path": DropPath,
    "norm1": nn.LayerNorm,
    "attn": SpaceTimeAttention,
    "attn.qkv": nn.Linear,
    "attn.proj": nn.Linear,
    "attn.dropout": nn.Dropout,
    "norm2": nn.LayerNorm,
    "mlp": Mlp,
    "mlp.fc1": nn.Linear,
    "mlp.fc2": nn.Linear,
    "mlp.dropout": nn.Dropout,
}


def _check_plain(block: nn.Module) -> None:
    for name, kind in _PLAIN.items():
        part = block.get_submodule(name)
        what = what_replaces(part, kind)
        if kind is nn.LayerNorm and what is None and not has_bias(part):
            what = "no bias"
        if what is not None:
            where = f"as {name} of every USTA block" if name else "as every block"
            got = f"one with {what}" if type(part) is kind else what
            raise unexpected("model", f"a plain {kind.__name__} {where}", got)


class _Packed(nn.Module):
    """A linear layer's weight and bias in the form that the ops of `ops.int8_linear` take."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        for name, part in zip(("weight", "step", "sums", "bias"), pack(weight, bias), strict=True):
            self.register_buffer(name, part)

    def parts(self) -> list[Tensor]:
        return list(self.buffers())


class Int8USTA(nn.Module):
    """A USTA block (Eq. 1-6) for inference: int8 products with norm, GELU and residual in the same pass.

    Args:
        block: the block in float32 on the CPU; unchanged.
        impl: "auto", "extension" (C++) or "torch".

    Raises:
        ValueError: `block` is in another dtype or on another device, or a part of it is not plain: it has
            hooks, or something else stands in its place, such as an adapter. Hooks of the block count too.
    """

    def __init__(self, block: USTA, *, impl: str = "auto") -> None:
        super().__init__()
        _check_plain(block)
        attn, mlp = block.attn, block.mlp
        for p in block.parameters():
            fits = p.dtype == torch.float32 and p.device.type == "cpu"
            check(fits, "model", "float32 on the CPU", f"{p.dtype} on {p.device}")
        self.impl, self.attn_impl, self.num_heads = impl, attn.impl, attn.num_heads
        self.norm1, self.norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        with torch.no_grad():
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
            if attn.qkv.bias is not None:
                bias = bias + attn.qkv.bias
            self.qkv, self.proj = _Packed(attn.qkv.weight, bias), _Packed(attn.proj.weight, attn.proj.bias)
            self.fc1, self.fc2 = (_Packed(part.weight, part.bias) for part in (mlp.fc1, mlp.fc2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + 1, C) -> the same in float32, whatever autocast asks for.

        Raises:
            RuntimeError: in training mode.
            ValueError: `x` is not on the CPU, or the model was moved or converted after it was quantised.
        """
        if self.training:
            raise RuntimeError("an int8 model expected eval mode, got training mode: train the float model")
        check(x.device.type == "cpu", "frames", "the CPU for an int8 model", x.device)
        kept = self.norm1.weight
        if kept.dtype != torch.float32 or kept.device.type != "cpu":
            got = f"one converted to {kept.dtype} on {kept.device}"
            raise unexpected("model", "an int8 model as quantize_int8 made it", got)
        x = x.float()
        norm1, norm2 = ([norm.weight, norm.bias] for norm in (self.norm1, self.norm2))
        with no_autocast(x):
            qkv = int8_linear(x, norm1, self.norm1.eps, self.qkv.parts(), None, self.impl)
            qkv = rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=self.num_heads)
            attended = ops.space_time_attention(qkv, impl=self.attn_impl)
            x = int8_linear(attended.flatten(2), [], 0.0, self.proj.parts(), x, self.impl)
            return int8_mlp(x, norm2, self.norm2.eps, self.fc1.parts(), self.fc2.parts(), self.impl)


def quantize_int8(model: HSTA) -> HSTA:
    """A copy of `model` for inference on the CPU, its USTA blocks in int8; in eval mode, without gradients.

    Weights are rounded per output, activations per token as they come, so nothing is calibrated. Fast with
    AVX-512 VNNI or AMX and a C++ compiler; without them torch's int8 product runs, with one warning. A
    quantised model is not saved (`save_model` refuses it): save the float one, rounding takes a second.

    Args:
        model: in float32 on the CPU; unchanged.

    Raises:
        ValueError: `model` is no HSTA, is in another dtype or on another device, is quantised already, or has
            hooks or adapters in its USTA blocks.
    """
    if not isinstance(model, HSTA):
        raise unexpected("model", "an HSTA", type(model).__name__)
    blocks = [module for module in model.modules() if isinstance(module, USTA)]
    if any(isinstance(module, Int8USTA) for module in model.modules()):
        raise unexpected("model", "float32 parameters", "one that is quantised already")
    choice = auto_choice()
    if choice.impl == "torch":
        extension.warn_of(choice.reason)
    # A copy that finds a block in the memo takes what stands there: the float weights are not copied.
    quantised = copy.deepcopy(model, {id(block): Int8USTA(block) for block in blocks})
    return quantised.requires_grad_(False).eval()
