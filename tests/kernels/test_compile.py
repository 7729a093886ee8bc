"""Every shipped kernel configuration, compiled without a GPU: kernels/report.py."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from hsta_fast.kernels.builds import attention_pool_build, shipped, space_time_attention_build
from hsta_fast.kernels.report import faults
from hsta_fast.kernels.resources import Resources

WIDTHS, KERNELS, DTYPES = 4, 3, 4  # float32 twice: "ieee" and "tf32"
# Widths, kernels (in one step seven, the backward twice; in two steps four), dtypes; with one buffer fewer.
POOLS = 3 * (7 + 4) * 3 + 3 * 5
SHIPPED = WIDTHS * KERNELS * DTYPES + POOLS


def check(*capabilities: int) -> str:
    """In a process of its own, where @triton.jit compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hsta_fast.kernels.report", "--check", *map(str, capabilities)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_everything_shipped_is_listed() -> None:
    names = [build.name for build in shipped()]
    assert len(names) == len(set(names)) == SHIPPED


def test_hopper_builds_without_spills() -> None:
    assert f"{SHIPPED} kernels built for [90], 0 faults" in check(90)


@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 100, 120])
def test_other_architectures_build(capability: int) -> None:
    assert f"{SHIPPED} kernels built for [{capability}], 0 faults" in check(capability)


@pytest.mark.parametrize("width", [32, 64])
def test_faults_are_seen(width: int) -> None:
    build = space_time_attention_build("dq", width, torch.bfloat16)
    fine = Resources(registers=128, spills=0, shared=0, ctas=4, wgmma=True, clocks=())
    assert faults(build, fine) == []
    assert "2 spills" in faults(build, dataclasses.replace(fine, spills=2))[0]
    assert "no wgmma" in faults(build, dataclasses.replace(fine, wgmma=False))[0]


@pytest.mark.parametrize("kernel", ["fwd", "bwd", "bwd rows", "combine"])
def test_faults_of_attention_pooling_are_seen(kernel: str) -> None:
    build = attention_pool_build(kernel, 768, torch.bfloat16)
    fine = Resources(registers=128, spills=0, shared=build.limit, ctas=2, wgmma=False, clocks=())
    assert faults(build, fine) == []
    assert "2 spills" in faults(build, dataclasses.replace(fine, spills=2))[0]
    assert "shared memory" in faults(build, dataclasses.replace(fine, shared=build.limit + 1))[0]
