"""Keys of clips and persons: one rule for spellings, and natural order."""

import pandas as pd
import pytest

from hsta_fast.clips import clip_key, identity, natural_key, person_key, spelling_key, subject_ids, words_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("S01_ne_03", "s1_NE_3"),
        ("spNO.1", "spno.01"),
        ("007", "7.0"),
        ("EP02_01f", "ep2-1F"),
        ("sub 01", "sub01"),
        ("s\u200b1", "s1"),
        ("s\uff11", "s1"),
        ("s\u0661", "s1"),
    ],
)
def test_spellings_of_one_name(one: str, other: str) -> None:
    assert spelling_key(one) == spelling_key(other)
    assert person_key(f"a/{one}") == person_key(f"a/{other}")
    assert clip_key("a", one, "EP 1", "1") == clip_key("A", other, "ep 01", "01")


@pytest.mark.parametrize(
    ("one", "other"), [("s10_ne_3", "s1_ne_3"), ("s1", "s11"), ("7.5", "7"), ("a_b", "ab")]
)
def test_different_names(one: str, other: str) -> None:
    assert spelling_key(one) != spelling_key(other)
    assert clip_key("a", "s", one, "1") != clip_key("a", "s", other, "1")


def test_a_name_of_two_data_sets_is_two_people() -> None:
    table = pd.DataFrame({"dataset": ["a", "b"], "subject": ["s1", "s1"]})
    assert subject_ids(table).tolist() == ["a/s1", "b/s1"]
    assert len(set(map(person_key, subject_ids(table)))) == 2


def test_words_of_a_clip_stay_apart() -> None:
    assert words_key("EP 1 1") == words_key("ep 01 1") != words_key("EP 11")


def test_a_clip_key_does_not_mix_its_parts() -> None:
    assert clip_key("a", "s", "c 1", "") != clip_key("a", "s", "c", "1")


def test_natural_order() -> None:
    names = ["spNO.10", "spNO.2", "spNO.02", "spNO.1", "a"]
    assert sorted(names, key=natural_key) == ["a", "spNO.1", "spNO.02", "spNO.2", "spNO.10"]


def test_identity_of_a_clip_without_an_onset() -> None:
    assert identity("samm", "006", "006_1_2", 7) == "samm 006/006_1_2 onset 7"
    assert identity("samm", "006", "006_1_2", None) == "samm 006/006_1_2 onset ?"
