"""Layers for Hugging Face's `kernels`, put into modules by its `kernelize` from a local repository."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import hsta_fast
from hsta_fast.adapters.hub_kernels import write_repository

# In a process of its own: beside the tests lies a folder `kernels`, of ours, which hides the library's.
SCRIPT = """
import copy, socket, sys
from pathlib import Path

def no_network(*args, **kwargs):
    raise AssertionError("a connection")

socket.socket.connect = no_network
import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_forward_from_hub, use_kernel_mapping
from torch import nn
from hsta_fast import ops
from hsta_fast.adapters import worth

small_shapes_too = worth.always()
small_shapes_too.__enter__()

@use_kernel_forward_from_hub("PatchConv3d")
class Embedding(nn.Conv3d):
    pass

@use_kernel_forward_from_hub("MultiheadAttention")
class Attention(nn.MultiheadAttention):
    pass

class Model(nn.Module):
    def __init__(self, padding=0, **options):
        super().__init__()
        self.embed = Embedding(3, 16, (2, 4, 4), stride=(2, 4, 4), padding=padding)
        self.attn = Attention(16, 4, batch_first=True, **options)
        self.probe = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, video, mask=None):
        x = self.embed(video).flatten(2).transpose(1, 2)
        x = x + self.attn(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.attn(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)[0]

def results(model, *args):
    model.zero_grad()
    out = model(*args)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]

folder = Path(sys.argv[1])
mapping = {
    name: {"cpu": LocalLayerRepository(folder, layer_name=name)}
    for name in ("PatchConv3d", "MultiheadAttention")
}

def check(model, expected_calls, *args):
    model.double()
    ours = copy.deepcopy(model)
    mode = Mode.TRAINING | Mode.TORCH_COMPILE
    with use_kernel_mapping(mapping, inherit_mapping=False):
        assert kernelize(ours, mode=mode, device="cpu", use_fallback=False) is ours
    assert all("forward" in vars(m) for m in (ours.embed, ours.attn))
    assert list(ours.state_dict()) == list(model.state_dict())
    counts = {}
    names = "tubelet_embed", "space_time_attention", "few_query_attention"
    functions = {name: getattr(ops, name) for name in names}
    for name, function in functions.items():
        def counting(*a, name=name, function=function, **k):
            counts[name] = counts.get(name, 0) + 1
            return function(*a, **k)
        setattr(ops, name, counting)
    came = results(ours, video, *args)
    for name, function in functions.items():
        setattr(ops, name, function)
    assert counts == expected_calls, counts
    expected = results(model, video, *args)
    torch.testing.assert_close(came, expected, rtol=1e-10, atol=1e-10)
    return ours, expected

torch.manual_seed(0)
video = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
ours, expected = check(
    Model(), {"space_time_attention": 1, "few_query_attention": 1}
)
compiled = torch.compile(ours, backend="eager", fullgraph=True)
torch.testing.assert_close(results(compiled, video), expected, rtol=1e-10, atol=1e-10)
mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
check(Model(), {"few_query_attention": 1}, mask)
check(Model(padding=(0, 4, 4), add_bias_kv=True), {})
print("the same")
"""


def installed(name: str) -> bool:
    """Not find_spec, which would find the folder beside the tests."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed("kernels"), reason="the library kernels is not installed")
def test_a_model_kernelized_from_a_local_repository(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "hsta_fast").symlink_to(Path(hsta_fast.__file__).parent)
    folder = write_repository(tmp_path / "repository")
    environment = os.environ | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


def test_a_repository_is_written_twice(tmp_path: Path) -> None:
    first = {p: p.read_text() for p in write_repository(tmp_path).rglob("*") if p.is_file()}
    again = {p: p.read_text() for p in write_repository(str(tmp_path)).rglob("*") if p.is_file()}
    assert first == again
    assert len(first) == 4
