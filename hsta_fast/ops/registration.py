"""Registration of the ops with torch, so that torch.compile, autograd and opcheck know them."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("hsta_fast", "FRAGMENT")
# As torch.library.custom_op tags its own. That costs 5 to 7 microseconds more a call, for checks that opcheck
# makes in the tests; a short kernel takes no longer.
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
        implementation: what runs; its annotations make the schema; results must not alias arguments.
        fake: results of the right shape, dtype and strides for tensors without data.
        backward: gradients of the arguments from those of the results, as torch.library.register_autograd
            takes it. An op without one refuses to be differentiated.
        setup_context: what `backward` finds in its context.
    """
    _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()), tags=_TAGS)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    qualified = f"hsta_fast::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{qualified} has no derivative")

    torch.library.register_autograd(qualified, backward or refuse, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.hsta_fast, name).default
