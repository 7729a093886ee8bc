"""CSTA: the CLS of each modality attends to the tokens of the other. Parameters have the published names.

B batch, N patch tokens, C width, H heads, D = C / H head width. Branch 0 is special, 1 is video.
"""

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import ops
from .layers import LN_EPS
from .ops.attention_pool_torch import accumulation_dtype
from .ops.checks import check, check_heads, check_shape, unexpected
from .ops.choice import transformed
from .ops.cls_cross_attention import attend
from .ops.cls_cross_attention_inplace import cls_cross_attention_in_state, put_cls, take_cls
from .replaced import any_global_hook, has_bias, is_plain, warn_of_call


class CrossAttention(nn.Module):
    """CLS-to-token cross-attention with its projections, all with bias (Eq. 9).

    Args:
        width: C.
        num_heads: H, a divisor of C.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(width, width)
        self.wk = nn.Linear(width, width)
        self.wv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        """Normalised rows (B, 1 + N, C), CLS first -> (B, C), with keys and values of all rows.

        `CrossAttentionBlock` computes the same from the weights, without keys and values, where it may.
        """
        q, k, v = (
            rearrange(projection(rows), "b n (h d) -> b n h d", h=self.num_heads)
            for projection, rows in ((self.wq, y[:, :1]), (self.wk, y), (self.wv, y))
        )
        return self.proj(rearrange(ops.space_time_attention(q, k, v), "b 1 h d -> b (h d)"))


class CrossAttentionBlock(nn.Module):
    """cls + proj(attention of the CLS over LN([cls ; tokens])), one query, no MLP (Eq. 9, 10).

    Where the norm, `attn`, wq, wk or wv is not plain (`hsta_fast.replaced`), they are called, and keys and
    values are computed.

    Args:
        width: C.
        num_heads: H, a divisor of C.
        dropout: after the output projection.
        impl: implementation of the pooling, as in `hsta_fast.cls_cross_attention`.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float = 0.0, impl: str = "auto") -> None:
        super().__init__()
        check_heads(num_heads, width)
        self.num_heads = num_heads
        self.impl = impl
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attn = CrossAttention(width, num_heads=num_heads)
        self.dropout = nn.Dropout(dropout)

    def replaced(self) -> tuple[str, type[nn.Module]] | None:
        """The first submodule that must be called, and the class it would have if plain; None if none."""
        # `_modules` because the lookup of an attribute takes longer than all the rest.
        modules: dict[str, Any] = self._modules
        norm, attn = modules["norm1"], modules["attn"]
        if any_global_hook() or not is_plain(norm, nn.LayerNorm) or not has_bias(norm):
            return "norm1", nn.LayerNorm
        if not is_plain(attn, CrossAttention):
            return "attn", CrossAttention
        for name in ("wq", "wk", "wv"):
            part = attn._modules[name]
            if not is_plain(part, nn.Linear) or not has_bias(part):
                return f"attn.{name}", nn.Linear
        return None

    def _settings(self) -> dict[str, Any]:
        names = {"norm": self.norm1, "q": self.attn.wq, "k": self.attn.wk, "v": self.attn.wv}
        weights = {f"{name}_weight": module.weight for name, module in names.items()}
        biases = {f"{name}_bias": module.bias for name, module in names.items()}
        return weights | biases | {"num_heads": self.num_heads, "eps": self.norm1.eps, "impl": self.impl}

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """Cls (B, C), tokens (B, N, C) -> (B, C)."""
        replaced = self.replaced()
        if replaced is None:
            attended = ops.cls_cross_attention(cls, tokens, **self._settings())
            return cls + self.dropout(self.attn.proj(attended))
        cost = "keys and values are computed in full, 4 N C^2 operations per sample instead of 4 H N C"
        warn_of_call(self, *replaced, cost)
        check_shape("tokens", tokens, (None, None, None), "(B, N, C)")
        check_shape("cls", cls, (tokens.shape[0], tokens.shape[2]), "(B, C)")
        rows = torch.cat([cls.unsqueeze(1), tokens], dim=1)
        return cls + self.dropout(self.attn(self.norm1(rows)))

    def weights(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """Cls (B, C), tokens (B, N, C) -> softmax weights of `forward` (B, H, 1 + N), that of the CLS first.

        In float32, or in float64 if the parameters are; the submodules that `forward` would call are called.

        Raises:
            ValueError: `attn` is not a CrossAttention, or its forward is replaced.
        """
        attn = self.attn
        if not isinstance(attn, CrossAttention) or "forward" in vars(attn):
            raise unexpected("attn", "a CrossAttention with its own forward", type(attn).__name__)
        if self.replaced() is not None:
            y = self.norm1(torch.cat([cls.unsqueeze(1), tokens], dim=1))
            q, k = (
                rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)
                for x in (attn.wq(y[:, :1]), attn.wk(y))
            )
            wide = accumulation_dtype(k.dtype)
            scores = torch.einsum("bhnd,bhmd->bhnm", q.to(wide) * q.shape[-1] ** -0.5, k.to(wide))
            return scores.softmax(-1)[:, :, 0]
        wide, found = accumulation_dtype(tokens.dtype), []

        def pool(query: Tensor, extra: Tensor) -> Tensor:
            pooled, weights = ops.attention_pool(
                query,
                tokens.to(wide),
                extra=extra,
                eps=self.norm1.eps,
                return_weights=True,
                impl=self.impl,
            )
            found.append(weights)
            return pooled

        attend(cls, pool, wide, **{k: v for k, v in self._settings().items() if k != "impl"})
        return found[0]

    def in_state(self, cls: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the tokens of a state (B, N + 1, C) that `take_cls` returned: (out, state).

        Only where nothing is `replaced`.
        """
        attended, state = cls_cross_attention_in_state(cls, state, **self._settings())
        return cls + self.dropout(self.attn.proj(attended)), state


def _projection(width_in: int, width_out: int) -> nn.Sequential:
    """Linear(gelu(LN(cls))), Eq. 8 and 11."""
    return nn.Sequential(nn.LayerNorm(width_in, eps=LN_EPS), nn.GELU(), nn.Linear(width_in, width_out))


def _has_hooks(module: nn.Module, *kinds: str) -> bool:
    """Whether hooks of these kinds, or hooks of all modules, run when `module` is called."""
    own = any(getattr(module, f"_{kind}_hooks") for kind in kinds)
    return own or any_global_hook()


def reason_to_copy(
    state: Tensor, *, given: Tensor | None = None, made_by: nn.Module | None = None
) -> str | None:
    """Why CSTA may not write into `state` (B, N + 1, C); None if it may.

    Args:
        state: its memory would hold the next state.
        given: the tensor that the state was computed from and that the caller still needs.
        made_by: the module that returned the state. Its hooks may have kept the tensor.
    """
    if state is given:
        return "a tensor of the caller's"
    if made_by is not None and _has_hooks(made_by, "forward", "backward"):
        return "a tensor that a hook may have kept"
    if made_by is not None and state.retains_grad:
        return "a tensor whose gradient is retained"
    # Autograd refuses to change these in place.
    if state.is_leaf and state.requires_grad:
        return "a leaf that requires grad"
    return "a view" if state._is_view() else None


class CrossmodalSpaceTimeAttention(nn.Module):
    """CSTA: the CLS of each modality attends to the tokens of the other, both at once (Eq. 8-13).

    With `inplace` no token is copied, in the forward or in the backward: the memory of the given states holds
    the returned ones. Under torch.compile and torch.func the given states do not change. Second derivatives
    need `inplace` to be False, which may be set at any time.

    Args:
        widths: C of the special and of the video branch.
        num_heads: H of the special and of the video branch.
        dropout: after the attention projections.
        inplace: write the new CLS rows into the given states.
        impl: implementation of the pooling, as in `hsta_fast.cls_cross_attention`.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        *,
        num_heads: tuple[int, int],
        dropout: float = 0.0,
        inplace: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.widths = widths
        self.inplace = inplace
        directions = ((0, 1), (1, 0))  # CLS of a -> tokens of b
        self.projs = nn.ModuleList(_projection(widths[a], widths[b]) for a, b in directions)
        self.fusion = nn.ModuleList(
            CrossAttentionBlock(widths[b], num_heads=num_heads[b], dropout=dropout, impl=impl)
            for _, b in directions
        )
        self.revert_projs = nn.ModuleList(_projection(widths[b], widths[a]) for a, b in directions)

    def forward(self, special: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N_0 + 1, C_0), (B, N_1 + 1, C_1), CLS first -> the same; only the two CLS rows are replaced.

        Raises:
            ValueError: states of other shapes; with `inplace`, states that share memory or that autograd
                cannot change in place.
        """
        check_shape("special", special, (None, None, self.widths[0]), "(B, N_0 + 1, C_0)")
        check_shape("video", video, (special.shape[0], None, self.widths[1]), "(B, N_1 + 1, C_1)")
        rows = min(special.shape[1], video.shape[1])
        check(rows > 0, "special and video", "a CLS row in each state", "a state without rows")
        if self.writes_into_states():
            return self._in_place(special, video)
        given = (special, video)
        out = []
        for a, b in ((0, 1), (1, 0)):
            attended = self.fusion[a](self.projs[a](given[a][:, 0]), given[b][:, 1:])
            cls = self.revert_projs[a](attended).unsqueeze(1)
            out.append(torch.cat([cls.to(given[a].dtype), given[a][:, 1:]], dim=1))
        return out[0], out[1]

    def writes_into_states(self) -> bool:
        """Whether `forward` overwrites its inputs: `inplace`, where hooks and transforms permit it."""
        # The compiler plans the memory; torch.func and modes like make_fx's cannot follow a change in place.
        if not self.inplace or torch.compiler.is_compiling() or transformed():
            return False
        if _get_current_dispatch_mode() is not None:
            return False
        # A backward hook on this module turns its inputs into views. The path in place neither calls a block
        # of `fusion`, whose hooks run in its `forward`, nor the projections in it.
        return not _has_hooks(self, "backward", "backward_pre") and all(
            is_plain(block, CrossAttentionBlock) and cast(CrossAttentionBlock, block).replaced() is None
            for block in self.fusion
        )

    def _in_place(self, special: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        for name, state in {"special": special, "video": video}.items():
            reason = reason_to_copy(state)
            if reason is not None and torch.is_grad_enabled():
                raise ValueError(
                    f"{name} expected a state that may be overwritten, got {reason}; "
                    "pass a clone, or use inplace=False"
                )
        given, cls = take_cls(special, video)
        new = []
        for a, b in ((0, 1), (1, 0)):
            fusion = cast(CrossAttentionBlock, self.fusion[a])
            attended, given[b] = fusion.in_state(self.projs[a](cls[a]), given[b])
            new.append(self.revert_projs[a](attended).to(given[a].dtype))
        out = put_cls(given, new)
        return out[0], out[1]
