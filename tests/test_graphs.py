"""CUDA graphs for inference, as far as a CPU shows them: the plain call. `tests/gpu` replays graphs."""

import warnings

import pytest
import torch

import hsta_fast
from tests.test_compile import frames, tiny


def test_frames_on_a_cpu_are_called_without_a_graph() -> None:
    """The same logits, without a gradient, and one warning that names the caller's line."""
    model = tiny().eval()
    graphed, given = hsta_fast.GraphedModel(model), frames()
    with pytest.warns(UserWarning, match="^CUDA graphs expected .*, got cpu: ") as said:
        logits = graphed(**given)
    assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = graphed(given["video"], given["special"])
    assert torch.equal(logits, model(**given)) and torch.equal(again, logits) and not logits.requires_grad


def test_what_a_graph_cannot_do_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^model expected eval mode, got training mode: call model\.eval\(\)$"
    ):
        hsta_fast.GraphedModel(tiny())(**frames())
    graphed = hsta_fast.GraphedModel(tiny().eval())
    with pytest.warns(UserWarning, match="got none"), pytest.raises(ValueError, match="^frames expected one"):
        graphed()


def test_what_is_no_model_and_what_are_no_frames() -> None:
    for wrong, got in ((None, "None"), (len, "builtin_function_or_method")):
        with pytest.raises(ValueError, match=f"^model expected an HSTA in eval mode, got {got}$"):
            hsta_fast.GraphedModel(wrong)  # type: ignore[arg-type]
    graphed = hsta_fast.GraphedModel(tiny().eval())
    for name in ("video", "special"):
        with pytest.raises(ValueError, match=rf"^{name} expected a tensor \(B, 3, T, H, W\), got list$"):
            graphed(**{name: [1, 2]})  # type: ignore[arg-type]
