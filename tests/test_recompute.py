"""What is computed again in the backward changes no number, whatever else the model does."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.compilers import nop
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

import hsta_fast
from hsta_fast import HSTA, HSTAConfig, set_memory
from hsta_fast.crossmodal import CrossmodalSpaceTimeAttention
from hsta_fast.layers import USTA
from hsta_fast.recompute import Memory, _is_kept

RECOMPUTING: list[Memory] = ["balanced", "small"]
SIZES: dict[str, Any] = {"num_classes": 3, "widths": (16, 24), "num_heads": (2, 2), "patch_sizes": (8, 8)}


def frames(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "video": torch.randn(3, 3, 4, 16, 16, dtype=dtype),
        "special": torch.randn(3, 3, 2, 16, 16, dtype=dtype),
    }


def step(model: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients with the same draws of dropout; 16 bits by autocast."""
    exact = dtype == torch.float64
    torch.manual_seed(2)
    with nullcontext() if exact else torch.autocast("cpu", dtype):
        logits = model(**frames(torch.float64 if exact else torch.float32))
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients


def check_equal(model: nn.Module, memory: Memory, dtype: torch.dtype = torch.float64) -> None:
    set_memory(model, "fast")
    logits, gradients = step(model, dtype)
    set_memory(model, memory)
    again, of_again = step(model, dtype)
    assert torch.equal(again, logits)
    assert of_again.keys() == gradients.keys() and len(gradients) == len(list(model.parameters()))
    for name, gradient in gradients.items():
        assert torch.equal(of_again[name], gradient), name


@pytest.mark.parametrize("memory", RECOMPUTING)
@pytest.mark.parametrize(("n_special", "n_video"), [(1, 2), (0, 1), (2, 0)])
def test_gradients_where_csta_overwrites_the_states(memory: Memory, n_special: int, n_video: int) -> None:
    """Dropout and dropped paths too: their draws are repeated. A block's input is a state of CSTA."""
    config = HSTAConfig(
        **SIZES, num_layers=2, n_special=n_special, n_video=n_video, dropout=0.1, drop_path=0.3
    )
    model = HSTA(config).double()
    assert all(csta.writes_into_states() for csta in all_csta(model))
    check_equal(model, memory)
    model.eval()
    check_equal(model, memory)


def all_csta(model: nn.Module) -> list[CrossmodalSpaceTimeAttention]:
    return [module for module in model.modules() if isinstance(module, CrossmodalSpaceTimeAttention)]


@pytest.mark.parametrize("memory", RECOMPUTING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast(memory: Memory, dtype: torch.dtype) -> None:
    check_equal(HSTA(HSTAConfig(**SIZES, num_layers=1, dropout=0.1)), memory, dtype)


class Counting(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("impl", "attention"),
    [
        ("torch", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("triton", "hsta_fast::space_time_attention"),
    ],
)
def test_what_the_backward_computes_again(impl: str, attention: str) -> None:
    """No attention; of the products none, or those of q, k and v, proj and fc1; norms and GELU always."""
    if impl == "triton":
        pytest.importorskip("triton")
    dtype = torch.bfloat16 if impl == "torch" else torch.float32
    counted: dict[str, dict[str, int]] = {}
    for memory in ("fast", *RECOMPUTING):
        torch.manual_seed(0)
        block = USTA(24, num_heads=2).to(dtype)
        block.attn.impl = impl
        set_memory(block, memory)
        out = block(torch.randn(2, 9, 24, dtype=dtype, requires_grad=True))
        with Counting() as counting:
            out.float().sum().backward()
        counted[memory] = counting.calls
        assert attention not in counting.calls
    more = {
        memory: {
            name: n - counted["fast"].get(name, 0)
            for name, n in counted[memory].items()
            if name in ("aten::addmm", "aten::mm", "aten::native_layer_norm", "aten::gelu")
        }
        for memory in RECOMPUTING
    }
    assert {name: n for name, n in more["balanced"].items() if n} == {
        "aten::native_layer_norm": 2,
        "aten::gelu": 1,
    }
    assert {name: n for name, n in more["small"].items() if n} == {
        "aten::native_layer_norm": 2,
        "aten::gelu": 1,
        "aten::addmm": 3,
    }


@pytest.mark.parametrize(("memory", "kept"), [("balanced", 10), ("small", 2)])
def test_compiled_as_one_graph(memory: Memory, kept: int) -> None:
    """The compiled forward hands on to the backward what the eager one keeps, besides its own input."""
    torch.manual_seed(0)
    block = USTA(24, num_heads=2).double()
    x = torch.randn(2, 200, 24, dtype=torch.float64, requires_grad=True)
    block(x).square().sum().backward()
    expected = [x.grad, *(p.grad for p in block.parameters())]
    x.grad = None
    block.zero_grad()
    handed_on = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        [results] = graph.graph.find_nodes(op="output")
        tensors = [node.meta["val"] for node in results.args[0] if node.op == "call_function"]
        handed_on.append(sum(t.numel() for t in tensors if isinstance(t, Tensor)) / x.numel())
        return make_boxed_func(graph.forward)

    partition = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=count, bw_compiler=nop, partition_fn=partition)
    set_memory(block, memory)
    torch.compile(block, fullgraph=True, backend=backend)(x).square().sum().backward()
    for p, gradient in zip([x, *block.parameters()], expected, strict=True):
        assert p.grad is not None and gradient is not None and (p.grad - gradient).abs().max() < 1e-12
    [of_x] = handed_on
    assert kept <= of_x < kept + 0.2  # its input is not counted, its result is; log-sum-exp


def test_in_data_parallel_training(tmp_path: Path) -> None:
    model = HSTA(HSTAConfig(**SIZES, num_layers=1, dropout=0.1)).double()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        check_equal(nn.parallel.DistributedDataParallel(model), "small")
    finally:
        dist.destroy_process_group()


def test_under_torch_func_nothing_is_computed_again() -> None:
    model = HSTA(HSTAConfig(**SIZES, num_layers=1)).double()
    set_memory(model, "small")
    inputs: dict[str, Any] = dict(frames(torch.float64))
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, kwargs=inputs).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    for name, gradient in step(model)[1].items():
        assert (gradients[name] - gradient).abs().max() < 1e-12, name


def test_an_exported_program_has_plain_operations() -> None:
    block = USTA(24, num_heads=2)
    set_memory(block, "small")
    program = torch.export.export(block, (torch.randn(2, 9, 24),), strict=True)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("heckpoint" in name for name in called) and "aten.gelu.default" in called


def test_a_model_is_saved_and_copied_with_it(tmp_path: Path) -> None:
    model = HSTA(HSTAConfig(**SIZES, num_layers=1))
    set_memory(model, "small")
    hsta_fast.save_model(model, tmp_path / "model.safetensors")
    copied, read = copy.deepcopy(model), hsta_fast.load_model(tmp_path / "model.safetensors")
    kept = [{m.memory for m in x.modules() if isinstance(m, USTA)} for x in (model, copied, read)]
    assert kept == [{"small"}, {"small"}, {"fast"}]


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="^memory expected one of fast, balanced, small, got 'tiny'$"):
        set_memory(USTA(24, num_heads=2), "tiny")  # type: ignore[arg-type]


def test_what_has_no_layers_to_recompute_is_refused_in_one_line() -> None:
    model = HSTA(HSTAConfig(**SIZES, num_layers=1))
    wanted = "^model expected a model with USTA layers to train, such as an HSTA, got "
    cases: list[tuple[Any, str]] = [
        (None, "NoneType|None"),
        ("balanced", "'balanced'"),
        (nn.Linear(2, 2), "Linear without any"),
        (hsta_fast.quantize_int8(model.eval()), "HSTA without any"),
    ]
    for given, got in cases:
        with pytest.raises(ValueError, match=f"{wanted}({got})$"):
            set_memory(given, model if given == "balanced" else "balanced")  # type: ignore[arg-type]
    memory: Any
    for memory, got in (("tiny", "'tiny'"), (model, "HSTA"), (None, "None"), (["fast"], "list")):
        with pytest.raises(ValueError, match=f"^memory expected one of fast, balanced, small, got {got}$"):
            set_memory(model, memory)


@pytest.mark.parametrize(("N", "K", "keep"), [(8, 4, True), (4, 4, True), (4, 8, False)])
def test_products_of_compiled_code_are_kept_as_others(N: int, K: int, keep: bool) -> None:
    x, weight = torch.randn(3, K), torch.randn(N, K)
    ours, torchs = torch.ops.hsta_fast.linear_compiled.default, torch.ops.aten.mm.default
    kept = CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
    assert _is_kept("balanced", None, ours, x, weight, None, False, True) == kept
    assert _is_kept("balanced", None, torchs, x, weight.t()) == kept
