"""The doctor finds all faults that were put into rendered data, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hsta_fast.clips import KEY
from hsta_fast.data import doctor, read_dataset
from hsta_fast.data.clips import ENDS_AT_APEX, LEFT_OUT, MIDDLE_APEX
from hsta_fast.synth import SynthConfig, render
from hsta_fast.synth.faults import faults_of
from hsta_fast.synth.layouts import LAYOUTS

# What the doctor says of each, in part.
WORDS = {
    "apex-slash": "apex expected a frame in",
    "apex-before-onset": "apex expected a frame in",
    "apex-after-offset": "apex expected a frame in",
    "onset-blank": "onset and offset expected integers",
    "offset-zero": "offset expected a frame",
    "offset-far": "at most 600 frames, got 3455",
    "emotion-blank": "emotion expected a word, got a blank",
    "class-unreadable": "'?'",
    "two-flags": "flags are set: positive, negative",
    "second-expression": "expression 2 of the row",
    "row-twice": "onset of an earlier row",
    "frame-missing": "first",
    "frame-empty": "empty",
    "frame-truncated": "truncated",
}


def settings(out: Path, layout: Any, *faults: str) -> SynthConfig:
    return SynthConfig(
        out=out, layout=layout, subjects=2, clips_per_subject=7, size=32, processes=1, faults=faults
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_doctor_finds_the_injected_faults_and_no_others(tmp_path: Path, layout: str) -> None:
    sound = read_dataset(render(settings(tmp_path / "sound", layout))).clips.set_index(list(KEY))
    root = render(settings(tmp_path / "faulty", layout, "all"))
    planted = json.loads((root / "planted.json").read_text())
    assert [entry["fault"] for entry in planted] == list(faults_of(layout))

    (found,) = doctor.examine([root], progress=False).diagnoses
    said = {(f.dataset, f.subject, f.clip, f.onset, f.action): f.what for f in found.faults}
    assert len(said) == len(found.faults) == len(planted)
    for entry in planted:
        key = tuple(entry[name] for name in (*KEY, "action"))
        assert WORDS[entry["fault"]] in said[key]

    # Every other clip is what it is without the faults.
    table = read_dataset(root).clips.set_index(list(KEY))
    clips = {tuple(entry[name] for name in KEY) for entry in planted}
    by_fault = {entry["fault"]: tuple(entry[name] for name in KEY) for entry in planted}
    gone = {"onset-blank", "offset-zero", "offset-far", "emotion-blank", "frame-missing"} & by_fault.keys()
    kept = {
        key for key, entry in zip(by_fault.values(), planted, strict=True) if entry["action"] == ENDS_AT_APEX
    }
    assert len(table) == len(sound) - len(gone) + len(kept)
    assert all(table.loc[key, "offset"] == table.loc[key, "apex"] == sound.loc[key, "apex"] for key in kept)
    changed = kept | {by_fault[name] for name in by_fault if name == "two-flags"}
    columns = [name for name in sound if name not in ("apex", "apex_annotated")]
    same = [key for key in table.index if key not in changed]
    assert table.loc[same, columns].equals(sound.loc[same, columns])
    whole = [key for key in table.index if key not in clips]
    assert table.loc[whole].equals(sound.loc[whole])
    for entry in planted:
        if entry["action"] == MIDDLE_APEX:
            row = table.loc[tuple(entry[name] for name in KEY)]
            assert row["apex"] == (entry["onset"] + row["offset"]) // 2 and not row["apex_annotated"]
    spoilt = {
        key
        for key, names in table["frames"].items()
        if any((root / name).read_bytes() != (tmp_path / "sound" / name).read_bytes() for name in names)
    }
    in_frames = ("frame-empty", "frame-truncated")
    assert spoilt == {tuple(e[name] for name in KEY) for e in planted if e["fault"] in in_frames}


def test_a_fault_can_be_injected_several_times(tmp_path: Path) -> None:
    root = render(settings(tmp_path / "x", "casme3", "frame-empty", "frame-empty", "row-twice"))
    assert [f.action for f in doctor.examine([root], progress=False).diagnoses[0].faults].count(LEFT_OUT) == 1
    assert sum(path.stat().st_size == 0 for path in root.rglob("*.jpg")) == 2


def test_interrupted_rendering_is_repeated(tmp_path: Path) -> None:
    """A removed frame is rendered again before the fault is put in again."""
    root = render(settings(tmp_path / "x", "casme3", "frame-missing", "frame-truncated"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (root / "annotation.csv").unlink()
    render(settings(root, "casme3", "frame-missing", "frame-truncated"))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("layout", "faults", "wanted"),
    [
        (
            "smic",
            ("apex-slash",),
            "--faults of smic expected all, or .* onset-blank, .*, got apex-slash",
        ),
        ("casme3", ("second-expression", "none"), "names out of .*, got second-expression, none"),
        ("casme3", ("frame-empty",) * 24, "--faults expected fewer than the 14 clips, got 24"),
    ],
)
def test_impossible_faults_are_named(
    tmp_path: Path, layout: str, faults: tuple[str, ...], wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        render(settings(tmp_path / "x", layout, *faults))
    assert not (tmp_path / "x").exists()
