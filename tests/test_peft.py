"""Adapters of peft on every submodule whose weights HSTA would read: logits, gradients, merging, saving."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from hsta_fast import HSTA
from hsta_fast.crossmodal import CrossAttentionBlock
from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD

from .called_modules import called_logits, gradients, scalar
from .published_formulation import published_logits, published_state

HEADS = (3, 4)
SHAPE = {"widths": (24, 32), "patches": (12, 16), "num_classes": 3, "layers": 1, "n_s": 1, "n_v": 1}
ALONE = ("qkv", "wq", "wk", "wv", "proj", "fc1", "head")
TARGETS = [*([name] for name in ALONE), list(ALONE)]

# What the warning says is in tests/test_replaced.py.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not a plain :UserWarning")


@pytest.fixture(scope="module")
def peft() -> Any:
    """The library, imported in the one worker that runs this file: the import takes seconds."""
    return importlib.import_module("peft")


def state() -> dict[str, Tensor]:
    return published_state({**SHAPE, "head": "cls"}, dtype=torch.float64, seed=1)


def base() -> HSTA:
    return hsta_fast.load_published(state(), num_heads=HEADS)


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 4, 36, 48), dtype=torch.uint8, generator=generator)
    return frames, frames[:, :, ::2]


def adapted(peft: Any, targets: list[str], **settings: Any) -> Any:
    """A model in eval mode with adapters on `targets`, B other than zero."""
    torch.manual_seed(3)
    config = peft.LoraConfig(
        **{"target_modules": targets, "r": 2, "lora_alpha": 3, "init_lora_weights": False, **settings}
    )
    return peft.get_peft_model(base(), config).double().eval()


def assert_same(came: Any, expected: Any) -> None:
    torch.testing.assert_close(came, expected, rtol=1e-10, atol=1e-11)


def adapters(model: Any) -> dict[str, Any]:
    """The adapted modules, by their name in the plain model."""
    return {name: m for name, m in model.get_base_model().named_modules() if hasattr(m, "base_layer")}


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_logits_and_gradients_are_those_of_the_sum_of_weights(peft: Any, targets: list[str]) -> None:
    """W + s B A in the independent formulation; merged; and without the adapter."""
    model = adapted(peft, targets).train()
    found = adapters(model)
    assert {name.split(".")[-1] for name in found} == set(targets)
    assert "proj" not in targets or any(isinstance(m.base_layer, nn.Conv3d) for m in found.values())
    video, special = clip()
    logits = model(video, special)
    came = gradients(scalar(logits), model)

    weights, leaves = state(), dict[str, Tensor]()
    for name, module in found.items():
        a, b = (part["default"].weight.detach().requires_grad_() for part in (module.lora_A, module.lora_B))
        change = (b.flatten(1) @ a.flatten(1)).view_as(module.base_layer.weight)
        key = name.replace(".csta.", ".") + ".weight"
        weights[key] = weights[key] + 3 / 2 * change
        leaves |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
    shift, scale = (
        torch.tensor(x, dtype=torch.float64).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    packed = (torch.cat([video, special], dim=2).double() / 255 - shift) / scale
    expected = published_logits(weights, packed, num_heads=HEADS)
    assert_same(logits, expected)
    wanted = dict(zip(leaves, torch.autograd.grad(scalar(expected), list(leaves.values())), strict=True))
    named = {k.removeprefix("base_model.model.").removesuffix(".default.weight"): g for k, g in came.items()}
    assert named.keys() == wanted.keys()
    assert_same(named, wanted)

    plain = base()
    with model.disable_adapter():
        assert_same(model(video, special), plain(video, special))
    merged = model.merge_and_unload()
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert all(m.replaced() is None for m in merged.modules() if isinstance(m, CrossAttentionBlock))
    assert_same(merged(video, special), logits)


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"wk": 3, "qkv": 1}, "alpha_pattern": {"wv": 5}, "use_rslora": True},
    "saved head and norm": {"modules_to_save": ["head", "norm1"]},
    "saved attention": {"target_modules": ["fc1"], "modules_to_save": ["attn"]},
    "saved projections": {"target_modules": ["wq"], "modules_to_save": ["qkv", "wk", "wv"]},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(peft: Any, variant: str) -> None:
    """Logits and gradients in training are those with every submodule called; merging changes nothing."""
    targets = ["qkv", "wq", "wk", "wv", "proj", "fc1"]
    if variant == "saved head and norm":
        targets.remove("proj")
    model = adapted(peft, targets, **VARIANTS[variant]).train()
    with torch.no_grad():  # what is saved beside the adapters differs from the base
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.1 * torch.randn_like(p))
    results = []
    for run in (model, lambda *x: called_logits(model.get_base_model(), *x)):
        torch.manual_seed(5)  # the same dropout
        logits = run(*clip())
        results.append((logits, gradients(scalar(logits), model)))
    assert_same(*results)
    assert all(gradient is not None for gradient in results[0][1].values())
    logits = model.eval()(*clip())
    assert (variant == "dropout") != torch.allclose(logits, results[0][0])
    assert not torch.allclose(logits, base()(*clip()))
    assert_same(model.merge_and_unload()(*clip()), logits)


def test_merge_and_unmerge_and_a_second_adapter(peft: Any) -> None:
    model = adapted(peft, list(ALONE))
    first = model(*clip())
    model.merge_adapter()
    assert_same(model(*clip()), first)
    model.unmerge_adapter()
    assert_same(model(*clip()), first)
    model.add_adapter("other", peft.LoraConfig(target_modules=["qkv", "wk"], r=1, init_lora_weights=False))
    model.double().set_adapter("other")
    second = model(*clip())
    assert not torch.allclose(second, first)
    assert_same(second, called_logits(model.get_base_model(), *clip()))
    with torch.no_grad():  # each sample its own
        mixed = model(*clip(), adapter_names=["default", "other"])
    assert_same(mixed, torch.stack([first[0], second[1]]))
    model.base_model.set_adapter(["default", "other"])
    both = model(*clip())
    assert_same(both, called_logits(model.get_base_model(), *clip()))
    assert_same(copy.deepcopy(model).merge_and_unload(adapter_names=["default", "other"])(*clip()), both)
    model.set_adapter("default")
    assert_same(model(*clip()), first)


def test_saved_and_loaded(peft: Any, tmp_path: Path) -> None:
    model = adapted(peft, ["qkv", "wk", "wv", "proj"], modules_to_save=["head"])
    with torch.no_grad():
        model.get_base_model().head.modules_to_save["default"].bias += 1
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).double().eval()
    assert torch.equal(loaded(*clip()), model(*clip()))
    # As a model file: once the adapters are merged.
    path = tmp_path / "model.safetensors"
    for unmerged in (model, model.get_base_model()):
        with pytest.raises(ValueError, match=r"call merge_and_unload\(\) of the adapters first$"):
            hsta_fast.save_model(unmerged, path)
    assert not path.exists()
    merged = model.merge_and_unload()
    hsta_fast.save_model(merged, path)
    assert_same(hsta_fast.load_model(path)(*clip()), merged(*clip()))


def test_a_step_of_training_changes_the_adapters_alone(peft: Any) -> None:
    model = adapted(peft, list(ALONE)).float().train()
    before = copy.deepcopy(model.state_dict())
    logits = model(*clip())
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "lora_" in key}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes_under_autocast(peft: Any, dtype: torch.dtype) -> None:
    """As the plain model's; adapters stay in float32, as peft keeps them."""
    settings = peft.LoraConfig(target_modules=list(ALONE), r=2, init_lora_weights=False)
    model = peft.get_peft_model(base().to(dtype), settings).eval()
    plain = base().to(dtype).eval()
    with torch.autocast("cpu", torch.bfloat16):
        came, expected = model(*clip()), plain(*clip())
    assert came.dtype == expected.dtype and came.isfinite().all()
    assert model(*clip()).dtype == plain(*clip()).dtype == dtype


def test_one_graph(peft: Any) -> None:
    model = adapted(peft, list(ALONE))
    assert_same(torch.compile(model, fullgraph=True, backend="eager")(*clip()), model(*clip()))


def test_weights_that_accelerate_loads_for_each_call(peft: Any) -> None:
    """Of each module alone: outside its call they are on the meta device. (peft brings accelerate.)"""
    hooks = importlib.import_module("accelerate.hooks")
    with torch.no_grad():
        expected = base()(*clip())
        names = ("blocks.0.blocks.1.0.attn.qkv", "patch_embed.0.proj", "blocks.0.csta.fusion.0.norm1")
        for name in (*names, "blocks.0.csta.fusion.1.attn.wk"):
            model = base()
            module: Any = model.get_submodule(name)
            stored = {key: value.clone() for key, value in module.state_dict().items()}
            hook = hooks.AlignDevicesHook(execution_device="cpu", offload=True, weights_map=stored)
            hooks.add_hook_to_module(module, hook)
            assert module.weight.is_meta
            assert_same(model(*clip()), expected)
