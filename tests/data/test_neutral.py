"""The class "nothing": stretches of recordings without an annotated expression."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.data import (
    NEUTRAL,
    ClipTable,
    LabelSet,
    add_neutral,
    apply_labels,
    read_dataset,
    read_datasets,
)
from hsta_fast.data.recordings import recordings

LABELS = LabelSet(name="own", classes=("happy", "sad"), mapping={"happy": "happy", "sad": "sad"})
PEOPLE, FRAMES, LENGTH = 3, 60, 6


def write_recordings(folder: Path, frames: int = FRAMES, onsets: tuple[int, int] = (14, 36)) -> Path:
    """A plain table: a recording of each person, with two clips of LENGTH frames."""
    rows = ["subject,clip,path,onset,apex,offset,emotion,fps"]
    rng = np.random.default_rng(0)
    for person in range(1, PEOPLE + 1):
        place = folder / f"s{person}" / "rec"
        place.mkdir(parents=True)
        for number in range(frames):
            cv2.imwrite(str(place / f"{number}.png"), rng.integers(0, 255, (32, 32, 3), np.uint8))
        for number, (onset, word) in enumerate(zip(onsets, ("happy", "sad"), strict=True)):
            ends = f"{onset},{onset + 2},{onset + LENGTH - 1}"
            rows.append(f"s{person},c{number},s{person}/rec,{ends},{word},100")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("plain"))


def labelled(folder: Path) -> ClipTable:
    return apply_labels(read_dataset(folder), LABELS)[0]


def test_stretches_are_as_many_as_a_class_and_touch_no_annotated_expression(folder: Path) -> None:
    before = labelled(folder)
    table, labels, remarks = add_neutral(before, LABELS, [folder], seed=0)
    assert labels.classes == ("happy", "sad", "nothing")
    added = table.clips[table.clips["expression"] == NEUTRAL]
    assert table.clips[: len(before)].equals(before.clips)
    assert len(added) == 3 and sorted(added["subject"]) == ["s1", "s2", "s3"]
    assert (added["label"] == 2).all() and table.clips["label"].dtype == np.int64
    annotated = {one.subject: one.intervals for one in recordings(folder)[0]}
    for clip in added.to_dict("records"):
        assert len(clip["frames"]) == clip["offset"] - clip["onset"] + 1 == LENGTH
        assert clip["apex"] - clip["onset"] == 2
        numbers = [int(Path(frame).stem) for frame in clip["frames"]]
        assert numbers == list(range(clip["onset"], clip["offset"] + 1))
        assert all((folder / frame).is_file() for frame in clip["frames"])
        for one in annotated[clip["subject"]]:  # 0.05 s at 100 frames a second are left out
            assert clip["offset"] < one.onset - 5 or clip["onset"] > one.offset + 5
    assert "3 stretches of 3 subjects" in remarks[0] and "an error" in remarks[0]


def test_a_recording_of_unknown_rate_keeps_the_distance_at_the_highest(tmp_path: Path) -> None:
    """Ten frames are 0.05 s at 200 frames a second, and more at fewer."""
    folder = write_recordings(tmp_path, onsets=(10, 32))
    text = (folder / "clips.csv").read_text().replace(",fps", "").replace(",100\n", "\n")
    (folder / "clips.csv").write_text(text)
    found = recordings(folder)[0]
    assert {one.rate for one in found} == {None}
    for seed in range(4):
        clips = add_neutral(labelled(folder), LABELS, [folder], seed=seed)[0].clips
        added = clips[clips["expression"] == NEUTRAL]
        assert len(added) == 3 and (added["onset"] > 37 + 10).all()  # no room before and between the clips


def test_the_draw_depends_on_the_seed_alone(folder: Path) -> None:
    first, again, other = (
        add_neutral(labelled(folder), LABELS, [folder], seed=seed)[0].clips for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_paths_are_below_the_root_of_several_datasets(folder: Path, tmp_path: Path) -> None:
    roots = [write_recordings(tmp_path / "one"), tmp_path / "two"]
    write_recordings(roots[1])
    for path in sorted((roots[1]).iterdir()):  # other people
        if path.is_dir():
            path.rename(path.with_name(f"t{path.name}"))
    text = (roots[1] / "clips.csv").read_text().replace("\ns", "\nts").replace(",s", ",ts")
    (roots[1] / "clips.csv").write_text(text.replace(",tsad", ",sad"))
    table = apply_labels(read_datasets(roots), LABELS)[0]
    found = add_neutral(table, LABELS, roots, seed=0)[0].clips
    added = found[found["expression"] == NEUTRAL]
    assert len(added) == 6
    assert all((tmp_path / frames[0]).is_file() for frames in added["frames"])


def test_recordings_without_other_frames_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path, frames=20, onsets=(3, 13))
    with pytest.raises(ValueError, match="--with-neutral expected recordings with frames outside of the "):
        add_neutral(labelled(folder), LABELS, [folder], seed=0)


def test_a_class_of_that_name_is_refused(folder: Path) -> None:
    own = LabelSet(name="own", classes=("happy", "nothing"), mapping={"happy": "happy", "sad": "nothing"})
    with pytest.raises(ValueError, match="--with-neutral expected no class 'nothing' in --labels, got one"):
        add_neutral(apply_labels(read_dataset(folder), own)[0], own, [folder], seed=0)


def test_nothing_tells_stretches_from_clips_but_what_they_show(folder: Path) -> None:
    """An apex that is searched by motion in clips is searched in stretches, too."""
    table = labelled(folder)
    for annotated in (True, False):
        clips = table.clips.assign(apex_annotated=annotated)
        added = add_neutral(replace(table, clips=clips), LABELS, [folder], seed=0)[0].clips
        assert (added["apex_annotated"] == annotated).all() and added["apex_annotated"].dtype == bool


def test_no_stretch_is_taken_twice(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path, frames=32, onsets=(0, 26))
    table, _, _ = add_neutral(labelled(folder), LABELS, [folder], seed=0)
    added = table.clips[table.clips["expression"] == NEUTRAL]
    assert len(added) > 0
    frames = [frame for clip in added["frames"] for frame in clip]
    assert len(frames) == len(set(frames))
