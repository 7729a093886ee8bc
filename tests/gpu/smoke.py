"""The first minute on a CUDA device: every op and dtype once, the model, a training step, the first call.

    python -m tests.gpu.smoke --entries FILE

One entry per check: the largest relative error against float64 (in norm, over the result and its gradients),
its bound, and the seconds it took. Checks that need the extension come last, because it is built meanwhile.
Exit status 0 if all passed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

import hsta_fast
from benchmarks.cases import device_is_dead
from benchmarks.entries import DEVICE_FAULT, append, read
from hsta_fast import reference
from hsta_fast.layers import SpaceTimeAttention, TubeletEmbed
from hsta_fast.published import PublishedHSTA
from tests.gpu.compile_ahead import fix_keys
from tests.tolerance import DEVICE, with_gradients

# Rounding of the operands and of the result, with a margin; tf32 instead of float32 fails, at 3e-4.
BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}
MODEL_BOUND, FLOAT32_MODEL_BOUND = 5e-2, 1e-3
CUDA = DEVICE == "cuda"
DTYPES = tuple(BOUNDS) if CUDA else (torch.float16, torch.float32)  # interpreted bfloat16 is not real
HEADS = 12
Found = Mapping[str, Any]
FIRST_CALL = """
import time, torch, hsta_fast
place = dict(device="{device}", dtype=torch.{dtype})
qkv = torch.randn(2, {N}, 3, 2, {C} // 12, **place, requires_grad=True)
query, tokens = torch.randn(2, 12, {C}, **place), torch.randn(2, {N}, {C}, **place, requires_grad=True)
tokens.sum().item()
start = time.perf_counter()
for out in (
    hsta_fast.space_time_attention(qkv, impl="triton"),
    hsta_fast.attention_pool(query, tokens, impl="triton"),
):
    out.sum().backward()
(qkv.grad.sum() + tokens.grad.sum()).item()
print(time.perf_counter() - start)
"""


def relative(came: Tensor, exact: Tensor) -> float:
    """The norm of the error over the exact norm; infinite for NaN."""
    exact = exact.double().cpu()
    error = (came.double().cpu() - exact).norm() / exact.norm().clamp_min(1e-30)
    return float(error.nan_to_num(nan=torch.inf))


def op_error(function: Callable[..., Tensor], exact: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    """The largest relative error of the result and of gradients that are more than rounding."""
    dout = torch.randn(function(*tensors).shape, device=DEVICE)
    found = with_gradients(function, tensors, dout)
    expected = with_gradients(exact, [x.double() for x in tensors], dout)
    size = max(float(x.norm()) for x in expected)
    pairs = zip(found, expected, strict=True)
    return max(relative(a, b) for a, b in pairs if float(b.norm()) > 1e-6 * size)


def attention(D: int, dtype: torch.dtype) -> Found:
    shape = (2, 589, 3, HEADS, D) if CUDA else (1, 33, 3, 2, D)
    qkv = torch.randn(shape, device=DEVICE).to(dtype)
    return {
        "error": op_error(
            lambda x: hsta_fast.space_time_attention(x, impl="triton"), reference.space_time_attention, [qkv]
        ),
        "bound": BOUNDS[dtype],
    }


def pool(dtype: torch.dtype) -> Found:
    B, N, C = (2, 588, 384) if CUDA else (1, 20, 48)
    query = (torch.randn(B, HEADS, C, device=DEVICE) * 2 * C**-0.5).to(dtype)
    tokens, extra = torch.randn(B, N, C, device=DEVICE).to(dtype), torch.randn(B, C, device=DEVICE).to(dtype)

    def ours(q: Tensor, x: Tensor, e: Tensor) -> Any:
        return hsta_fast.attention_pool(q, x, extra=e, impl="triton")

    def exact(q: Tensor, x: Tensor, e: Tensor) -> Any:
        return reference.attention_pool(q, x, extra=e)

    return {"error": op_error(ours, exact, [query, tokens, extra]), "bound": BOUNDS[dtype]}


def cross_attention(dtype: torch.dtype) -> Found:
    B, N, C = (2, 588, 384) if CUDA else (1, 20, 48)
    matrices = {f"{name}_weight": torch.randn(C, C) * C**-0.5 for name in "qkv"}
    vectors = {name: 0.3 * torch.randn(C) for name in ("norm_bias", "q_bias", "v_bias")}
    named = {"cls": torch.randn(B, C), "tokens": torch.randn(B, N, C), **matrices, **vectors}
    named["norm_weight"] = 1 + 0.3 * torch.randn(C)
    tensors = [x.to(DEVICE, dtype) for x in named.values()]

    def call(function: Any, **how: Any) -> Callable[..., Tensor]:
        def run(*x: Tensor) -> Tensor:
            given = dict(zip(named, x, strict=True))
            return function(**given, k_bias=torch.zeros_like(given["q_bias"]), num_heads=HEADS, **how)

        return run

    ours = call(hsta_fast.cls_cross_attention, impl="triton")
    return {
        "error": op_error(ours, call(reference.cls_cross_attention), tensors),
        "bound": BOUNDS[dtype],
    }


def tubelets(dtype: torch.dtype) -> Found:
    """With impl="auto", which is torch if the extension cannot be built: the entry says which one ran."""
    from hsta_fast.ops.tubelet_embed import auto_choice

    side, C = (224, 768) if CUDA else (32, 24)
    video = torch.randint(0, 256, (2, 3, 4, side, side), dtype=torch.uint8, device=DEVICE)
    weight = (torch.randn(C, 3, 2, 16, 16, device=DEVICE) / 40).to(dtype)
    bias = torch.randn(C, device=DEVICE).to(dtype)
    norm: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    error = op_error(
        lambda w, b: hsta_fast.tubelet_embed(video, w, b, **norm),
        lambda w, b: reference.tubelet_embed(video, w, b, **norm),
        [weight, bias],
    )
    return {"error": error, "bound": BOUNDS[dtype], "impl": auto_choice(torch.device(DEVICE), dtype).impl}


def clips(frames: int) -> dict[str, Tensor]:
    side = 224 if CUDA else 32
    shapes = {"video": (2, 3, frames, side, side), "special": (2, 3, 2, side, side)}
    return {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in shapes.items()}


class EmbedOnTorch(TubeletEmbed):
    """The same layer without the extension, because its build may take longer than this stage."""

    def forward(
        self, video: Tensor, cls_token: Tensor | None = None, pos_embed: Tensor | None = None
    ) -> Tensor:
        return hsta_fast.tubelet_embed(
            video,
            self.proj.weight,
            cast(Tensor, self.proj.bias),
            mean=self.mean,
            std=self.std,
            cls_token=cls_token,
            pos_embed=pos_embed,
            impl="torch",
        )


def model_pair(*, extension: bool) -> tuple[torch.nn.Module, Tensor, dict[str, Tensor]]:
    """The model on the device, the published one's logits in float32 on the CPU, and the clips there."""
    model = hsta_fast.create_model("hsta_base" if CUDA else "hsta_tiny", num_layers=1).eval()
    given = clips(6)
    with torch.inference_mode():
        exact = PublishedHSTA(model)(**given)
    if not extension:
        for embed in model.patch_embed.values():
            embed.__class__ = EmbedOnTorch
        for module in model.modules():
            if isinstance(module, SpaceTimeAttention) and not CUDA:
                module.impl = "torch"  # on a CPU, the stand-in, "auto" is the extension
    return model.to(DEVICE), exact, {name: x.to(DEVICE) for name, x in given.items()}


def model_in_bfloat16() -> Found:
    model, exact, given = model_pair(extension=False)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        return {"error": relative(model(**given), exact), "bound": MODEL_BOUND}


def model_in_float32() -> Found:
    """Without autocast, as for a caller who only moves the model to the device."""
    model, exact, given = model_pair(extension=True)
    with torch.inference_mode():
        return {"error": relative(model(**given), exact), "bound": FLOAT32_MODEL_BOUND}


def training_step() -> Found:
    """The loss and all gradients are finite and all parameters move; the error is the share that fails."""
    model, _, given = model_pair(extension=False)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch.autocast(DEVICE, torch.bfloat16):
        logits = model(**given)
    loss = F.cross_entropy(logits.float(), torch.arange(2, device=DEVICE))
    loss.backward()
    optimizer.step()
    wrong = []
    for name, p in model.named_parameters():
        finite = p.grad is not None and bool(p.grad.isfinite().all())
        stays = name.endswith("wk.bias")  # it cancels in the softmax
        if not finite or (torch.equal(p, before[name]) and not stays):
            wrong.append(name)
    error = len(wrong) / len(before) if bool(loss.isfinite()) else torch.inf
    return {"error": error, "bound": 0.0, "loss": loss.item(), "wrong": wrong[:5]}


def first_call() -> Found:
    """Seconds of both kernels, forward and backward, after the imports of a process with an empty cache."""
    N, C, dtype = (589, 768, "bfloat16") if CUDA else (20, 192, "float32")
    code = FIRST_CALL.format(N=N, C=C, device=DEVICE, dtype=dtype)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1])
    return {"note": f"{float(ran.stdout):.1f} s"}


def checks() -> Iterator[tuple[str, Callable[[], Found]]]:
    def name(what: str, dtype: torch.dtype) -> str:
        return f"{what}, {str(dtype).removeprefix('torch.')}"

    for D in (64, 32):
        for dtype in DTYPES:
            if D == 64 or dtype != torch.float32:
                yield name(f"attention D={D}", dtype), partial(attention, D, dtype)
    for op, check in {"attention pool": pool, "CLS cross-attention": cross_attention}.items():
        for dtype in DTYPES:
            yield name(op, dtype), partial(check, dtype)
    yield "model in bfloat16", model_in_bfloat16
    yield "training step in bfloat16", training_step
    yield "first call in a new process", first_call
    for dtype in DTYPES:  # from here on checks wait for the extension, which may use up the time
        yield name("tubelets", dtype), partial(tubelets, dtype)
    yield "model in float32", model_in_float32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=Path, required=True, help="file that entries are appended to")
    parser.add_argument("--only", nargs="*", help="these checks alone")
    arguments = parser.parse_args()
    entries = arguments.entries
    torch.backends.cudnn.allow_tf32 = False  # on by default, for convolutions only
    if CUDA:
        fix_keys()
    before = read(entries)
    done = {entry["case"] for entry in before}
    failed = any("failed" in entry for entry in before)
    for case, check in checks():
        if case in done or (arguments.only and case not in arguments.only):
            continue
        append(entries, {"started": case})
        start = time.perf_counter()
        torch.manual_seed(0)
        entry: dict[str, Any] = {"case": case}
        try:
            entry |= check()
            if "bound" in entry and not entry["error"] <= entry["bound"]:
                entry["failed"] = f"{entry['error']:.3g} is above {entry['bound']:.3g}"
        except Exception as error:  # one failing check must not stop the others
            entry["failed"] = f"{type(error).__name__}: {error}"[:400]
        append(entries, entry | {"seconds": round(time.perf_counter() - start, 2)})
        print(f"{case}: {entry.get('failed', 'passed')}", flush=True)
        failed |= "failed" in entry
        if "failed" in entry and CUDA and device_is_dead():
            return DEVICE_FAULT
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
