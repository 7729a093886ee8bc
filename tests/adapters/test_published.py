"""The published HSTA by its structure, and look-alikes that must be left as they are."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from hsta_fast.published import PublishedHSTA
from tests.adapters.checks import check_same, named_rows, randomise, tensors

FUSED, ABSORBED = "space_time_attention", "few_query_attention"
TOKENS = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Usta(nn.Module):
    """USTA's attention as published: biases of q and v apart, dropout twice."""

    def __init__(self, attn_drop: float = 0.0, proj_drop: float = 0.0, biases: bool = True) -> None:
        super().__init__()
        self.num_heads = 4
        self.scale = 4**-0.5
        self.qkv = nn.Linear(16, 48, bias=False)
        if biases:
            self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(16)) for _ in range(2))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(16, 16)
        self.proj_drop = nn.Dropout(proj_drop)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.scale) @ k.transpose(-2, -1)

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Any:
        bias = None
        if hasattr(self, "q_bias"):
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop(self.weights(self.scores(q, k)))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class Csta(nn.Module):
    """CSTA's attention as published: the first row attends to all."""

    def __init__(self, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = 4
        self.scale = 4**-0.5
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(16, 16) for _ in range(4))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.wq(x[:, :1]), self.wk(x), self.wv(x))
        )
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("proj_drop", [0.0, 0.3])
@pytest.mark.parametrize("attn_drop", [0.0, 0.2])
@pytest.mark.parametrize("kind", [Usta, Csta])
def test_published_attention(kind: Any, attn_drop: float, proj_drop: float) -> None:
    became = FUSED if kind is Usta else ABSORBED
    note = f"; as before in training: attention dropout {attn_drop:g}" if attn_drop else ""
    check_same(
        lambda: kind(attn_drop, proj_drop),
        [TOKENS],
        rows={"": became + note},
        calls={became: 1},
        compile_backend="eager" if attn_drop == proj_drop == 0 else None,
    )


def test_published_attention_without_biases() -> None:
    check_same(lambda: Usta(biases=False), [TOKENS], rows={"": FUSED}, calls={FUSED: 1})


def test_published_model() -> None:
    torch.manual_seed(0)
    config = hsta_fast.HSTAConfig(
        widths=(16, 32), num_heads=(2, 4), patch_sizes=(16, 16), num_layers=1, n_special=1, n_video=2,
        num_classes=3,
    )  # fmt: skip
    model = hsta_fast.HSTA(config)
    frames = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    names = ["0.blocks.0.0", "0.blocks.1.0", "0.blocks.1.1"]
    conv = "a product of patches"
    check_same(
        lambda: PublishedHSTA(model),
        [frames, frames[:, :, :2]],
        rows={
            **{f"patch_embed.{d}.proj": conv for d in (0, 1)},
            **{f"blocks.{name}.attn": FUSED for name in names},
            **{f"blocks.0.fusion.{d}.attn": ABSORBED for d in (0, 1)},
        },
        calls={FUSED: 3, ABSORBED: 2},
        autocast=False,
    )


class OtherScale(Usta):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) * 0.3


class PositionBias(Usta):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.linspace(-1, 1, 129)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        rows = torch.arange(q.shape[2])
        return super().scores(q, k) + self.table.to(q.dtype)[rows[:, None] - rows + 64]


class Masked(Usta):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k)
        return scores + torch.full_like(scores, -torch.inf).triu(1)


class Local(Usta):
    """Far tokens are out of sight: on short sequences it is like any other."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        rows = torch.arange(q.shape[2])
        far = (rows[:, None] - rows).abs() > 100
        return super().scores(q, k).masked_fill(far, -torch.inf)


class Padded(Usta):
    """Tokens that are zero are padding."""

    def forward(self, x: Tensor) -> Any:
        self_masked = super().forward(x)
        return self_masked * (x != 0).any(-1, keepdim=True)


class Keeps(Usta):
    """For somebody who looks at the weights later."""

    def weights(self, scores: Tensor) -> Tensor:
        self.seen = super().weights(scores)
        return self.seen


class Normed(Usta):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1))


class OtherAxis(Usta):
    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-2)


class RandomInTraining(Usta):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k)
        return scores + 0.1 * torch.randn_like(scores) if self.training else scores


class DropsTokens(Usta):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[:, ::2] if self.training else x)


class GivesWeights(Usta):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class NeedsMore(Usta):
    def forward(self, x: Tensor, positions: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x + positions)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (OtherScale, "differs from ours, by"),
        (PositionBias, "it holds more than such a module: table"),
        (Local, "differs from ours, by"),
        (Padded, "differs from ours, by"),
        (Keeps, "its forward keeps something in the module"),
        (Masked, "differs from ours, by"),
        (Normed, "differs from ours, by"),
        (OtherAxis, "differs from ours, by"),
        (RandomInTraining, "differs from ours, by"),
        (DropsTokens, "gives (2, 150, 16), ours (2, 300, 16)"),
        (GivesWeights, "gives a tuple, ours a Tensor"),
        (NeedsMore, "it cannot be compared: TypeError"),
    ],
)
def test_look_alikes_are_left(kind: type[Usta], why: str) -> None:
    model = nn.Sequential(kind())
    said = named_rows(hsta_fast.accelerate(model))
    assert set(said) == {"0"}
    assert said["0"].startswith("left: ")
    assert why in said["0"]
    assert type(model[0]) is kind


class PrivateScale(Usta):
    """Its scale is a private attribute, which its names and shapes do not tell."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) * self._factor


def test_modules_with_settings_of_their_own_are_left() -> None:
    said = named_rows(hsta_fast.accelerate(nn.Sequential(PrivateScale(1.0), PrivateScale(2.0))))
    assert set(said.values()) == {"left: it holds more than such a module: _factor"}


def test_a_class_whose_forward_was_replaced_is_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_rows(hsta_fast.accelerate(Usta())) == {"": FUSED}
    forward = Usta.forward
    monkeypatch.setattr(Usta, "forward", lambda self, x: 2 * forward(self, x))
    assert "differs from ours" in named_rows(hsta_fast.accelerate(Usta()))[""]


def _double(build: Any) -> tuple[Any, Any]:
    """A model in float64, in eval mode, and the same switched."""
    original = randomise(build()).double().eval()
    ours = copy.deepcopy(original)
    assert len(hsta_fast.accelerate(ours).switched) == 1
    return original, ours


@pytest.mark.parametrize("kind", [Usta, Csta])
def test_hooks_on_the_attention_dropout_see_the_weights(kind: Any) -> None:
    """The usual way to look at attention maps."""
    seen: list[list[Tensor]] = [[], []]
    for model, into in zip(_double(kind), seen, strict=True):
        model.attn_drop.register_forward_hook(lambda _m, _i, out, into=into: into.append(out))
        model(TOKENS)
    assert len(seen[0]) == len(seen[1]) == 1
    assert torch.equal(seen[0][0], seen[1][0])


@pytest.mark.parametrize("kind", [Usta, Csta])
def test_dropout_that_is_on_in_eval_mode(kind: Any) -> None:
    """Monte Carlo dropout: only the dropout modules are in training mode."""
    outputs = []
    for model in _double(lambda: kind(attn_drop=0.5)):
        model.attn_drop.train()
        torch.manual_seed(0)
        outputs.append(model(TOKENS))
    assert torch.equal(*outputs)


def test_a_dropout_that_was_replaced_after_the_switch() -> None:
    original, ours = _double(Usta)
    for model in (original, ours):
        model.attn_drop = nn.Softplus()
    assert torch.equal(original(TOKENS), ours(TOKENS))


@pytest.mark.parametrize("kind", [Usta, Csta])
def test_replicas_of_data_parallel(kind: Any) -> None:
    """Their parameters are attributes, as nn.parallel.replicate sets them on each CUDA device."""
    replicas = []
    for model in _double(kind):
        copies: dict[Any, Any] = {part: part._replicate_for_data_parallel() for part in model.modules()}
        for part, replica in copies.items():
            for name, p in part._parameters.items():
                if p is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, p.detach().clone())
            replica._modules = {n: copies[m] for n, m in part._modules.items()}
        replicas.append(copies[model])
    expected, came = (tensors(replica(TOKENS))[0] for replica in replicas)
    torch.testing.assert_close(came, expected, rtol=1e-10, atol=1e-10)
