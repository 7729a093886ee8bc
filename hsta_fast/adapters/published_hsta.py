"""The published HSTA, and models with the same two attention modules, known by their structure.

Their code is no package, so a class cannot be told by its name. A module is known by the names of its parts,
and switched only if its forward and ours give the same (`switch_class`).
"""

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from .. import ops
from ..replaced import is_plain
from .switching import Find, Left, Switch, Switched, bypassed, captured, projections, silent, switch_class
from .worth import absorbing_pays, fusing_pays

_LIBRARIES = ("torch", "transformers", "timm")
# What such a module may hold; anything else may change its result.
_SETTINGS = {"num_heads", "heads", "scale", "head_dim", "dim", "attention"}


def finder(root: nn.Module) -> Find:
    """Tells of each module of `root` whether it can be switched."""
    return find


def find(module: nn.Module) -> Switch | Left | None:
    """The switch of a module with the parts of USTA's or CSTA's attention; None for any other."""
    kind = type(module)
    if kind.__module__.partition(".")[0] in _LIBRARIES or kind.__module__ == "hsta_fast.layers":
        return None
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    others = {name: child for name, child in module.named_children() if name not in linear}
    parts = all(isinstance(child, nn.Dropout | nn.Identity) for child in others.values())
    if not parts or heads(module) is None:
        return None
    own = set(module._parameters)
    if not linear >= {"proj"} or not (linear >= {"qkv"} or linear >= {"wq", "wk", "wv"}):
        return None
    if more := vars(module).keys() - vars(nn.Module()) - _SETTINGS:
        return Left(f"it holds more than such a module: {', '.join(sorted(more))}")
    if linear == {"qkv", "proj"} and own in ({"q_bias", "v_bias"}, set()):
        width = cast(nn.Linear, module.qkv).in_features
        return switch_class(
            module, FusedSelfAttention, "space_time_attention", rows(width), note=note(module)
        )
    if linear == {"wq", "wk", "wv", "proj"} and not own:
        width = cast(nn.Linear, module.wk).in_features
        return switch_class(module, FirstRowAttention, "few_query_attention", rows(width), note=note(module))
    return None


def heads(module: nn.Module) -> int | None:
    """The number of heads that an attention module names; None if it names none."""
    found = vars(module).get("num_heads", vars(module).get("heads"))
    return found if isinstance(found, int) and found > 0 else None


def rows(width: int, length: int = 300) -> Any:
    """Makes tokens (2, length, width), some of them zero, to compare two forwards on."""

    def sample() -> tuple[tuple[Tensor], dict[str, Tensor]]:
        x = torch.randn(2, length, width, dtype=torch.float64)
        x[:, 7::50] = 0.0  # what a rule for padding would leave out
        return (x,), {}

    return sample


def attention_dropout(module: nn.Module) -> float:
    """The rate of dropout on the attention weights."""
    dropout = module._modules.get("attn_drop")
    return dropout.p if isinstance(dropout, nn.Dropout) else 0.0


def without_mask(kwargs: dict[str, Any]) -> bool:
    """Whether the keyword arguments of a forward say that there is no mask."""
    unmasked = {"attn_mask": (None,), "is_causal": (None, False)}
    return all(any(value is none for none in unmasked.get(name, ())) for name, value in kwargs.items())


def note(module: nn.Module) -> str:
    """When the original forward still runs."""
    rate = attention_dropout(module)
    return f"as before in training: attention dropout {rate:g}" if rate else ""


class _Projected(Switched):
    """Attention with an output projection `proj`, and dropout after it where there is `proj_drop`."""

    _called: tuple[str, ...] = ("proj", "proj_drop")  # these parts are called, or their weights are read
    proj: nn.Linear
    training: bool
    _modules: dict[str, nn.Module | None]

    def _usable(self, x: Tensor, *linear: nn.Linear) -> bool:
        """Whether the fast form computes what the original does, whose other parts are called or not."""
        others = (part for name, part in self._modules.items() if name not in self._called)
        return (
            x.numel() > 0 and bypassed(*linear) and all(silent(part) or self._idle(part) for part in others)
        )

    def _idle(self, part: nn.Module | None) -> bool:
        """Whether a part is dropout that is off, for the layer and by itself."""
        off = not self.training and type(part) is nn.Dropout and not part.training
        return off and is_plain(part, nn.Dropout)

    def _scale(self) -> float | None:
        """The factor of the scores; None: D ** -0.5, as timm's fused attention has it whatever `scale` is."""
        return None if vars(self).get("fused_attn") else vars(self).get("scale")

    def _fast_output(self, attended: Tensor) -> Tensor:
        out = ops.linear(attended, self.proj.weight, self.proj.bias)
        dropout = self._modules.get("proj_drop")
        return out if dropout is None else dropout(out)


class FusedSelfAttention(_Projected):
    """Self-attention with one product for q, k and v, whose biases may stand apart."""

    _called: tuple[str, ...] = ("qkv", "proj", "proj_drop")
    qkv: nn.Linear

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        module = cast(nn.Module, self)
        usable = (
            not args
            and without_mask(kwargs)
            and not captured(x)
            and x.dim() == 3
            and fusing_pays(x, x.shape[1], x.shape[2])
            and self._usable(x, self.qkv, self.proj)
        )
        if not usable:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        bias: Tensor | None = self.qkv.bias
        # Not from `_parameters`: in a replica of nn.DataParallel they are plain attributes.
        q_bias, v_bias = (getattr(self, name, None) for name in ("q_bias", "v_bias"))
        if q_bias is not None and v_bias is not None:
            bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
        qkv = ops.linear(x, self.qkv.weight, bias)
        qkv = rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=heads(module))
        attended = ops.space_time_attention(qkv, scale=self._scale())
        return self._fast_output(rearrange(attended, "b n h d -> b n (h d)"))


class FirstRowAttention(_Projected):
    """Attention of the first row, a CLS, to all rows: absorbed, without keys and values."""

    _parts: tuple[str, ...] = ("wq", "wk", "wv")
    _called = *_parts, "proj", "proj_drop"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, N, C) -> (B, 1, C)."""
        module = cast(nn.Module, self)
        num_heads = cast(int, heads(module))
        q, k, v = (cast(nn.Linear, self._modules[name]) for name in self._parts)
        usable = (
            not args
            and not kwargs
            and not captured(x)
            and x.dim() == 3
            and absorbing_pays(1, num_heads, x)
            and self._usable(x, q, k, v, self.proj)
        )
        if not usable:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        attended = ops.few_query_attention(
            x[:, :1],
            x,
            **projections(q, k, v),
            num_heads=num_heads,
            scale=self._scale(),
        )
        return self._fast_output(attended)
