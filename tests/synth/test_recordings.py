"""Recordings of minutes: what happens in them, and that it is where the tables say."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from hsta_fast.data import read_dataset
from hsta_fast.data.recordings import recordings
from hsta_fast.synth import SynthConfig, render
from hsta_fast.synth.face import random_face
from hsta_fast.synth.long_plan import APART, BLINK, NEAR, TALKING, TURN, LongPlan, plan_recordings
from hsta_fast.synth.recordings import person, subject_recordings

av = pytest.importorskip("av")


def small(out: Path, **changes: Any) -> SynthConfig:
    """Two people, 3.6 seconds each with two expressions, at 50 frames a second."""
    cfg = SynthConfig(
        out=out, long=True, subjects=2, minutes=0.06, expressions=30.0, fps=50.0, scene="342x256", processes=1
    )
    return dataclasses.replace(cfg, **changes)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(small(tmp_path_factory.mktemp("long") / "two"))


def plans(**changes: Any) -> list[LongPlan]:
    cfg = SynthConfig(out=Path(), long=True, minutes=2.0, recordings=3)
    cfg = dataclasses.replace(cfg, **changes)
    cfg.check()
    return [plan for seed in range(4) for plan in plan_recordings(cfg, np.random.default_rng(seed))]


def test_expressions_are_apart_from_each_other_and_from_talking_and_turns() -> None:
    lengths = []
    for plan in plans(expressions=8.0):
        assert len(plan.clips) == 16
        for one, other in pairwise(plan.clips):
            assert other.onset - one.offset > APART * 200
        for clip in plan.clips:
            assert 0 < clip.onset < clip.apex < clip.offset < len(plan.pose) - 1
            assert clip.amplitude(clip.onset) == clip.amplitude(clip.offset) == 0
            assert clip.amplitude(clip.apex) == 1 and clip.amplitude(clip.onset + 1) > 0
            lengths.append(clip.offset - clip.onset + 1)
            for event in plan.events:
                near = 0.05 if event.kind == BLINK else NEAR
                before, after = clip.onset - event.offset, event.onset - clip.offset
                assert max(before, after) > near * 200 - 1, event
            inside = slice(clip.onset, clip.offset + 1)
            assert not plan.lids[inside].any() and not plan.mouth[inside].any()
    assert 8 <= min(lengths) < 14 and 50 < max(lengths) <= 67


def test_distractors_are_as_long_and_as_frequent_as_they_should() -> None:
    for plan in plans():
        seconds = {kind: [] for kind in (BLINK, TALKING, TURN)}  # type: dict[str, list[float]]
        for event in plan.events:
            seconds[event.kind].append((event.offset - event.onset + 1) / 200)
        for kind, low, high in ((BLINK, 0.1, 0.3), (TALKING, 2, 6), (TURN, 0.5, 2)):
            assert low - 0.01 <= min(seconds[kind]) <= max(seconds[kind]) <= high + 0.01, kind
        assert (len(seconds[TALKING]), len(seconds[TURN])) == (6, 10)
        blinks = [event for event in plan.events if event.kind == BLINK]
        assert all(2 <= (b.onset - a.offset) / 200 <= 7 for a, b in pairwise(blinks))
        assert all(plan.lids[e.onset : e.offset + 1].max() > 0.85 for e in blinks)
        # Nothing moves before an onset, or after an offset.
        closed = np.flatnonzero(plan.lids)
        covered = {frame for e in blinks for frame in range(e.onset + 1, e.offset)}
        assert set(closed.tolist()) <= covered
        talk = {f for e in plan.events if e.kind == TALKING for f in range(e.onset, e.offset + 1)}
        assert set(np.flatnonzero(plan.mouth.any(axis=1)).tolist()) <= talk
        for event in plan.events:
            if event.kind == TURN:
                assert abs(plan.pose[event.offset, 0] - plan.pose[event.onset, 0]) > 0.02
            if event.kind == TALKING:
                jaw = plan.mouth[event.onset : event.offset + 1, 0]
                peaks = (np.diff(np.sign(np.diff(jaw))) < 0).sum() / (len(jaw) / 200)
                assert 2.5 <= peaks <= 6.5  # syllables a second


def test_distractors_alone() -> None:
    for plan in plans(expressions=0.0):
        assert not plan.clips and {event.kind for event in plan.events} == {BLINK, TALKING, TURN}


def test_another_rate_keeps_the_seconds() -> None:
    slow = plans(fps=60.0)
    for plan in slow:
        assert len(plan.pose) == 7200
        assert all(clip.onset < clip.apex < clip.offset for clip in plan.clips)
        assert all((clip.offset - clip.onset + 1) / 60 <= 0.35 for clip in plan.clips)
    assert np.mean([c.offset - c.onset + 1 for p in slow for c in p.clips]) / 60 == pytest.approx(
        np.mean([c.offset - c.onset + 1 for p in plans() for c in p.clips]) / 200, rel=0.1
    )


def test_the_most_expressions_fit() -> None:
    for minutes in (0.05, 0.06, 0.1, 1.0):
        for plan in plans(minutes=minutes, expressions=30.0):
            assert len(plan.clips) == round(30 * minutes)


def test_people_are_none_of_the_short_clips(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    own, others = set(), set()
    for seed in (0, 1, 7, 2**32, 2**32 + 7, 0x10CC, 0x10CC * 2**32):
        for subject in range(1, 40):
            seeded = dataclasses.replace(cfg, seed=seed)
            own.add(random_face(np.random.default_rng(person(seeded, subject).spawn(1)[0])))
            streams = np.random.SeedSequence((seed, subject)).spawn(6)
            others |= {random_face(np.random.default_rng(stream)) for stream in streams}
    assert len(own) == 7 * 39 and not own & others


def test_videos_are_as_long_and_as_fast_as_asked(rendered: Path) -> None:
    names = sorted(path.name for path in rendered.iterdir())
    assert names == ["clips.csv", "events.csv", "long01_a.mp4", "long02_a.mp4", "synthetic.json"]
    with av.open(str(rendered / "long01_a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 342, 256)
    found, table = recordings(rendered)
    assert table.faults == ()
    assert [(one.subject, one.name, one.count, one.rate) for one in found] == [
        ("long01", "long01_a", 180, 50.0),
        ("long02", "long02_a", 180, 50.0),
    ]
    for recording, number in zip(found, (1, 2), strict=True):
        planned, _ = next(iter(subject_recordings(small(rendered), number)))
        assert [(one.onset, one.apex, one.offset, one.emotion) for one in recording.intervals] == [
            (clip.onset, clip.apex, clip.offset, word) for clip, word in planned.clips
        ]
        events = pd.read_csv(rendered / "events.csv").query("path == @planned.path")
        assert [*zip(events.kind, events.onset, events.offset, strict=True)] == [
            dataclasses.astuple(event) for event in planned.events
        ]


def test_clips_are_read_by_the_plain_tables_reader(rendered: Path) -> None:
    table = read_dataset(rendered)
    assert len(table) == 4 and set(table.clips["action_units"]) <= {"12", "1+2", "4+9"}
    assert table.clips["apex_annotated"].all()


def test_an_expression_is_seen_where_the_table_says(rendered: Path) -> None:
    """The stored apex differs from the onset as the rendered one does, and more than frames without it."""
    recording, pictures = next(iter(subject_recordings(small(rendered), 1)))
    with av.open(str(rendered / recording.path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    shot = [*pictures]
    assert len(stored) == len(shot) == 180

    def change(frames: list[np.ndarray], first: int, last: int) -> np.ndarray:
        one, other = (cv2.cvtColor(frames[n], cv2.COLOR_RGB2GRAY).astype(np.float32) for n in (first, last))
        return cv2.GaussianBlur(other - one, (0, 0), 1.5)

    for clip, _ in recording.clips:
        planned, found = (change(frames, clip.onset, clip.apex) for frames in (shot, stored))
        moved = np.abs(planned) > 4  # where the movement is more than the noise
        assert moved.sum() > 50 and np.corrcoef(planned[moved], found[moved])[0, 1] > 0.95
        assert np.polyfit(planned[moved], found[moved], 1)[0] == pytest.approx(1, abs=0.15)
        before = change(shot, clip.onset - (clip.apex - clip.onset), clip.onset)
        assert np.abs(planned).max() > 2 * np.abs(before).max()


def test_same_bytes_with_another_number_of_processes_and_after_a_break(
    rendered: Path, tmp_path: Path
) -> None:
    whole = contents(rendered)
    (tmp_path / "half").mkdir()
    # As a kill leaves it: one recording whole, the temporary file of another, no table.
    for name in ("synthetic.json", "long01_a.mp4"):
        (tmp_path / "half" / name).write_bytes(whole[name])
    (tmp_path / "half" / ".long02_a.mp4.x.tmp").write_bytes(whole["long02_a.mp4"][:1000])
    again = contents(render(small(tmp_path / "half", processes=2)))
    assert {name: data for name, data in again.items() if not name.startswith(".")} == whole


def test_the_same_settings_are_kept_and_others_refused(
    rendered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(small(rendered))
    assert "already rendered" in capsys.readouterr().out
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(small(rendered, minutes=0.2))
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(SynthConfig(out=rendered))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0.01}, "--minutes expected 0.05..60"),
        ({"minutes": float("nan")}, "--minutes expected"),
        ({"fps": 10.0}, "--fps expected 25..1000"),
        ({"expressions": -1.0}, "--expressions expected 0..30"),
        ({"expressions": 31.0}, "--expressions expected 0..30"),
        ({"recordings": 0}, "--recordings expected 1..26"),
        ({"subjects": 0}, "--subjects expected at least 1"),
        ({"layout": "samm"}, "--layout expected no --long beside it, got samm"),
        ({"size": 96}, "--size expected no --long"),
        ({"faults": ("all",)}, "--faults expected no --long"),
        ({"clips_per_subject": 3}, "--clips-per-subject expected no --long"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
