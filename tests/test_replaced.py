"""Submodules that something has replaced or hooked are called; the weights of plain ones are read."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import hsta_fast
from hsta_fast import HSTA, replaced
from hsta_fast.crossmodal import CrossAttentionBlock, CrossmodalSpaceTimeAttention
from hsta_fast.layers import SpaceTimeAttention, TubeletEmbed

from .called_modules import called_logits, gradients, scalar
from .published_formulation import published_state
from .tolerance import assert_close

FUSION = "blocks.0.csta.fusion"
# Modules whose weights a layer reads: one of each kind. `attn` holds the projections of a direction.
READ = [
    *(f"blocks.0.blocks.1.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1")),
    *(f"{FUSION}.0.{name}" for name in ("norm1", "attn.wq")),
    *(f"{FUSION}.1.attn.{name}" for name in ("wk", "wv")),
    "patch_embed.0.proj",
]
HOLDERS = [f"{FUSION}.0.attn", f"{FUSION}.1"]
SHAPE = {"widths": (24, 32), "patches": (12, 16), "num_classes": 3, "layers": 1, "n_s": 1, "n_v": 1}


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test has warned yet; the warning is seen only by the tests that are about it."""
    monkeypatch.setattr(replaced, "_warned", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is not a plain ")
        yield


def model() -> HSTA:
    state = published_state({**SHAPE, "head": "cls"}, dtype=torch.float64, seed=1)
    return hsta_fast.load_published(state, num_heads=(3, 4))


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 4, 36, 48), dtype=torch.uint8, generator=generator)
    return frames, frames[:, :, ::2]


def assert_same(came: Any, expected: Any) -> None:
    torch.testing.assert_close(came, expected, rtol=1e-10, atol=1e-11)


def assert_as_called(changed: HSTA) -> Tensor:
    """Logits and every gradient are those with each submodule called."""
    logits, expected = changed(*clip()), called_logits(changed, *clip())
    assert_same(logits, expected)
    assert_same(gradients(scalar(logits), changed), gradients(scalar(expected), changed))
    return logits


def test_a_plain_model_reads_the_weights() -> None:
    """And computes what the calls would."""
    plain = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_as_called(plain)
    blocks = [block for block in plain.modules() if isinstance(block, CrossAttentionBlock)]
    assert len(blocks) == 2 and all(block.replaced() is None for block in blocks)


HOOKS: dict[str, Callable[..., Any]] = {
    "forward": lambda module, given, out: out.sin(),
    "forward_pre": lambda module, given: tuple(x.sin() for x in given),
    "full_backward": lambda module, to_inputs, _: tuple(None if g is None else 2 * g for g in to_inputs),
    "full_backward_pre": lambda module, of_outputs: tuple(2 * g for g in of_outputs),
}


# Torch says that the frames need no gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", [*READ, *HOLDERS])
def test_a_hook_runs_once_and_what_it_returns_counts(name: str, kind: str) -> None:
    hooked, calls = model(), []

    def hook(*given: Any) -> Any:
        calls.append(name)
        return HOOKS[kind](*given)

    getattr(hooked.get_submodule(name), f"register_{kind}_hook")(hook)
    plain, logits = model(), hooked(*clip())
    came = gradients(scalar(logits), hooked)
    assert calls == [name]
    before = plain(*clip())
    assert torch.allclose(logits, before) == ("backward" in kind)
    unhooked = gradients(scalar(before), plain)
    assert all(torch.allclose(came[key], unhooked[key]) for key in unhooked) == (
        kind == "full_backward" and name == "patch_embed.0.proj"
    )
    if name in READ:
        expected = called_logits(hooked, *clip())
        assert_same(logits, expected)
        assert_same(came, gradients(scalar(expected), hooked))


@pytest.mark.filterwarnings("ignore:For backward hooks to be called", "ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_all_modules_see_every_module(kind: str) -> None:
    watched, seen = model(), set()
    names = {module: name for name, module in watched.named_modules()}
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: seen.add(names[module]))
    try:
        logits = watched(*clip())
        scalar(logits).backward()
    finally:
        handle.remove()
    assert {*READ, *HOLDERS} <= seen
    assert_same(watched(*clip()), logits)


def pruned(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.5)


def parametrised(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", nn.Tanh())


def other_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: 2 * type(module).forward(module, x)
    return module


def wrapped(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Softsign())


def subclass(module: nn.Module) -> nn.Module:
    kind = type(module)
    forward = {"forward": lambda self, x: 2 * kind.forward(self, x)}
    module.__class__ = type("Doubled", (kind,), forward)
    return module


def without_bias(module: Any) -> nn.Module:
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=False)
    if isinstance(module, nn.LayerNorm):
        return nn.LayerNorm(module.normalized_shape, bias=False)
    return nn.Conv3d(3, module.out_channels, module.kernel_size, module.stride, bias=False)


def other_settings(module: Any) -> nn.Module:
    """A bias where qkv has none; a norm without weights; a Conv3d with groups."""
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features)
    if isinstance(module, nn.LayerNorm):
        return nn.LayerNorm(module.normalized_shape, eps=0.1, elementwise_affine=False)
    return nn.Conv3d(3, module.out_channels, module.kernel_size, module.stride, groups=3)


CHANGES = (pruned, parametrised, other_forward, wrapped, subclass, without_bias, other_settings)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", READ)
def test_what_stands_in_the_place_of_a_module_is_called(
    name: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    changed = model()
    before = changed(*clip())
    torch.manual_seed(7)
    changed.set_submodule(name, change(changed.get_submodule(name)).double())
    assert not torch.allclose(assert_as_called(changed), before)


def test_a_pruned_weight_is_made_anew_after_each_step() -> None:
    changed = model()
    for name in READ:
        pruned(changed.get_submodule(name))
    scalar(changed(*clip())).backward()
    torch.optim.SGD(changed.parameters(), lr=0.01).step()
    assert_as_called(changed.eval())


def test_a_spectral_norm_takes_one_step_in_each_forward() -> None:
    changed = model().train()
    for name in READ:
        if not name.endswith("norm1"):
            parametrizations.spectral_norm(changed.get_submodule(name))
    twin = copy.deepcopy(changed)
    assert_same(changed(*clip()), called_logits(twin, *clip()))
    assert_same(dict(changed.named_buffers()), dict(twin.named_buffers()))


def test_a_norm_with_another_eps_is_plain() -> None:
    changed = model()
    block: Any = changed.get_submodule(f"{FUSION}.0")
    block.norm1.eps = 0.5
    before = model()(*clip())
    assert block.replaced() is None
    assert not torch.allclose(assert_as_called(changed), before)


class Int8Weight(Tensor):
    """A quantised weight as torchao makes them: a class of its own, known to linear alone."""

    @staticmethod
    def __new__(cls, values: Tensor, step: Tensor) -> "Int8Weight":
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=step.dtype)

    def __init__(self, values: Tensor, step: Tensor) -> None:
        self.integers, self.step = values, step

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["integers", "step"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.integers * weight.step, *bias)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert func is torch.ops.aten.detach.default, f"{func} is not implemented for Int8Weight"
        return cls(args[0].integers, args[0].step)


def test_weights_of_a_class_of_their_own() -> None:
    changed, rounded = model(), model()
    for name in READ:
        module, twin = changed.get_submodule(name), rounded.get_submodule(name)
        if isinstance(module, nn.Linear) and isinstance(twin, nn.Linear):
            step = module.weight.detach().abs().max() / 127
            values = (module.weight.detach() / step).round().to(torch.int8)
            module.weight = nn.Parameter(Int8Weight(values, step), requires_grad=False)
            twin.weight = nn.Parameter(values * step)
    assert_same(changed(*clip()), rounded(*clip()))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_modules_sharded_by_fsdp(tmp_path: Path) -> None:
    """Each read module alone, and groups: parameters are whole only while their module runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = model()
    expected = plain(*clip())
    wanted = gradients(scalar(expected), plain)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for names in (READ, HOLDERS, ["blocks.0.blocks.1.0", "blocks.0"]):
            sharded = model()
            for name in [*names, ""]:
                fully_shard(sharded.get_submodule(name), mesh=mesh)
            logits = sharded(*clip())
            assert_same(logits, expected)
            scalar(logits).backward()
            came: Any = {name: p.grad for name, p in sharded.named_parameters()}
            assert_same({name: gradient.full_tensor() for name, gradient in came.items()}, wanted)
    finally:
        dist.destroy_process_group()


def test_replicas_of_data_parallel_are_plain() -> None:
    """Their parameters are attributes, as nn.parallel.replicate sets them on each CUDA device."""
    plain = model()
    copies: dict[Any, Any] = {part: part._replicate_for_data_parallel() for part in plain.modules()}
    for part, replica in copies.items():
        for name, child in part._modules.items():
            setattr(replica, name, copies[child])
        for name, parameter in part._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter * 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copies[plain](*clip()), plain(*clip()))


def called(module: Any) -> Any:
    """The module, with each part that it may read put into an `nn.Sequential`: called, same numbers."""
    for part in list(module.modules()):
        for name in ("proj", "qkv", "norm1", "wq", "wk", "wv"):
            if name in part._modules:
                setattr(part, name, nn.Sequential(getattr(part, name)))
    return module


def layers(dtype: torch.dtype) -> list[tuple[Any, list[Tensor]]]:
    """The layers that read weights, each with inputs."""
    torch.manual_seed(0)
    states = [torch.randn(2, n, width).to(dtype) for n, width in ((6, 24), (9, 32))]
    modules: list[nn.Module] = [
        SpaceTimeAttention(24, num_heads=3),
        CrossAttentionBlock(24, num_heads=3),
        CrossmodalSpaceTimeAttention((24, 32), num_heads=(3, 4), inplace=True),
        TubeletEmbed(24, patch_size=12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    ]
    cls, positions = torch.randn(1, 1, 24).to(dtype), torch.randn(1, 25, 24).to(dtype)
    given = [states[:1], [states[0][:, 0], states[0][:, 1:]], states, [clip()[0], cls, positions]]
    return [(module.to(dtype), inputs) for module, inputs in zip(modules, given, strict=True)]


def run(module: Any, given: list[Tensor]) -> list[Tensor]:
    out = module(*(x.clone() for x in given))
    return list(out) if isinstance(out, tuple) else [out]


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        *((dtype, on) for dtype in (torch.float32, torch.bfloat16, torch.float64) for on in (False, True)),
        (torch.float16, False),  # which torch's autocast to bfloat16 refuses
    ],
)
def test_dtypes_and_precision_are_those_of_the_fast_path(dtype: torch.dtype, autocast: bool) -> None:
    for module, given in layers(dtype):
        wide = [x.double() if x.is_floating_point() else x for x in given]
        exact = [x.detach() for x in run(copy.deepcopy(module).double(), wide)]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain, came = run(module, given), run(called(copy.deepcopy(module)), given)
        if dtype == torch.float64:  # which autocast leaves alone
            assert_same(came, plain)
        else:
            assert_close(came, plain, exact, band=4 * torch.finfo(torch.bfloat16 if autocast else dtype).eps)


def test_one_graph() -> None:
    """Without a warning, which would break it."""
    attention, hooked, csta, embed = layers(torch.float64)
    hooked[0].attn.wk.register_forward_hook(lambda module, given, out: out.sin())
    replaced_parts = ((called(module), given) for module, given in (attention, csta, embed))
    for module, given in (hooked, *replaced_parts):
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".* is not a plain ")
            came = run(compiled, given)
        assert_same(came, run(module, given))


def test_states_are_copied_where_a_projection_is_called() -> None:
    module, given = layers(torch.float64)[2]
    expected = run(module, given)
    before = [x.clone() for x in given]
    out = called(module)(*given)
    assert_same(list(out), expected)
    assert all(map(torch.equal, given, before))


def test_float_video_and_other_grids() -> None:
    """A Conv3d whose patches overlap or are padded; frames that were normalised before."""
    embed, video = TubeletEmbed(24, patch_size=12, tubelet_depth=2).double(), torch.randn(2, 3, 4, 36, 48)
    for settings in ({"stride": (1, 6, 6)}, {"stride": (2, 12, 12), "padding": (0, 2, 2)}):
        embed.proj = nn.Conv3d(3, 24, (2, 12, 12), dtype=torch.float64, **settings)  # type: ignore[arg-type]
        expected = embed.proj(video.double()).flatten(2).transpose(1, 2)
        assert torch.equal(embed(video), expected)
        with pytest.raises(ValueError, match=r"pos_embed expected shape .* got \(1, 7, 24\)"):
            embed(video, None, torch.zeros(1, 7, 24))
    assert not torch.equal(embed(clip()[0]), embed(clip()[0].double() / 255))  # no mean and std: 0 to 255


def test_errors_name_the_inputs_where_modules_are_called() -> None:
    _, block, _, embed = (called(module) for module, _ in layers(torch.float32))
    with pytest.raises(ValueError, match=r"cls expected shape \(B, C\) = \(2, 24\), got \(3, 24\)"):
        block(torch.zeros(3, 24), torch.zeros(2, 5, 24))
    with pytest.raises(ValueError, match=r"tokens expected shape \(B, N, C\)"):
        block(torch.zeros(3, 24), torch.zeros(2, 24))
    with pytest.raises(ValueError, match="video expected uint8, .* or float64, got torch.int64"):
        embed(torch.zeros(2, 3, 2, 12, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"video expected shape \(B, 3, T, H, W\)"):
        embed(torch.zeros(2, 3, 12, 12))


def test_a_plain_projection_of_another_dtype_is_named() -> None:
    block, given = layers(torch.float32)[1]
    block.get_submodule("attn.wk").double()
    with pytest.raises(ValueError, match="inputs expected one dtype .*k_weight torch.float64"):
        block(*given)


def test_the_warning_comes_once_and_says_what_it_costs() -> None:
    first, second = called(model()), called(model())
    what = "torch.nn.modules.container.Sequential"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for changed in (first, second):
            changed(*clip())
            changed(*clip())
    assert [str(w.message) for w in caught] == [
        f"proj of TubeletEmbed is not a plain nn.Conv3d ({what}): it is called on frames that are normalised "
        "beforehand, which takes longer",
        f"norm1 of CrossAttentionBlock is not a plain nn.LayerNorm ({what}): keys and values are computed in "
        "full, 4 N C^2 operations per sample instead of 4 H N C",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: block.attn.wv.register_forward_hook(print), "attn.wv .* nn.Linear (hooks, "),
        (
            lambda block: setattr(block.attn, "wk", without_bias(block.attn.wk)),
            "attn.wk .* nn.Linear (no bias",
        ),
        (lambda block: block.attn.register_forward_hook(print), "attn .* CrossAttention (hooks, "),
    ],
)
def test_the_warning_says_what_is_not_plain(change: Callable[[Any], Any], reason: str) -> None:
    block, given = layers(torch.float32)[1]
    change(block)
    with pytest.warns(UserWarning, match=reason.replace("(", r"\(")):
        block(*given)
