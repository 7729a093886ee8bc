"""What stays as it was in a switched model, and when its original forward runs."""

import copy
import io
import pickle
from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import hsta_fast
from hsta_fast import adapters
from tests.adapters.checks import call, counted, named_rows, randomise, with_gradients
from tests.adapters.test_published import FUSED, TOKENS, Csta, Usta

VIDEO = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Model(nn.Module):
    """One of each: a patch embedding, self-attention of two kinds, and the attention of a CLS."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 16, (2, 4, 4), stride=(2, 4, 4))
        self.usta = Usta()
        self.mha = nn.MultiheadAttention(16, 4, batch_first=True)
        self.csta = Csta()

    def forward(self, video: Tensor) -> Tensor:
        x = self.embed(video).flatten(2).transpose(1, 2)
        x = x + self.usta(x)
        x = x + self.mha(x, x, x, need_weights=False)[0]
        return self.csta(x)[:, 0]


SWITCHED = ["embed", "usta", "mha", "csta"]
CALLS = {FUSED: 2, "few_query_attention": 1}


def double() -> Model:
    torch.manual_seed(0)
    return cast(Model, randomise(Model()).double().eval())


def pair() -> tuple[Model, Model]:
    """A model, and the same switched."""
    original, ours = double(), double()
    assert [row.name for row in hsta_fast.accelerate(ours).switched] == SWITCHED
    return original, ours


def assert_equal(original: nn.Module, ours: nn.Module, calls: dict[str, int] | None = None) -> None:
    """The same outputs and gradients in float64, by as many calls of the fast ops as expected."""
    with counted() as counts:
        came = with_gradients(ours, [VIDEO])
    if calls is not None:
        assert counts == calls
    expected = with_gradients(original, [VIDEO])
    torch.testing.assert_close(came[0], expected[0], rtol=1e-10, atol=1e-10)
    for x, y in zip(came[1].values(), expected[1].values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("after", [False, True])
def test_hooks_on_switched_modules(after: bool) -> None:
    original, ours = double(), double()
    seen: list[list[str]] = [[], []]

    def add_hooks(model: nn.Module, into: list[str]) -> None:
        for name, module in model.named_modules():
            if name in SWITCHED:
                module.register_forward_pre_hook(lambda *_, n=name: into.append(f"before {n}"))
                module.register_forward_hook(lambda *_, n=name: into.append(f"after {n}"))
                module.register_full_backward_hook(lambda *_, n=name: into.append(f"gradient {n}"))

    if not after:
        add_hooks(ours, seen[1])
    hsta_fast.accelerate(ours)
    if after:
        add_hooks(ours, seen[1])
    add_hooks(original, seen[0])
    # With a backward hook torch hands on its query, key and value as three tensors: no longer self-attention.
    assert_equal(original, ours, CALLS | {FUSED: 1})
    assert seen[0] == seen[1]
    assert len(seen[0]) == 12


@pytest.mark.parametrize("after", [False, True])
def test_hooks_on_inner_linear_layers(after: bool) -> None:
    """They are called then: by the original forward."""
    original, ours = double(), double()
    seen: list[list[Tensor]] = [[], []]

    def add_hook(model: Model, into: list[Tensor]) -> None:
        model.csta.wk.register_forward_hook(lambda _m, _i, out: into.append(out.detach()))

    if not after:
        add_hook(ours, seen[1])
    hsta_fast.accelerate(ours)
    if after:
        add_hook(ours, seen[1])
    add_hook(original, seen[0])
    assert_equal(original, ours, {FUSED: 2})
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-10, atol=1e-10)
    assert len(seen[0]) == 1


def test_hooks_of_all_modules_see_every_call() -> None:
    original, ours = pair()
    names: list[list[str]] = [[], []]
    for model, into in ((original, names[0]), (ours, names[1])):
        known = {module: name for name, module in model.named_modules()}
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, _i, _o, known=known, into=into: into.append(known[m])
        )
        try:
            call(model, [VIDEO])
        finally:
            handle.remove()
    assert names[0] == names[1]
    assert "csta.wk" in names[0]


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
def test_copies_and_pickles(how: str) -> None:
    original, ours = pair()
    buffer = io.BytesIO()
    if how == "deepcopy":
        again = copy.deepcopy(ours)
    elif how == "copy":
        again = copy.copy(ours)
        again._modules = {name: copy.copy(child) for name, child in ours._modules.items()}
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(ours))
    else:
        torch.save(ours, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    assert [type(m) for m in again.modules()] == [type(m) for m in ours.modules()]
    assert_equal(original, again, CALLS)


def test_state_dicts_load_both_ways() -> None:
    original, ours = pair()
    for source, target in ((original, copy.deepcopy(ours)), (ours, double())):
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        assert_equal(original, target)


def test_dtype_and_device_move_in_place() -> None:
    _, ours = pair()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert ours.to(dtype)(VIDEO.to(dtype)).dtype == dtype
    assert ours.to("meta")(VIDEO.half().to("meta")).shape == (2, 16)


def test_revert_twice_and_after_another_change() -> None:
    model = double()
    report = hsta_fast.accelerate(model)
    report.revert()
    report.revert()
    assert [type(child) for child in model.children()] == [nn.Conv3d, Usta, nn.MultiheadAttention, Csta]
    report = hsta_fast.accelerate(model)
    prune.l1_unstructured(model.usta.qkv, "weight", amount=0.3)
    parametrizations.weight_norm(model.embed)
    with pytest.raises(ValueError, match=r"^module expected its switched class, got ParametrizedFastConv3d"):
        report.revert()
    assert [type(child) for child in model.children()][1:] == [Usta, nn.MultiheadAttention, Csta]


def test_a_second_call_switches_nothing() -> None:
    _, ours = pair()
    again = hsta_fast.accelerate(ours)
    assert {row.name: row.why for row in again.rows} == dict.fromkeys(SWITCHED, "switched before")
    assert not again.switched


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "prune"])
@pytest.mark.parametrize("after", [False, True])
def test_reparametrised_weights(change: str, after: bool) -> None:
    def reparametrise(model: Model) -> None:
        for part in (model.embed, model.usta.proj, model.csta.wq):
            if change == "prune":
                prune.l1_unstructured(part, "weight", amount=0.3)
            else:
                torch.manual_seed(0)
                getattr(parametrizations, change)(part)

    original, ours = double(), double()
    reparametrise(original)
    if not after:
        reparametrise(ours)
    hsta_fast.accelerate(ours)
    if after:
        reparametrise(ours)
    assert_equal(original.eval(), ours.eval())


def test_frozen_and_tied_weights() -> None:
    original, ours = pair()
    for model in (original, ours):
        model.embed.weight.requires_grad_(False)
        model.csta.wv.requires_grad_(False)
        model.csta.wq.weight = model.csta.wk.weight
        model.usta.requires_grad_(False)
    assert_equal(original, ours, CALLS)


def test_a_module_at_two_places_is_one_row() -> None:
    shared = Usta()
    model = nn.Sequential(shared, nn.Identity(), shared)
    assert named_rows(hsta_fast.accelerate(model)) == {"0": FUSED}
    assert model[0] is model[2]


def test_recomputed_activations() -> None:
    original, ours = pair()

    class Recomputed(nn.Module):
        def __init__(self, model: Model) -> None:
            super().__init__()
            self.model = model

        def forward(self, video: Tensor) -> Tensor:
            return cast(Tensor, checkpoint(self.model, video, use_reentrant=False))

    assert_equal(Recomputed(original), Recomputed(ours))


def test_second_derivatives_and_transforms() -> None:
    original, ours = pair()
    original.mha = ours.mha  # torch's own has no second derivatives
    results = []
    for model in (original, ours):
        video = VIDEO.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(video).square().sum(), video, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), video)

        def loss(x: Tensor, model: nn.Module = model) -> Tensor:
            return cast(Tensor, model(x).square().sum())

        by_sample = torch.func.vmap(torch.func.grad(lambda x: loss(x[None])))(VIDEO)
        results.append([first.detach(), second, torch.func.grad(loss)(VIDEO), by_sample])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["export", "trace", "fx"])
def test_captured_graphs(how: str) -> None:
    original, ours = pair()
    if how == "export":
        graph = torch.export.export(ours, (VIDEO,)).module()
    elif how == "trace":
        with torch.no_grad():  # torch's own attention is traced in two ways with a gradient
            graph = torch.jit.trace(ours, (VIDEO,))
    else:
        graph = torch.fx.symbolic_trace(ours)
    torch.testing.assert_close(graph(VIDEO), original(VIDEO), rtol=1e-10, atol=1e-10)


def test_wrappers_are_walked() -> None:
    """nn.parallel's wrappers hold the model as `module`; torch.compile's as `_orig_mod`."""
    for wrapped, prefix in ((nn.DataParallel(double()), "module"), (torch.compile(double()), "_orig_mod")):
        said = hsta_fast.accelerate(cast(nn.Module, wrapped))
        assert [row.name for row in said.switched] == [f"{prefix}.{name}" for name in SWITCHED]


def test_unknown_and_changed_classes_are_left() -> None:
    class MyAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class MyMultiheadAttention(nn.MultiheadAttention):
        def forward(self, query: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(query, query, query)[0]

    own = nn.MultiheadAttention(16, 4)
    own.forward = lambda *args, **kwargs: (args[0], None)  # type: ignore[method-assign]
    parametrised = parametrizations.weight_norm(nn.Conv3d(3, 4, 2, stride=2))
    model = nn.Sequential(MyAttention(), MyMultiheadAttention(16, 4), own, parametrised)
    assert named_rows(hsta_fast.accelerate(model)) == {
        "0": "left: not known",
        "1": "left: a subclass of MultiheadAttention",
        "2": "left: a forward of its own, set on the object",
        "3": "left: a subclass of Conv3d",
    }


def test_accelerate_refuses_what_is_no_module() -> None:
    with pytest.raises(ValueError, match=r"^model expected an nn\.Module, got dict$"):
        hsta_fast.accelerate(cast(nn.Module, {}))


class MeanPool(nn.Module):
    """A module of somebody's own library: a learned query pools tokens, a key and value each."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(2, (4, 4)).transpose(1, 2) for y in (self.q(self.query), self.k(x), self.v(x)))
        weights = (q @ k.transpose(2, 3) / 2).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(1)


def test_an_adapter_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.accelerating, "_own_finders", [])
    from hsta_fast.ops import few_query_attention

    class FastMeanPool(adapters.Switched):
        q: nn.Linear
        k: nn.Linear
        v: nn.Linear
        query: Tensor

        def forward(self, x: Tensor) -> Tensor:
            if not adapters.bypassed(self.q, self.k, self.v):
                return super().forward(x)  # type: ignore[misc]
            weights = {f"{n}_weight": getattr(self, n).weight for n in "qkv"}
            biases = {f"{n}_bias": getattr(self, n).bias for n in "qkv"}
            return few_query_attention(self.query, x, **weights, **biases, num_heads=4)[:, 0]

    def sample() -> Any:
        return (torch.randn(2, 9, 16, dtype=torch.float64),), {}

    def finder(root: nn.Module) -> adapters.Find:
        return lambda m: (
            adapters.switch_class(m, FastMeanPool, "pooled", sample) if type(m) is MeanPool else None
        )

    adapters.register_adapter(finder)
    model = nn.Sequential(MeanPool()).double()
    before = model(TOKENS)
    report = hsta_fast.accelerate(model)
    assert named_rows(report) == {"0": "pooled"}
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-10, atol=1e-10)
    report.revert()
    assert type(model[0]) is MeanPool


def test_lora_before_and_after() -> None:
    """The linear layers that peft replaces are called; nothing else is said of them than what runs."""
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["wq", "wk"], lora_alpha=8, r=2, init_lora_weights=False)
    models = []
    for order in ("none", "before", "after"):
        model: Any = double()
        if order == "after":
            hsta_fast.accelerate(model)
        torch.manual_seed(0)
        model = peft.get_peft_model(model, config).double().eval()
        if order == "before":
            said = named_rows(hsta_fast.accelerate(model))
            assert sorted(said) == [f"base_model.model.{name}" for name in ("embed", "mha", "usta")]
        models.append(model)
    for model in models[1:]:
        assert_equal(models[0], model, {FUSED: 2})


def test_the_parts_of_a_switched_module_are_left_by_a_second_call() -> None:
    """SigLIP's head reads the weights of an nn.MultiheadAttention, which would be switched alone."""
    siglip: Any = pytest.importorskip("transformers.models.siglip.modeling_siglip")
    config = siglip.SiglipVisionConfig(hidden_size=16, intermediate_size=32, num_attention_heads=4)
    head = siglip.SiglipMultiheadAttentionPoolingHead(config).double()
    assert [row.name for row in hsta_fast.accelerate(head).switched] == [""]
    assert named_rows(hsta_fast.accelerate(head)) == {"": "left: switched before"}
    assert type(head.attention) is nn.MultiheadAttention


def test_the_generators_of_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(*_: Any) -> None:
        raise AssertionError("the generators of a device were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    monkeypatch.setattr(adapters.switching, "_compared", {})
    model = Usta()
    before = torch.get_rng_state()
    assert hsta_fast.accelerate(model).switched
    assert torch.equal(torch.get_rng_state(), before)


def test_names_in_a_report_stand_for_those_modules_alone() -> None:
    def shown(*names: str) -> list[str]:
        rows = [adapters.Row(name, "Kind", "fast") for name in names]
        return [line.split()[0] for line in str(adapters.Report(rows, Counter())).splitlines()[1:-1]]

    assert shown("a.0.x", "a.1.x", "a.3.x") == ["a.0-1,3.x"]
    assert shown("a.9.x", "a.10.x") == ["a.9-10.x"]
    assert shown("a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1") == ["a.0-1.b.0-1"]
    assert shown("a.0.b.0", "a.1.b.0", "a.1.b.1", "a.2.b.0") == ["a.0,2.b.0", "a.1.b.0-1"]
    assert shown("", "b") == ["(the", "b"]
