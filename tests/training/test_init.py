"""Training from pretrained weights: what a run takes, records and asks for again; frozen layers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast.checkpoint import load_model
from hsta_fast.files import write_text
from hsta_fast.training import loop, runner, stopping
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.optim import freeze, parameter_groups
from hsta_fast.training.setup import RENDERED
from tests.pretrained.source_models import build, videomae_state

SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 2, "n_video": 1, "image_size": 48, "num_frames": 2},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6, "lr": 1e-3},
    **{"warmup_epochs": 1, "epochs": 1, "dtype": "float32", "name": "run"},
}
WIDTH = 192  # of hsta_tiny's video branch
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    def make(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**SMALL, "data": faces, "runs": tmp_path / "runs", **changes})

    return make


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"model": videomae_state(WIDTH)}, tmp_path / "videomae.pth")
    return tmp_path / "videomae.pth"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of every model before its first step."""
    seen: list[dict[str, Tensor]] = []
    build_training = loop.build

    def watched(*args: Any, **kwargs: Any) -> loop.FoldTraining:
        training = build_training(*args, **kwargs)
        seen.append({key: value.clone() for key, value in training.model.state_dict().items()})
        return training

    monkeypatch.setattr(loop, "build", watched)
    return seen


def config_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def test_every_fold_and_inner_fold_starts_from_the_file(
    make_config: MakeConfig, file: Path, starts: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner.main(make_config(init=file, select="inner", inner_folds=2))
    assert len(starts) == 6  # of each of two folds, and of its two inner folds
    theirs = videomae_state(WIDTH)
    for start in starts:
        for k, n in enumerate((1, 3)):
            got = start[f"blocks.{k}.blocks.1.0.attn.qkv.weight"]
            assert torch.equal(got, theirs[f"encoder.blocks.{n}.attn.qkv.weight"])
    assert len({start["head.weight"].sum().item() for start in starts}) == 6
    printed, config = capsys.readouterr().out, config_of(run)
    record = config["pretrained"]["init"]
    assert record["branches"] == {
        "video": {"layers": [1, 3], "of": 4, "norm_eps": 1e-6, "first_position": 0, "num_heads": 3}
    }
    assert (config["init_layers"], config["architecture"]["first_position"]) == ("even", [1, 0])
    [line] = [line for line in printed.splitlines() if line.startswith("init: videomae.pth, VideoMAE")]
    assert record["sha256"] in line and "CC BY-NC 4.0" in line
    assert line in config["provenance"][0]["pretrained"]
    table = (run / "init.txt").read_text()
    assert table.startswith(line) and "encoder.blocks.1.attn.q_bias" in table
    sentence = "The models start from pretrained weights, videomae.pth (VideoMAE or VideoMAE V2)."
    assert sentence in config["notes"]
    assert "videomae.pth" in (run / "report.html").read_text()
    model = load_model(run / "folds/01/model.safetensors")
    assert model.notes["init"] == line and "videomae.pth" in model.notes["init_licence"]
    assert model.config.first_position == (1, 0)
    file.unlink()  # scoring needs no file
    assert "0 predictions differ" in evaluate(run)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("MARLIN, encoder", True),
        ("VideoMAE of transformers, ForPreTraining", False),
        ("ViT of transformers, Model", False),
        ("ViT of timm, VisionTransformer", False),
    ],
)
def test_the_other_sources_train(
    name: str, whole: bool, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = build(name, tmp_path, WIDTH)
    cfg = make_config(init=case.path, epochs=2, only=("1",))
    runner.main(replace(cfg, dry_run=True))
    printed = capsys.readouterr().out
    assert f"of its 4, norm eps {case.eps:g}, " in printed and "loss" in printed
    if whole:
        config = config_of(runner.main(cfg))
        assert config["architecture"]["norm_eps"] == [1e-6, case.eps]
        assert config["pretrained"]["tensors"]["loaded"] > 20


def test_a_model_of_a_run_is_a_start_and_is_said_to_be(
    make_config: MakeConfig, tmp_path: Path, starts: list[dict[str, Tensor]]
) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=2, n_video=1, num_classes=7)
    hsta_fast.save_model(model, tmp_path / "ours.safetensors", notes={"caveats": RENDERED})
    run = runner.main(make_config(init=tmp_path / "ours.safetensors", only=("1",)))
    ours = model.state_dict()
    assert all(torch.equal(starts[0][key], ours[key]) for key in ours if not key.startswith("head."))
    [sentence] = [note for note in config_of(run)["notes"] if "ours.safetensors" in note]
    assert "whether its training saw people who are tested here is not checked. Its notes: " in sentence
    assert sentence.endswith(RENDERED)


def test_a_dry_run_says_what_it_would_start_from_and_writes_nothing(
    make_config: MakeConfig, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner.main(make_config(init=file, freeze=1, dry_run=True))
    printed = capsys.readouterr().out
    assert "init: videomae.pth, VideoMAE or VideoMAE V2; video branch from layers 1, 3 of its 4" in printed
    assert "--freeze 1 keeps random weights too, as no file has them: patch embedding (special)" in printed
    assert not run.exists()


def test_resume_needs_the_same_file_where_a_fold_has_not_begun(
    make_config: MakeConfig, file: Path, starts: list[dict[str, Tensor]]
) -> None:
    runner.main(make_config(init=file, only=("1",)))
    kept = file.read_bytes()
    file.unlink()
    cfg = make_config(init=file, resume=True)
    with pytest.raises(ValueError, match="videomae.pth expected a file of weights, got: no such file"):
        runner.main(cfg)
    torch.save({"model": videomae_state(WIDTH) | {"encoder.norm.bias": torch.ones(WIDTH)}}, file)
    with pytest.raises(ValueError, match="--init expected the file that the run was started with, SHA-256 "):
        runner.main(cfg)
    with pytest.raises(ValueError, match="--init expected videomae.pth, as at the start of .*, got None"):
        runner.main(make_config(resume=True))
    with pytest.raises(ValueError, match="--init-special expected no file, as at the start of .*, got .*pth"):
        runner.main(make_config(init=file, init_special=file, resume=True))
    moved = file.with_name("moved.pth")
    moved.write_bytes(kept)
    runner.main(make_config(init=moved, resume=True))
    assert len(starts) == 2
    keys = [key for key in starts[0] if ".blocks.1." in key or "patch_embed.1" in key]
    assert keys and all(torch.equal(starts[0][key], starts[1][key]) for key in keys)


def test_a_fold_that_has_begun_needs_no_file(
    make_config: MakeConfig, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([False, True])
    monkeypatch.setattr(stopping, "asked", lambda: next(asked, True))
    with pytest.raises(stopping.Stopped):
        runner.main(make_config(init=file, only=("1",)))
    monkeypatch.undo()
    file.unlink()
    run = runner.main(make_config(init=file, only=("1",), resume=True))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    runner.main(make_config(init=file, only=("1",), resume=True))  # nor does a run that is finished


def test_a_run_without_a_file_cannot_be_continued_with_one(make_config: MakeConfig, file: Path) -> None:
    runner.main(make_config(only=("1",)))
    with pytest.raises(ValueError, match="started with other settings.*pretrained was None"):
        runner.main(make_config(init=file, resume=True))
    with pytest.raises(ValueError, match="init_layers was 'even', is 'last'"):
        runner.main(make_config(init_layers="last", resume=True))


def test_runs_of_before_these_settings_continue(make_config: MakeConfig) -> None:
    run = runner.main(make_config(only=("1",)))
    config = config_of(run)
    for name in ("init", "init_special", "init_layers", "freeze", "pretrained"):
        del config[name]
    for name in ("norm_eps", "first_position"):
        del config["architecture"][name]
    del config["provenance"][0]["pretrained"]
    write_text(run / "config.json", json.dumps(config))
    assert "0 predictions differ" in evaluate(run)
    assert runner.main(make_config(resume=True, only=("1",))) == run


def test_a_file_that_does_not_fit_ends_the_run_before_data_are_read(
    make_config: MakeConfig, file: Path, tmp_path: Path
) -> None:
    cfg = make_config(init=file, num_layers=5, data=tmp_path / "no data")
    with pytest.raises(ValueError, match="at most the 4 layers of the file, got 5 x 1"):
        runner.main(cfg)
    assert not (cfg.runs / cfg.name).exists()


def test_what_freeze_takes(file: Path) -> None:
    def cfg(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**SMALL, "data": Path("data"), "init": file, **changes})

    model = hsta_fast.HSTA(cfg().architecture(3))
    freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())
    freeze(model, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name in model.state_dict() if name.startswith(("patch_embed.", "cls_token.", "blocks.0."))
    }
    groups = parameter_groups(model, cfg(layer_decay=0.5))
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5}
    with pytest.raises(ValueError, match="--freeze expected 0 to 2, the model's HSTA layers, got 3"):
        cfg(freeze=3)
    with pytest.raises(ValueError, match="--freeze expected 0 without --init and --init-special, got 1"):
        cfg(freeze=1, init=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": "small", "layer_decay": 0.5, "accumulate": 2, "clip_grad": 1.0},
        {"compile": "on"},
    ],
    ids=["memory", "compile"],
)
def test_frozen_values_stay_bit_for_bit_and_the_others_move(
    changes: dict[str, Any],
    make_config: MakeConfig,
    file: Path,
    starts: list[dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hsta_fast.training.compiled.BACKEND", "eager")  # the graph, without a compiler
    run = runner.main(make_config(init=file, freeze=1, only=("1",), dropout=0.1, **changes))
    before, after = starts[0], load_model(run / "folds/01/model.safetensors").state_dict()
    # The bias of CSTA's keys cancels in the softmax, so it never moves.
    same = {key for key in after if torch.equal(before[key], after[key]) and "blocks.1.csta" not in key}
    assert same == {key for key in after if key.startswith(("patch_embed.", "cls_token.", "blocks.0."))}
