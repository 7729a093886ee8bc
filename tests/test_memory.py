"""The account of a step's memory, against what a step on the CPU really takes."""

import json
import os
import re
from typing import Any

import pytest
import torch

from hsta_fast import HSTA, HSTAConfig, set_memory
from hsta_fast.memory import account, largest_batch
from hsta_fast.model import model_config
from hsta_fast.recompute import Memory

from .forked import ROOT, Forked
from .memory import peak_bytes

ALL: list[Memory] = ["fast", "balanced", "small"]
SIZES: dict[str, Any] = {"num_classes": 3, "widths": (48, 96), "num_heads": (3, 3)}
# The peak of a step in this process beyond what it had before, in bytes.
MEASURED = """
import ctypes, json, sys, torch
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
from hsta_fast import HSTA, HSTAConfig, set_memory

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def step(model, clips):
    frames = {"video": (clips, 3, 16, 96, 96), "special": (clips, 3, 2, 96, 96)}
    inputs = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in frames.items()}
    model(**inputs).square().sum().backward()

torch.set_num_threads(1)
peaks = {}
for memory in sys.argv[1:]:
    model = HSTA(HSTAConfig(num_classes=3, widths=(48, 96), num_heads=(3, 3), num_layers=1, n_video=5))
    set_memory(model, memory)
    step(model, 1)  # libraries are loaded, and their buffers are there
    model.zero_grad()
    before = status("VmRSS:")
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    step(model, 8)
    peaks[memory] = status("VmHWM:") - before
print(json.dumps(peaks))
"""


def of_a_step(got: Any) -> int:
    """The part of an account that a step adds to the model."""
    return got.peak - got.weights - got.optimizer


def test_the_account_is_the_peak_of_a_process() -> None:
    process = Forked(
        MEASURED, ALL, environment=os.environ | {"OMP_NUM_THREADS": "1"}, imported=("hsta_fast",)
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    measured = json.loads(out)
    config = HSTAConfig(**SIZES, num_layers=1, n_video=5)
    sizes: dict[str, Any] = {"num_frames": 16, "image_size": 96, "dtype": torch.float32, "device": "cpu"}
    for memory in ALL:
        expected = of_a_step(account(config, batch=8, memory=memory, **sizes))
        assert abs(measured[memory] / expected - 1) < 0.15, (memory, measured[memory], expected)


@pytest.mark.parametrize(
    ("memory", "dtype"), [("fast", torch.float32), ("balanced", torch.bfloat16), ("small", torch.bfloat16)]
)
def test_the_account_is_the_peak_of_all_tensors(memory: Memory, dtype: torch.dtype) -> None:
    config = HSTAConfig(**SIZES, num_layers=1, dropout=0.1)
    model = HSTA(config)
    set_memory(model, memory)

    def step() -> None:
        inputs = {
            "video": torch.zeros(4, 3, 8, 64, 64, dtype=torch.uint8),
            "special": torch.zeros(4, 3, 2, 64, 64, dtype=torch.uint8),
        }
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).float().square().sum()
        loss.backward()

    step()  # the table of positions stays
    model.zero_grad(set_to_none=True)
    got = account(config, batch=4, num_frames=8, image_size=64, dtype=dtype, memory=memory, device="cpu")
    assert abs(peak_bytes(step) / of_a_step(got) - 1) < 0.05
    assert got.weights == got.gradients == sum(p.numel() * 4 for p in model.parameters())
    assert got.saved < of_a_step(got)


def test_micro_batches_take_the_memory_of_one_and_the_gradients() -> None:
    config = HSTAConfig(**SIZES, num_layers=2, branches=("video",))
    sizes: dict[str, Any] = {"num_frames": 4, "image_size": 64}
    whole, one = (account(config, batch=batch, **sizes) for batch in (8, 2))
    parts = account(config, batch=8, accumulate=4, **sizes)
    assert parts.saved == one.saved < whole.saved
    assert one.peak < parts.peak <= one.peak + parts.gradients < whole.peak


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    config, limit = HSTAConfig(**SIZES, num_layers=1, branches=("video",)), 50e6
    sizes: dict[str, Any] = {"num_frames": 4, "image_size": 64}
    batch = largest_batch(config, limit, **sizes)
    assert batch > 8
    assert account(config, batch=batch, **sizes).peak <= limit
    assert account(config, batch=batch + 1, **sizes).peak > limit
    assert largest_batch(config, 1e6, **sizes) == 0


def test_hsta_base_fits_as_documented() -> None:
    """Batch 32 in 80 GB less a tenth: 64 frames without recomputing, 128 with it, and not without."""
    page = (ROOT / "docs" / "memory.md").read_text()
    number = r"([\d.]+) \|"
    rows = re.findall(rf"^\| (\d+) \| (\w+) \| {' '.join([number] * 4)}$", page, re.MULTILINE)
    documented = {(int(frames), memory): numbers for frames, memory, *numbers in rows}
    assert documented.keys() == {(frames, memory) for frames in (6, 16, 32, 64, 128) for memory in ALL}
    peaks = {case: float(peak) for case, (_, peak, *_) in documented.items()}
    assert peaks[64, "fast"] < 72 < peaks[128, "fast"] and peaks[128, "balanced"] < 72
    assert {case for case, (*_, batch) in documented.items() if int(batch) < 32} == {(128, "fast")}
    for frames, memory in ((64, ALL[0]), (128, ALL[1])):
        found = account(model_config("hsta_base"), batch=32, num_frames=frames, memory=memory)
        ours = [f"{found.saved / 1e9:.1f}", f"{found.peak / 1e9:.1f}", f"{found.per_clip / 1e6:.0f}"]
        assert ours == documented[frames, memory][:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch expected a whole number >= 1, got 0"),
        ({"batch": 4, "accumulate": 5}, "accumulate expected a whole number from 1 to batch 4, got 5"),
        ({"batch": 1, "device": "tpu"}, "device expected cuda or cpu, got 'tpu'"),
        ({"batch": 1, "memory": "tiny"}, "memory expected one of fast, balanced, small, got 'tiny'"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        account(HSTAConfig(**SIZES, num_layers=1), **settings)


def test_128_frames_train() -> None:
    """All that `--memory small` does, at a width and a picture of a size that a CPU trains at once."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, "widths": (24, 32), "num_heads": (2, 2)}
    model = HSTA(HSTAConfig(**sizes, num_layers=1))
    set_memory(model, "small")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    video = torch.randint(0, 256, (2, 3, 128, 32, 32), dtype=torch.uint8)
    special, label = video[:, :, :2].contiguous(), torch.tensor([0, 2])
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(video=video, special=special), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
