"""--compile: one compilation for all folds, the same training, and when it pays."""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hsta_fast.recompute import Memory, set_memory
from hsta_fast.training import compiled
from hsta_fast.training.compiled import PAYS_FROM, CompiledModel, batch_sizes
from hsta_fast.training.config import recipe_config
from hsta_fast.training.loop import fit
from hsta_fast.training.progress import Progress
from hsta_fast.training.run_folder import FoldFolder
from hsta_fast.training.settings import Compile
from hsta_fast.training.setup import set_up
from tests.test_compile import Counting, frames, tiny
from tests.training.test_float16 import stopping

# Both dropouts, and 12 clips in batches of 5, 5 and 2.
SETTINGS: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32, "num_frames": 2},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 5, "lr": 1e-3, "epochs": 2},
    **{"warmup_epochs": 1, "save_every": 1, "dropout": 0.2, "drop_path": 0.2},
}


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_compiled_for", "_declined_for", "_failed_for"):
        monkeypatch.setattr(compiled, name, None)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Counts the graphs; their ops run as in eager."""
    counting = Counting()
    monkeypatch.setattr(compiled, "BACKEND", counting)
    return counting


@pytest.fixture
def without_a_compiler() -> Iterator[None]:
    """By inductor's own patch: a setting that is an alias is lost when pytest's puts it back."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        yield


def losses(folder: FoldFolder) -> list[list[float]]:
    return [[line["train_loss"], line["test_loss"]] for line in map(json.loads, folder.metrics())]


def test_compiled_training(faces: Path, tmp_path: Path, backend: Counting) -> None:
    """One graph for two folds, and the losses of eager training, which may continue it and be continued."""
    exp = set_up(recipe_config("paper", data=faces, runs=tmp_path, **SETTINGS))

    def train(setting: Compile, path: str, number: int = 0, *, stop: int = 0) -> FoldFolder:
        folder = FoldFolder(tmp_path / path)
        folder.path.mkdir(exist_ok=True)
        now = dataclasses.replace(exp, cfg=dataclasses.replace(exp.cfg, compile=setting))
        with stopping(after=stop), pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            fit(now, folder, exp.folds[number], (number,), exp.cfg.epochs, Progress())
        return folder

    eager = train("off", "eager")
    assert backend.graphs == 0
    other = train("on", "other", 1)
    compiled_first, eager_first = train("on", "first", stop=1), train("off", "second", stop=1)
    saved = torch.load(compiled_first.state_file, weights_only=True)["model"]
    assert saved.keys() == torch.load(eager_first.state_file, weights_only=True)["model"].keys()
    both = train("off", "first"), train("on", "second")
    assert backend.graphs == 1 and len(losses(other)) == exp.cfg.epochs
    for found in map(losses, both):
        assert np.array(found) == pytest.approx(np.array(losses(eager)), rel=1e-4)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, video: Tensor) -> Tensor:
        return self.linear(video).exp()


def test_only_whole_batches_in_the_compiled_size(backend: Counting) -> None:
    model: Any = Line()
    called = CompiledModel(model, sizes=batch_sizes(4, 2), configuration="sizes")
    for setting, sizes, graphs in (("auto", (1, 2, 3, 2), 0), ("on", (1, 3, 2, 2), 1)):
        called.start(setting)
        for B in sizes:
            assert torch.equal(called(video=torch.ones(B, 3)), model(torch.ones(B, 3)))
        assert backend.graphs == graphs


@pytest.mark.parametrize(("batch", "accumulate", "sizes"), [(32, 1, {32}), (32, 4, {8}), (7, 3, {2, 3})])
def test_sizes_of_micro_batches(batch: int, accumulate: int, sizes: set[int]) -> None:
    """Those into which a step splits a batch."""
    assert (
        batch_sizes(batch, accumulate)
        == sizes
        == {len(x) for x in torch.arange(batch).tensor_split(accumulate)}
    )


def test_auto_decides_once_by_the_time_that_is_left() -> None:
    model, cuda = tiny(), torch.device("cuda")

    def called(configuration: object) -> CompiledModel:
        return CompiledModel(model, sizes=frozenset({2}), configuration=configuration)

    first, other = called("a"), called("b")
    assert first.decide("auto", torch.device("cpu"), 1e9) is None
    assert first.decide("off", cuda, 1e9) is None and not first.on
    said = first.decide("auto", cuda, PAYS_FROM)
    assert said == (
        "the model is compiled from now on: about 10 min of training are left, and compiling pays from 10 min"
    )
    assert first.on and first.decide("auto", cuda, 0.0) is None
    next_fold = called("a")
    next_fold.start("auto")
    assert next_fold.on
    other.start("auto")
    assert not other.on
    assert str(other.decide("auto", cuda, PAYS_FROM - 300)).startswith(
        "the model is not compiled: about 5 min"
    )
    assert called("b").decide("auto", cuda, 1e9) is None and not other.on


def test_without_a_compiler_it_runs_as_it_is(without_a_compiler: None) -> None:
    """One warning in one line, and not again in the next fold."""
    model: Any = Line()
    called = CompiledModel(model, sizes=frozenset({2}), configuration="without")
    called.switch_on()
    with pytest.warns(UserWarning, match=r"^the model is not compiled: InvalidCxxCompiler: .*$") as said:
        out = called(video=torch.ones(2, 3))
    ours = [str(warning.message) for warning in said if "not compiled" in str(warning.message)]
    assert len(ours) == 1 and "\n" not in ours[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(called(video=torch.ones(2, 3)), out) and torch.equal(out, model(torch.ones(2, 3)))
        next_fold = CompiledModel(model, sizes=frozenset({2}), configuration="without")
        next_fold.start("on")
        assert next_fold.decide("auto", torch.device("cuda"), 1e9) is None
        assert torch.equal(next_fold(video=torch.ones(2, 3)), out) and not next_fold.on


@pytest.mark.full
@pytest.mark.parametrize("memory", ["balanced", "small"])
def test_what_is_recomputed_is_in_the_graph(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the draws of dropout of the forward."""
    backend = Counting("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = tiny(dropout=0.1).train()
    set_memory(model, memory)
    called = CompiledModel(model, sizes=frozenset({2}), configuration=memory)
    called.switch_on()
    results = []
    for function in (called, model):
        torch.manual_seed(0)
        model.zero_grad()
        logits = function(**frames())
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert backend.graphs == 1 and called.on
    for came, want in zip(*results, strict=True):
        torch.testing.assert_close(came, want, rtol=1e-11, atol=1e-11)


@pytest.mark.full
def test_inductor_draws_by_the_seed() -> None:
    """Its draws are its own, equal for equal seeds, and a step of one clip differs from others'."""
    model = tiny(dropout=0.3, drop_path=0.3, n_video=2).float().train()
    called = CompiledModel(model, sizes=frozenset({2}), configuration=model.config)
    called.switch_on()
    given = {name: x.float() for name, x in frames().items()}
    logits, gradients = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model.zero_grad()
        logits.append(called(**given))
        logits[-1].sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert called.on
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[1], strict=True))
