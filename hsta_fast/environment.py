"""Versions, devices, and which implementation of each op runs on them, and why."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import cpu_speed
from .ops.attention_backends import timed_faster

# From the op's own file: `hsta_fast.ops.attention_pool` is the function.
from .ops.attention_pool import auto_choice as attention_pool_choice
from .ops.cls_cross_attention import auto_choice as cls_cross_attention_choice
from .ops.few_query_attention import auto_choice as few_query_attention_choice
from .ops.int8_linear import auto_choice as int8_linear_choice
from .ops.linear import auto_choice as linear_choice
from .ops.space_time_attention import auto_choice as space_time_attention_choice
from .ops.tubelet_embed import auto_choice as tubelet_embed_choice

_AUTO_CHOICES = {
    "space_time_attention": space_time_attention_choice,
    "attention_pool": attention_pool_choice,
    "cls_cross_attention": cls_cross_attention_choice,
    "few_query_attention": few_query_attention_choice,
    "linear": linear_choice,
    "tubelet_embed": tubelet_embed_choice,
}
_ON_TORCH = "every op runs on torch"
_PACKAGES = ("hsta_fast", "torch", "triton", "numpy", "opencv-python-headless", "scikit-learn")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cuda_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of matrix products on a CUDA or ROCm device under autocast, and the reason."""
    if torch.version.hip is not None:  # capabilities are numbered otherwise there
        return torch.bfloat16, "torch supports bfloat16 on ROCm"
    major = torch.cuda.get_device_properties(device).major
    if major >= 8:
        return torch.bfloat16, "its tensor cores support bfloat16"
    if major == 7:
        return torch.float16, "its tensor cores support float16, not bfloat16"
    return torch.float32, "it has no tensor cores"


def describe_gpu(device: torch.device) -> str:
    """Its name, what it is, and in one line why the kernels do not run there, if they do not."""
    if device.type == "mps":
        return f"Apple's GPU (MPS): {_ON_TORCH}"
    if device.type == "xpu":
        return f"{torch.xpu.get_device_name(device)} (XPU): {_ON_TORCH}"
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is not None:
        return f"{name} (ROCm {torch.version.hip}): {_ON_TORCH}"
    properties = torch.cuda.get_device_properties(device)
    capability = f"{name}, compute capability {properties.major}.{properties.minor}"
    return capability if properties.major >= 8 else f"{capability}, below 8.0: {_ON_TORCH}"


def _gpus() -> list[str]:
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    return found + ["mps"] * torch.backends.mps.is_available()


def info(dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Versions, devices, and for each device which implementation `impl="auto"` chooses for each op, and why.

    Args:
        dtype: of the tensors, or of autocast; None: `cuda_dtype` on CUDA devices and float32 elsewhere.

    Returns:
        {"python": str, "versions": {package: version or None}, "threads": int,
        "devices": {device: description}, "ops": {device: {op: {"impl": str, "reason": str}}},
        "cpu_speed": what `hsta_fast.cpu_speed` measured, or None where no product has asked yet}
    """
    devices = {
        "cpu": f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    }
    devices |= {name: describe_gpu(torch.device(name)) for name in _gpus()}
    ops, speed = {}, cpu_speed.known()
    for name in devices:
        device = torch.device(name)
        usual = cuda_dtype(device)[0] if device.type == "cuda" else torch.float32
        choices = {op: auto_choice(device, dtype or usual) for op, auto_choice in _AUTO_CHOICES.items()}
        attention = choices["space_time_attention"]
        if attention.impl == "triton":
            timed = attention.reason + timed_faster(device)
            choices["space_time_attention"] = attention._replace(reason=timed)
        if device.type == "cpu":
            choices["int8_linear"] = int8_linear_choice()
        ops[name] = {op: choice._asdict() for op, choice in choices.items()}
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "threads": torch.get_num_threads(),
        "devices": devices,
        "ops": ops,
        "cpu_speed": None if speed is None else speed.to_json(),
    }


def info_text(dtype: torch.dtype | None = None) -> str:
    """`info(dtype)` as aligned lines of text."""
    facts = info(dtype)
    lines = [f"python {facts['python']}, {facts['threads']} threads"]
    lines += [f"{package:24s} {found or 'not installed'}" for package, found in facts["versions"].items()]
    for device, description in facts["devices"].items():
        lines.append(f"\n{device}: {description}")
        for op, choice in facts["ops"][device].items():
            lines.append(f"  {op:22s} {choice['impl']:10s} {choice['reason']}")
    if facts["cpu_speed"] is not None:
        lines.append(f"\n{cpu_speed.describe(facts['cpu_speed'])}")
    return "\n".join(lines)
