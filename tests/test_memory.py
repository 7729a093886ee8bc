"""The account of a step's memory, against what a step on the CPU really takes."""

import json
import os
import re
from typing import Any

import pytest
import torch

from hsta_fast import HSTA, HSTAConfig, set_memory
from hsta_fast import memory as memory_file
from hsta_fast.memory import account, largest_batch, table
from hsta_fast.presets import model_config
from hsta_fast.profiling.work import flops_of, work_of
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
    process = Forked(MEASURED, ALL, environment=os.environ | {"OMP_NUM_THREADS": "1"})
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    measured = json.loads(out)
    config = HSTAConfig(**SIZES, num_layers=1, n_video=5)
    sizes: dict[str, Any] = {"num_frames": 16, "image_size": 96, "dtype": torch.float32, "device": "cpu"}
    for memory in ALL:
        expected = of_a_step(account(config, batch=8, memory=memory, **sizes))
        assert abs(measured[memory] / expected - 1) < 0.15, (memory, measured[memory], expected)


@pytest.mark.parametrize(("memory", "dtype"), [("fast", torch.float32), ("balanced", torch.bfloat16)])
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


def test_the_largest_batch_is_found_in_few_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where 8 and 16 clips have nearly the same peak, so that the line through them says little."""
    asked: list[int] = []

    def counted(_: HSTAConfig, *, batch: int, flat: int, per_clip: int) -> memory_file.MemoryAccount:
        asked.append(batch)
        peak = max(flat + batch, per_clip * batch)
        return memory_file.MemoryAccount(batch=batch, weights=0, gradients=0, optimizer=0, saved=0, peak=peak)

    monkeypatch.setattr(memory_file, "account", counted)
    config = HSTAConfig(**SIZES, num_layers=1)
    for limit in (1e4, 87_000_100, 1e9, 7.77e12):
        for flat, per_clip in ((87_000_000, 492_000), (0, 7_000_000), (0, 1000), (87_000_000, 1)):
            asked.clear()
            found = largest_batch(config, limit, flat=flat, per_clip=per_clip)
            assert max(flat + found, per_clip * found) <= limit or found == 0
            assert max(flat + found + 1, per_clip * (found + 1)) > limit
            assert len(asked) <= 20, (limit, flat, per_clip)
            assert len(asked) == len(set(asked))


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 0, -1, "24GB", None, 1e30])
def test_limits_that_are_no_bytes(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"^limit expected bytes > 0 and <= 1e\+15, got .*$"):
        largest_batch(HSTAConfig(**SIZES, num_layers=1), limit)
    with pytest.raises(ValueError, match=r"^limit expected bytes"):
        table("hsta_tiny", batch=1, limit=limit, frames=(2,))


def test_hsta_base_fits_as_documented() -> None:
    """Batch 32 in 80 GB less a tenth: 64 frames without recomputing, 128 with it, and not without."""
    documented = documented_rows()
    assert documented.keys() == {(frames, memory) for frames in (6, 16, 32, 64, 128) for memory in ALL}
    peaks = {case: float(peak) for case, (_, peak, *_) in documented.items()}
    assert peaks[64, "fast"] < 72 < peaks[128, "fast"] and peaks[128, "balanced"] < 72
    assert {case for case, (*_, batch) in documented.items() if int(batch) < 32} == {(128, "fast")}
    check_rows(documented, [(frames, memory) for frames in (6, 16) for memory in ALL])


@pytest.mark.full
def test_hsta_base_fits_as_documented_with_many_frames() -> None:
    check_rows(documented_rows(), [(frames, memory) for frames in (32, 64, 128) for memory in ALL])


@pytest.mark.full
def test_the_largest_batches_are_as_documented() -> None:
    config = model_config("hsta_base")
    for (frames, memory), (*_, largest) in documented_rows().items():
        given: dict[str, Any] = {"num_frames": frames, "memory": memory}
        fits, more = (account(config, batch=int(largest) + one, **given).peak for one in (0, 1))
        assert fits <= 72e9 < more, (frames, memory)


def check_rows(documented: dict[tuple[int, str], list[str]], cases: list[tuple[int, Memory]]) -> None:
    """Each row is that of the command, to its last digit."""
    config = model_config("hsta_base")
    for frames, memory in cases:
        found = account(config, batch=32, num_frames=frames, memory=memory)
        saved, peak, per_clip, _ = documented[frames, memory]
        ours = [f"{found.saved / 1e9:.1f}", f"{found.peak / 1e9:.1f}", f"{found.per_clip / 1e6:.0f}"]
        assert ours == [saved, peak, per_clip], (frames, memory)


def documented_rows() -> dict[tuple[int, str], list[str]]:
    """The numbers of each row of the table in docs/memory.md."""
    page = (ROOT / "docs" / "memory.md").read_text()
    number = r"([\d.]+) \|"
    rows = re.findall(rf"^\| (\d+) \| (\w+) \| {' '.join([number] * 4)}$", page, re.MULTILINE)
    return {(int(frames), memory): numbers for frames, memory, *numbers in rows}


def test_what_small_repeats_is_the_documented_share() -> None:
    """The products of q, k and v, proj and fc1: 8 of 12 parts of those of USTA."""
    said = re.search(
        r"are (\d+) % of the arithmetic.* at 6 frames, (\d+) % at 16, (\d+) % at 64 and (\d+) % at 128",
        (ROOT / "docs" / "memory.md").read_text(),
    )
    assert said is not None
    for frames, share in zip((6, 16, 64, 128), said.groups(), strict=True):
        config = model_config("hsta_base")
        products = work_of(config, 1, frames, 224)["USTA products", "forward"].flops
        whole = flops_of(config, 1, frames, 224, training=True)
        assert f"{100 * 8 / 12 * products / whole:.0f}" == share, frames


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch expected a whole number >= 1, got 0"),
        ({"batch": 2.5}, "batch expected a whole number >= 1, got 2.5"),
        ({"batch": "2"}, "batch expected a whole number >= 1, got '2'"),
        ({"batch": 4, "accumulate": 1.5}, "accumulate expected a whole number from 1 to batch 4, got 1.5"),
        (
            {"batch": 1, "num_frames": 2.0},
            "num_frames expected a multiple of 2, the tubelet's frames, got 2.0",
        ),
        ({"batch": 1, "num_frames": 3}, "num_frames expected a multiple of 2, the tubelet's frames, got 3"),
        ({"batch": 1, "image_size": 32.0}, "image_size expected a whole number >= 16, a patch, got 32.0"),
        ({"batch": 1, "image_size": 8}, "image_size expected a whole number >= 16, a patch, got 8"),
        *(
            (
                {"batch": 1, "dtype": dtype},
                f"dtype expected one of torch.float32, torch.bfloat16, torch.float16, got {dtype!r}",
            )
            for dtype in ("bfloat16", torch.int8, torch.float64)
        ),
        ({"batch": 1, "memory": torch.nn.Linear(1, 1)}, "memory expected one of .*, got Linear"),
        ({"batch": 4, "accumulate": 5}, "accumulate expected a whole number from 1 to batch 4, got 5"),
        ({"batch": 1, "device": "tpu"}, "device expected cuda or cpu, got 'tpu'"),
        ({"batch": 1, "memory": "tiny"}, "memory expected one of fast, balanced, small, got 'tiny'"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        account(HSTAConfig(**SIZES, num_layers=1), **settings)


def test_a_name_instead_of_a_configuration_and_the_other_way_round() -> None:
    wanted = r'^config expected an HSTAConfig, such as model_config\("hsta_base"\), got \'hsta_tiny\'$'
    name: Any = "hsta_tiny"
    with pytest.raises(ValueError, match=wanted):
        account(name, batch=1)
    with pytest.raises(ValueError, match=wanted):
        largest_batch(name, 1e9)
    config: Any = HSTAConfig(**SIZES, num_layers=1)
    with pytest.raises(ValueError, match="^name expected a name of a model, .* got HSTAConfig$"):
        table(config, batch=1, limit=1e9)
    for batch in (2.5, "2"):
        with pytest.raises(ValueError, match="^batch expected a whole number >= 1, got "):
            table(name, batch=batch, limit=1e9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^frames expected a list of whole numbers, got 6$"):
        table(name, batch=1, limit=1e9, frames=6)  # type: ignore[arg-type]


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
