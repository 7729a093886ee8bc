"""Checkpoints: published keys in both directions, our own files, errors for damaged or foreign files."""

import argparse
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hsta_fast
from hsta_fast.checkpoint import read_weights
from hsta_fast.files import write_text
from hsta_fast.model import HSTA

from .published_formulation import published_state

CONFIG = {"widths": (24, 32), "patches": (12, 16), "n_s": 1, "n_v": 2, "layers": 2, "num_classes": 3}
State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return published_state(CONFIG, dtype=torch.float32, seed=0)


def load(source: object) -> HSTA:
    return hsta_fast.load_published(source, num_heads=(3, 4))  # type: ignore[arg-type]


def test_the_configuration_is_derived_from_the_shapes(state: State) -> None:
    config = load(state).config
    assert (config.widths, config.num_heads, config.patch_sizes) == ((24, 32), (3, 4), (12, 16))
    assert (config.num_layers, config.n_special, config.n_video, config.num_classes) == (2, 1, 2, 3)
    last = published_state({**CONFIG, "head": "cls+last"}, dtype=torch.float32, seed=0)
    assert load(last).config.head == "cls+last"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_checkpoint_is_kept(dtype: torch.dtype) -> None:
    model = load(published_state(CONFIG, dtype=dtype, seed=0))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(p.requires_grad for p in model.parameters())


def test_published_keys_round_trip(state: State) -> None:
    model = load(state)
    back = model.published_state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    # The model owns its parameters: training it leaves the caller's dictionary alone.
    before = state["head.weight"].clone()
    with torch.no_grad():
        model.head.weight.add_(1)
    assert torch.equal(state["head.weight"], before)


def test_files_and_wrappers(state: State, tmp_path: Path) -> None:
    torch.save(
        {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3, name="x")}, tmp_path / "a.pth"
    )
    torch.save({"module": state}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    clip = torch.randn(1, 3, 4, 32, 32)
    logits = load(state)(clip)
    for name in ("a.pth", "b.pth", "c.safetensors"):
        assert torch.equal(load(tmp_path / name)(clip), logits)


def test_missing_foreign_and_misshapen_entries_are_listed(state: State) -> None:
    bad = dict(state)
    del bad["norm.0.weight"]
    bad["decoder.bias"] = torch.zeros(1)
    bad["norm.1.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        load(bad)
    text = str(error.value)
    assert "1 missing (norm.0.weight)" in text
    assert "1 unknown (decoder.bias)" in text
    assert "norm.1.bias (3,) instead of (32,)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "checkpoint expected patch_embed.0.proj.weight, .* got no entries"),
        ({"conv1.weight": torch.zeros(1)}, "expected .* got conv1.weight"),
        ({"model": {"a": 1}}, "only tensors, got other objects under a"),
    ],
)
def test_foreign_dictionaries(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(source)


def test_an_object_in_a_file_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"model": {"x": os.system}}, tmp_path / "evil.pth")
    with pytest.raises(
        ValueError,
        match=r"evil.pth expected .* weights only, got objects other than tensors \(.*system\)$",
    ):
        load(tmp_path / "evil.pth")


def test_damaged_files_are_named(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    save_file(state, tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    damaged = {"cut.pth": whole[: len(whole) // 2], "empty.pth": b"", "text.pth": b"hello"}
    damaged |= {"cut.safetensors": tensors[:-100], "empty.safetensors": b""}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)
    # torch reads a large file from its end, and fails with an OSError where that is missing.
    torch.save({"a": torch.ones(100_000)}, tmp_path / "large.pth")
    (tmp_path / "large.pth").write_bytes((tmp_path / "large.pth").read_bytes()[:8192])
    with pytest.raises(ValueError, match="large.pth expected a checkpoint, got a damaged or other file"):
        load(tmp_path / "large.pth")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_models_without_a_published_layout_say_so() -> None:
    for settings in ({"csta": False}, {"n_special": 0}, {"branches": ("video",)}):
        model = hsta_fast.create_model("hsta_tiny", **settings)
        with pytest.raises(ValueError, match="config expected both branches, csta"):
            model.published_state_dict()


@pytest.mark.parametrize("settings", [{}, {"csta": False}, {"branches": ("video",)}, {"head": "mean"}])
def test_own_files_round_trip(settings: dict[str, Any], tmp_path: Path) -> None:
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, num_classes=3, **settings).to(torch.bfloat16)
    hsta_fast.save_model(model, tmp_path / "model.safetensors")
    back = hsta_fast.load_model(tmp_path / "model.safetensors")
    assert back.config == model.config
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_file_without_configuration_is_not_ours(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="expected the configuration of an HSTA model"):
        hsta_fast.load_model(tmp_path / "foreign.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes simulates the full disk: writing fails half-way."""
    model = hsta_fast.create_model("hsta_tiny", num_layers=1)
    path = tmp_path / "model.safetensors"
    hsta_fast.save_model(model, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="could not write .*model.safetensors: .*untouched"):
            hsta_fast.save_model(model, path)
        with pytest.raises(OSError, match="could not write"):
            write_text(tmp_path / "text", "x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert read_weights(path)
