"""What a start takes, leaves, records and refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hsta_fast
from hsta_fast.model import HSTA, position_table
from hsta_fast.pretrained import PretrainedStart, choose_layers
from hsta_fast.pretrained.sources import HEADS as PUBLISHED_HEADS
from hsta_fast.published import PublishedHSTA

from .source_models import HEADS, WIDTH, build, videomae_state

State = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "widths": (WIDTH, WIDTH),
    "num_heads": (HEADS, HEADS),
    "num_layers": 2,
    "num_classes": 3,
}


def tiny(**overrides: Any) -> HSTA:
    return hsta_fast.create_model("hsta_tiny", **{**SIZES, **overrides})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A VideoMAE of pretraining."""
    torch.save({"model": videomae_state()}, tmp_path / "videomae.pth")
    return tmp_path / "videomae.pth"


@pytest.mark.parametrize(
    ("depth", "count", "layers"),
    [
        (12, 8, [0, 2, 3, 5, 6, 8, 9, 11]),
        (12, 4, [2, 5, 8, 11]),
        (12, 12, list(range(12))),
        (4, 1, [3]),
        (4, 0, []),
    ],
)
def test_even_layers_are_spaced_evenly_and_end_with_the_last(
    depth: int, count: int, layers: list[int]
) -> None:
    assert choose_layers(depth, count, "even") == layers
    assert choose_layers(depth, count, "first") == list(range(count))
    assert choose_layers(depth, count, "last") == list(range(depth))[depth - count :]


def test_the_report_has_every_key_of_the_file_and_of_the_model(file: Path) -> None:
    model = tiny(n_video=1, init=file)
    rows = model.init_report.rows
    in_file = torch.load(file)["model"]
    assert {row.file_key for row in rows} - {""} == set(in_file)
    assert {row.model_key for row in rows} - {""} == set(model.state_dict())
    assert all(row.why for row in rows if row.fate == "dropped")
    fates = {row.file_key: row.fate for row in rows if row.file_key}
    assert fates["encoder.norm.weight"] == "loaded"
    assert fates["decoder.weight"] == fates["mask_token"] == fates["encoder.blocks.0.norm1.bias"] == "dropped"
    assert model.init_report.left() == [
        *("patch embedding (special)", "CLS (special)", "CLS (video)", "USTA layers (special)", "CSTA"),
        *("last norm (special)", "head"),
    ]
    text = str(model.init_report)
    assert len(text.splitlines()) == len(model.init_report.heading) + 1 + len(rows)
    assert "init: videomae.pth, VideoMAE or VideoMAE V2; video branch from layers 1, 3 of its 4" in text


def test_the_notes_name_file_source_licence_and_layers(file: Path, tmp_path: Path) -> None:
    model = tiny(n_video=1, init=file)
    assert re.fullmatch(
        r"videomae.pth, VideoMAE or VideoMAE V2; video branch from layers 1, 3 of its 4, "
        r"norm eps 1e-06, first patch at position 0, 2 heads; licence: CC BY-NC 4.0: no commercial use; "
        r"SHA-256 [0-9a-f]{64}",
        model.notes["init"],
    )
    # A model that starts from this one says so too, with the licence of the first.
    hsta_fast.save_model(model, tmp_path / "ours.safetensors")
    second = tiny(n_video=1, init=tmp_path / "ours.safetensors")
    assert model.notes["init"] in second.notes["init"]
    assert second.notes["init_licence"] == (
        "videomae.pth (VideoMAE or VideoMAE V2): CC BY-NC 4.0: no commercial use; "
        "ours.safetensors (HSTA of hsta_fast): as the file's owner says"
    )


def test_eps_and_positions_stay_with_the_model(file: Path, tmp_path: Path) -> None:
    model = tiny(init=file).eval()
    assert (model.config.norm_eps, model.config.first_position) == ((1e-6, 1e-6), (1, 0))
    model = tiny(norm_eps=(1e-12, 1e-5), first_position=(0, 1)).eval()
    hsta_fast.save_model(model, tmp_path / "a.safetensors")
    again = hsta_fast.load_model(tmp_path / "a.safetensors")
    assert again.config == model.config
    video = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again(video, video[:, :, :2]), model(video, video[:, :, :2]))
        quantised = hsta_fast.quantize_int8(model)(video, video[:, :, :2])
    torch.testing.assert_close(quantised, model(video, video[:, :, :2]), rtol=0, atol=0.05)
    norms = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert {eps for name, eps in norms.items() if "csta" in name} == {1e-6}
    assert {eps for name, eps in norms.items() if ".blocks.0." in name or name == "norm.0"} == {1e-12}
    assert {eps for name, eps in norms.items() if ".blocks.1." in name or name == "norm.1"} == {1e-5}
    table = position_table(9, WIDTH)
    of_branch = model._positions(0, torch.Size((1, 3, 2, 24, 48)))
    assert torch.equal(of_branch, torch.cat([table[:, :1], table[:, :8]], 1).float())
    assert torch.equal(model._positions(1, torch.Size((1, 3, 4, 32, 32))), table.float())


def test_files_of_before_these_fields_load_with_their_old_values(tmp_path: Path) -> None:
    hsta_fast.save_model(tiny(), tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as opened:
        config = json.loads(opened.metadata()["hsta_fast_config"])
    del config["norm_eps"], config["first_position"]
    old = {"hsta_fast_config": json.dumps(config)}
    save_file(load_file(tmp_path / "new.safetensors"), tmp_path / "old.safetensors", old)
    loaded = hsta_fast.load_model(tmp_path / "old.safetensors")
    assert (loaded.config.norm_eps, loaded.config.first_position) == ((1e-6, 1e-6), (1, 1))


@pytest.mark.parametrize("field", [{"norm_eps": (1e-6, 1e-12)}, {"first_position": (0, 1)}])
def test_the_published_model_cannot_express_them(field: dict[str, object]) -> None:
    model = tiny(**field)
    for express in (model.published_state_dict, lambda: PublishedHSTA(model)):
        with pytest.raises(ValueError, match=r"config expected norm_eps .* \(as published\)"):
            express()


@pytest.mark.parametrize(
    ("field", "value"),
    [("norm_eps", (1e-6, 0.0)), ("norm_eps", 1e-6), ("first_position", (2, 1)), ("first_position", [1, 1])],
)
def test_wrong_values_of_these_fields_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} expected "):
        tiny(**{field: value})


def test_an_hsta_is_taken_by_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = tiny(norm_eps=(1e-12, 1e-5), first_position=(0, 0))
    hsta_fast.save_model(source, tmp_path / "a.safetensors")
    model = tiny(num_classes=5, init=tmp_path / "a.safetensors")
    fields = ("norm_eps", "first_position", "num_heads")
    assert [getattr(model.config, f) for f in fields] == [getattr(source.config, f) for f in fields]
    ours, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.startswith("head."))
    assert model.init_report.left() == ["head"]
    # Fewer HSTA layers: the layers are chosen, CSTA has no counterpart.
    fewer = tiny(num_layers=1, init=tmp_path / "a.safetensors")
    assert fewer.init_report.left() == ["CSTA", "head"]
    got = fewer.state_dict()["blocks.0.blocks.0.0.mlp.fc1.weight"]
    assert torch.equal(got, theirs["blocks.1.blocks.0.0.mlp.fc1.weight"])


def test_each_branch_can_have_its_own_file(file: Path, tmp_path: Path) -> None:
    source = tiny()
    hsta_fast.save_model(source, tmp_path / "a.safetensors")
    model = tiny(init=file, init_special=tmp_path / "a.safetensors")
    assert model.init_report.left() == ["CLS (video)", "CSTA", "head"]
    assert torch.equal(model.cls_token["0"], source.cls_token["0"])
    settings = {row.setting for row in model.init_report.rows}
    assert settings == {"init", "init_special", ""}
    assert {"init", "init_special", "init_licence"} == set(model.notes)
    of_one = tiny(branches=("special",), init_special=file, n_special=2)
    assert of_one.config.first_position == (0, 1)
    assert of_one.init_report.left() == ["CLS (special)", "head"]


def test_the_heads_of_the_source_are_taken_or_refused(tmp_path: Path) -> None:
    assert PUBLISHED_HEADS[384] == 6
    sizes: dict[str, Any] = {
        "widths": (384, WIDTH),
        "n_special": 1,
        "n_video": 0,
        "num_layers": 1,
        "branches": ("special",),
    }
    wide = _resized(videomae_state(), 384)
    torch.save(wide, tmp_path / "small.pth")
    model = hsta_fast.create_model("hsta_base", **sizes, init_special=tmp_path / "small.pth")
    assert model.config.num_heads == (6, 12)
    rule = (
        r"num_heads expected 6 for the special branch, .*small.pth \(VideoMAE.*\), got 12: without num_heads"
    )
    with pytest.raises(ValueError, match=rule):
        hsta_fast.create_model("hsta_base", **sizes, num_heads=(12, 12), init_special=tmp_path / "small.pth")


def _resized(state: State, width: int) -> State:
    """The state of a model as wide as `width`, of one layer."""
    of_one = {key: value for key, value in state.items() if ".blocks." not in key or ".blocks.0." in key}

    def size(n: int) -> int:
        return n // WIDTH * width if n in (WIDTH, 3 * WIDTH, 4 * WIDTH) else n

    return {key: torch.zeros([size(n) for n in value.shape]) for key, value in of_one.items()}


def _without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(key: str, value: object) -> Callable[[State], dict[str, object]]:
    return lambda state: state | {key: value}


def _same(state: State) -> State:
    return state


NORM, PATCH = "encoder.norm.weight", "patch_embed.proj.weight"
REFUSED: dict[str, tuple[Callable[[State], object], dict[str, Any], str]] = {
    "no source": (
        lambda _: {"a.weight": torch.ones(2)},
        {},
        r"expected weights of VideoMAE.*save_model, got none of them \(a.weight\)",
    ),
    "several sources": (
        _with(PATCH, torch.ones(4, 3, 2, 2, 2)),
        {},
        "expected the weights of one model, got several: .* and VideoMAE",
    ),
    "an image's and a video's": (
        _with(PATCH, torch.ones(4, 3, 2, 2)),
        {},
        "got several: .*VideoMAE V2 .* and ViT with timm's names",
    ),
    "two dicts": (
        lambda state: {"model": state, "module": state},
        {},
        "expected one state dict, got model, module",
    ),
    "a missing key": (
        _without("encoder.blocks.1.attn.q_bias"),
        {},
        "got none for blocks.1.attn.q_bias$",
    ),
    "a missing layer": (
        lambda state: {key: value for key, value in state.items() if ".blocks.2." not in key},
        {},
        "got none for blocks.2.norm1.weight, ",
    ),
    "a damaged number of a layer": (
        _with("encoder.blocks.3000000000.norm1.bias", torch.ones(24)),
        {},
        "got none for blocks.4.norm1.weight, .*, but encoder.blocks.3000000000.norm1.bias$",
    ),
    "a number of thousands of digits": (
        _with(f"encoder.blocks.{'7' * 5000}.norm1.bias", torch.ones(24)),
        {},
        r"but encoder.blocks.7{182}\.\.\.$",
    ),
    "a number with a zero before it": (
        _with("encoder.blocks.03.norm1.bias", torch.ones(24)),
        {},
        "but encoder.blocks.03.norm1.bias$",
    ),
    "a sparse tensor": (
        _with(NORM, torch.ones(24).to_sparse()),
        {},
        "expected dense tensors, got encoder.norm.weight of torch.sparse_coo on cpu$",
    ),
    "a tensor without values": (
        _with(NORM, torch.ones(24, device="meta")),
        {},
        "expected dense tensors, got encoder.norm.weight of torch.strided on meta$",
    ),
    "NaN": (
        _with(NORM, torch.full((24,), torch.nan)),
        {},
        "expected finite weights, got NaN or infinity in encoder.norm.weight$",
    ),
    "infinity": (
        _with("encoder.blocks.0.norm1.bias", torch.full((24,), -torch.inf, dtype=torch.float16)),
        {},
        "NaN or infinity in encoder.blocks.0.norm1.bias$",
    ),
    "a patch of 0 x 0": (
        _with("encoder.patch_embed.proj.weight", torch.ones(24, 3, 2, 0, 0)),
        {},
        r"encoder.patch_embed.proj.weight expected no size of 0, got \(24, 3, 2, 0, 0\)$",
    ),
    "a bias of another width": (
        _with("encoder.patch_embed.proj.bias", torch.ones(7)),
        {},
        r"encoder.patch_embed.proj.bias expected the shape \(24,\), got \(7,\)$",
    ),
    "half a norm": (_without("encoder.norm.bias"), {}, "got none for norm.bias$"),
    "an unknown key": (
        _with("encoder.blocks.0.gamma_1", torch.ones(4)),
        {},
        "got also encoder.blocks.0.gamma_1",
    ),
    "other objects": (_with(NORM, [1.0]), {}, "expected only tensors, got other objects"),
    "whole numbers": (
        _with(NORM, torch.ones(24, dtype=torch.int64)),
        {},
        "expected floating tensors, got encoder.norm.weight of torch.int64",
    ),
    "another width": (
        _same,
        {"widths": (24, 48)},
        "expected weights of width 48, that of the model's video branch, got 24",
    ),
    "another hidden width": (_same, {"mlp_ratio": 2.0}, r"fc1.weight \(96, 24\) instead of \(48, 24\)"),
    "too few layers": (_same, {"num_layers": 3}, "at most the 4 layers of the file, got 3 x 2"),
    "another tubelet": (
        _same,
        {"tubelet_depth": 1},
        r"tubelets of 1 frames.*got \(24, 3, 2, 16, 16\)",
    ),
    "no video branch": (
        _same,
        {"branches": ("special",)},
        "expected a video branch in the model and in the file, got special in the model",
    ),
    "other positions": (
        _same,
        {"first_position": (1, 1)},
        "first_position expected 0 for the video branch",
    ),
    "other eps": (_same, {"norm_eps": (1e-6, 1e-5)}, "norm_eps expected 1e-06 for the video branch"),
    "an unknown choice": (_same, {"init_layers": "odd"}, "init_layers expected one of even, first, last"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_with_a_file_is_said_in_one_line(what: str, file: Path) -> None:
    change, overrides, message = REFUSED[what]
    torch.save(change(videomae_state()), file)
    with pytest.raises(ValueError, match=message) as error:
        tiny(**overrides, init=file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value) or what == "an unknown choice"


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "absent.pth", "expected a file of weights, got: no such file"),
        (tmp_path, "expected a file of weights, got: not a plain file|is a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(init=path)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth expected"):
        tiny(init=tmp_path / "text.pth")
    torch.save({"model": {"a": nn.Linear(2, 2)}}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="weights only, got objects other than tensors"):
        tiny(init=tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="init expected a file of pretrained weights, got none"):
        PretrainedStart()


VIT_STATE: dict[str, tuple[int, ...]] = {
    **{"patch_embed.proj.weight": (24, 3, 4, 4), "patch_embed.proj.bias": (24,)},
    **{"cls_token": (1, 1, 24), "pos_embed": (1, 10, 24)},
}


@pytest.mark.parametrize("key", ["cls_token", "pos_embed"])
@pytest.mark.parametrize("shape", [(), (24,), (1, 24), (1, 1, 7), (1, 0, 24), (2, 10, 24), (1, 1, 10, 24)])
def test_cls_and_positions_of_another_shape_are_refused(
    key: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "vit.pth"
    sizes: dict[str, Any] = {"branches": ("video",), "n_video": 0}
    torch.save({name: torch.ones(size) for name, size in VIT_STATE.items()}, path)
    assert tiny(**sizes, init=path).init_report.left() == ["last norm (video)", "head"]
    torch.save({name: torch.ones(size) for name, size in (VIT_STATE | {key: shape}).items()}, path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {key} expected the shape \(1, .*, got"):
        tiny(**sizes, init=path)


def test_a_bias_of_marlin_is_checked_before_its_pixels_are_folded(tmp_path: Path) -> None:
    case = build("MARLIN, encoder", tmp_path)
    state = torch.load(case.path, weights_only=True)
    [key] = [key for key in state if key.endswith("patch_embedding.projection.bias")]
    torch.save(state | {key: torch.ones(7)}, tmp_path / "marlin.pth")
    with pytest.raises(ValueError, match=r"projection.bias expected the shape \(24,\), got \(7,\)$"):
        tiny(init=tmp_path / "marlin.pth")


def test_a_model_of_ours_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_parameter("norm.1.bias")[0] = torch.nan
    hsta_fast.save_model(model, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="ours.safetensors expected finite weights, got .* in norm.1.bias$"):
        tiny(init=tmp_path / "ours.safetensors")
