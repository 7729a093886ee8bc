"""Saving and loading through torch's wrappers, and what is refused."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import hsta_fast
from hsta_fast import HSTA, ModelInputs

from .forked import Forked
from .published_formulation import published_state

SETTINGS = {"widths": (12, 24), "num_heads": (3, 4), "num_layers": 2, "n_video": 1, "num_classes": 3}
INPUTS = ModelInputs(
    classes=("negative", "positive", "surprise"),
    image_size=32,
    num_frames=4,
    sampling="random",
    offset_cap=50,
    special=("onset", "offset"),
    flow="dis",
    apex="motion",
    onset_only=True,
    versions={"hsta_fast": "0.0.1", "torch": "2.11.0"},
)
CLIP = torch.randn(2, 3, 6, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny(**settings: Any) -> HSTA:
    torch.manual_seed(0)
    return hsta_fast.create_model("hsta_tiny", **{**SETTINGS, **settings}).eval()


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_layer(model: Any) -> Any:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


def checkpointed_layer(model: Any) -> Any:
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    return model


def fsdp1(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers the other FSDP
        model.blocks[0] = FullyShardedDataParallel(model.blocks[0], device_id=torch.device("cpu"))
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def fsdp2(model: Any) -> Any:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.blocks:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "none": lambda m: m,
    "compile": torch.compile,
    "compile in place": compiled_in_place,
    "a compiled layer": compiled_layer,
    "a checkpointed layer": checkpointed_layer,
    "DataParallel": nn.DataParallel,
    "DDP": DistributedDataParallel,
    "FSDP1": fsdp1,
    "FSDP2": fsdp2,
    "AveragedModel": AveragedModel,
    "compile(DDP)": lambda m: torch.compile(DistributedDataParallel(m)),
    "DDP(compile)": lambda m: DistributedDataParallel(torch.compile(m)),
    "compile(FSDP2)": lambda m: torch.compile(fsdp2(m)),
    "compile(FSDP1)": lambda m: torch.compile(fsdp1(m)),
    "AveragedModel(compile)": lambda m: AveragedModel(WRAPPED["compile"](m)),
    "AveragedModel(DDP(compiled layer))": lambda m: AveragedModel(DistributedDataParallel(compiled_layer(m))),
}


@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``", "ignore:FSDP")
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_wrapped_model_is_saved_and_loaded(wrapper: str, tmp_path: Path, group: None) -> None:
    model = tiny(dropout=0.1)
    model.inputs, model.notes = INPUTS, {"leaky": "by clip"}
    logits, state = model(CLIP), {key: value.clone() for key, value in model.state_dict().items()}
    hsta_fast.save_model(WRAPPED[wrapper](model), tmp_path / "model.safetensors")
    back = hsta_fast.load_model(tmp_path / "model.safetensors")
    assert (back.config, back.inputs, back.notes) == (model.config, INPUTS, {"leaky": "by clip"})
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())
    assert not back.training and all(p.requires_grad for p in back.parameters())
    assert torch.equal(back(CLIP), logits)


@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``", "ignore:FSDP")
@pytest.mark.parametrize("wrap", [fsdp1, fsdp2])
def test_a_sharded_model_is_saved_between_its_steps(
    wrap: Callable[[Any], Any], tmp_path: Path, group: None
) -> None:
    sharded, plain = wrap(tiny()), tiny()
    for model in (sharded, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(CLIP).square().sum().backward()
        optimizer.step()
    hsta_fast.save_model(sharded, tmp_path / "model.safetensors")
    back = hsta_fast.load_model(tmp_path / "model.safetensors").state_dict()
    assert all(torch.allclose(back[key], value, atol=1e-6) for key, value in plain.state_dict().items())
    sharded(CLIP).sum().backward()


def save_shards(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    hsta_fast.save_model(fsdp2(tiny()), folder / f"{rank}.safetensors")
    hsta_fast.save_model(fsdp2(tiny()), folder / "both.safetensors")
    dist.destroy_process_group()


def test_two_ranks_save_whole_tensors(tmp_path: Path) -> None:
    code = "import sys, pathlib; save_shards(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    code = f"from tests.test_wrappers import save_shards; {code}"
    ranks = [Forked(code, [rank, tmp_path], imported=("tests.test_wrappers",)) for rank in range(2)]
    for rank in ranks:
        assert rank.wait(60) == 0, rank.communicate()[1]
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("0", "1", "both")]
    assert files[0] == files[1] == files[2]
    assert torch.equal(hsta_fast.load_model(tmp_path / "0.safetensors")(CLIP), tiny()(CLIP))


def tied(model: Any) -> Any:
    model.blocks[1] = model.blocks[0]
    model.norm["0"].weight = model.norm["0"].bias
    return model


def expanded(model: Any) -> Any:
    model.head.bias = nn.Parameter(torch.ones(1).expand(3))
    model.head.weight = nn.Parameter(torch.randn(36, 3).t())
    return model.to(memory_format=torch.channels_last_3d)


def mixed(model: Any) -> Any:
    model.bfloat16().head.float()
    return model


def not_finite(model: Any) -> Any:
    nn.init.constant_(model.head.bias, torch.nan)
    return model


def with_others(model: Any) -> Any:
    model.loss = nn.CrossEntropyLoss()
    model.head_dropout = nn.Identity()
    return model


class Subclass(HSTA):
    """As a user may write it: with methods of its own."""


WHOLE: dict[str, Callable[[Any], Any]] = {
    "tied": tied,
    "expanded and transposed": expanded,
    "mixed dtypes": mixed,
    "not finite": not_finite,
    "half": lambda m: m.half(),
    "frozen": lambda m: m.requires_grad_(False),
    "with a loss": with_others,
    "a subclass": lambda m: Subclass(m.config).eval(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_model_that_is_saved_is_read_with_the_same_weights(name: str, tmp_path: Path) -> None:
    model = WHOLE[name](tiny())
    hsta_fast.save_model(model, tmp_path / "model.safetensors")
    back = hsta_fast.load_model(tmp_path / "model.safetensors")
    for key, value in model.state_dict().items():
        got = back.state_dict()[key]
        assert got.dtype == value.dtype and torch.equal(got.nan_to_num(7), value.nan_to_num(7)), key
    if name != "mixed dtypes":  # which only autocast runs
        clip = CLIP.to(model.head.weight.dtype)
        # A matrix that lies otherwise in memory may be multiplied in another order.
        atol = 1e-5 if name == "expanded and transposed" else 0
        torch.testing.assert_close(model(clip), back(clip), rtol=0, atol=atol, equal_nan=True)


class Adapter(nn.Module):
    """A linear layer with a low-rank addition, under the names that PEFT gives them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Engine(nn.Module):
    """Not one of torch's wrappers, though its attribute has the same name."""

    def __init__(self, model: HSTA) -> None:
        super().__init__()
        self.module = model


def change(name: str, module: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module(model.get_submodule(name)))
        return model

    return apply


def adapted(model: Any) -> Any:
    outer = nn.Module()
    outer.base_model = change("head", Adapter)(model)
    return outer


def more_in_a_list(model: Any) -> Any:
    model.blocks[0].blocks["0"].append(nn.ReLU())
    return model


class Halved(HSTA):
    def forward(self, video: Tensor | None = None, special: Tensor | None = None) -> Tensor:
        return super().forward(video, special) / 2


def subclassed(model: Any) -> Any:
    model.__class__ = Halved
    return model


def with_attribute(name: str, attribute: str, value: Any) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        setattr(model.get_submodule(name), attribute, value)
        return model

    return apply


def integers(model: Any) -> Any:
    model.head.bias = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    return model


QUANTISED = {nn.Linear}
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Sequential": (nn.Sequential, "AveragedModel, got Sequential: save its '0'$"),
    "Engine": (Engine, "got Engine: save its 'module'$"),
    "state dict": (lambda m: m.state_dict(), "model expected an HSTA, .* got OrderedDict$"),
    "another model": (lambda m: nn.Linear(2, 2), "got Linear$"),
    "another model in DataParallel": (lambda m: nn.DataParallel(nn.Linear(2, 2)), "got Linear$"),
    "adapters": (change("head", Adapter), r"unknown \(head.base.* merge_and_unload\(\) of the adapters"),
    "adapters inside": (adapted, r"got Module: call merge_and_unload\(\) of the adapters first$"),
    "spectral norm": (change("head", parametrizations.spectral_norm), "remove_parametrizations first$"),
    "weight norm": (change("head", parametrizations.weight_norm), "remove_parametrizations first$"),
    "pruned": (
        change("head", lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        "1 missing .head.weight.* 2 unknown .head.weight_mask, .* torch.nn.utils.prune.remove first$",
    ),
    "quantised": (
        lambda m: torch.ao.quantization.quantize_dynamic(m, QUANTISED),
        "save the model before it is quantised$",
    ),
    "another head": (change("head", lambda m: nn.Linear(36, 5)), r"head.bias \(5,\) instead of \(3,\)"),
    "another activation": (
        change("blocks.1.csta.projs.0.1", lambda m: nn.ReLU()),
        r"modules of an HSTA, got blocks.1.csta.projs.0.1 \(ReLU\): to save the weights alone, load its",
    ),
    "another linear layer": (change("head", lambda m: Scaled(36, 3)), r"got head \(Scaled\)"),
    "a subclass": (subclassed, r"got the model \(Halved\)"),
    "a forward of its own": (with_attribute("head", "forward", lambda x: 2 * x), r"got head \(Linear\)"),
    "dropout with a forward": (with_attribute("pos_dropout", "forward", torch.sin), r"got pos_dropout \(D"),
    "another eps": (with_attribute("norm.0", "eps", 1e-2), r"got norm.0 \(LayerNorm\)"),
    "another gelu": (
        with_attribute("blocks.1.csta.projs.0.1", "approximate", "tanh"),
        r"got blocks.1.csta.projs.0.1 \(GELU\)",
    ),
    "another number of heads": (
        with_attribute("blocks.0.blocks.1.0.attn", "num_heads", 1),
        r"got blocks.0.blocks.1.0.attn \(SpaceTimeAttention\)",
    ),
    "another mean": (with_attribute("patch_embed.0", "mean", (0.5,) * 3), r"got patch_embed.0 \(TubeletE"),
    "one layer more": (more_in_a_list, r"got blocks.0.blocks.0.1 \(ReLU\)"),
    "on meta": (lambda m: m.to("meta"), r"floating tensors with values, got .*cls_token.0 \(meta, Tensor\)"),
    "integers": (integers, r"got head.bias \(torch.int8, Tensor\)"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_load_is_refused_before_a_byte_is_written(name: str, tmp_path: Path) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        hsta_fast.save_model(changed(tiny()), tmp_path / "new" / "model.safetensors")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_hooks_decorators_and_what_changes_no_logit_are_not_saved(tmp_path: Path) -> None:
    model: Any = tiny(dropout=0.1)
    plain = tiny(dropout=0.1)
    model.head.register_forward_hook(lambda _, __, out: 2 * out)
    model.norm["0"].register_forward_pre_hook(lambda _, given: given)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    model.blocks[0].csta.inplace = False
    model.pos_dropout.p = 0.5
    model.compile()
    hsta_fast.save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(hsta_fast.load_model(tmp_path / "model.safetensors")(CLIP), plain.eval()(CLIP))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {"classes": ["a"]}}, "^inputs expected a ModelInputs or None, got dict$"),
        ({"notes": ["a"]}, "^notes expected text by name, got list$"),
        ({"notes": {"a": 1}}, "notes expected text by name .*, got a$"),
        ({"notes": {"hsta_fast_config": "{}"}}, "notes expected text .*, got hsta_fast_config$"),
        ({"inputs": ModelInputs(classes=("a", "b"), image_size=1, num_frames=2)}, "3 classes, got 2: a, b$"),
    ],
)
def test_notes_and_inputs_that_do_not_fit(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        hsta_fast.save_model(tiny(), tmp_path / "model.safetensors", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_notes_of_a_model_that_are_no_mapping(tmp_path: Path) -> None:
    model = tiny()
    model.notes = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^model.notes expected text by name, got NoneType$"):
        hsta_fast.save_model(model, tmp_path / "model.safetensors")


# Reading.


@pytest.mark.parametrize(
    ("prefix", "under"),
    [
        ("module.", None),
        ("_orig_mod.", "model"),
        ("module._orig_mod.", "module"),
        ("_orig_mod.module.", "state_dict"),
    ],
)
def test_a_prefix_that_all_keys_share_is_dropped(prefix: str, under: str | None, tmp_path: Path) -> None:
    config = {"widths": (24, 32), "patches": (12, 16), "n_s": 1, "n_v": 1, "layers": 1, "num_classes": 3}
    state = published_state(config, dtype=torch.float32, seed=0)
    plain = hsta_fast.load_published(state, num_heads=(3, 4))
    assert not plain.training
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    if prefix.startswith("module."):
        wrapped = {"n_averaged": torch.tensor(5), **wrapped}  # of AveragedModel
    torch.save({under: wrapped, "epoch": 3} if under else wrapped, tmp_path / "a.pth")
    back = hsta_fast.load_published(tmp_path / "a.pth", num_heads=(3, 4))
    assert torch.equal(back(CLIP), plain(CLIP))
    assert not back.training

    model = tiny()
    hsta_fast.save_model(model, tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        metadata = file.metadata()
    wrapped = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    save_file(wrapped, tmp_path / "c.safetensors", metadata)
    assert torch.equal(hsta_fast.load_model(tmp_path / "c.safetensors")(CLIP), model(CLIP))
    # A prefix of some keys only, or another one, is refused.
    for name in (lambda k: k if "head" in k else prefix + k, lambda k: f"net.{k}"):
        save_file(
            {name(key): v for key, v in model.state_dict().items()}, tmp_path / "d.safetensors", metadata
        )
        with pytest.raises(
            ValueError, match=r"d.safetensors expected the entries of the model, got \d+ missing"
        ):
            hsta_fast.load_model(tmp_path / "d.safetensors")
        with pytest.raises(ValueError, match="checkpoint expected"):
            hsta_fast.load_published({name(key): v for key, v in state.items()}, num_heads=(3, 4))


def test_a_file_of_a_model_with_a_compiled_layer_is_read(tmp_path: Path) -> None:
    model = tiny()
    hsta_fast.save_model(model, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(compiled_layer(tiny()).state_dict(), tmp_path / "b.safetensors", metadata)
    assert torch.equal(hsta_fast.load_model(tmp_path / "b.safetensors")(CLIP), model(CLIP))


def test_a_checkpoint_with_several_state_dicts_is_ambiguous() -> None:
    with pytest.raises(ValueError, match="expected one state dict, got model, state_dict: pass one of them"):
        hsta_fast.load_published({"model": {}, "state_dict": {}})


# What the model was trained on.
