"""HSTA against an independent formulation of the published model, and errors at its public boundary."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast.layers import DropPath
from hsta_fast.model import HSTA, HSTAConfig, position_table
from hsta_fast.training.paper_tables import TABLE_3, TABLES

from .published_formulation import published_logits, published_state

# Largest difference allowed, as a multiple of 1 + the largest entry of the reference.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SMALL = {"widths": (24, 32), "num_heads": (3, 4), "num_classes": 5}


def tiny(**overrides: Any) -> HSTA:
    """A model of the smallest useful size."""
    return hsta_fast.create_model("hsta_tiny", **{**SMALL, "num_layers": 2, **overrides})


def reference(state: dict[str, Tensor], clip: Tensor, **kinds: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and every gradient of the independent formulation, in float64."""
    leaves = {key: value.double().requires_grad_() for key, value in state.items()}
    logits = published_logits(leaves, clip.double(), **kinds)  # type: ignore[arg-type]
    weight_of(logits).backward()
    return logits.detach(), {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def weight_of(logits: Tensor) -> Tensor:
    """A scalar to differentiate, with a different weight for each logit."""
    return (logits * torch.linspace(0.5, 1.5, logits.numel(), dtype=logits.dtype).view_as(logits)).sum()


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    bound = TOLERANCE[dtype] * (1 + want.abs().max().item())
    error = (got.double() - want).abs().max().item()
    assert error <= bound, f"{what}: {error:.2e} > {bound:.2e}"


def check_parity(config: dict[str, object], clip: Tensor, num_heads: object, head: str = "cls") -> None:
    for dtype in (torch.float64, torch.float32):
        state = published_state({**config, "head": head}, dtype=dtype, seed=1)
        logits, gradients = reference(state, clip.to(dtype), num_heads=num_heads, head=head)
        model = hsta_fast.load_published(state, num_heads=num_heads, head=head)  # type: ignore[arg-type]
        got = model(clip.to(dtype))
        weight_of(got).backward()
        assert_close(got, logits, dtype, "logits")
        found = {key.replace(".csta.", "."): p.grad for key, p in model.named_parameters()}
        assert found.keys() == gradients.keys()
        for key, gradient in found.items():
            assert gradient is not None, key
            assert_close(gradient, gradients[key], dtype, key)


@pytest.mark.parametrize("row", TABLE_3)
def test_parity_with_the_published_model(row: str) -> None:
    depths = TABLE_3[row]
    config = {"widths": (24, 32), "patches": (12, 16), "num_classes": 7, "layers": depths["num_layers"]}
    config |= {"n_s": depths["n_special"], "n_v": depths["n_video"]}
    clip = torch.randn(2, 3, 6 + 2, 40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_parity(config, clip, num_heads=(3, 4))


@pytest.mark.parametrize("head", ["cls", "cls+last", "mean"])
def test_parity_of_the_heads(head: str) -> None:
    config = {"widths": (24, 32), "patches": (12, 16), "num_classes": 4, "layers": 2, "n_s": 1, "n_v": 1}
    clip = torch.randn(3, 3, 4 + 2, 33, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_parity(config, clip, num_heads=(2, 8), head=head)


def test_parity_at_full_width() -> None:
    """The paper's widths, patches, frames and pixels; one layer of each kind keeps it within a minute."""
    config = {"widths": (384, 768), "patches": (12, 16), "num_classes": 7, "layers": 1, "n_s": 1, "n_v": 1}
    clip = torch.randn(1, 3, 6 + 2, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_parity(config, clip, num_heads=12)


@pytest.mark.full
def test_parity_at_full_width_and_depth() -> None:
    config = {"widths": (384, 768), "patches": (12, 16), "num_classes": 7, "layers": 4, "n_s": 1, "n_v": 2}
    clip = torch.randn(1, 3, 6 + 2, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_parity(config, clip, num_heads=12)


@pytest.mark.parametrize(
    ("n_special", "n_video", "num_layers", "millions"),
    [(1, 2, 4, 81.9), (1, 1, 3, 40.5), (2, 2, 3, 67.1), (1, 4, 3, 104.3)],
)
def test_parameter_counts(n_special: int, n_video: int, num_layers: int, millions: float) -> None:
    with torch.device("meta"):
        model = hsta_fast.create_model(
            "hsta_base", n_special=n_special, n_video=n_video, num_layers=num_layers
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


ROWS = [(table, row) for table, rows in TABLES.items() for row in rows]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"table {t}, {r}" for t, r in ROWS])
def test_every_row_of_the_ablations_takes_a_training_step(table: int, row: str) -> None:
    torch.manual_seed(0)
    model = tiny(**{**TABLES[table][row], "dropout": 0.1, "drop_path": 0.1})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    video, special = torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 2, 24, 24)
    before = [p.detach().clone() for p in model.parameters()]
    loss = torch.nn.functional.cross_entropy(model(video, special), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item())
    assert model.head.weight.grad is not None
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_position_table() -> None:
    table = position_table(50, 10)[0]
    for position in (0, 1, 49):
        for j in range(10):
            angle = position / 10000 ** (2 * (j // 2) / 10)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert table[position, j].item() == pytest.approx(expected, abs=1e-14)


def test_positions_are_not_in_the_state_dict_and_follow_size_and_dtype() -> None:
    model = tiny()
    assert not [key for key in model.state_dict() if "pos" in key or "table" in key]
    video, special = torch.randn(1, 3, 4, 64, 48), torch.randn(1, 3, 2, 64, 48)
    for frames, side in ((4, 64), (2, 32), (4, 64)):
        assert model(video[:, :, :frames, :side], special).shape == (1, 5)
    narrow = model(video, special)
    # After a cast to float64 the table is computed again, not cast up from float32.
    wide = model.double()(video.double(), special.double())
    exact = HSTA(model.config).double()
    exact.load_state_dict(model.state_dict())
    assert torch.equal(wide, exact(video.double(), special.double()))
    assert torch.allclose(narrow.double(), wide, atol=1e-5)


def test_training_after_inference_mode() -> None:
    model = tiny()
    video, special = torch.randn(1, 3, 2, 32, 32), torch.randn(1, 3, 2, 32, 32)
    with torch.inference_mode():
        model(video, special)
    model(video, special).sum().backward()


def test_packed_clip_is_video_then_special() -> None:
    model = tiny().eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    assert torch.equal(model(clip), model(clip[:, :, :6], clip[:, :, 6:]))


def test_bytes_are_normalised_inside() -> None:
    model = tiny().double().eval()
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1, 1)
    floats = (video.double() / 255 - mean) / std
    assert torch.allclose(model(video, video[:, :, :2]), model(floats, floats[:, :, :2]), atol=1e-12)
    # Float flow as special frames with uint8 video: each is handled by its own dtype.
    assert torch.allclose(model(video, floats[:, :, :2]), model(floats, floats[:, :, :2]), atol=1e-12)


@pytest.mark.parametrize("branch", ["video", "special"])
def test_one_branch_alone(branch: str) -> None:
    model = tiny(branches=(branch,))
    frames = torch.randn(2, 3, 2, 32, 32)
    logits = model(**{branch: frames})
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert not [key for key in model.state_dict() if "csta" in key]
    with pytest.raises(ValueError, match="one input per branch"):
        model(frames, frames)


def test_without_layers_a_branch_keeps_its_share_of_the_head() -> None:
    """n = 0 and no CSTA: the head sees only the normed CLS, the same for every clip."""
    model = tiny(n_special=0, n_video=0, csta=False).eval()
    logits = model(torch.randn(3, 3, 2, 32, 32), torch.randn(3, 3, 2, 32, 32))
    assert torch.equal(logits[0], logits[1])
    crossed = tiny(n_special=0, n_video=0).eval()
    logits = crossed(torch.randn(3, 3, 2, 32, 32), torch.randn(3, 3, 2, 32, 32))
    assert not torch.equal(logits[0], logits[1])


def test_drop_path_rises_over_the_layers() -> None:
    model = tiny(drop_path=0.3, n_special=1, n_video=2)
    drops = {name: m.rate for name, m in model.named_modules() if isinstance(m, DropPath)}
    rates = {d: [rate for name, rate in drops.items() if f".blocks.{d}." in name] for d in "01"}
    assert rates["1"] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates["0"] == pytest.approx([0.0, 0.2])


def test_dropout_is_off_in_eval_and_on_in_training() -> None:
    model = tiny(dropout=0.5, drop_path=0.5)
    frames = torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 2, 32, 32)
    model.eval()
    assert torch.equal(model(*frames), model(*frames))
    model.train()
    assert not torch.equal(model(*frames), model(*frames))


def test_copies_and_initialisation() -> None:
    torch.manual_seed(0)
    model = hsta_fast.create_model("hsta_tiny")
    twin = copy.deepcopy(model)
    frames = torch.randn(1, 3, 2, 32, 32), torch.randn(1, 3, 2, 32, 32)
    assert torch.equal(model.eval()(*frames), twin.eval()(*frames))
    for name, p in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not p.any(), name
        elif "norm" in name or "projs.0.0" in name:
            pass
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name


def test_autocast() -> None:
    model = tiny().eval()
    frames = torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 2, 32, 32)
    exact = model(*frames)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*frames)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


VIDEO, SPECIAL = torch.zeros(2, 3, 4, 32, 32), torch.zeros(2, 3, 2, 32, 32)


@pytest.mark.parametrize(
    ("video", "special", "message"),
    [
        (VIDEO[:, :, :3], SPECIAL, "video expected T to be a multiple of the tubelet depth 2, got T = 3"),
        (VIDEO[:1], SPECIAL, "one batch size, got special 2, video 1"),
        (VIDEO, SPECIAL[:, :, :1], "special expected 2 frames, got 1"),
        (VIDEO[:, :2], SPECIAL, r"video expected shape \(B, 3, T, H, W\), got \(2, 2, 4, 32, 32\)"),
        (VIDEO[0], SPECIAL, r"video expected shape \(B, 3, T, H, W\), got \(3, 4, 32, 32\)"),
        (VIDEO[..., :15], SPECIAL, r"video expected at least 16 x 16 pixels, got \(32, 15\)"),
        (VIDEO[:, :, :2], None, r"video without special expected T \+ 2 frames, .* got 2 frames$"),
        (None, SPECIAL, "one input per branch .*, got"),
        (None, None, "one input per branch .*, got none"),
        (VIDEO.long(), SPECIAL, "video expected uint8, float16, bfloat16, float32 or float64"),
    ],
)
def test_bad_input_is_named(video: Tensor | None, special: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(video, special)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (25, 32)}, "num_heads expected divisors of the widths"),
        ({"num_heads": (3,)}, "num_heads expected a pair"),
        ({"branches": ("video", "special")}, "branches expected"),
        ({"head": "last"}, "head expected one of"),
        ({"num_layers": 0}, "num_layers expected an integer >= 1"),
        ({"n_video": -1}, "n_video expected an integer >= 0"),
        ({"dropout": 1.0}, r"dropout expected a number in \[0, 1\), got 1.0"),
        ({"drop_path": "a"}, r"drop_path expected a number in \[0, 1\), got 'a'"),
        ({"csta": "no"}, "csta expected True or False, got 'no'"),
        ({"mlp_ratio": 0}, "mlp_ratio expected a number > 0, got 0"),
        ({"tubelet_depth": 4}, "tubelet_depth expected a divisor of the 2 special frames"),
    ],
)
def test_bad_configurations_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HSTAConfig(**settings)  # type: ignore[arg-type]


def test_names_and_overrides() -> None:
    assert hsta_fast.list_models() == ["hsta_tiny", "hsta_small", "hsta_base"]
    assert hsta_fast.create_model("hsta_tiny").config == HSTAConfig(widths=(96, 192), num_heads=(3, 3))
    with pytest.raises(ValueError, match="name expected one of hsta_tiny, hsta_small, hsta_base, got "):
        hsta_fast.create_model("hsta_huge")
    with pytest.raises(ValueError, match=r"overrides expected fields .* got \['depth'\]"):
        hsta_fast.create_model("hsta_tiny", depth=2)
