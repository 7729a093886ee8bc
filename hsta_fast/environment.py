"""Versions, devices, and which implementation of each op runs on them, and why."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import cpu_speed

# From the op's own file: `hsta_fast.ops.attention_pool` is the function.
from .ops.attention_pool import auto_choice as attention_pool_choice
from .ops.cls_cross_attention import auto_choice as cls_cross_attention_choice
from .ops.linear import auto_choice as linear_choice
from .ops.space_time_attention import auto_choice as space_time_attention_choice
from .ops.tubelet_embed import auto_choice as tubelet_embed_choice

_AUTO_CHOICES = {
    "space_time_attention": space_time_attention_choice,
    "attention_pool": attention_pool_choice,
    "cls_cross_attention": cls_cross_attention_choice,
    "linear": linear_choice,
    "tubelet_embed": tubelet_embed_choice,
}
_PACKAGES = ("hsta_fast", "torch", "triton", "numpy", "opencv-python-headless", "scikit-learn")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cuda_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of matrix products on a CUDA device under autocast, and the reason."""
    major = torch.cuda.get_device_properties(device).major
    if major >= 8:
        return torch.bfloat16, "its tensor cores support bfloat16"
    if major == 7:
        return torch.float16, "its tensor cores support float16, not bfloat16"
    return torch.float32, "it has no tensor cores"


def info(dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Versions, devices, and for each device which implementation `impl="auto"` chooses for each op, and why.

    Args:
        dtype: of the tensors, or of autocast; None: `cuda_dtype` on CUDA devices and float32 on the CPU.

    Returns:
        {"python": str, "versions": {package: version or None}, "threads": int,
        "devices": {device: description}, "ops": {device: {op: {"impl": str, "reason": str}}},
        "cpu_speed": what `hsta_fast.cpu_speed` measured, or None where no product has asked yet}
    """
    devices = {
        "cpu": f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    }
    for i in range(torch.cuda.device_count()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(i)))
        devices[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, compute capability {capability}"
    ops, speed = {}, cpu_speed.known()
    for name in devices:
        device = torch.device(name)
        usual = cuda_dtype(device)[0] if device.type == "cuda" else torch.float32
        choices = {op: auto_choice(device, dtype or usual) for op, auto_choice in _AUTO_CHOICES.items()}
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
