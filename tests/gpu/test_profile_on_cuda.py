"""`hsta-fast profile` on a CUDA device: each kernel counts once, and in its part."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.gpu.needs import needs_data_packages

pytestmark = [pytest.mark.gpu, needs_data_packages]
DEVICE = torch.device("cuda")


def test_kernels_of_a_step_by_part() -> None:
    import hsta_fast
    from hsta_fast.profiling.parts import profile_step
    from hsta_fast.profiling.steps import Timed, batches, random_clips

    model = hsta_fast.create_model("hsta_base", num_layers=1).to(DEVICE)
    timed = Timed(model, DEVICE, torch.bfloat16)
    step = partial(timed.train, batches(random_clips(16, 6, 48), 4, DEVICE))
    for _ in range(2):
        step()
    times, profiler = profile_step(step, DEVICE)
    attention = [kernel for kernel in times.kernels if "_space_time_attention_" in kernel.name]
    layers = model.config.n_special + model.config.n_video
    assert attention and {kernel.part for kernel in attention} == {"USTA attention"}
    assert {k.number for k in attention if "_fwd" in k.name} == {layers}
    on_device = [e for e in profiler.events() if e.device_type != torch._C._autograd.DeviceType.CPU]
    ran = sum(e.time_range.elapsed_us() for e in on_device if not e.is_user_annotation) / 1e6
    assert sum(kernel.seconds for kernel in times.kernels) == pytest.approx(ran, rel=0.01)
    assert times.busy <= min(times.total, 1.01 * ran)
    others = [kernel for kernel in times.kernels if kernel.part == "other"]
    assert sum(kernel.seconds for kernel in others) < 0.05 * times.busy, others


def test_a_profile(tmp_path: Path) -> None:
    """Its training steps are those of a training, in a CUDA graph; its parts are of one without."""
    from hsta_fast.profiling.config import ProfileConfig
    from hsta_fast.profiling.run import profile

    out = tmp_path / "profile"
    profile(ProfileConfig(device="cuda", image_size=48, frames="6", batch_sizes="4", quick=True, out=out))
    facts = json.loads((out / "profile.json").read_text())
    assert {cell["what"]: cell["graph"] for cell in facts["cells"]} == {
        "forward": False,
        "training step": True,
    }
    step = facts["parts"][0]
    assert sum(row["seconds"] for row in step["parts"]) == pytest.approx(step["seconds"])
    assert step["graph_seconds"] < step["seconds"] and step["parts"][-1]["part"] == "launching"
