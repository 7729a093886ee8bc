"""What a model refuses of the frames that it is given, what it warns of; a compiler sees neither."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import hsta_fast
from hsta_fast import HSTA, ModelInputs

INPUTS = ModelInputs(classes=("a", "b", "c"), image_size=32, num_frames=6)


def tiny(inputs: ModelInputs | None = None, **settings: Any) -> HSTA:
    torch.manual_seed(0)
    small = {"widths": (12, 24), "num_heads": (3, 4), "num_layers": 1, "n_video": 1, "num_classes": 3}
    model = hsta_fast.create_model("hsta_tiny", **{**small, **settings}).eval()
    model.inputs = inputs
    return model


def pixels(T: int = 8, size: int = 32) -> Tensor:
    """Bytes from 0 to 255 in both branches."""
    frames = torch.randint(0, 256, (2, 3, T, size, size), generator=torch.Generator().manual_seed(0))
    frames[0, 0, :, 0, :2] = torch.tensor([0, 255])
    return frames.to(torch.uint8)


def normalised(frames: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (frames / 255 - mean) / std


BYTES = pixels()
FLOATS = normalised(BYTES)
NORMALISED = "expected uint8, or floats normalised by ImageNet's mean and std, got values up to"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("known", [None, INPUTS])
def test_bytes_as_floats_are_refused(dtype: torch.dtype, known: ModelInputs | None) -> None:
    model, raw, fine = tiny(known).to(dtype), BYTES.to(dtype), FLOATS.to(dtype)
    model(fine)  # on the CPU not only the first call is checked
    for inputs, name in (((raw,), "video"), ((raw[:, :, :6], fine[:, :, 6:]), "video"),
                         ((fine[:, :, :6], raw[:, :, 6:]), "special")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} {NORMALISED} 25[56]: pass the bytes as") as error:
            model(*inputs)
        assert "\n" not in str(error.value)
    assert torch.equal(model(BYTES), model(BYTES[:, :, :6], BYTES[:, :, 6:]))
    for branch in ("video", "special"):
        with pytest.raises(ValueError, match=f"^{branch} {NORMALISED}"):
            tiny(branches=(branch,)).to(dtype)(raw[:, :, :2])


def test_normalised_frames_and_flow_are_not_refused() -> None:
    model, video = tiny(), FLOATS[:, :, :6]
    flow = torch.randn(2, 3, 2, 32, 32) * 60  # more than half of a face's width, in both directions
    assert model(video, flow).isfinite().all()
    assert model(video * 10, flow).isfinite().all()
    # It is known whether the model was trained on flow.
    assert tiny(replace(INPUTS, flow="dis"))(video, flow).isfinite().all()
    with pytest.raises(ValueError, match=f"special {NORMALISED}"):
        tiny(INPUTS)(video, flow)


def test_values_that_are_no_numbers() -> None:
    """NaN and infinity give NaN, as everywhere in torch."""
    model, video = tiny(), FLOATS.clone()
    for value in (torch.nan, torch.inf, -torch.inf):
        video[0, 0, 0, 0, 0] = value
        logits = model(video)
        assert logits[0].isnan().all() and logits[1].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BYTES.numpy(),), r"^video expected a tensor \(B, 3, T, H, W\), got ndarray$"),
        ((BYTES.tolist(),), r"^video expected a tensor \(B, 3, T, H, W\), got list$"),
        ((BYTES, BYTES[:, :, :2].numpy()), r"^special expected a tensor \(B, 3, S, H, W\), got ndarray$"),
        ((BYTES[0],), r"^video expected shape \(B, 3, T, H, W\), got \(3, 8, 32, 32\)$"),
        ((BYTES.transpose(1, 2),), r"^video expected shape \(B, 3, T, H, W\), got \(2, 8, 3, 32, 32\)$"),
        ((BYTES.int(),), "^video expected uint8, float16, .* or float64, got torch.int32$"),
        ((BYTES, BYTES[:, :, :2].bool()), "^special expected uint8, .* or float64, got torch.bool$"),
        ((FLOATS.to(torch.float8_e4m3fn),), "^video expected .* or float64, got torch.float8_e4m3fn$"),
        (
            (FLOATS.to(torch.complex64),),
            "^video expected uint8, float16, .* or float64, got torch.complex64$",
        ),
    ],
)
def test_what_is_not_a_clip(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(*arguments)
    if len(arguments) == 1:
        with pytest.raises(ValueError, match=message.replace("video", "special").replace(" T,", " S,")):
            tiny(branches=("special",))(*arguments)


PACKING = r"^video without special expected T \+ 2 frames, the last ones onset and apex"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 17])
def test_a_length_that_is_no_packing(length: int) -> None:
    with pytest.raises(ValueError, match=f"{PACKING}, T a positive multiple of 2, got {length} frames$"):
        tiny()(pixels(max(length, 1))[:, :, :length])
    if length == 2:
        with pytest.raises(ValueError, match=f"{PACKING}, T a positive multiple of 1, got 2 frames$"):
            tiny(tubelet_depth=1)(pixels(2))
        assert tiny(tubelet_depth=1)(pixels(3)).shape == (2, 3)


def test_forgotten_special_frames() -> None:
    message = f"{PACKING}, got only the 6 video frames that the model was trained with$"
    with pytest.raises(ValueError, match=message):
        tiny(INPUTS)(pixels(6))
    tiny()(pixels(6))  # nothing is known of this one
    tiny(INPUTS, branches=("video",))(pixels(6))
    tiny(INPUTS)(pixels(6), pixels(2))


@pytest.mark.filterwarnings("error")
def test_another_size_warns_once() -> None:
    for fitting in ((BYTES,), (BYTES[:, :, :6], FLOATS[:, :, :2])):
        tiny(INPUTS)(*fitting)
        tiny()(pixels(10, 48))
    model = tiny(INPUTS)
    message = r"^video has 8 frames of 48 x 40; the model was trained with 6 frames of 32 x 32$"
    with pytest.warns(UserWarning, match=message) as caught:
        model(pixels(10, 48)[..., :40])
    assert len(caught) == 1 and caught[0].filename == __file__
    model(pixels(10, 48)[..., :40])
    model(pixels(4))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(pixels(4))
    with pytest.warns(
        UserWarning, match="^video has 4 frames of 32 x 32; the model was trained with 6 frames"
    ):
        tiny(INPUTS)(pixels(4), pixels(2))
    for fresh in (tiny(INPUTS), tiny(INPUTS, branches=("special",))):
        others = {"special": pixels(2, 48)} | (
            {"video": pixels(6)} if len(fresh.config.branches) == 2 else {}
        )
        with pytest.warns(
            UserWarning, match="^special has 2 frames of 48 x 48; the model was trained with 2"
        ):
            fresh(**others)


def compiled(model: HSTA) -> Any:
    return torch.compile(model, fullgraph=True, backend="eager")


def compiled_in_place(model: HSTA) -> Any:
    model.compile(fullgraph=True, backend="eager", dynamic=True)
    return model


def exported(model: HSTA, strict: bool) -> Any:
    batch = {"video": {0: torch.export.Dim("B", min=2)}}
    return torch.export.export(model, (FLOATS,), dynamic_shapes=batch, strict=strict).module()


TRACED: dict[str, Callable[[HSTA], Any]] = {
    "compile": compiled,
    "compile in place": compiled_in_place,
    "export": lambda m: exported(m, strict=True),
    "export, not strict": lambda m: exported(m, strict=False),
    "make_fx": lambda m: make_fx(m)(FLOATS),
}


@pytest.mark.filterwarnings("error:video has")
@pytest.mark.parametrize("how", TRACED)
def test_a_compiler_sees_no_check_of_values_or_of_the_training(how: str) -> None:
    torch.compiler.reset()
    small: dict[str, Any] = {"n_special": 0, "n_video": 0, "csta": False}
    # These are 8 frames of 32 x 32; make_fx runs the model itself, with the checks that need no value.
    model = tiny(replace(INPUTS, num_frames=8, image_size=48) if how != "make_fx" else INPUTS, **small)
    traced = TRACED[how](model)
    with torch.no_grad():
        torch.testing.assert_close(traced(FLOATS), tiny(**small)(FLOATS), rtol=0, atol=1e-5)
        assert traced(BYTES.float()).isfinite().all()


def test_values_that_cannot_be_read_are_not() -> None:
    with torch.no_grad():
        model = tiny(branches=("video",))
        logits = torch.vmap(model)(BYTES[None].float())
        assert logits.shape == (1, 2, 3)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.full((2, 3, 4, 32, 32), 255.0)).shape == (2, 3)
        assert model.to("meta")(BYTES.float().to("meta")).shape == (2, 3)


def test_an_empty_batch_has_no_values() -> None:
    assert tiny(branches=("video",), n_video=0)(FLOATS[:0]).shape == (0, 3)


def test_models_pickled_before_are_checked_too() -> None:
    """Their instances have no attributes for the checks."""
    model = tiny()
    for name in ("inputs", "_once"):
        model.__dict__.pop(name, None)
    with pytest.raises(ValueError, match=NORMALISED):
        model(BYTES.float())


def test_replicas_of_data_parallel_warn_once() -> None:
    """A replica is new in each forward: its attributes are copies of those of the model."""
    model = tiny(INPUTS)
    with pytest.warns(UserWarning, match="^video has 8 frames") as caught:
        for _ in range(2):
            replica = model._replicate_for_data_parallel()
            replica.__dict__["_parameters"] = model._parameters
            replica(pixels(10))
    assert len(caught) == 1
