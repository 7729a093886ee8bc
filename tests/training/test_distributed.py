"""Several processes train one fold: the gradients, the weights and the files of a single process."""

import copy
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.amp import GradScaler

from hsta_fast.data.dataset import Augment, ClipData
from hsta_fast.data.sampling import Sampling
from hsta_fast.model import HSTA, HSTAConfig
from hsta_fast.protocol import read_predictions
from hsta_fast.recompute import set_memory
from hsta_fast.training import distributed
from hsta_fast.training.distributed import ALONE, Team
from hsta_fast.training.loop import model_inputs
from hsta_fast.training.optim import Loss
from hsta_fast.training.step import TrainStep
from hsta_fast.training.workers import Workers
from tests.data.batches import TENSORS, data_of, everything
from tests.forked import Forked
from tests.training import commands
from tests.training.commands import output, without_agent

CONFIG = HSTAConfig(
    num_classes=3, widths=(8, 12), num_heads=(2, 2), patch_sizes=(8, 8), num_layers=1, n_video=1
)
LABELS = [0, 0, 0, 0, 1, 1, 2, 0, 2]
CPU = torch.device("cpu")
# What DistributedDataParallel and FSDP2 import takes seconds.
IMPORTED = (*commands.IMPORTED, __name__, "torch._dynamo", "torch.distributed.fsdp")


def clips() -> ClipData:
    return data_of(LABELS, Sampling(num_frames=2, video="random"), size=16)


def batches(share: tuple[int, int] = (0, 1), **settings: Any) -> Iterator[Any]:
    """Balanced and augmented batches of 4, 4 and 1 clips."""
    settings = {"batch_size": 4, "seed": (3, 1), "train": True, "augment": Augment(), **settings}
    return clips().batches(range(len(LABELS)), balance="even", share=share, **settings)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_shares_of_all_ranks_are_the_batches_of_one_process(size: int) -> None:
    shares = [list(batches((rank, size))) for rank in range(size)]
    for number, whole in enumerate(batches()):
        parts = [of_rank[number] for of_rank in shares]
        counted = [part for part in parts if part.counts]
        joined = everything(counted)
        for name in TENSORS[:-1]:
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name
        assert all(torch.equal(part.whole, whole.label) for part in parts)
        assert len(counted) == min(size, len(whole.label)) and all(len(part.label) for part in parts)
    rest = list(batches((1, 2), first=1))
    assert len(rest) == 2 and torch.equal(rest[0].video, list(batches((1, 2)))[1].video)


def step_of(team: Team, loss: Loss, accumulate: int = 1) -> tuple[HSTA, TrainStep]:
    torch.manual_seed(0)
    model = HSTA(CONFIG).double()
    called = team.wrap(model, model)
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    scaler = GradScaler("cpu", enabled=False)
    rest: dict[str, Any] = {"clip_grad": 0.5, "accumulate": accumulate, "ranks": team.size}
    return model, TrainStep(called, loss.double(), optimizer, scaler, nullcontext, **rest)


def values(tensors: Iterator[Tensor | None]) -> list[Tensor]:
    return [getattr(t, "full_tensor", lambda t=t: t)().clone() for t in tensors if t is not None]


def epoch(team: Team, step: TrainStep, model: HSTA) -> tuple[list[list[Tensor]], list[float]]:
    """One epoch's gradients of each batch, then the weights; and the loss of each batch."""
    seen, losses = [], []
    for batch in batches(team.share):
        inputs = model_inputs(model, batch, CPU)
        _, loss = step.backward(inputs, batch.label, batch.whole, counts=batch.counts)
        seen.append(values(parameter.grad for parameter in model.parameters()))
        losses.append(team.sum(loss).item())
        step.update(1e-3)
    return [*seen, values(iter(model.parameters()))], losses


def check_gradients(team: Team) -> None:
    losses: Any = [("ce", np.array([5, 2, 2]), 2), ("mse", None, 1)]
    for name, counts, accumulate in losses if team.kind == "ddp" else losses[:1]:
        loss = Loss(name, smoothing=0.1, counts=counts)
        model, step = step_of(team, loss, accumulate)
        set_memory(model, "small")
        found = epoch(team, step, model)
        if team.is_main:
            model, step = step_of(ALONE, loss, accumulate)
            torch.testing.assert_close(found, epoch(ALONE, step, model), rtol=0, atol=1e-12)


def check_states(team: Team) -> None:
    """What is saved is the state of a single process, and is loaded into one, or into shards."""
    model, step = step_of(team, Loss("ce"))
    epoch(team, step, model)
    weights = {name: tensor.clone() for name, tensor in team.whole(model).state_dict().items()}
    saved = copy.deepcopy(team.optimizer_state(step.optimizer))
    plain, one = step_of(ALONE, Loss("ce"))
    epoch(ALONE, one, plain)
    torch.testing.assert_close(weights, dict(plain.state_dict()), rtol=0, atol=1e-12)
    state = one.optimizer.state_dict()
    torch.testing.assert_close(saved["state"], state["state"], rtol=0, atol=1e-12)
    assert saved["param_groups"] == state["param_groups"] and list(weights) == list(plain.state_dict())
    again, back = step_of(team, Loss("ce"))
    team.load_weights(again, weights)
    team.load_optimizer(back.optimizer, saved)
    found, expected = epoch(team, back, again), epoch(ALONE, one, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def check_talk(team: Team) -> None:
    assert team.gather(team.rank) == [0, 1] and team.any(team.rank == 1) and not team.any(False)
    assert team.from_main(lambda: team.rank + 10) == 10
    rows = [torch.arange(2) + 10 * team.rank, torch.arange(1 - team.rank)]
    assert team.joined(rows).tolist() == [0, 1, 10, 11, 0]


def check_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for kind in ("ddp", "fsdp"):
        team = Team(kind, rank, 2, dist.group.WORLD)
        check_gradients(team)
        check_states(team)
    check_talk(team)
    dist.destroy_process_group()


def test_two_ranks_have_the_gradients_and_states_of_one_process(tmp_path: Path) -> None:
    code = "import sys, pathlib; check_rank(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    code = f"from tests.training.test_distributed import check_rank; {code}"
    ranks = [Forked(code, [rank, tmp_path], imported=IMPORTED) for rank in range(2)]
    for rank in ranks:
        assert rank.wait(120) == 0, "".join(other.communicate()[1] for other in ranks)


def test_teams_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Workers.__new__(Workers)
    two.size, two.local_rank = 2, 0
    monkeypatch.setattr(distributed, "workers", lambda: two)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a GPU for each process, got 2 processes for the 1 of this machine"):
        distributed.team("ddp", torch.device("cuda:0"), torch.float32)
    with pytest.raises(ValueError, match="--dtype expected bfloat16 or float32 with --distribute fsdp, got"):
        distributed.team("fsdp", CPU, torch.float16)
    assert distributed.team("folds", CPU, torch.float16) is ALONE


FLAGS = (
    *("--model", "hsta_tiny", "--num-layers", "1", "--n-video", "1", "--image-size", "32"),
    *("--num-frames", "2", "--labels", "emotion3", "--protocol", "kfold", "--folds", "2"),
    *("--warmup-epochs", "1", "--batch-size", "5", "--lr", "1e-3", "--save-every", "1", "--epochs", "3"),
    *("--only", "1", "--dtype", "float32"),  # the default, auto, depends on the machine
)


def test_ranks_that_lose_one_end_in_words_and_one_process_continues(faces: Path, tmp_path: Path) -> None:
    """Rank 0 alone writes; what it wrote is continued by a process alone, with nearly the same results."""
    words = ["train", "--data", faces, "--runs", tmp_path, *FLAGS]
    both = without_agent(2, *words, "--name", "two", "--distribute", "ddp", imported=IMPORTED)
    run = tmp_path / "two"
    while not (run / "folds/01/state.pt").exists():
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.002)
    os.kill(both[1].pid, signal.SIGKILL)
    _, said = both[0].communicate(60)
    assert both[0].returncode == 1 and said.splitlines()[-1] == (
        "error: another process of this run ended, so this one cannot go on; --resume continues the run"
    )
    assert "Traceback" not in said
    output(*words, "--name", "two", "--resume")
    output(*words, "--name", "one")
    two, one = (read_predictions(tmp_path / name / "predictions.csv") for name in ("two", "one"))
    shares = [column for column in one.columns if column.startswith("p_")]
    np.testing.assert_allclose(two[shares], one[shares], rtol=0, atol=1e-3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["fold"], line["epoch"]) for line in lines] == [("1", epoch) for epoch in (1, 2, 3)]


# What happens in the first step of rank 1; and what each rank decides by.
IN_RANK_1 = """
import os, pathlib, sys, torch
from hsta_fast.training import compiled, step
backward, rank, once = step.TrainStep.backward, os.environ["RANK"], [1]
def fail(self, *words, **named):
    logits, loss = backward(self, *words, **named)
    if rank == "1" and once: once.clear(); {fault}
    return logits, loss
def decide(self, setting, device, seconds_left):
    pathlib.Path(sys.argv[5], f"seconds-{rank}").write_text(str(seconds_left))
step.TrainStep.backward, compiled.CompiledModel.decide = fail, decide
"""


def table_of_ranks(faces: Path, runs: Path, fault: str) -> list[Forked]:
    words = ["ablate", "--data", faces, "--runs", runs, "--table", "2", "--rows", "a1", "a6", *FLAGS[6:]]
    words += ["--distribute", "ddp", "--name", "table", "--epochs", "2", "--model", "hsta_tiny"]
    return without_agent(2, *words, before=IN_RANK_1.replace("{fault}", fault), imported=IMPORTED)


def test_ranks_give_up_a_row_together(faces: Path, tmp_path: Path) -> None:
    both = table_of_ranks(faces, tmp_path, "loss = loss * float('nan')")
    said = [rank.communicate(60) for rank in both]
    assert [rank.returncode for rank in both] == [0, 0], said
    table = pd.read_csv(tmp_path / "table/ablation.csv").set_index("row")
    assert "not run: fold 1, epoch 1, step 1: loss expected a finite number, got nan" in table.remark["a1"]
    assert table.uf1.notna()["a6"]
    seconds = [(tmp_path / f"seconds-{rank}").read_text() for rank in range(2)]
    assert seconds[0] == seconds[1] and float(seconds[0]) > 0


def test_an_error_of_one_rank_ends_all_in_words(faces: Path, tmp_path: Path) -> None:
    both = table_of_ranks(faces, tmp_path, "raise torch.OutOfMemoryError('17 GiB')")
    said = [rank.communicate(60)[1].splitlines()[-1] for rank in both]
    assert [rank.returncode for rank in both] == [1, 1], said
    assert said[0].startswith("error: another process of this run ended, so this one cannot go on")
    assert said[1].startswith("error: --batch-size 5 expected a device with more memory")
