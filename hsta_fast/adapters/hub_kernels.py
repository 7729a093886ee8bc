"""Layers for Hugging Face's `kernels`: its `kernelize(model, ...)` gives their forward to modules of a model.

A layer of `kernels` has no state, and no members but `can_torch_compile` and `has_backward`. Its forward gets
the module that it stands in for as `self`, and takes the same arguments. A call that the fast form cannot
compute exactly runs the forward of that module's class.
"""

import json
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from ..files import write_text
from .torch_modules import attended, embeds_patches, patch_product, why_not_attention, why_not_conv3d

_BACKENDS = "cpu", "cuda"


class PatchConv3d(nn.Module):
    """Stands in for an nn.Conv3d: a product of patches where its kernel is its stride."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        """(B, K, T, H, W) -> (B, C, T / t, H / p, W / q)."""
        conv = cast(nn.Conv3d, self)
        known = embeds_patches(conv) and why_not_conv3d(conv) is None
        out = patch_product(conv, input) if known else None
        return type(conv).forward(conv, input) if out is None else out


class MultiheadAttention(nn.Module):
    """Stands in for an nn.MultiheadAttention: fused, or absorbed for a few queries."""

    can_torch_compile = True
    has_backward = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's."""
        attention = cast(nn.MultiheadAttention, self)
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        out = None
        if not need_weights and not masked and why_not_attention(attention) is None:
            out = attended(attention, query, key, value)
        if out is not None:
            return out, None
        return type(attention).forward(
            attention,
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )


def write_repository(folder: Path | str) -> Path:
    """Write a kernel repository that names the layers above, for `kernels.LocalLayerRepository`.

    It holds no code of its own: it imports this package, which must be installed where it is loaded.

    Args:
        folder: where to write; made if it is not there.

    Returns:
        The folder.
    """
    root = Path(folder)
    for backend in _BACKENDS:
        variant = root / "build" / f"torch-{backend}"
        variant.mkdir(parents=True, exist_ok=True)
        metadata = {
            "id": f"_hsta_fast_{backend}",  # the name under which the module is kept: one for each variant
            "name": "hsta-fast",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        write_text(variant / "metadata.json", json.dumps(metadata, indent=2) + "\n")
        write_text(variant / "__init__.py", "from hsta_fast.adapters import hub_kernels as layers\n")
    return root
