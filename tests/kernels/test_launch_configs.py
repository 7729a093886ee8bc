"""Which configuration a launcher uses: the device's table, a tuned one, or a smaller one that fits."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from hsta_fast.kernels import attention_pool_configs as pool
from hsta_fast.kernels import launch
from hsta_fast.kernels import space_time_attention_configs as attention
from hsta_fast.kernels.launch import SHARED, Device, launch_within, of_capability, tuned_key
from hsta_fast.kernels.space_time_attention_configs import Config

CARD = Device("NVIDIA Test Card", 86, 82, SHARED[86])
BF16 = torch.bfloat16


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a tuned file for CARD, with entries of this Triton and of another."""
    monkeypatch.setattr(launch, "TUNED", tmp_path)
    attended = {"rows": 64, "cols": 32, "stages": 2, "warps": 4, "frozen": True}
    pooled = {"tokens": 16, "chunk": 64, "slices": 4, "stages": 1, "warps": 4, "residents": 1}
    here = {
        tuned_key("space_time_attention", "fwd", 64): attended,
        tuned_key("attention_pool", "bwd", 768): pooled,
    }
    elsewhere = {tuned_key("space_time_attention", "dq", 64): attended}
    path = tmp_path / "nvidia-test-card.json"
    path.write_text(json.dumps({"triton": {launch.TRITON: here, "2.0": elsewhere}}))
    launch.tuned_table.cache_clear()
    yield path
    launch.tuned_table.cache_clear()


def test_a_tuned_configuration_takes_precedence(tuned: Path) -> None:
    expected = Config(rows=64, cols=32, stages=2, warps=4, frozen=True)
    for dtype in (BF16, torch.float16):
        assert attention.config_for("fwd", 64, dtype, device=CARD) == expected
        assert pool.config_for("bwd", 640, dtype, device=CARD).chunk == 64  # served by the width of 768
    plain = CARD._replace(name="another")
    for kernel, width in (("fwd", 32), ("dq", 64)):  # nothing tuned; tuned with another Triton
        shipped = attention.config_for(kernel, width, BF16, device=plain)
        assert attention.config_for(kernel, width, BF16, device=CARD) == shipped
    in_parts = attention.config_for("fwd", 64, torch.float32, precision="bf16x6", device=plain)
    assert attention.config_for("fwd", 64, torch.float32, precision="bf16x6", device=CARD) == in_parts


@pytest.mark.parametrize("text", ["", "[]", '{"triton": 3}', "{}"])
def test_a_damaged_tuned_file_is_ignored(tuned: Path, text: str) -> None:
    """One warning; the architecture's table is used instead."""
    shipped = attention.config_for("fwd", 64, BF16, device=CARD._replace(name="another"))
    tuned.write_text(text)
    with pytest.warns(UserWarning, match="expected a table of benchmarks/tune.py in .*nvidia-test-card.json"):
        assert attention.config_for("fwd", 64, BF16, device=CARD) == shipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention.config_for("fwd", 64, BF16, device=CARD) == shipped


@pytest.mark.parametrize("change", [{"old": 1}, {"rows": 48}, {"rows": "64"}, {"rows": None}])
def test_an_entry_of_another_version_is_ignored(tuned: Path, change: dict[str, object]) -> None:
    shipped = attention.config_for("fwd", 64, BF16, device=CARD._replace(name="another"))
    held = json.loads(tuned.read_text())
    held["triton"][launch.TRITON][tuned_key("space_time_attention", "fwd", 64)] |= change
    tuned.write_text(json.dumps(held))
    with pytest.warns(UserWarning, match='expected a configuration under "space_time_attention fwd 64" of'):
        assert attention.config_for("fwd", 64, BF16, device=CARD) == shipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention.config_for("fwd", 64, BF16, device=CARD) == shipped


def test_the_files_that_ship_are_of_this_version() -> None:
    for path in sorted(launch.TUNED.glob("*.json")):
        name = json.loads(path.read_text())["device"]
        assert launch.tuned_path(name) == path
        for key in launch.tuned_table(name):
            kind = Config if key.startswith("space_time_attention") else pool.Config
            assert launch.tuned_config(kind, name, key) is not None


def test_architectures_have_their_own_tables() -> None:
    """Consumer cards never get configurations for `wgmma` or 163 KiB."""
    ada, hopper = of_capability(89), of_capability(90)
    assert attention.config_for("dq", 64, BF16, device=hopper).registers == 128
    assert attention.config_for("dq", 64, BF16, device=ada).registers is None
    for width in (384, 768, 1024):
        assert pool.config_for("bwd", width, BF16, device=hopper).hold
    assert pool.config_for("fwd", 768, BF16, device=ada).hold
    assert not pool.config_for("bwd", 768, BF16, device=ada).hold


def out_of_resources(config: object) -> object:
    raise OutOfResources(120000, 101376, "shared memory")


def test_what_does_not_fit_runs_smaller_from_then_on() -> None:
    """One warning, one failed launch; a smaller one that does not fit either is an error."""
    launched: list[object] = []

    def fits(config: int) -> int:
        launched.append(config)
        return config if config < 5 else out_of_resources(config)  # type: ignore[return-value]

    with pytest.warns(
        UserWarning, match="op fwd does not fit NVIDIA Test Card as configured .*shared memory"
    ):
        assert launch_within(CARD, "op fwd", 9, 3, fits) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launch_within(CARD, "op fwd", 9, 3, fits) == 3
        assert launch_within(CARD, "op fwd", 4, 3, fits) == 4
    assert launched == [9, 3, 3, 4]
    with pytest.raises(OutOfResources), pytest.warns(UserWarning):
        launch_within(CARD, "op bwd", 9, 7, fits)
    with pytest.raises(OutOfResources):
        launch_within(CARD, "op dq", 9, 9, fits)


@pytest.mark.parametrize("capability", SHARED)
def test_smaller_is_smaller(capability: int) -> None:
    device = of_capability(capability)
    for width in attention.WIDTHS:
        for kernel in ("fwd", "dq", "dkv"):
            config = attention.config_for(kernel, width, BF16, device=device)
            less = attention.smaller(config)
            assert less.rows <= config.rows and less.cols < config.cols and less.stages == 1
            assert less.frozen == config.frozen
    for width in (384, 768, 1024):
        config_of_pool = pool.config_for("bwd", width, BF16, device=device)
        assert not pool.smaller(config_of_pool).hold and pool.smaller(config_of_pool).stages == 1
        assert pool.smaller(config_of_pool).tokens == config_of_pool.tokens  # the plan was made with these
