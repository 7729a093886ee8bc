"""The path to a launch on every kind of card: what `fake_driver` rejects, and a walk over the ops."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl

import hsta_fast
from hsta_fast import extension
from tests.forked import Forked

from .fake_driver import CARDS, Launch, fake_driver
from .walk import CAPABILITIES, QUICK, walk


def apart(cache: Path, code: str) -> str:
    """The output of `code` in a separate process, where @triton.jit compiles instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = Forked(code, environment=environment | {"TRITON_CACHE_DIR": str(cache)})
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def call_apart(cache: Path, function: Callable[[], None]) -> None:
    """Call a top-level function of a module in such a process."""
    module, name = function.__module__, function.__name__
    apart(cache, f"import {module}; {module}.{name}()")


def walk_apart(cache: Path, *options: str) -> str:
    """The output of the walk in such a process."""
    return apart(cache, f"import sys; from tests.kernels import walk; sys.argv += {options}; walk.main()")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the processes of these tests share."""
    return tmp_path_factory.mktemp("triton")


def test_a_few_cases_of_every_kernel(cache: Path) -> None:
    assert "0 faults" in walk_apart(cache, "--quick")


@pytest.mark.full
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_case(cache: Path, capability: int) -> None:
    assert "0 faults" in walk_apart(cache, "--capability", str(capability))


@triton.jit
def _total(x_ptr, total_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, BLOCK)
    tl.store(total_ptr, tl.sum(tl.load(x_ptr + places, mask=places < n, other=0.0), 0))


def refusals() -> None:
    """In a separate process: the fake driver rejects what a driver would, and sees each compilation."""
    with fake_driver(90) as seen:
        x = torch.empty(1024, device=seen.device)
        for grid in ((2**31,), (1, 65536), (1, 1, 65536), (0,)):
            with pytest.raises(RuntimeError, match="grid"):
                _total[grid](x, x, 7, BLOCK=128)
        for elsewhere in (torch.empty(1), torch.empty(1, device="cuda:0")):
            with pytest.raises(RuntimeError, match=f"a tensor on {elsewhere.device}"):
                _total[(1,)](x, elsewhere, 7, BLOCK=128)
        assert len(seen.compiled) == 1 and seen.launches == []
        _total[(2, 3)](x, x, 9, BLOCK=128)
        [launch] = seen.launches
        assert (launch.kernel, launch.grid, launch.threads) == ("_total", (2, 3, 1), 128)
        assert 0 < launch.registers <= 255 and launch.shared > 0 and len(seen.compiled) == 1
        for n in (1, 16):  # values that Triton specialises on: 1, a multiple of 16
            _total[(1,)](x, x, n, BLOCK=128)
        assert len(seen.compiled) == 3
        _total[(1,)](x.narrow(0, 1, 64), x, 9, BLOCK=128)  # a misaligned address
        assert len(seen.compiled) == 4
        with torch.cuda.device(0):
            assert torch.cuda.get_device_properties().name == CARDS[70].name
        assert torch.cuda.get_device_capability() == (9, 0)
    with fake_driver(90, shared=launch.shared - 1) as seen:
        with pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
            _total[(1,)](x, x, 9, BLOCK=128)
        assert seen.launches == []
    assert not torch.cuda.is_available() or torch.cuda.device_count() != len(CARDS)


def test_what_a_driver_refuses(cache: Path) -> None:
    call_apart(cache, refusals)


def test_limits_of_a_block() -> None:
    fine = Launch(kernel="k", grid=(1, 1, 1), threads=256, shared=99 * 1024, registers=255, stack=0)
    assert fine.faults(CARDS[86]) == []
    assert "threads 512 above 256" in replace(fine, threads=512).faults(CARDS[86])
    assert "threads 1056 above 1024" in replace(fine, threads=1056, registers=32).faults(CARDS[86])
    assert "shared memory 101377 above 101376" in replace(fine, shared=101377).faults(CARDS[86])


def too_little() -> None:
    """In a separate process: a walk on a card with 8 KiB finds faults in every case."""
    for case in QUICK:
        card = replace(CARDS[case.capability], shared_memory_per_block_optin=8 * 1024)
        with mock.patch.dict(CARDS, {case.capability: card}):
            assert walk(case).faults


def test_a_walk_finds_faults(cache: Path) -> None:
    call_apart(cache, too_little)


def too_large() -> None:
    """In a separate process: on a card with too little shared memory smaller tiles run, with one warning."""
    with fake_driver(90, shared=60 * 1024) as seen:
        qkv = torch.empty(2, 589, 3, 12, 64, device=seen.device, dtype=torch.bfloat16)
        with pytest.warns(UserWarning, match="fwd, D=64 does not fit NVIDIA H100 80GB HBM3 as configured"):
            hsta_fast.space_time_attention(qkv)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hsta_fast.space_time_attention(qkv)
        assert len(seen.launches) == 2 and all(launch.shared <= 60 * 1024 for launch in seen.launches)
    with fake_driver(90, shared=8 * 1024) as seen:
        qkv = torch.empty(2, 589, 3, 12, 64, device=seen.device, dtype=torch.bfloat16)
        with pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
            hsta_fast.space_time_attention(qkv)
        assert not seen.launches


def test_what_does_not_fit_runs_smaller(cache: Path) -> None:
    call_apart(cache, too_large)


def float32() -> None:
    """In a separate process: float32 runs on torch's attention, as info() reports, unless impl="triton"."""
    with fake_driver(90) as seen:
        choice = hsta_fast.info(torch.float32)["ops"][str(seen.device)]["space_time_attention"]
        assert choice["impl"] == "torch" and "float32" in choice["reason"]
        qkv = torch.empty(2, 589, 3, 12, 64, device=seen.device)
        hsta_fast.space_time_attention(qkv)
        assert not seen.launches
        hsta_fast.space_time_attention(qkv, impl="triton")
        assert len(seen.launches) == 1
        with torch.autocast("cuda", torch.bfloat16):
            hsta_fast.space_time_attention(qkv)
        assert len(seen.launches) == 2


def test_float32_takes_torch(cache: Path) -> None:
    call_apart(cache, float32)


OLD = (70, 75)


def old_cards() -> None:
    """In a separate process: below 8.0 every op runs on torch and gives the reason.

    Linear layers are torch's on every CUDA device.
    """
    with mock.patch.object(extension, "unsupported_reason", lambda *_: None):
        for capability in OLD:
            with fake_driver(capability) as seen:
                reason = f"compute capability {capability / 10} is below 8.0"
                device = str(seen.device)
                for op, choice in hsta_fast.info()["ops"][device].items():
                    why = "cuda is not a CPU" if op == "linear" else reason
                    assert choice["impl"] == "torch" and why in choice["reason"]
                for dtype in (torch.float16, torch.float32):
                    qkv = torch.empty(2, 589, 3, 12, 64, device=device, dtype=dtype)
                    tokens = torch.empty(2, 589, 768, device=device, dtype=dtype)
                    query = torch.empty(2, 12, 768, device=device, dtype=dtype)
                    hsta_fast.space_time_attention(qkv)
                    hsta_fast.attention_pool(query, tokens)
                    for function, given in (
                        (hsta_fast.space_time_attention, (qkv,)),
                        (hsta_fast.attention_pool, (query, tokens)),
                    ):
                        with pytest.raises(ValueError, match=reason):
                            function(*given, impl="triton")
                video = torch.empty(2, 3, 6, 224, 224, device=device, dtype=torch.uint8)
                weight = torch.empty(768, 3, 2, 16, 16, device=device)
                bias = torch.empty(768, device=device)
                hsta_fast.tubelet_embed(video, weight, bias)
                with pytest.raises(ValueError, match=reason):
                    hsta_fast.tubelet_embed(video, weight, bias, impl="extension")
                assert not seen.launches and not seen.compiled


def test_cards_below_8_take_torch(cache: Path) -> None:
    call_apart(cache, old_cards)
