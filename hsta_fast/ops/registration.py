"""Registration of the ops with torch, so that torch.compile, autograd and opcheck know them."""

from collections.abc import Callable, Sequence
from typing import Any

import einops
import torch
from torch import Tensor

# einops notes which tensors it has seen, and torch.compile guards on the notes: without this, a compiled
# function would be compiled again at its second call.
for _seen in (torch.empty(0, device="cpu"), torch.nn.Parameter(torch.empty(0, device="cpu"))):
    einops.rearrange(_seen, "n -> n")

_LIBRARY = torch.library.Library("hsta_fast", "FRAGMENT")
# The tags that torch.library.custom_op sets. It is not used itself: it takes 5 to 7 microseconds more per
# call, as long as a short kernel, for checks that opcheck makes in the tests.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def register(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> torch._ops.OpOverload:
    """The op hsta_fast::`name`, for every device.

    Args:
        name: the op's name.
        implementation: the function to run. Its annotations give the schema. Results must not alias
            arguments.
        fake: returns results of the right shape, dtype and strides for tensors without data.
        backward: gradients of the arguments from those of the results, as for
            torch.library.register_autograd. Without it, differentiating the op raises RuntimeError.
        setup_context: stores in the context what `backward` needs.
    """
    _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()), tags=_TAGS)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    qualified = f"hsta_fast::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{qualified} has no derivative")

    torch.library.register_autograd(qualified, backward or refuse, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.hsta_fast, name).default


def plain_backward(dout: Tensor) -> bool:
    """Whether the backward that is running must consist of torch's own functions.

    So it must if its gradients will be differentiated (create_graph=True) or `dout` is a batch of gradients
    (is_grads_batched=True).
    """
    functorch = torch._C._functorch
    batched = functorch.is_legacy_batchedtensor(dout) or functorch.is_batchedtensor(dout)
    return torch.is_grad_enabled() or batched


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], dout: Tensor
) -> list[Tensor | None]:
    """The gradients of function(*inputs) for a `plain_backward`, None where not needed."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: inputs may depend on each other, and only the paths through `function` count.
        views = [x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True)]
        asked = [x for x, need in zip(views, needed, strict=True) if need]
        gradients = iter(torch.autograd.grad(function(*views), asked, dout, create_graph=create_graph))
    return [next(gradients) if need else None for need in needed]
