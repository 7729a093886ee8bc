"""HSTA under torch.compile and torch.export: one graph, few graphs over many sizes, the values of eager."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.fx.experimental.proxy_tensor import make_fx

import hsta_fast
from hsta_fast import HSTA


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tiny(**overrides: Any) -> HSTA:
    """A model of the smallest useful size, in float64."""
    torch.manual_seed(0)
    small = {"widths": (12, 16), "num_heads": (3, 4), "num_classes": 5, "num_layers": 1, "n_video": 1}
    return hsta_fast.create_model("hsta_tiny", **{**small, **overrides}).double()


def frames(B: int = 2, T: int = 4, H: int = 32, W: int = 32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    shapes = {"video": (B, 3, T, H, W), "special": (B, 3, 2, H, W)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


class Counting:
    """A backend that counts the graphs that it is given."""

    def __init__(self, backend: str = "eager") -> None:
        self.graphs = 0
        self.compile = lookup_backend(backend)

    def __call__(self, *graph: Any) -> Callable[..., Any]:
        self.graphs += 1
        return self.compile(*graph)


def new_graphs(model: Any, calls: list[dict[str, Tensor]], **options: Any) -> list[int]:
    """How many graphs each call adds; its logits must be those of eager. Anything but one graph raises."""
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend, **options)
    counts = []
    for given in calls:
        before = backend.graphs
        torch.testing.assert_close(compiled(**given), model(**given), rtol=1e-12, atol=1e-12)
        counts.append(backend.graphs - before)
    return counts


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
def test_one_graph(mode: str) -> None:
    with MODES[mode]():
        assert new_graphs(tiny(), [frames()] * 3) == [1, 0, 0]


SIZES = [
    {"B": 5, "T": 4, "H": 32, "W": 36},
    {"B": 3, "T": 6, "H": 44, "W": 32},
    {"B": 2, "T": 22, "H": 50, "W": 41},
    {"B": 6, "T": 2, "H": 33, "W": 70},
]


def test_two_graphs_for_all_sizes() -> None:
    """One for the sizes of the first call, one for any."""
    assert new_graphs(tiny(), [frames(**size) for size in SIZES]) == [1, 1, 0, 0]


def test_two_graphs_for_all_batches() -> None:
    assert new_graphs(tiny(), [frames(B=B) for B in (1, 2, 3, 4, 5, 6)]) == [1, 1, 0, 0, 0, 0]


def test_one_graph_for_all_sizes_if_dynamic_from_the_start() -> None:
    """Sizes equal at first stay equal to torch: not if B were 2 or 3, like special frames and channels."""
    assert new_graphs(tiny(), [frames(**size) for size in SIZES], dynamic=True) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("overrides", "inputs"),
    [({"head": "cls+last", "n_video": 0}, ()), ({"branches": ("video",)}, ("video",))],
)
def test_other_models_of_bytes(overrides: dict[str, object], inputs: tuple[str, ...]) -> None:
    """Without a layer in a branch; of one branch."""
    calls = []
    for B in (4, 4, 5, 6):
        given = {name: (50 * x + 128).clamp(0, 255).to(torch.uint8) for name, x in frames(B=B).items()}
        calls.append({name: given[name] for name in inputs or given})
    assert new_graphs(tiny(**overrides), calls) == [1, 0, 1, 0]


def test_the_published_packing() -> None:
    calls = [{"video": frames(T=T + 2)["video"]} for T in (4, 6, 8, 22)]
    assert new_graphs(tiny(), calls) == [1, 1, 0, 0]


def test_dropout_under_autocast() -> None:
    """The draws are those of eager, for one seed."""
    model = tiny(dropout=0.3, drop_path=0.2, n_video=2).float().train()
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    given = {name: x.float() for name, x in frames().items()}
    logits = []
    for function in (compiled, model):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(function(**given))
    assert backend.graphs == 1 and torch.equal(*logits)


def calls_of(program: torch.export.ExportedProgram) -> list[Any]:
    """The operations of a program, also those of the graphs inside it."""
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    return [node for node in nodes if isinstance(node.target, torch._ops.OpOverload)]


@pytest.mark.parametrize(("strict", "overrides"), [(False, {}), (True, {"head": "mean", "csta": False})])
def test_exported_with_any_batch(strict: bool, overrides: dict[str, object], tmp_path: Path) -> None:
    model, batch = tiny(**overrides).eval(), torch.export.Dim("B")
    given = frames(B=4)
    sizes = {name: {0: batch} for name in given}
    program = torch.export.export(model, (), given, dynamic_shapes=sizes, strict=strict)
    assert "hsta_fast" not in {node.target.namespace for node in calls_of(program)}
    torch.export.save(program, tmp_path / "model.pt2")
    for run in (program, torch.export.load(tmp_path / "model.pt2")):
        for B in (1, 7):
            torch.testing.assert_close(
                run.module()(**frames(B=B)), model(**frames(B=B)), rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("strict", [False, True])
def test_each_exported_op_is_made_of_torchs_own(strict: bool) -> None:
    """Whatever runs here otherwise, in the forward and with a gradient asked for."""

    class Ops(torch.nn.Module):
        def forward(self, video: Tensor, weight: Tensor, tokens: Tensor, vector: Tensor) -> Tensor:
            qkv = tokens.view(2, -1, 3, 2, 4)
            pooled, weights = hsta_fast.attention_pool(tokens[0, :2], tokens, return_weights=True)
            embedded = hsta_fast.tubelet_embed(video, weight, vector, mean=(0.5,) * 3, std=(0.5,) * 3)
            sums = hsta_fast.space_time_attention(qkv).sum() + pooled.sum() + weights.square().sum()
            sums = sums + hsta_fast.space_time_attention(*qkv.unbind(2)).sum() + embedded.sum()
            matrix = tokens[0, :24]
            vectors = dict.fromkeys(("norm_weight", "norm_bias", "q_bias", "k_bias", "v_bias"), vector)
            weights = dict.fromkeys(("q_weight", "k_weight", "v_weight"), matrix)
            given: dict[str, Any] = {**vectors, **weights, "num_heads": 3}
            attended = hsta_fast.cls_cross_attention(tokens[:, 0], tokens, **given)
            return sums + attended.sum()

    torch.manual_seed(0)
    video = torch.randint(0, 256, (2, 3, 2, 16, 16), dtype=torch.uint8)
    given = (video, torch.randn(24, 3, 2, 8, 8), torch.randn(2, 30, 24), torch.randn(24).requires_grad_())
    program = torch.export.export(Ops(), given, strict=strict)
    assert "hsta_fast" not in {node.target.namespace for node in calls_of(program)}
    torch.testing.assert_close(program.module()(*given), Ops()(*given))


@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
def test_traced_with_any_batch(tracing_mode: Literal["fake", "symbolic"]) -> None:
    """By make_fx, in whose modes the states are not changed in place."""
    model, given = tiny().requires_grad_(False), frames(B=4)
    graph = make_fx(model, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*given.values())
    for B in (4, *((7,) if tracing_mode == "symbolic" else ())):
        given = frames(B=B)
        torch.testing.assert_close(graph(*given.values()), model(**given), rtol=1e-12, atol=1e-12)


def test_torchscript_names_export() -> None:
    model, given = tiny(), frames()
    with pytest.raises(RuntimeError, match=r"^HSTA expected torch.export.export, .*, got torch.jit.trace$"):
        torch.jit.trace(model, tuple(given.values()))
    with pytest.raises(RuntimeError, match=r"^HSTA expected torch.export.export, .*, got torch.jit.script$"):
        torch.jit.script(model)


def test_logits_and_gradients_with_the_ops_in_the_graph() -> None:
    """Compiled in training, with the states of a forward hook as they were."""
    model, given = tiny(), frames()
    kept: list[Tensor] = []
    last = model.get_submodule("blocks.0.blocks.1.0")
    last.register_forward_hook(lambda _, __, out: kept.append(out))
    results = []
    for function in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        logits = function(**given)
        logits.square().sum().backward()
        results.append([logits, kept.pop(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for came, want in zip(*results, strict=True):
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


def test_per_sample_gradients_of_the_model() -> None:
    model, given = tiny(), frames()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], *clip: Tensor) -> Tensor:
        one = tuple(x.unsqueeze(0) for x in clip)
        return torch.func.functional_call(model, parameters, one).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, *given.values())
    for i in range(2):
        model.zero_grad()
        model(**{name: x[i : i + 1] for name, x in given.items()}).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(of_each[name][i], parameter.grad, rtol=1e-11, atol=1e-11)


def test_a_default_device_changes_nothing() -> None:
    model, given = tiny(), frames()
    torch.set_default_device("meta")
    try:
        logits = model(**given)
    finally:
        torch.set_default_device(None)
    assert torch.equal(logits, tiny()(**given))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_graph_under_a_default_device(device: str) -> None:
    model, calls = tiny(), [frames(B=B) for B in (2, 4, 5)]
    with torch.device(device):
        assert new_graphs(model, calls) == [1, 1, 0]
