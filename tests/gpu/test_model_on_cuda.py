"""HSTA on a CUDA device: logits and gradients of the published formulation."""

import pytest
import torch

import hsta_fast

from ..published_formulation import published_logits, published_state

pytestmark = pytest.mark.gpu
HEADS = (12, 6)  # both head widths of HSTA


def test_logits_and_gradients_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # on by default, for convolutions only
    config = {"widths": (384, 384), "patches": (12, 16), "n_s": 1, "n_v": 2, "layers": 2, "num_classes": 7}
    state = published_state(config, dtype=torch.float32, seed=0)
    clip = torch.randn(2, 3, 8, 112, 112)
    leaves = {key: value.double().requires_grad_() for key, value in state.items()}
    logits = published_logits(leaves, clip.double(), num_heads=HEADS)
    logits.sum().backward()
    model = hsta_fast.load_published(state, num_heads=HEADS).cuda()
    got = model(clip.cuda())
    got.sum().backward()
    pairs = [("logits", got, logits.detach())]
    for name, parameter in model.named_parameters():
        ours, exact = parameter.grad, leaves[name.replace(".csta.", ".")].grad
        assert ours is not None and exact is not None, name
        pairs.append((name, ours, exact))
    for name, ours, exact in pairs:
        bound = 1e-4 * (1 + exact.abs().max().item())
        assert (ours.double().cpu() - exact).abs().max().item() <= bound, name


def test_float_frames_are_read_at_the_first_call_only() -> None:
    """Reading them makes the CPU wait for the device."""
    model = hsta_fast.create_model("hsta_tiny", num_layers=1).cuda().eval()
    frames = torch.full((1, 3, 8, 48, 48), 255.0, device="cuda")
    with torch.inference_mode():
        model(frames.byte())  # bytes are not read
        for _ in range(2):
            with pytest.raises(ValueError, match="video expected uint8, or floats normalised"):
                model(frames)
        model(frames / 255)
        assert model(frames).isfinite().all()
