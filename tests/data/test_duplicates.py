"""One person under two names is found by the frames alone."""

import pandas as pd

from hsta_fast.data.duplicates import duplicate_people


def clips_of(*people: tuple[str, str]) -> pd.DataFrame:
    rows = [
        {"dataset": dataset, "subject": subject, "clip": "a", "onset": row}
        for row, (dataset, subject) in enumerate(people)
    ]
    return pd.DataFrame(rows)


def test_all_clips_of_the_later_name_are_left_out() -> None:
    clips = clips_of(("samm", "1"), ("smic", "1"), ("samm", "2"), ("smic", "1"), ("samm", "1"))
    found = duplicate_people(clips, ["ab", "cd", "xy", "ab", "ab"])
    assert [row for row, _ in found] == [1, 3]
    what = "one person under two names: the frames of smic 1/a onset 3 are those of samm 1/a onset 0"
    assert [(fault.onset, fault.what) for _, fault in found] == [(1, what), (3, what)]


def test_a_clip_without_frames_matches_nobody() -> None:
    clips = clips_of(("samm", "1"), ("samm", "2"), ("samm", "2"))
    assert duplicate_people(clips, [None, None, "ab"]) == []
    found = duplicate_people(clips, ["ab", None, "ab"])
    assert [row for row, _ in found] == [2]
    assert duplicate_people(clips, ["ab", "ba", "a"]) == []
