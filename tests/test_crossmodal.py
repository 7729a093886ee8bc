"""CSTA: equal values and gradients in place; uses that must not be in place; memory."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hsta_fast
from hsta_fast import reference
from hsta_fast.crossmodal import CrossmodalSpaceTimeAttention
from hsta_fast.layers import AttentionPool
from hsta_fast.model import HSTA, HSTAConfig, HSTALayer
from hsta_fast.ops.attention_pool import pool_bwd, pool_fwd
from tests.compiler import needs_compiler
from tests.memory import peak_bytes

EXTENSION = pytest.param("extension", marks=needs_compiler)
IMPLS = ("torch", "triton", EXTENSION)
WIDTHS, HEADS, LENGTHS = (12, 16), (3, 4), (6, 9)


def csta(*, inplace: bool, impl: str = "torch", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    module = CrossmodalSpaceTimeAttention(WIDTHS, num_heads=HEADS, inplace=inplace, impl=impl).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def leaves(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(2)
    return [
        torch.randn(2, N, C, dtype=torch.float64).to(dtype).requires_grad_()
        for N, C in zip(LENGTHS, WIDTHS, strict=True)
    ]


def specified(module: Any, special: Tensor, video: Tensor) -> tuple[Tensor, ...]:
    """Eq. 8-13 with the materialised attention and concatenations."""
    states = (special, video)
    out = []
    for a, b in ((0, 1), (1, 0)):
        fusion = module.fusion[a]
        c = module.projs[a](states[a][:, 0])
        parts = {"norm": fusion.norm1, "q": fusion.attn.wq, "k": fusion.attn.wk, "v": fusion.attn.wv}
        weights = {f"{name}_weight": part.weight for name, part in parts.items()}
        weights |= {f"{name}_bias": part.bias for name, part in parts.items()}
        attended = reference.cls_cross_attention(c, states[b][:, 1:], num_heads=HEADS[b], **weights)
        cls = module.revert_projs[a](c + fusion.attn.proj(attended))
        out.append(torch.cat([cls.unsqueeze(1), states[a][:, 1:]], 1))
    return tuple(out)


def loss(states: tuple[Tensor, ...], weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    return sum(
        w * (x.double() ** (3 + i)).sum() for i, (w, x) in enumerate(zip(weights, states, strict=True)) if w
    )  # type: ignore[return-value]


def results(function: Any, module: Any, weights: tuple[float, float] = (1.0, 1.0)) -> list[Tensor | None]:
    """The states that `function` returns, and every gradient."""
    given = leaves(next(module.parameters()).dtype)
    out = function(*(x.clone() for x in given))
    values = [x.detach().clone() for x in out]
    asked = [*given, *module.parameters()]
    return [*values, *torch.autograd.grad(loss(out, weights), asked, allow_unused=True)]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("inplace", [True, False])
def test_values_and_every_gradient(inplace: bool, weights: tuple[float, float]) -> None:
    """Also if only one of the two states is used."""
    module = csta(inplace=inplace)
    expected = results(lambda *x: specified(module, *x), module, weights)
    for came, want in zip(results(module, module, weights), expected, strict=True):
        want = torch.zeros_like(came) if want is None and came is not None else want
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("impl", IMPLS)
def test_in_place_is_bit_equal_to_the_copy(impl: str) -> None:
    copying, inplace = (csta(inplace=x, impl=impl, dtype=torch.float32) for x in (False, True))
    expected = results(copying, copying)
    for came, want in zip(results(inplace, inplace), expected, strict=True):
        torch.testing.assert_close(came, want, rtol=1e-6, atol=1e-6)


def test_in_place_overwrites_the_states() -> None:
    """The returned states are the given ones, overwritten; without `inplace` these do not change."""
    for grad in (True, False):
        for inplace in (True, False):
            with torch.set_grad_enabled(grad):
                given = [x.detach().clone() for x in leaves()]
                before = [x.clone() for x in given]
                out = csta(inplace=inplace)(*given)
                expected = specified(csta(inplace=False), *before)
            for x, y, was, want in zip(out, given, before, expected, strict=True):
                assert (x.data_ptr() == y.data_ptr()) == inplace
                assert torch.equal(y, was) != inplace
                torch.testing.assert_close(x.detach(), want.detach(), rtol=1e-12, atol=1e-12)


def test_in_place_twice_and_gradients_twice() -> None:
    """A chain of two, and a graph kept for a second backward."""
    chains = []
    for inplace in (True, False):
        first, second = csta(inplace=inplace), csta(inplace=inplace)
        given = leaves()
        out = second(*(x + 0 for x in first(*(x.clone() for x in given))))
        scalar = loss(out)
        once = torch.autograd.grad(scalar, given, retain_graph=True)
        assert all(map(torch.equal, once, torch.autograd.grad(scalar, given)))
        chains.append(once)
    torch.testing.assert_close(*chains, rtol=1e-11, atol=1e-11)


def test_incoming_gradients_are_not_written_to() -> None:
    given = leaves()
    out = csta(inplace=True)(*(x.clone() for x in given))
    douts = [torch.randn_like(x) for x in out]
    before = [x.clone() for x in douts]
    torch.autograd.backward(out, douts)
    assert all(map(torch.equal, douts, before))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_states_used_elsewhere_too(weights: tuple[float, float]) -> None:
    """Before, by ops that do not save the state; after, more than once: gradients add up."""

    def function(module: Any, special: Tensor, video: Tensor) -> tuple[Tensor, ...]:
        earlier = [special.sum(1), video.mean(1)]
        out = module(special, video)
        return tuple(x * 2 + x.flip(1) + y.unsqueeze(1) for x, y in zip(out, earlier, strict=True))

    module = csta(inplace=True)
    expected = results(lambda *x: function(lambda *y: specified(module, *y), *x), module, weights)
    for came, want in zip(results(lambda *x: function(module, *x), module, weights), expected, strict=True):
        want = torch.zeros_like(came) if want is None and came is not None else want
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


def test_anomaly_detection_finds_nothing() -> None:
    """Gradients are finite at every step; uninitialised memory would be NaN."""
    module, given = csta(inplace=True), leaves()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
            loss(module(*(x.clone() for x in given))).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("when", ["kept before", "changed after"])
def test_use_of_overwritten_values_raises(when: str, which: int) -> None:
    """A state saved before CSTA by another op, and one changed after it, even if only the other is used."""
    given = [x.clone() for x in leaves()]
    kept = given[which].square()
    out = csta(inplace=True)(*given)
    if when == "changed after":
        out[which].mul_(2)
        scalar = out[1 - which].sum()
    else:
        scalar = kept.sum() + out[which].sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scalar.backward()


def test_states_that_cannot_be_overwritten_are_named() -> None:
    module, (special, video) = csta(inplace=True), leaves()
    with pytest.raises(ValueError, match="special expected .* overwritten, got a leaf that requires grad"):
        module(special, video.clone())
    with pytest.raises(ValueError, match="video expected .* overwritten, got a view"):
        module(special.clone(), video.clone()[:, 1:])
    torch.manual_seed(0)
    twin = CrossmodalSpaceTimeAttention((8, 8), num_heads=(2, 2), inplace=True)
    state = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match="states expected memory of their own, got the same memory twice"):
        twin(state, state)


@pytest.mark.parametrize("frozen", ["states", "parameters", "special", "video"])
def test_partly_frozen(frozen: str) -> None:
    gradients = []
    for inplace in (True, False):
        module, given = csta(inplace=inplace), leaves()
        if frozen == "parameters":
            module.requires_grad_(False)
        for name, x in zip(("special", "video"), given, strict=True):
            x.requires_grad_(frozen not in ("states", name))
        loss(module(*(x.clone() for x in given))).backward()
        gradients.append([x.grad for x in (*given, *module.parameters())])
    for came, want in zip(*gradients, strict=True):
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("inplace", [True, False])
def test_one_graph(inplace: bool) -> None:
    module = csta(inplace=inplace)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for came, want in zip(results(compiled, module), results(module, module), strict=True):
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_the_producer_of_the_states(reentrant: bool) -> None:
    gradients = []
    for stored in (True, False):
        module, given = csta(inplace=True), leaves()

        def run(special: Tensor, video: Tensor, module: Any = module) -> Any:
            return module(special * 1.5, video * 1.5)

        out = checkpoint(run, *given, use_reentrant=reentrant) if stored else run(*given)
        loss(out).backward()
        gradients.append([x.grad for x in (*given, *module.parameters())])
    assert all(map(torch.equal, *gradients))


def test_checkpointing_an_in_place_module_raises() -> None:
    module, given = csta(inplace=True), leaves()
    out = checkpoint(module, *(x.clone() for x in given), use_reentrant=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(out).backward()


@pytest.mark.parametrize("inplace", [True, False])
def test_autocast(inplace: bool) -> None:
    """States keep their dtype, and gradients are those of float32 up to the rounding of the products."""
    module = csta(inplace=inplace, dtype=torch.float32)
    exact = results(module, module)
    with torch.autocast("cpu", torch.bfloat16):
        rough = results(module, module)
    for came, want in zip(rough, exact, strict=True):
        assert came is not None and want is not None and came.dtype == want.dtype
        assert (came - want).abs().max() <= 0.1 * max(1.0, float(want.abs().max()))


def test_second_derivatives_are_refused() -> None:
    """In place; after `inplace` was set to False they are right."""
    module, given = csta(inplace=True), leaves()
    scalar = loss(module(*(x.clone() for x in given)))
    message = r"CSTA .* got create_graph or is_grads_batched; set csta.inplace = False in every HSTA layer"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(scalar, given, create_graph=True, retain_graph=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(scalar, given, torch.ones(2, dtype=scalar.dtype), is_grads_batched=True)
    module.inplace = False
    seconds = []
    for function in (module, lambda *x: specified(module, *x)):
        once = torch.autograd.grad(loss(function(*given)), given, create_graph=True)
        seconds.append(torch.autograd.grad(torch.stack([g.square().sum() for g in once]).sum(), given))
    torch.testing.assert_close(*seconds, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("n_special", "n_video"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_an_hsta_layer_does_not_change_its_inputs(n_special: int, n_video: int) -> None:
    """Also without USTA layers, which would otherwise create the states that CSTA overwrites."""
    config = HSTAConfig(widths=WIDTHS, num_heads=HEADS, n_special=n_special, n_video=n_video)
    torch.manual_seed(0)
    layer = HSTALayer(config, [0.0]).double()
    given = leaves()
    before = [x.detach().clone() for x in given]
    out = layer({"0": given[0], "1": given[1]})
    loss((out["0"], out["1"])).backward()
    assert all(torch.equal(x, was) for x, was in zip(given, before, strict=True))
    copying = copy.deepcopy(layer)
    copying.csta.inplace = False  # type: ignore[union-attr]
    again = leaves()
    out = copying({"0": again[0], "1": again[1]})
    loss((out["0"], out["1"])).backward()
    for x, y in zip((*given, *layer.parameters()), (*again, *copying.parameters()), strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)


SMALL = (600, 96, 2)  # N, C, H
SPECIAL, VIDEO, LONGER_VIDEO = (324, 384, 12), (588, 768, 12), (1568, 768, 12)
# The model's shapes are slow in the interpreter; tests/kernels checks them against the same bound.
INTERPRETED = (299, 96, 2)
SHAPES = [
    ("triton", 2, INTERPRETED),
    pytest.param("triton", 2, SMALL, marks=pytest.mark.full),
    *(
        pytest.param("extension", B, shape, marks=needs_compiler)
        for B in (1, 2)
        for shape in (SMALL, SPECIAL, VIDEO, LONGER_VIDEO)
    ),
]


def nbytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def allowed(B: int, *shapes: tuple[int, int, int]) -> int:
    """8 B H N floats: an eighth (video) to a quarter (special) of the tokens' size."""
    return sum(8 * B * H * N * 4 for N, _, H in shapes)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("impl", "B", "shape"), SHAPES)
def test_memory_of_the_pool(impl: str, B: int, shape: tuple[int, int, int]) -> None:
    """At most 8 B H N floats beyond the results, forward and backward."""
    N, C, H = shape
    torch.manual_seed(0)
    query, tokens, extra = torch.randn(B, H, C), torch.randn(B, N + 1, C)[:, 1:], torch.randn(B, C)
    arguments = query, tokens, extra, True, 1e-6, impl
    saved = pool_fwd(*arguments)
    assert peak_bytes(lambda: pool_fwd(*arguments)) <= nbytes(*saved) + allowed(B, shape)
    dpooled, dtokens = torch.ones_like(saved[0]), torch.empty(B, N, C)

    def backward() -> tuple[Tensor, Tensor | None]:
        return pool_bwd(dpooled, query, tokens, extra, saved, True, 1e-6, impl, dtokens=dtokens)

    assert peak_bytes(backward) <= nbytes(*backward()) + allowed(B, shape)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("impl", "B", "shapes"),
    [
        ("triton", 2, (INTERPRETED, INTERPRETED)),
        pytest.param("triton", 2, (SMALL, SMALL), marks=pytest.mark.full),
        *(
            pytest.param("extension", B, shapes, marks=needs_compiler)
            for B in (1, 2)
            for shapes in ((SMALL, SMALL), (SPECIAL, VIDEO), (SPECIAL, LONGER_VIDEO))
        ),
    ],
)
def test_memory_of_csta(impl: str, B: int, shapes: tuple[tuple[int, int, int], ...], frozen: bool) -> None:
    """The forward copies no tokens; the backward adds one gradient per state to the incoming ones."""
    torch.manual_seed(0)
    widths, heads = zip(*(shape[1:] for shape in shapes), strict=True)
    module = CrossmodalSpaceTimeAttention(widths, num_heads=heads, inplace=True, impl=impl)
    module.requires_grad_(not frozen)
    given = [torch.randn(B, N + 1, C, requires_grad=True) for N, C, _ in shapes]
    states = [x.clone() for x in given]
    out: list[Tensor] = []
    assert peak_bytes(lambda: out.extend(module(*states))) <= allowed(B, *shapes)
    douts = [torch.randn_like(x) for x in out]
    peak = peak_bytes(lambda: torch.autograd.backward(out, douts))
    assert (
        nbytes(*given) <= peak <= nbytes(*given, *(p.grad for p in module.parameters())) + allowed(B, *shapes)
    )


def test_attention_pool_module() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(24, num_queries=3)
    tokens, extra = torch.randn(2, 9, 24), torch.randn(2, 24)
    pooled, weights = pool(tokens, extra=extra, return_weights=True)
    query = pool.query.expand(2, -1, -1)
    expected = reference.attention_pool(query, tokens, extra=extra, return_weights=True)
    torch.testing.assert_close((pooled, weights), expected, rtol=1e-5, atol=1e-6)
    pooled.sum().backward()
    assert pool.query.grad is not None and list(pool.state_dict()) == ["query"]
    plain = AttentionPool(24, normalize=False)
    torch.testing.assert_close(
        plain(tokens),
        reference.attention_pool(plain.query.expand(2, -1, -1), tokens, normalize=False),
        rtol=1e-5,
        atol=1e-6,
    )


def tiny(device: str = "cpu") -> tuple[HSTA, dict[str, Tensor]]:
    model = hsta_fast.create_model("hsta_tiny", num_classes=2, num_layers=1).to(device).eval()
    frames = {"video": 4, "special": 2}
    return model, {name: torch.zeros(2, 3, T, 48, 48, device=device) for name, T in frames.items()}


# Torch says of a hook of all modules that some return a dict and that some inputs need no gradient.
@pytest.mark.filterwarnings("ignore:For backward hooks to be called", "ignore:Full backward hook is firing")
@pytest.mark.filterwarnings("ignore:.* is not a plain :UserWarning")
@pytest.mark.parametrize(
    "watch",
    [
        "nothing",
        "forward hook",
        "retained gradient",
        "backward hook",
        "backward pre-hook",
        "forward hook of all modules",
        "backward hook of all modules",
    ],
)
def test_states_seen_by_hooks_are_not_overwritten(watch: str) -> None:
    """The output of the last USTA layer before CSTA stays as a hook received it."""
    torch.manual_seed(0)
    model, frames = tiny()
    frames = {name: torch.randn_like(x) for name, x in frames.items()}
    layer = next(m for m in model.modules() if isinstance(m, HSTALayer))
    last = list(layer.blocks["1"].children())[-1]
    kept: list[tuple[Tensor, Tensor]] = []
    handles: list[Any] = []

    def keep(module: Any, given: Any, out: Tensor) -> None:
        if module is last:
            kept.append((out, out.detach().clone()))
        if module is last and watch == "retained gradient":
            out.retain_grad()

    if watch in ("forward hook", "retained gradient"):
        last.register_forward_hook(keep)
    elif watch == "forward hook of all modules":
        handles.append(nn.modules.module.register_module_forward_hook(keep))
    elif watch == "backward hook of all modules":
        handles.append(nn.modules.module.register_module_full_backward_hook(lambda *_: None))
    elif watch.startswith("backward"):
        for module in (last, layer.csta):
            assert module is not None
            if watch == "backward hook":
                module.register_full_backward_hook(lambda *_: None)
            else:
                module.register_full_backward_pre_hook(lambda *_: None)
    logits = model(**frames)
    logits.sum().backward()
    assert all(torch.equal(out, before) for out, before in kept)
    assert bool(kept) == ("forward hook" in watch or watch == "retained gradient")
    assert watch != "retained gradient" or kept[0][0].grad is not None
    plain, _ = tiny()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(
        plain(**frames), logits
    )  # hooks of all modules also make this one call its projections
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(plain(**frames), logits)


def test_a_model_on_the_meta_device() -> None:
    model, frames = tiny("meta")
    assert model(**frames).shape == (2, 2)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
@pytest.mark.parametrize("which", [0, 1])
def test_hooks_on_a_direction_are_called(which: int, kind: str) -> None:
    module, calls = csta(inplace=True), []
    getattr(module.fusion[which], f"register_{kind}_hook")(lambda *_: calls.append(kind))
    plain = csta(inplace=True)
    expected = results(plain, plain)
    for came, want in zip(results(module, module), expected, strict=True):
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)
    assert calls == [kind]


@pytest.mark.parametrize(
    ("special", "video", "message"),
    [
        ((2, 6, 16), (2, 9, 16), r"special expected shape .* = \(\*, \*, 12\), got \(2, 6, 16\)"),
        ((2, 12), (2, 9, 16), r"special expected shape"),
        ((2, 6, 12), (3, 9, 16), r"video expected shape .* = \(2, \*, 16\), got \(3, 9, 16\)"),
        ((2, 0, 12), (2, 9, 16), "a CLS row in each state"),
    ],
)
def test_states_of_other_shapes_are_named(
    special: tuple[int, ...], video: tuple[int, ...], message: str
) -> None:
    for inplace in (True, False):
        with pytest.raises(ValueError, match=message):
            csta(inplace=inplace)(torch.zeros(special), torch.zeros(video))


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads expected a divisor of the width 12, got 5"):
        CrossmodalSpaceTimeAttention(WIDTHS, num_heads=(5, 4))
