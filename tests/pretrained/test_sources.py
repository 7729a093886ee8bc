"""From every source, a branch computes what the source does, layer by layer."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast.model import HSTA

from .source_models import CASES, DEPTH, HEADS, WIDTH, Case, build, float64, normalised

SIZES: dict[str, Any] = {
    "widths": (WIDTH, WIDTH),
    "num_heads": (HEADS, HEADS),
    "num_layers": 2,
    "csta": False,
}


def model_from(path: Path, **overrides: Any) -> HSTA:
    """A model in float64 whose video branch has the source's depth; no USTA on special, no CSTA."""
    settings: dict[str, Any] = {**SIZES, "n_special": 0, "n_video": DEPTH // 2, "init": path, **overrides}
    with float64():
        return hsta_fast.create_model("hsta_tiny", **settings).eval()


def states_of(model: HSTA, frames: Tensor, *, branch: str, with_cls: bool) -> list[Tensor]:
    """Tokens after the embedding, each USTA layer, and the last norm.

    Without `with_cls` the CLS is masked out of attention: the patches are what they are without its row.
    """
    d = int(branch)
    x = model.patch_embed[branch](frames, model.cls_token[branch], model._positions(d, frames.shape))
    states = [x if with_cls else x[:, 1:]]
    for layer in model.blocks:
        for block in cast(Any, layer).blocks[branch]:
            states.append(block(states[-1]))
    return [*states, model.norm[branch](states[-1])]


def assert_same(model: HSTA, case: Case, branch: str = "1") -> None:
    for frames in (normalised(case.frames), case.frames):
        states = states_of(model, frames, branch=branch, with_cls=case.with_cls)
        assert len(states) >= len(case.states) >= DEPTH + 1
        for layer, (got, want) in enumerate(zip(states, case.states, strict=False)):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=f"after layer {layer}")


@pytest.mark.parametrize("name", CASES)
def test_the_video_branch_has_the_tokens_of_its_source_after_each_layer(name: str, tmp_path: Path) -> None:
    case = build(name, tmp_path)
    model = model_from(case.path)
    with torch.inference_mode():
        assert_same(model, case)
    assert model.config.norm_eps == (1e-6, case.eps)
    left = [row.model_key for row in model.init_report.rows if row.fate.startswith("left")]
    with_norm = len(case.states) == DEPTH + 2
    assert ("norm.1.weight" in left) == (not with_norm)
    assert ("cls_token.1" in left) == (not case.with_cls)
    assert not [key for key in left if key.startswith(("blocks.", "patch_embed.1"))]


@pytest.mark.parametrize(
    "name", ["VideoMAE, pretraining", "MARLIN, encoder", "ViT of timm, VisionTransformer"]
)
def test_the_special_branch_has_them_too(name: str, tmp_path: Path) -> None:
    case = build(name, tmp_path)
    if not case.with_cls:  # its clip has two frames
        case = case._replace(frames=case.frames[:, :, :2])
    settings: dict[str, Any] = {"patch_sizes": (16, 16), "n_special": DEPTH // 2, "n_video": 0, "init": None}
    model = model_from(case.path, **settings, init_special=case.path)
    with torch.inference_mode():
        if case.with_cls:
            assert_same(model, case, "0")
        else:
            embedded = states_of(model, case.frames, branch="0", with_cls=False)[0]
            torch.testing.assert_close(embedded, case.states[0][:, : embedded.shape[1]], rtol=0, atol=1e-10)
    assert model.config.norm_eps == (case.eps, 1e-6)


@pytest.mark.parametrize("layers", ["even", "first", "last"])
def test_fewer_layers_are_those_of_the_choice(layers: str, tmp_path: Path) -> None:
    case = build("VideoMAE, pretraining", tmp_path)
    model = model_from(case.path, n_video=1, init_layers=layers)
    state = torch.load(case.path, weights_only=False)["model"]
    chosen = {"even": (1, 3), "first": (0, 1), "last": (2, 3)}[layers]
    for k, n in enumerate(chosen):
        got = model.state_dict()[f"blocks.{k}.blocks.1.0.mlp.fc1.weight"]
        assert torch.equal(got, state[f"encoder.blocks.{n}.mlp.fc1.weight"])
    dropped = {row.file_key for row in model.init_report.rows if "not among those taken" in row.why}
    assert {key.split(".")[2] for key in dropped} == {str(n) for n in range(DEPTH) if n not in chosen}


def test_weights_in_bfloat16_are_loaded_as_they_are(tmp_path: Path) -> None:
    case = build("VideoMAE, fine-tuned", tmp_path)
    state = {key: value.bfloat16() for key, value in torch.load(case.path)["module"].items()}
    torch.save(state, case.path)
    model = hsta_fast.create_model("hsta_tiny", **SIZES, init=case.path)
    got = model.state_dict()["blocks.1.blocks.1.1.attn.qkv.weight"]
    assert got.dtype == torch.float32
    assert torch.equal(got, state["blocks.3.attn.qkv.weight"].float())
