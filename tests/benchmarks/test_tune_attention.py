"""Torch's backends are timed beside our kernels, on the CPU and interpreted, and `auto` takes the fastest."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hsta_fast
from benchmarks import tune, tune_attention
from hsta_fast.kernels import launch
from hsta_fast.kernels.launch import SHARED, TORCH_AND_TRITON, TRITON, Device
from hsta_fast.ops.attention_backends import timed_backend, timed_faster
from hsta_fast.ops.choice import Choice

CARD = Device("NVIDIA Test Card", 90, 2, SHARED[90])
CPU = torch.device("cpu")
# `hsta_fast.ops.space_time_attention` is the function.
op = importlib.import_module("hsta_fast.ops.space_time_attention")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The device's file; this machine is that device, and `auto` is Triton where no table says otherwise."""
    monkeypatch.setattr(launch, "TUNED", tmp_path)
    monkeypatch.setattr(launch, "device_of", lambda device: CARD)
    monkeypatch.setattr(tune_attention, "HEADS", 2)
    monkeypatch.setattr(op, "auto_choice", lambda *of: Choice("triton", "fused kernels"))
    launch.fastest_attention.cache_clear()
    yield tmp_path / "nvidia-test-card.json"
    launch.fastest_attention.cache_clear()


def write(file: Path, **timed: dict[str, str]) -> None:
    table = {key.replace("_", " "): value for key, value in timed.items()}
    file.write_text(json.dumps({"device": CARD.name, "triton": {}, "attention": {TORCH_AND_TRITON: table}}))
    launch.fastest_attention.cache_clear()


def qkv(length: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, length, 3, 2, 16, generator=generator).bfloat16()


def flash(x: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in x.unbind(2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def test_backends_are_timed_and_the_fastest_is_taken(file: Path) -> None:
    """On the CPU torch has the flash backend alone, and interpreted kernels are slow."""
    before = {"device": CARD.name, "triton": {TRITON: {"a": 1}}, "milliseconds": {TRITON: {"a": {}}}}
    file.write_text(json.dumps(before))
    notes: dict[str, dict[str, Any]] = {}
    found = tune_attention.time_backends(
        CARD.name,
        time.monotonic() + 600,
        seconds_of=tune.seconds_of,
        alike=tune.alike,
        note=lambda case, **facts: notes.update({case: facts}),
        shapes=[(16, 1, 20)],
        place="cpu",
    )
    assert found == {"forward 16": {"20": "flash"}, "training 16": {"20": "flash"}}
    held = json.loads(file.read_text())
    assert held["triton"] == before["triton"] and held["milliseconds"][TRITON] == {"a": {}}
    assert held["attention"] == {TORCH_AND_TRITON: found}
    note = notes["attention training D 16 N 20"]
    assert note["fastest"] == "flash" and note["all"].keys() == {"triton", "flash"}
    assert note["all"]["flash"] < note["all"]["triton"] and "cudnn" in note and "efficient" in note
    x = qkv()
    assert torch.equal(hsta_fast.space_time_attention(x), flash(x))
    assert not torch.equal(hsta_fast.space_time_attention(x, impl="triton"), flash(x))


def test_no_time_is_left_and_results_that_differ(file: Path) -> None:
    notes: dict[str, dict[str, Any]] = {}

    def timed(until: float, alike: Any) -> dict[str, dict[str, str]]:
        return tune_attention.time_backends(
            CARD.name,
            until,
            seconds_of=tune.seconds_of,
            alike=alike,
            note=lambda case, **facts: notes.update({case: facts}),
            shapes=[(16, 1, 8)],
            place="cpu",
        )

    assert timed(0.0, tune.alike) == {} and not file.exists()
    assert notes["attention forward D 16 N 8"] == {"skipped": "no time left"}
    assert timed(time.monotonic() + 600, lambda *_: False)["forward 16"] == {"8": "triton"}
    assert notes["attention forward D 16 N 8"]["flash"] == "its results differ"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"triton": 1.0, "cudnn": 0.98}, "triton"),
        ({"triton": 1.0, "cudnn": 0.9, "flash": 0.8}, "flash"),
        ({"triton": 1.0}, "triton"),
    ],
)
def test_a_backend_must_be_clearly_faster(times: dict[str, float], expected: str) -> None:
    assert tune_attention.fastest(times) == expected


def test_the_nearest_length_and_the_direction_decide(file: Path) -> None:
    """589 and 1569 meet at 961, by ratio."""
    write(
        file,
        forward_64={"589": "triton", "1569": "cudnn", "6273": "flash", "99999": "a future one"},
        training_32={"325": "efficient"},
    )
    lengths = (1, 961, 962, 1569, 4000, 6273, 10**6)
    of_length = [timed_backend(CPU, 64, length, needs_grad=False) for length in lengths]
    assert of_length == [None, None, "cudnn", "cudnn", "flash", "flash", None]
    assert timed_backend(CPU, 64, 1569, needs_grad=True) is None
    assert timed_backend(CPU, 32, 1, needs_grad=True) == "efficient"
    assert timed_faster(CPU) == (
        "; torch's where timed faster: cudnn at D 64, N 1569, forward, flash at D 64, N 6273, forward, "
        "efficient at D 32, N 325, training"
    )


def test_without_a_file_or_with_an_older_or_a_damaged_one(file: Path) -> None:
    assert timed_backend(CPU, 64, 589, needs_grad=False) is None and timed_faster(CPU) == ""
    for text in (
        json.dumps({"device": CARD.name, "triton": {TRITON: {}}}),
        json.dumps({"attention": {"torch 1.0, Triton 2.0": {"forward 64": {"589": "cudnn"}}}}),
    ):
        file.write_text(text)
        launch.fastest_attention.cache_clear()
        assert timed_backend(CPU, 64, 589, needs_grad=False) is None
    for table in ('{"forward 64": {"long": "cudnn"}}', '{"forward 64": []}', "[]", "{"):
        file.write_text(f'{{"attention": {{"{TORCH_AND_TRITON}": {table}}}}}')
        launch.fastest_attention.cache_clear()
        with pytest.warns(UserWarning, match="expected a table of attention .*: ignored; tune again"):
            assert timed_backend(CPU, 64, 589, needs_grad=False) is None


def test_gradients_and_one_graph(file: Path) -> None:
    """Torch's order of backends comes back, and another one runs where the forced one cannot."""
    write(file, training_16={"20": "cudnn"}, forward_16={"20": "flash"})
    x, dout = qkv(), qkv()[:, :, 0]
    gradients = []
    for function in (hsta_fast.space_time_attention, flash):
        leaf = x.clone().requires_grad_()
        function(leaf).backward(dout)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
    assert torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.cudnn_sdp_enabled()
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(hsta_fast.space_time_attention, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), flash(x))
    q, k, v = x.unbind(2)
    own = hsta_fast.space_time_attention(x, impl="triton")  # the table is about the packed projection
    assert torch.equal(hsta_fast.space_time_attention(q, k, v), own)
