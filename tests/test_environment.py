"""Devices that the kernels do not support: every op is torch's, said in one line, and no more is asked."""

from typing import Any

import pytest
import torch

import hsta_fast
from hsta_fast import environment
from hsta_fast.environment import cuda_dtype, describe_gpu

HALF, FLOAT = torch.bfloat16, torch.float32


def refuse(*_: object) -> Any:
    raise AssertionError("asked of a device that cannot answer")


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ROCm build of torch with one device; capabilities there are not CUDA's, and are not asked for."""
    monkeypatch.setattr(torch.version, "hip", "6.4", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AMD Instinct MI300X")
    for name in ("get_device_properties", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, name, refuse)


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize("device", ["mps", "xpu:0", "hpu"])
def test_other_devices_run_on_torch(device: str, dtype: torch.dtype) -> None:
    for op, auto_choice in environment._AUTO_CHOICES.items():
        choice = auto_choice(torch.device(device), dtype)
        assert choice.impl == "torch" and choice.reason, op


def test_rocm(rocm: None) -> None:
    facts = hsta_fast.info()
    assert facts["devices"]["cuda:0"] == "AMD Instinct MI300X (ROCm 6.4): every op runs on torch"
    assert {choice["impl"] for choice in facts["ops"]["cuda:0"].values()} == {"torch"}
    assert cuda_dtype(torch.device("cuda:0")) == (HALF, "torch supports bfloat16 on ROCm")
    for dtype in (HALF, FLOAT):
        for auto_choice in environment._AUTO_CHOICES.values():
            assert auto_choice(torch.device("cuda:0"), dtype).impl == "torch"


def test_apple_and_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Intel Data Center GPU Max 1550")
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    facts = hsta_fast.info()
    assert facts["devices"]["mps"] == "Apple's GPU (MPS): every op runs on torch"
    assert facts["devices"]["xpu:0"] == "Intel Data Center GPU Max 1550 (XPU): every op runs on torch"
    for device in ("mps", "xpu:0"):
        assert {choice["impl"] for choice in facts["ops"][device].values()} == {"torch"}
    text = environment.info_text()
    assert "\nmps: Apple's GPU (MPS): every op runs on torch\n" in text


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), "A card, compute capability 7.5, below 8.0: every op runs on torch"),
        ((9, 0), "A card, compute capability 9.0"),
    ],
)
def test_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    card = type("Card", (), {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert describe_gpu(torch.device("cuda:0")) == expected
