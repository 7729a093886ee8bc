"""Every shipped kernel configuration, compiled without a GPU: kernels/report.py."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from hsta_fast.kernels.builds import (
    attention_pool_build,
    of_the_model,
    shipped,
    space_time_attention_build,
)
from hsta_fast.kernels.launch import SHARED, of_capability
from hsta_fast.kernels.report import faults
from hsta_fast.kernels.resources import Resources

WIDTHS = 4
# Two dtypes with three kernels; float32 in three precisions, "bf16x6" at D = 64 and 128 with four kernels.
ATTENTION = WIDTHS * (2 * 3 + 3 * 3) + 2
# Per width: seven builds in one step (the backward twice), four in two steps; "ieee" only with products.
# In 16 bits, two widths have two builds more for tokens that are not normalised.
POOLS = 3 * (3 * (7 + 4) + 8) + 2 * 2 * 2
SHIPPED = ATTENTION + POOLS
# Two widths with three kernels, seven in float32; pools in bfloat16.
MODEL = 2 * 3 + 7 + 2 * (7 + 4)
FINE = Resources(registers=128, spills=0, spills_outside=0, shared=0, ctas=4, wgmma=True, clocks=())


def check(*options: object) -> str:
    """Run the report in a separate process, where @triton.jit compiles instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hsta_fast.kernels.report", "--check", *map(str, options)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.parametrize("capability", SHARED)
def test_everything_shipped_is_listed(capability: int) -> None:
    builds = list(shipped(capability))
    assert len(builds) == len({build.name for build in builds}) == SHIPPED
    assert len([build for build in builds if of_the_model(build)]) == MODEL


def test_hopper_builds_the_model_without_spills() -> None:
    assert f"{MODEL} kernels built for [90], 0 faults" in check(90, "--model")


@pytest.mark.full
@pytest.mark.parametrize("capability", SHARED)
def test_architectures_build(capability: int) -> None:
    """Each within its own shared memory."""
    assert f"{SHIPPED} kernels built for [{capability}], 0 faults" in check(capability)


@pytest.mark.parametrize("width", [32, 64])
def test_faults_are_seen(width: int) -> None:
    build = space_time_attention_build("dq", width, torch.bfloat16)
    assert faults(build, dataclasses.replace(FINE, spills_outside=2)) == []
    assert "2 spills in loops" in faults(build, dataclasses.replace(FINE, spills=2))[0]
    assert "no wgmma" in faults(build, dataclasses.replace(FINE, wgmma=False))[0]


@pytest.mark.parametrize("kernel", ["fwd", "bwd", "bwd rows", "combine"])
@pytest.mark.parametrize("capability", SHARED)
def test_faults_of_attention_pooling_are_seen(kernel: str, capability: int) -> None:
    build = attention_pool_build(kernel, 768, torch.bfloat16, device=of_capability(capability))
    limit = SHARED[capability]
    assert faults(build, dataclasses.replace(FINE, shared=limit, wgmma=False)) == []
    assert "shared memory" in faults(build, dataclasses.replace(FINE, shared=limit + 1))[0]
    assert bool(faults(build, dataclasses.replace(FINE, spills=2))) == (capability == 90)
