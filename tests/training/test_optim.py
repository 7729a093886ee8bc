"""The recipes: learning rate, parameter groups, losses, and the configuration they come from."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import hsta_fast
from hsta_fast.training.config import TrainConfig, from_json, recipe_config, to_json
from hsta_fast.training.optim import Loss, learning_rate, parameter_groups

DATA = Path("data")


def test_the_paper_s_learning_rate() -> None:
    cfg = recipe_config("paper", data=DATA)
    assert learning_rate(cfg, 0) == 1e-6
    assert learning_rate(cfg, 2.5) == pytest.approx((1e-6 + 5e-5) / 2)
    assert learning_rate(cfg, 5) == pytest.approx(5e-5)
    assert learning_rate(cfg, 77.5) == pytest.approx((5e-5 + 1e-6) / 2)
    assert learning_rate(cfg, 150) == pytest.approx(1e-6)
    rates = [learning_rate(cfg, e / 10) for e in range(1501)]
    assert max(rates) == pytest.approx(5e-5) and rates.index(max(rates)) == 50


def test_the_published_learning_rate() -> None:
    cfg = recipe_config("published", data=DATA)
    assert cfg.lr == 5e-4 * 32 / 256
    assert learning_rate(cfg, 0) == 0
    assert learning_rate(cfg, 150) == pytest.approx(1e-6 * 32 / 256)


def test_a_run_shorter_than_its_warm_up() -> None:
    cfg = recipe_config("paper", data=DATA, epochs=2)
    assert all(math.isfinite(learning_rate(cfg, e / 4)) for e in range(9))


def test_layer_decay_and_what_is_spared_of_weight_decay() -> None:
    cfg = recipe_config("published", data=DATA, model="hsta_tiny", num_layers=2)
    model = hsta_fast.HSTA(cfg.architecture(3))
    groups = parameter_groups(model, cfg)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    by_name = {name: found[id(p)] for name, p in model.named_parameters()}
    assert by_name["head.weight"] == (1.0, 0.05)
    assert by_name["head.bias"] == (1.0, 0.0)
    assert by_name["norm.0.weight"] == (1.0, 0.0)
    assert by_name["blocks.1.blocks.1.0.attn.qkv.weight"] == (pytest.approx(0.9), 0.05)
    assert by_name["blocks.0.csta.fusion.0.attn.wq.weight"] == (pytest.approx(0.81), 0.05)
    assert by_name["patch_embed.0.proj.weight"] == (pytest.approx(0.729), 0.05)
    assert by_name["cls_token.1"] == (pytest.approx(0.729), 0.0)
    paper = parameter_groups(model, recipe_config("paper", data=DATA, model="hsta_tiny", num_layers=2))
    assert {(g["lr_scale"], g["weight_decay"]) for g in paper} == {(1.0, 0.05)}


def test_losses() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    label = torch.tensor([0, 2])
    shares = logits.softmax(1)
    assert Loss("ce")(logits, label).item() == pytest.approx(
        -(shares[0, 0].log() + shares[1, 2].log()).item() / 2
    )
    errors = [(1 + 0 + 1) / 3, (0.25 + 1 + 1) / 3]
    assert Loss("mse")(logits, label).item() == pytest.approx(sum(errors) / 2)
    # Counts 6, 2, 1 of 9 clips in 3 classes: weights 9 / (3 n) = 0.5, 1.5, 3.
    weighted = Loss("mse", counts=np.array([6, 2, 1]))(logits, label).item()
    assert weighted == pytest.approx((0.5 * errors[0] + 3 * errors[1]) / 3.5)
    smooth = [((2 - 0.8) ** 2 + 0.01 + 1.1**2) / 3, (0.4**2 + 0.9**2 + 0.8**2) / 3]
    assert Loss("mse", smoothing=0.3)(logits, label).item() == pytest.approx(sum(smooth) / 2)
    twice = Loss("ce", smoothing=0.3, counts=np.array([3, 3, 3]))(logits, label)
    assert twice.item() == pytest.approx(Loss("ce", smoothing=0.3)(logits, label).item())


@pytest.mark.parametrize("recipe", ["paper", "published"])
def test_configurations_survive_json(recipe: str) -> None:
    paths = {name: Path(f"{name}.x") for name in ("annotation", "init", "init_special")}
    cfg = recipe_config(recipe, data=DATA, only=("1", "2"), clip_grad=1.0, **paths)
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg


def test_the_recipes_differ_where_the_sources_do() -> None:
    paper, published = (recipe_config(r, data=DATA) for r in ("paper", "published"))
    differ = {
        f.name
        for f in dataclasses.fields(TrainConfig)
        if getattr(paper, f.name) != getattr(published, f.name)
    }
    assert differ == {
        *("lr", "warmup_lr", "min_lr", "decay_all", "layer_decay", "dropout", "drop_path"),
        *("balance", "sampling", "offset_cap"),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 5}, "--num-frames expected a multiple of the tubelet depth 2, got 5"),
        ({"image_size": 15}, "--image-size expected at least one patch of 16, got 15"),
        ({"name": "../x"}, "--name expected one folder name"),
        ({"epochs": 0}, "--epochs expected a whole number >= 1, got 0"),
        ({"lr": 0.0}, "--lr expected a number > 0"),
        ({"model": "x"}, "--model expected one of hsta_tiny, hsta_small, hsta_base, got 'x'"),
        ({"n_video": -1}, "--n-video expected a whole number >= 0, got -1"),
        ({"drop_path": 1.0}, r"--drop-path expected a number in \[0, 1\), got 1.0"),
        ({"compile": "on", "distribute": "fsdp"}, "--compile expected auto or off with --dist.*, got 'on'"),
        ({"branches": ()}, r"--branches expected special or video, or both, got \(\)"),
        ({"accumulate": 0}, "--accumulate expected a whole number from 1 to --batch-size 32, got 0"),
        ({"accumulate": 33}, "--accumulate expected a whole number from 1 to --batch-size 32, got 33"),
        ({"speed": 3}, "settings expected fields of TrainConfig, got speed"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_config("paper", data=DATA, **settings)
