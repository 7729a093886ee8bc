"""Recordings and all their intervals, from datasets whose clips lie in longer recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsta_fast.data.recordings import interval_table, neutral_stretches, recordings

from . import fake_datasets
from .fake_datasets import csv_row
from .further_datasets import samm_long_copy, samm_long_row, squared_copy, squared_row


def test_cas_me_squared_has_micro_and_macro_intervals_of_a_recording(tmp_path: Path) -> None:
    rows = [
        squared_row(expression="anger1_2", onset=563, apex=565, offset=568, kind="macro-expression"),
        squared_row(onset=552, apex=553, offset=555),
    ]
    found, table = recordings(squared_copy(tmp_path, rows))
    assert table.faults == ()
    (recording,) = found
    assert (recording.dataset, recording.subject) == ("casme_squared", "s15")
    assert (recording.name, recording.count, recording.first) == ("15_0401girlcrashing", 20, 550)
    assert (recording.rate, recording.complete) == (30.0, True)
    # Counted from the recording's first frame, img550.jpg, in order of time.
    micro, macro = recording.intervals
    assert (micro.onset, micro.apex, micro.offset, micro.expression) == (2, 3, 5, "micro")
    assert (macro.onset, macro.apex, macro.offset, macro.expression) == (13, 15, 18, "macro")
    assert (micro.emotion, micro.action_units) == ("negative", "4+9")
    source = recording.source(tmp_path)
    assert isinstance(source, list) and all(path.is_file() for path in source)
    assert source[micro.onset].name == "img552.jpg" and len(source) == 20


def test_samm_long_videos(tmp_path: Path) -> None:
    rows = [
        samm_long_row(),
        samm_long_row(Filename="006_1_3", Onset=568, Apex=569, Offset=571, Type="Macro"),
        samm_long_row(Subject=7, Filename="007_2_1", Onset=560, Apex=561, Offset=563),
    ]
    found, _ = recordings(samm_long_copy(tmp_path, rows))
    assert [(one.subject, one.name, one.rate) for one in found] == [
        ("006", "006_1", 200),
        ("007", "007_2", 200),
    ]
    assert [(one.onset, one.offset) for one in found[0].intervals] == [(2, 6), (8, 11)]
    table = interval_table(found)
    assert table.to_numpy().tolist() == [
        ["006", "006_1", 2, 6, "", "micro", "samm_long"],
        ["006", "006_1", 8, 11, "", "macro", "samm_long"],
        ["007", "007_2", 0, 3, "", "micro", "samm_long"],
    ]


def test_a_folder_of_several_clips_in_a_plain_table(tmp_path: Path) -> None:
    fake_datasets.frames(tmp_path / "p1/long", [f"f_{number}.png" for number in (3, 4, 5, 6, 8, 9, 10, 11)])
    rows = [
        csv_row(subject="p1", clip="one", path="p1/long", onset=4, apex=5, offset=6, fps="120"),
        csv_row(subject="p1", clip="two", path="p1/long", onset=9, apex=10, offset=11, fps="120"),
    ]
    fake_datasets.table(tmp_path / "clips.csv", (*fake_datasets.CSV_HEADER, "fps"), rows)
    (recording,), _ = recordings(tmp_path)
    assert (recording.name, recording.rate, recording.count) == ("long", 120.0, 8)
    assert [(one.onset, one.apex, one.offset) for one in recording.intervals] == [(1, 2, 3), (5, 6, 7)]
    assert [Path(frame).name for frame in recording.frames[3:6]] == ["f_6.png", "f_8.png", "f_9.png"]


def test_neutral_stretches_lie_outside_every_interval(tmp_path: Path) -> None:
    rows = [
        squared_row(expression="anger1_2", onset=553, apex=555, offset=560, kind="macro-expression"),
        squared_row(onset=554, apex=555, offset=556),  # within the other
    ]
    (recording,), _ = recordings(squared_copy(tmp_path, rows))
    assert neutral_stretches(recording, 1) == [(0, 2), (11, 19)]
    assert neutral_stretches(recording, 4) == [(11, 19)]
    assert neutral_stretches(recording, 1, apart=2) == [(0, 0), (13, 19)]
    assert neutral_stretches(recording, 10) == []


def test_nothing_is_neutral_beside_an_expression_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [squared_row(), squared_row(expression="anger1_2", onset=600, apex=601, offset=602)]
    (recording,), table = recordings(squared_copy(tmp_path, rows))
    assert len(table.faults) == 1 and not recording.complete
    assert len(recording.intervals) == 1 and neutral_stretches(recording, 1) == []


def test_a_table_without_rows_has_no_recordings_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    fake_datasets.table(table, fake_datasets.CSV_HEADER, [])
    found, clips = recordings(tmp_path)
    assert found == [] and len(clips) == 0
    fake_datasets.table(table, fake_datasets.CSV_HEADER, [csv_row(path="gone")])
    with pytest.raises(ValueError, match="expected at least one usable clip, got none"):
        recordings(tmp_path)


def test_an_empty_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        recordings(tmp_path / "none")
