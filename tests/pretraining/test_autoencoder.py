"""What an encoder sees, what learns, and what the encoder has in common with the model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast.model import HSTA, HSTAConfig
from hsta_fast.pretraining.autoencoder import MaskedAutoencoder
from hsta_fast.pretraining.objective import token_order, tube_masks

CONFIG: dict[str, Any] = {
    **{"widths": (12, 16), "num_heads": (2, 2), "patch_sizes": (4, 8), "num_layers": 2, "n_video": 1},
}


def make(**changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"target": "pixels", "visible_weight": 0.0} | changes
    config = CONFIG | settings.pop("config", {})
    model = HSTA(HSTAConfig(**config))
    return MaskedAutoencoder(model, image_size=16, num_frames=4, decoder_layers=1, **settings).double()


def inputs(batch: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    frames = {
        "special": torch.rand(batch, 3, 2, 16, 16, dtype=torch.float64),
        "video": torch.rand(batch, 3, 4, 16, 16, dtype=torch.float64),
    }
    masks = {"special": tube_masks(batch, 16, 0.5, (0,)), "video": tube_masks(batch, 4, 0.5, (1,))}
    return frames, masks


def of_hidden(mask: Tensor, patch: int) -> Tensor:
    """Which pixels are hidden, bool (B, 1, 1, H, W)."""
    side = 16 // patch
    pixels = mask.view(-1, side, side).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return pixels[:, None, None]


@pytest.mark.parametrize("d", [0, 1])
def test_nothing_of_a_hidden_position_reaches_the_prediction(d: int) -> None:
    autoencoder, (frames, masks) = make(), inputs()
    name, patch = ("special", "video")[d], (4, 8)[d]
    x = frames[name].requires_grad_()
    predicted, _, _ = autoencoder.predict(d, x, masks[name])
    predicted.square().sum().backward()
    hidden = of_hidden(masks[name], patch).expand_as(x)
    assert x.grad is not None and x.grad[hidden].abs().max() == 0
    assert x.grad[~hidden].abs().min() > 0


@pytest.mark.parametrize("d", [0, 1])
def test_with_all_tokens_visible_the_encoder_is_the_branch_of_the_model(d: int) -> None:
    """Whose head has the mean of all rows: of a model of one branch, which has no CSTA."""
    name, (frames, _) = ("special", "video")[d], inputs()
    autoencoder = make(config={"branches": (name,), "head": "mean"})
    everything = token_order(torch.zeros(2, autoencoder.positions[name], dtype=torch.bool), (1, 2)[d])[0]
    rows = autoencoder.encode(d, frames[name], everything)
    expected = autoencoder.model(**{name: frames[name]})
    found = autoencoder.model.head(rows.mean(1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_parameter_learns_but_those_of_csta_and_head() -> None:
    autoencoder, (frames, masks) = make(), inputs()
    sum(autoencoder(frames, masks).values()).backward()
    for name, parameter in autoencoder.named_parameters():
        if ".csta." in name or name.startswith("model.head."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_model_of_one_branch_has_one_loss() -> None:
    frames, masks = inputs()
    whole = make()(frames, masks)
    assert list(whole) == ["special", "video"]
    alone = make(config={"branches": ("video",)})
    assert list(alone(frames, masks)) == ["video"]


def test_the_gradients_are_those_of_finite_differences() -> None:
    autoencoder, (frames, masks) = make(target="difference", visible_weight=0.5), inputs(1)
    weight = autoencoder.model.get_parameter("patch_embed.1.proj.weight")

    def loss() -> Tensor:
        return autoencoder(frames, masks)["video"]

    (gradient,) = torch.autograd.grad(loss(), [weight])
    place = (3, 1, 0, 2, 5)
    with torch.no_grad():
        values = []
        for step in (1e-4, -2e-4):
            weight[place] += step
            values.append(loss())
    torch.testing.assert_close(gradient[place], (values[0] - values[1]) / 2e-4, rtol=1e-5, atol=1e-9)


def test_the_result_does_not_depend_on_the_order_of_the_clips() -> None:
    autoencoder, (frames, masks) = make(), inputs()
    whole = autoencoder(frames, masks)["video"]
    parts = [
        autoencoder({k: v[i : i + 1] for k, v in frames.items()}, {k: v[i : i + 1] for k, v in masks.items()})
        for i in (1, 0)
    ]
    torch.testing.assert_close(whole, (parts[0]["video"] + parts[1]["video"]) / 2, rtol=1e-12, atol=0)
