"""`hsta-fast profile`: what it leaves on disk, and what it refuses."""

import gzip
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from hsta_fast import create_model
from hsta_fast.memory import account
from hsta_fast.model import HSTAConfig
from hsta_fast.presets import model_config
from hsta_fast.profiling import run as run_file
from hsta_fast.profiling.ceilings import Ceilings, measure_ceilings
from hsta_fast.profiling.config import ProfileConfig
from hsta_fast.profiling.memory_used import check_fits, estimated_batch, largest_by_trial, peak_bytes
from hsta_fast.profiling.run import profile
from tests.test_cli import refusal, run

SMALL = ("profile", "--model=hsta_tiny", "--image-size=32", "--device=cpu")
FILES = ["parts.png", "profile.html", "profile.json", "roofline.png", "scaling.png", "trace.json.gz"]


class OneLayer(ProfileConfig):
    """Of a model with one layer, which is quick."""

    def architecture(self) -> HSTAConfig:
        return model_config(self.model, num_layers=1)


def test_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which ceiling binds depends on both, and a busy machine disturbs them one by one.
    ceilings = Ceilings({"float32": 1e11, "bfloat16": 2e11}, memory=1e12)
    monkeypatch.setattr(run_file, "measure_ceilings", lambda *_: ceilings)
    out = tmp_path / "profile"
    config = OneLayer(
        model="hsta_tiny",
        image_size=32,
        device="cpu",
        dtype="float32",  # the default, auto, depends on the machine
        out=out,
        seconds=0.1,
        batch_sizes="1,2",
        frames="2",
        against="published",
    )
    text = profile(config)
    assert sorted(path.name for path in out.iterdir()) == FILES
    facts = json.loads((out / "profile.json").read_text())
    assert facts["compared_with"] == ["published"]
    assert len(facts["cells"]) == 8, "two models, two calls, two shapes"
    for cell in facts["cells"]:
        assert cell["rounds"] >= 2 and cell["fastest"] <= cell["seconds"] <= cell["slowest"]
        assert cell["memory_bytes"] > 1e6 and cell["clips_per_second"] * cell["seconds"] == pytest.approx(
            cell["batch"]
        )
    assert [(call["peer"], call["what"], call["batch"], call["frames"]) for call in facts["parts"]] == [
        (peer, what, 2, 2) for what in ("training step", "forward") for peer in ("eager", "published")
    ]
    for call in facts["parts"]:
        assert sum(row["seconds"] for row in call["parts"]) == pytest.approx(call["seconds"], rel=0.05)
    assert facts["ceilings"] == ceilings.to_json()
    products = facts["parts"][0]["parts"][0]
    assert products["part"] == "USTA products" and products["bound"] == "matrix product"
    assert products["reached"] == pytest.approx(
        products["flops_per_second"] / facts["ceilings"]["products"]["float32"]
    )
    # Weights and two moments; a gradient of them too, beside what the backward needs.
    weights = 4 * sum(p.numel() for p in create_model("hsta_tiny", num_layers=1).parameters())
    for c in facts["cells"]:
        if c["what"] == "training step":
            assert c["memory_bytes"] > 4 * weights
        else:  # no moments, and no gradients
            assert weights < c["memory_bytes"] < 2 * weights
    assert [row["frames"] for row in facts["largest_batch"]] == [2]
    assert all(sentence in text for sentence in facts["summary"])
    assert re.match(r"\d+ % of a training step \(batch 2, 2 frames\) is ", facts["summary"][0])
    for name in ("parts.png", "roofline.png", "scaling.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    html = (out / "profile.html").read_text()
    assert facts["summary"][0] in unescape(html) and not re.search(r'(src|href)="(?!data:)', html)
    events = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))["traceEvents"]
    assert any("USTA attention" in event.get("name", "") for event in events)


def test_ceilings() -> None:
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert found.products.keys() == {"float32", "bfloat16"}
    better = Ceilings({"float32": found.products["float32"] + 1, "bfloat16": 0}, found.memory + 1)
    best = found.best_of(better)
    assert best == better.best_of(found) and best.memory == better.memory
    assert best.products == {**found.products, "float32": better.products["float32"]}
    assert all(rate > 0 for rate in (*found.products.values(), found.memory))


def test_nothing_is_written_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_file, "measure_ceilings", interrupted)
    out = tmp_path / "profile"
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SMALL, "--quick", "--frames=2", f"--out={out}")
    assert stop.value.code == 130 and not out.exists()
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model=hsta_bse",), "--model expected one of hsta_tiny, hsta_small, hsta_base, got 'hsta_bse'"),
        (("--batch-sizes=0,2",), "--batch-sizes expected integers >= 1, got 0"),
        (("--batch-sizes=1;2",), "--batch-sizes expected integers with commas between them, got '1;2'"),
        (("--frames=6,7",), "--frames expected multiples of 2, the tubelet's frames, got 7"),
        (("--image-size=8",), "--image-size expected at least 16 pixels, a patch, got 8"),
        (("--against=torch",), "--against expected some of eager, compiled, published, published-sdpa"),
        (("--seconds=0",), "--seconds expected a finite number > 0, got 0"),
        (("--seconds=inf",), "--seconds expected a finite number > 0, got inf"),
        (("--seconds=nan",), "--seconds expected a finite number > 0, got nan"),
        (("extra",), "profile expected flags, got 'extra'"),
        (("--quick", "extra"), "profile expected flags, got 'extra'"),
    ],
)
def test_flags_that_cannot_be(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str) -> None:
    assert words in refusal(monkeypatch, "profile", *flags, status=2)


def test_what_the_machine_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    said = refusal(monkeypatch, *SMALL, f"--out={tmp_path / 'file'}")
    assert "--out expected a folder" in said and "it is a file" in said
    said = refusal(monkeypatch, *SMALL, f"--out={tmp_path / 'file' / 'below'}")
    assert "--out expected a folder that can be created and written" in said
    said = refusal(monkeypatch, "profile", "--device=tpu", f"--out={tmp_path / 'out'}", status=2)
    assert "--device expected" in said
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    said = refusal(monkeypatch, *SMALL, "--against=compiled", f"--out={tmp_path / 'out'}")
    assert "--against compiled expected a C++ compiler" in said
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--batch-sizes=1,100000000", "--frames=2"),
            "--batch-sizes expected {}, got 100000000 clips of 2 fr",
        ),
        (("--image-size=1000000", "--frames=2"), "--image-size expected {}, got 1000000 pixels"),
        (("--frames=2,200000000",), "--frames expected {}, got 200000000 frames"),
    ],
)
def test_shapes_that_no_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    said = refusal(monkeypatch, *SMALL, "--dtype=float32", f"--out={tmp_path / 'out'}", *flags)
    fits = r"training steps that fit into the [\d.e+]+ GB available"
    assert re.search(words.format(fits), said) and not (tmp_path / "out").exists()
    assert re.search(r", which take about [\d.e+]+ GB at least", said)


def test_a_step_is_accounted_before_it_runs() -> None:
    config = OneLayer(model="hsta_tiny", image_size=32, batch_sizes="1,8", frames="2,4")
    given: dict[str, Any] = {"num_frames": 4, "image_size": 32, "dtype": torch.float32, "device": "cpu"}
    eight = account(config.architecture(), batch=8, **given).peak
    check_fits(config, torch.float32, eight)
    check_fits(config, torch.float32, None)
    with pytest.raises(ValueError, match="^--batch-sizes expected .*, got 8 clips of 4 frames"):
        check_fits(config, torch.float32, eight - 1)


def test_shapes() -> None:
    config = ProfileConfig(batch_sizes="4,1", frames="16,6")
    assert config.shapes("cpu") == [(1, 6), (4, 6), (1, 16), (4, 16)]
    assert ProfileConfig().shapes("cuda")[-1] == (32, 32)
    assert replace(config, quick=True).shapes("cpu") == [(1, 6)]
    assert replace(config, against="published,compiled").peers() == ("eager", "compiled", "published")


@pytest.mark.parametrize("limit", [0, 1, 3, 37, 64, 436, 5000])
@pytest.mark.parametrize("off", [0.93, 1.0, 1.08])
def test_the_largest_batch_by_trial(limit: int, off: float) -> None:
    """From an estimate that is nearly right it takes few tries; and never more than it may."""
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    good, bad = largest_by_trial(fits, round(off * limit))
    assert len(tried) <= 5 and good <= limit
    if limit > 4096:  # more are not tried
        assert (good, bad) == (4096, None)
    else:
        assert bad is not None and limit < bad <= good + max(1, good // 16)


def test_an_estimate_that_is_far_off() -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= 100

    assert largest_by_trial(fits, 10) == (41, None), "tried: 10, 11, 13, 17, 25, 41"
    good, bad = largest_by_trial(fits, 400)
    assert bad is not None and 0 < good <= 100 < bad and len(tried) == 12


def test_the_estimate_is_that_of_the_account() -> None:
    config = OneLayer(model="hsta_tiny", image_size=32)
    given: dict[str, Any] = {"num_frames": 2, "image_size": 32}
    limit = account(config.architecture(), batch=400, **given).peak
    assert estimated_batch(config, 2, torch.bfloat16, limit) == pytest.approx(400, rel=0.05)
    assert estimated_batch(config, 2, torch.bfloat16, 0) == 0


def test_peak_bytes() -> None:
    def run() -> None:
        a = torch.ones(1000, 1000)
        b = a + 1
        del a
        (b * 2).sum()

    assert peak_bytes(run, torch.device("cpu")) == pytest.approx(8e6, rel=0.01)
