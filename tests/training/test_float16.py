"""Training in float16 with a loss scale, on the CPU: what a GPU without bfloat16 (T4, V100) does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast import cpu_speed, environment
from hsta_fast.checkpoint import load_model
from hsta_fast.cpu_speed import CpuSpeed, Rates
from hsta_fast.model import HSTA
from hsta_fast.training import fold as one_fold
from hsta_fast.training import loop, runner
from hsta_fast.training import setup as experiment
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.loop import fit, seed_torch
from hsta_fast.training.optim import NonFiniteLossError
from hsta_fast.training.run_folder import FoldFolder
from hsta_fast.training.setup import pick_device

SETTINGS: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 48, "num_frames": 2},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "only": ("1",), "batch_size": 6, "lr": 2e-4},
    **{"warmup_epochs": 1, "device": "cpu", "dtype": "float16", "save_every": 1, "clip_grad": 1.0},
}
TOO_LARGE = 2.0**20  # a loss scale at which gradients overflow float16 until it is halved a few times


@pytest.fixture
def config(faces: Path, tmp_path: Path) -> partial[TrainConfig]:
    """A quick configuration on the shared rendered faces, without name and epochs."""
    return partial(recipe_config, "paper", data=faces, runs=tmp_path / "runs", **SETTINGS)


@pytest.fixture
def large_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training starts with `TOO_LARGE`, so that its first steps really overflow."""
    monkeypatch.setattr(loop, "GradScaler", partial(torch.amp.GradScaler, init_scale=TOO_LARGE))


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "clips_per_second")} for line in lines]


@contextmanager
def stopping(after: int) -> Iterator[None]:
    """Training stops once the state of epoch `after` is saved."""
    saves = FoldFolder.save_state

    def save(folder: FoldFolder, state: dict[str, Any]) -> None:
        saves(folder, state)
        if state["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FoldFolder, "save_state", save)
        yield


def weights(run: Path) -> dict[str, Tensor]:
    return load_model(run / "folds" / "01" / "model.safetensors").state_dict()


def test_the_loss_falls_as_in_float32(config: partial[TrainConfig]) -> None:
    settings = {"epochs": 3, "warmup_epochs": 3, "lr": 1e-4, "batch_size": 12}
    half, single = (
        [line["train_loss"] for line in metrics(runner.main(config(name=dtype, dtype=dtype, **settings)))]
        for dtype in ("float16", "float32")
    )
    assert half[-1] < half[0] - 0.01
    assert half != single and half == pytest.approx(single, abs=1e-3)


def test_a_step_that_overflows_is_left_out(config: partial[TrainConfig], large_scale: None) -> None:
    """Two epochs of overflow, which is no error, do not change the model; the state has the smaller scale."""
    cfg = config(name="skipped", epochs=2)
    fits = fit

    def watched(exp: Any, folder: Any, *rest: Any) -> Any:
        trained = fits(exp, folder, *rest)
        states.append(torch.load(folder.path / "state.pt", weights_only=True))
        return trained

    states: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_fold, "fit", watched)
        run = runner.main(cfg)
    steps = 2 * 2  # 12 clips in batches of 6
    assert states[0]["scaler"]["scale"] == TOO_LARGE / 2**steps
    assert all(entry["step"] == 0 for entry in states[0]["optimizer"]["state"].values())
    seed_torch(cfg.seed, 0, 0)
    fresh = HSTA(cfg.architecture(3)).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in weights(run).items())


def test_a_run_that_stopped_goes_on_with_its_scale(config: partial[TrainConfig], large_scale: None) -> None:
    """Restarted with the initial scale, it would skip steps that the whole run does not skip."""
    settings = {"epochs": 4}
    whole = runner.main(config(name="whole", **settings))
    with stopping(after=3), pytest.raises(KeyboardInterrupt):
        runner.main(config(name="stopped", **settings))
    again = runner.main(config(name="stopped", **settings, resume=True))
    assert metrics(again) == metrics(whole)
    assert (again / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [line["train_loss"] for line in metrics(whole)]
    assert abs(losses[1] - losses[0]) < 1e-3 < abs(losses[-1] - losses[0])  # steps are skipped at first


def test_a_run_goes_on_where_only_float16_is_fast(
    config: partial[TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A state from a device without a loss scale holds none; training starts with the initial scale."""
    settings = {"name": "moved", "dtype": "auto", "epochs": 2}
    with stopping(after=1), pytest.raises(KeyboardInterrupt):
        runner.main(config(**settings))
    config_file = tmp_path / "runs" / "moved" / "config.json"
    config_file.write_text(config_file.read_text().replace('"device": "cpu: ', '"device": "other: '))
    picked = torch.device("cpu"), torch.float16, "for this test"
    monkeypatch.setattr(experiment, "pick_device", lambda device, dtype, width, starts: picked)
    run = runner.main(config(**settings, resume=True))
    assert [line["epoch"] for line in metrics(run)] == [1, 2]


def test_a_loss_that_is_no_number_stops_it(
    config: partial[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is checked before scaling: no scale hides it."""
    monkeypatch.setattr(loop, "learning_rate", lambda cfg, epoch: 1e-3 if epoch < 1 else 1e30)
    with pytest.raises(NonFiniteLossError, match=r"loss expected a finite number, got (nan|inf)"):
        runner.main(config(name="diverging", epochs=6))


def test_other_dtypes_have_no_scale(config: partial[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.amp.GradScaler] = []

    def scaler(*args: Any, **kwargs: Any) -> torch.amp.GradScaler:
        made.append(torch.amp.GradScaler(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(loop, "GradScaler", scaler)
    for dtype in ("float32", "bfloat16"):
        runner.main(config(name=dtype, dtype=dtype, epochs=1))
    assert len(made) == 2 and not any(one.is_enabled() for one in made)


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((9, 0), torch.bfloat16, "its tensor cores support bfloat16"),
        ((8, 6), torch.bfloat16, "its tensor cores support bfloat16"),
        ((7, 5), torch.float16, "its tensor cores support float16, not bfloat16"),
        ((7, 0), torch.float16, "its tensor cores support float16, not bfloat16"),
        ((6, 1), torch.float32, "it has no tensor cores"),
    ],
)
def test_what_each_card_takes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, reason: str
) -> None:
    """The requested card decides, not the current one."""
    capabilities = {"cuda:0": (9, 0), "cuda:1": capability}

    def properties(device: object) -> Any:
        major, minor = capabilities[str(device)]
        return type("Card", (), {"major": major, "minor": minor})

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    picked = pick_device("cuda:1", "auto")
    assert picked == (torch.device("cuda:1"), dtype, reason)
    assert environment.cuda_dtype(torch.device("cuda:1")) == (dtype, reason)


def test_a_cpu_takes_no_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless asked to; then it says that this is slow. bfloat16 where it was measured to be faster."""
    slow = Rates(torch=150.0, panels=200.0, bfloat16=210.0)
    speed = CpuSpeed(narrow=slow, wide=slow._replace(bfloat16=400.0), path=None)
    monkeypatch.setattr(cpu_speed, "_found", {torch.get_num_threads(): speed})
    for width, dtype, rate in ((192, torch.float32, 210), (768, torch.bfloat16, 400)):
        why = f"products at width {width}: {rate} GFLOP/s in bfloat16, 200 in float32"
        assert pick_device("cpu", "auto", width=width) == (torch.device("cpu"), dtype, why)
    assert pick_device("cpu", "bfloat16")[1:] == (torch.bfloat16, "as asked for")
    _, picked, why = pick_device("cpu", "float16")
    assert picked == torch.float16 and why.startswith(
        "as asked for, but torch multiplies float16 on CPUs up to"
    )
