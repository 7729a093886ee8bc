"""Every shipped kernel configuration, to be compiled without a GPU. Add new kernels to `shipped`."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from . import attention_pool as pool
from . import attention_pool_configs as pool_configs
from . import space_time_attention as sta
from .launch import Device, of_capability
from .resources import Build
from .space_time_attention_configs import (
    FLOAT32_PRECISIONS,
    WIDTHS,
    Config,
    backward_kernels,
    config_for,
)

HOPPER = of_capability(90)
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_FLOATS = ("c", "limit", "scale", "eps")
_POOL_WIDTHS = (384, 768, 1024)  # one of each configuration
# Rows, columns, stages, warps and the limit of registers of the variants compared at every width; then those
# with the program's own rows in registers, where they fit: only `wgmma` has the choice.
_Block = tuple[int, int, int, int, int | None]
_ATTENTION_VARIANTS: dict[str, list[_Block]] = {
    "fwd": [(128, 128, 3, 8, None), (64, 128, 3, 4, 168)],
    "dq": [(64, 32, 3, 4, None), (128, 32, 3, 8, 128), (128, 64, 4, 8, 128), (128, 64, 3, 4, None)],
    "dkv": [(64, 32, 3, 4, None), (128, 32, 3, 8, 128)],
}
_HELD_VARIANTS: dict[int, list[_Block]] = {
    64: [(64, 32, 3, 4, 168), (64, 32, 4, 4, 168), (64, 64, 3, 4, None)],
    32: [(64, 32, 3, 4, 128), (64, 64, 3, 4, None), (128, 32, 3, 4, None)],
}
# Tokens, columns, warps and stages of the variants that were compared.
_POOL_VARIANTS = (
    (16, 256, 4, 3),
    (16, 64, 4, 3),
    (16, 256, 4, 1),
    (32, 128, 4, 3),
    (16, 64, 2, 3),
    (16, 256, 8, 3),
    (32, 128, 8, 3),
)
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


_FLOAT32 = ["lse", "delta", "partial", "max", "sum", "mean", "rstd", "remainder", "scores", "weights", "rows"]


def _type(argument: str, dtype: torch.dtype, strides: int = 3) -> Any:
    if argument.endswith("_strides"):
        return ("i32",) * strides
    if argument.endswith("_ptr"):
        return "*fp32" if argument.removesuffix("_ptr") in _FLOAT32 else _TYPES[dtype]
    return "fp32" if argument in _FLOATS else "i32"


def space_time_attention_build(
    kernel: str,
    width: int,
    dtype: torch.dtype,
    config: Config | None = None,
    *,
    precision: str = "ieee",
    device: Device = HOPPER,
) -> Build:
    """One kernel of `sta.JITTED` as launched on the packed projection, whose strides are multiples of 16."""
    config = config or config_for(kernel, sta.padded(width), dtype, precision=precision, device=device)
    function = sta.JITTED[kernel]
    settings = sta.meta(kernel, width, config, precision)
    settings |= {"dk": {"dv_ptr": None}, "dv": {"dk_ptr": None}}.get(kernel, {})
    options = {name: settings.pop(name) for name in _OPTIONS}
    arguments = [name for name in function.arg_names if name not in settings]
    pointers = tuple((name, None) for name in arguments if name.endswith("_ptr"))
    strides = tuple((name, i) for name in arguments if name.endswith("_strides") for i in range(3))
    form = "".join(f", {flag}" for flag in ("frozen", "polynomial", "held") if getattr(config, flag))
    form += f", {precision}" if dtype == torch.float32 else ""
    return Build(
        name=f"space_time_attention {kernel}, D={width}, {str(dtype).removeprefix('torch.')}, "
        f"{config.rows} x {config.cols}, {config.stages} stages, {config.warps} warps"
        f"{f', <= {config.registers} registers' if config.registers else ''}{form}",
        kernel=function,
        signature={name: _type(name, dtype) for name in arguments},
        constants=settings,
        divisible=pointers + strides,
        options=options,
        tile=config.rows * config.cols,
        capability=device.capability,
    )


def attention_pool_build(
    kernel: str,
    width: int,
    dtype: torch.dtype,
    config: pool_configs.Config | None = None,
    *,
    accumulate: bool = False,
    two_steps: bool = False,
    normalize: bool = True,
    precision: str = "bf16x6",
    device: Device = HOPPER,
) -> Build:
    """One kernel of `pool.JITTED` on contiguous tokens after an extra row.

    accumulate: the backward adds to existing gradients.
    normalize: tokens are normalised.
    two_steps: the kernel "sums" computes the sums over rows; for "sums" itself, those of the backward.
    """
    precision = precision if dtype == torch.float32 else "ieee"
    of = "fwd" if kernel == "fwd" else "bwd, two steps" if kernel == "bwd" and two_steps else "bwd"
    config = config or pool_configs.config_for(
        of, width, dtype, normalize=normalize, precision=precision, device=device
    )
    function = pool.JITTED[kernel]
    settings = pool.meta(kernel, width, config, normalize=normalize, precision=precision)
    absent = [] if accumulate else ["accumulate_ptr"]
    absent += [] if normalize else ["mean_ptr", "rstd_ptr"]
    if two_steps:
        absent += ["partial_ptr"] if kernel in ("fwd", "bwd") else []
        absent += ["max_ptr", "sum_ptr"]
    else:
        absent += ["scores_ptr"] + (["weights_ptr"] if kernel == "bwd" else [])
    if dtype != torch.float32 or (kernel in ("fwd", "bwd") and not two_steps):
        absent.append("remainder_ptr")
    settings |= dict.fromkeys(absent)
    options = {name: settings.pop(name) for name in _OPTIONS if name in settings}
    settings = {name: value for name, value in settings.items() if name in function.arg_names}
    arguments = [name for name in function.arg_names if name not in settings]
    strides = tuple((name, i) for name in arguments if name.endswith("_strides") for i in range(2))
    whole = tuple((name, None) for name in arguments if name.endswith(("_ptr", "_stride")))
    looped = kernel in ("fwd", "bwd")
    passes = {"fwd": 1, "bwd": 3 if accumulate else 2}.get(kernel, 0)
    name = f"attention_pool {kernel}, C={width}, {str(dtype).removeprefix('torch.')}"
    if looped:
        name += f", {config.tokens} tokens, {config.slices} x {settings['CHUNK'] // config.slices} columns"
        name += f", {config.stages} stages, {config.warps} warps"
        name += "" if config.hold else ", queries not held"
        name += ", accumulate" if accumulate else ""
        name += ", two steps" if two_steps else ""
        name += "" if normalize else ", not normalised"
    elif kernel == "sums":
        name += ", of the backward" if two_steps else ""
    if "PRECISION" in settings and dtype == torch.float32:
        name += f", {precision}"
    return Build(
        name=name,
        kernel=function,
        signature={name: _type(name, dtype, 2) for name in arguments},
        constants=settings,
        divisible=whole + strides,
        options=options,
        tile=config.tokens if looped else pool_configs.SUMS["TOKENS"] if kernel == "sums" else 16,
        unit=16,
        traffic=passes * config.tokens * width * dtype.itemsize,
        capability=device.capability,
    )


def _attention_pool_shipped(device: Device) -> Iterator[Build]:
    for dtype in _TYPES:
        precisions = pool.PRECISIONS if dtype == torch.float32 else ("ieee",)
        for width in _POOL_WIDTHS:
            for precision in precisions:
                build = partial(attention_pool_build, precision=precision, device=device)
                for kernel in pool.JITTED:
                    if kernel in ("fwd", "sums", "bwd") or precision == precisions[0]:
                        yield build(kernel, width, dtype)
                yield build("bwd", width, dtype, accumulate=True)
                for kernel in ("fwd", "sums", "bwd"):
                    yield build(kernel, width, dtype, two_steps=True)
                yield build("bwd", width, dtype, accumulate=True, two_steps=True)
                if dtype != torch.float32 and width > 384:
                    yield build("fwd", width, dtype, normalize=False)
                    yield build("bwd", width, dtype, normalize=False)


def shipped(capability: int = 90) -> Iterator[Build]:
    """Every configuration that a launcher can choose without tuning for this compute capability."""
    device = of_capability(capability)
    for dtype in _TYPES:
        for width in WIDTHS:
            for precision in FLOAT32_PRECISIONS if dtype == torch.float32 else ("ieee",):
                for kernel in ("fwd", *backward_kernels(width, precision)):
                    yield space_time_attention_build(kernel, width, dtype, precision=precision, device=device)
    yield from _attention_pool_shipped(device)


def of_the_model(build: Build) -> bool:
    """Whether it has a width of HSTA, in bfloat16, or is float32 attention under torch's default setting.

    HSTA pools tokens that it normalises.
    """
    if build.constants.get("NORMALIZE") is False:
        return False
    at_width = bool({32, 64, 384, 768} & {build.constants.get(name) for name in ("D", "C")})
    in_parts = "D" in build.constants and build.constants["PRECISION"] == "bf16x6"
    return at_width and ("*bf16" in build.signature.values() or in_parts)


def attention_variants(kernel: str, width: int, device: Device = HOPPER) -> list[Config]:
    """The shipped 16-bit configuration and the variants compared with it; for the forward, in all forms."""
    blocks = [(64, 64, 3, 4, None), (64, 64, 3, 4, 168), (128, 64, 3, 8, None), (128, 64, 3, 8, 128)]
    forms = [(False, False), (True, False), (True, True)] if kernel == "fwd" else [(False, False)]
    tried = [
        Config(
            rows=rows,
            cols=cols,
            stages=stages,
            warps=warps,
            registers=registers,
            frozen=frozen,
            polynomial=polynomial,
        )
        for rows, cols, stages, warps, registers in blocks + _ATTENTION_VARIANTS[kernel]
        for frozen, polynomial in forms
    ]
    held = _HELD_VARIANTS.get(width, []) if kernel == "dkv" and device.capability == 90 else []
    tried += [
        Config(rows=rows, cols=cols, stages=stages, warps=warps, registers=registers, held=True)
        for rows, cols, stages, warps, registers in held
    ]
    return list(dict.fromkeys([config_for(kernel, width, torch.bfloat16, device=device), *tried]))


def pool_variants(kernel: str, width: int, device: Device = HOPPER) -> list[pool_configs.Config]:
    """The same for attention pooling's "fwd", "bwd" and "bwd, two steps"."""
    shipped = pool_configs.config_for(kernel, width, torch.bfloat16, device=device)
    tried = [
        replace(shipped, tokens=tokens, chunk=chunk, slices=warps, stages=stages, warps=warps)
        for tokens, chunk, warps, stages in _POOL_VARIANTS
    ]
    return list(dict.fromkeys([shipped, *tried]))


def tried() -> Iterator[Build]:
    """The variants that the tables rank, in bfloat16 at the widths of HSTA."""
    for width in (32, 64):
        for kernel in ("fwd", "dq", "dkv"):
            for config in attention_variants(kernel, width):
                yield space_time_attention_build(kernel, width, torch.bfloat16, config)
    for width in (384, 768):
        for kernel in ("fwd", "bwd"):
            for pooled in pool_variants(kernel, width):
                yield attention_pool_build(kernel, width, torch.bfloat16, pooled)
