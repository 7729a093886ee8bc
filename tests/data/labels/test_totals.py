"""The label rules give the published totals for annotations with the published frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from hsta_fast.data import ClipTable, apply_labels, label_set, read_dataset, read_datasets
from hsta_fast.data.doctor import Count, examine

from .. import fake_datasets
from ..fake_datasets import Cells, casme2_row, casme3_row, samm_row, smic_row

CASME2_WORDS = {
    "others": 99,
    "disgust": 63,
    "happiness": 32,
    "repression": 27,
    "surprise": 25,
    "sadness": 7,
    "fear": 2,
}
SAMM_WORDS = {
    "Anger": 57,
    "Happiness": 26,
    "Other": 26,
    "Surprise": 15,
    "Contempt": 12,
    "Disgust": 9,
    "Fear": 8,
    "Sadness": 6,
}


def spread(
    words: dict[str, int], subjects: Sequence[int], lone: dict[str, Sequence[int]]
) -> list[tuple[int, str]]:
    """(subject, word) of each clip, in turn over the subjects; those in `lone` get one clip, of that word."""
    apart = {subject for own in lone.values() for subject in own}
    turn = cycle([subject for subject in subjects if subject not in apart])
    pairs = []
    for word, count in words.items():
        own = list(lone.get(word, ()))
        pairs += [(own[number] if number < len(own) else next(turn), word) for number in range(count)]
    return pairs


# The clips that are not in the composite: two of disgust, and three of sadness, which the coding of 2019
# calls surprise.
NOT_IN_COMPOSITE = {4: ["EP12_01f"], 5: ["EP09_05f"], 24: ["EP07_01", "EP07_04f", "EP10_03"]}


def casme2(root: Path, surprise: str = "sadness") -> Path:
    """255 rows of 26 subjects; two have only clips that the composite drops.

    surprise: the emotion of the three clips of sub24.
    """
    rows: list[Cells] = []
    words = CASME2_WORDS | {"sadness": 4}
    pairs = [*spread(words, range(1, 27), {"others": (10, 18)}), *[(24, surprise)] * 3]
    named = {subject: list(clips) for subject, clips in NOT_IN_COMPOSITE.items()}
    for number, (subject, word) in enumerate(pairs):
        is_named = number >= 252 or (subject in (4, 5) and word == "disgust" and named[subject])
        name = named[subject].pop(0) if is_named else f"EP{number:03d}_01"
        apex = "/" if name == "EP12_01f" else 47
        rows.append(
            casme2_row(
                Subject=subject,
                Filename=name,
                ApexFrame=apex,
                OffsetFrame=47,
                **{"Estimated Emotion": word, "Action Units": "?" if number == 3 else "L4"},
            )
        )
    return fake_datasets.casme2_copy(root, rows)


def samm(root: Path) -> Path:
    """159 rows of 29 subjects; one has only clips that the composite drops."""
    subjects = [6, 7, *range(9, 36)]
    rows = []
    for number, (subject, word) in enumerate(spread(SAMM_WORDS, subjects, {"Other": (9,)})):
        name = f"{subject:03d}"
        cells = {"Onset Frame": 100, "Apex Frame": 101, "Offset Frame": 101, "Estimated Emotion": word}
        rows.append(samm_row(Subject=name, Filename=f"{name}_1_{number}", **cells))
    return fake_datasets.samm_copy(root, rows)


SMIC_SUBJECTS = [1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 15, 18, 19, 20]


def smic_clips(*counts: int) -> list[tuple[int, str, str]]:
    """(subject, emotion, clip); `counts` are the numbers of negative, positive and surprise clips."""
    words = dict(zip(("negative", "positive", "surprise"), counts, strict=True))
    codes = {"negative": "ne", "positive": "po", "surprise": "sur"}
    return [
        (subject, word, f"s{subject}_{codes[word]}_{number:02d}")
        for number, (subject, word) in enumerate(spread(words, SMIC_SUBJECTS, {}))
    ]


def smic(root: Path) -> Path:
    """The folders' 164 clips of 16 subjects."""
    return fake_datasets.smic_cropped_copy(
        root, [(f"s{s}", word, clip) for s, word, clip in smic_clips(70, 51, 43)]
    )


def casme3(root: Path) -> Path:
    """860 micro-expressions of 94 people and 3346 macro-expressions, many in one recording."""
    words = {
        "disgust": 250,
        "Others": 100,
        "others": 61,
        "surprise": 187,
        "fear": 86,
        "anger": 64,
        "happy": 55,
        "sad": 57,
    }
    fake_datasets.frames(root / "spNO.0/b/color", [f"{number}.jpg" for number in range(212)])
    for subject in range(1, 100):
        (root / f"spNO.{subject}").symlink_to(root / "spNO.0")
    rows = []
    pairs = [(word, "Micro") for word, count in words.items() for _ in range(count)]
    for number, (word, kind) in enumerate([*pairs, *[("happy", "Macro")] * 3346]):
        people = 94 if kind == "Micro" else 100
        onset = number // 20
        cells = {"Onset": onset, "Apex": onset, "Offset": onset + 1, "emotion": word}
        rows.append(
            casme3_row(
                Subject=f"spNO.{number % people}", **cells, **{"Expression type": f"{kind}-expression"}
            )
        )
    fake_datasets.table(root / "part_A.csv", [*fake_datasets.CASME3_HEADER, "Expression type"], rows)
    return root


def totals(table: ClipTable, labels: str = "megc2019") -> tuple[list[int], int]:
    """(clips of each class, subjects) under a label set."""
    labelled, _ = apply_labels(table, label_set(labels))
    clips = labelled.clips
    counts = clips["label"].value_counts().sort_index().tolist()
    return counts, len(set(zip(clips["dataset"], clips["subject"], strict=True)))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three datasets of the composite."""
    root = tmp_path_factory.mktemp("composite")
    return [casme2(root / "casme2"), samm(root / "samm"), smic(root / "smic")]


def test_casme2(roots: list[Path]) -> None:
    table = read_dataset(roots[0])
    assert len(table) == 255 and table.clips["subject"].nunique() == 26
    assert [fault.clip for fault in table.faults] == ["EP12_01f"]
    assert totals(table) == ([88, 32, 25], 24)
    assert table.clips["objective_class"].eq(0).sum() == 1


def test_casme2_in_the_coding_of_2019(tmp_path: Path) -> None:
    """The composite is the same; the doctor compares with the counts of the coding that the copy has."""
    table = read_dataset(casme2(tmp_path, surprise="surprise"))
    assert table.clips["emotion"].value_counts()[["surprise", "sadness"]].tolist() == [28, 4]
    assert totals(table) == ([88, 32, 25], 24)
    (diagnosis,) = examine([tmp_path], progress=False).diagnoses
    found = {count.what: (count.found, count.published) for count in diagnosis.counts}
    assert found["surprise"] == (28, 28) and found["sadness"] == (4, 4)
    assert all(count.found == count.published for count in diagnosis.counts)


@pytest.mark.parametrize(
    ("coding", "subject", "emotion", "known"),
    [
        ("20140508", 1, "surprise", 25),
        ("20190701", 1, "surprise", 28),
        ("20140508", 24, "surprise", 28),
        ("20190701", 24, "sadness", 25),
    ],
)
def test_a_part_of_casme2_tells_its_coding(
    tmp_path: Path, coding: str, subject: int, emotion: str, known: int
) -> None:
    """By one of the three clips that changed, or without them by the name of the table."""
    cells = {"Subject": subject, "Filename": "EP10_03", "Estimated Emotion": emotion}
    fake_datasets.casme2_copy(tmp_path, [casme2_row(**cells)])
    (tmp_path / "CASME2-coding-20140508.xlsx").rename(tmp_path / f"CASME2-coding-{coding}.xlsx")
    (diagnosis,) = examine([tmp_path], progress=False).diagnoses
    assert {count.what: count.published for count in diagnosis.counts}["surprise"] == known


def test_samm(roots: list[Path]) -> None:
    table = read_dataset(roots[1])
    assert len(table) == 159 and table.clips["subject"].nunique() == 29 and table.faults == ()
    assert totals(table) == ([92, 26, 15], 28)


def test_smic(roots: list[Path]) -> None:
    table = read_dataset(roots[2])
    assert len(table) == 164 and table.faults == ()
    assert totals(table) == totals(table, "emotion3") == ([70, 51, 43], 16)


def test_smic_long(tmp_path: Path) -> None:
    """162 rows; five hold a second expression, and s18_sur_03 is annotated as negative."""
    rows = []
    clips = smic_clips(70, 51, 41)
    own = next(number for number, clip in enumerate(clips) if clip[0] == 18 and clip[1] == "surprise")
    clips[own] = (18, "negative", "s18_sur_03")
    for number, (subject, word, clip) in enumerate(clips):
        cells = {"OnsetF": 5, "OffsetF": 6, "FirstF": 5, "LastF": 6, "Emotion": word}
        more = {"Onset2F": 8, "Offset2F": 9} if number < 5 else {}
        rows.append(
            smic_row(Subject=f"{subject:02d}" if number % 2 else subject, Filename=clip, **cells, **more)
        )
    for row in rows:  # the folders' padding differs from the table's
        fake_datasets.frames(
            tmp_path / "SMIC_HS_E" / f"s{int(row['Subject']):02d}" / row["Filename"],
            ["image5.jpg", "image6.jpg"],
        )
    fake_datasets.sheet(
        tmp_path / "SMIC-HS-E_annotation.xlsx", fake_datasets.SMIC_HEADER, rows, name="HS", others=("VIS",)
    )
    table = read_dataset(tmp_path)
    assert len(table) == 162 and totals(table) == ([70, 51, 41], 16)
    assert len(table.faults) == 6


def test_casme3(tmp_path: Path) -> None:
    casme3(tmp_path)
    table = read_dataset(tmp_path)
    assert len(table) == 860 and table.faults == ()
    assert totals(table, "emotion3")[0] == [457, 55, 187]
    assert totals(table, "emotion7") == ([161, 250, 187, 86, 64, 57, 55], 94)
    both = read_dataset(tmp_path, expressions=("micro", "macro"))
    assert both.clips["expression"].value_counts().to_dict() == {"micro": 860, "macro": 3346}


def test_the_composite(roots: list[Path]) -> None:
    table = read_datasets(roots)
    assert totals(table) == ([250, 109, 83], 68) and sum((250, 109, 83)) == 442


def test_the_official_list_gives_its_own_labels(roots: list[Path], tmp_path: Path) -> None:
    """A list made by the rules agrees with them; with four changes it differs in exactly these clips."""
    clips = apply_labels(read_datasets(roots), label_set("megc2019"))[0].clips
    rows = [[c["dataset"], c["subject"], c["clip"], c["label"]] for c in clips.to_dict("records")]
    path = tmp_path / "combined_3class_gt.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    labelled, _ = apply_labels(read_datasets(roots), label_set(str(path)))
    assert len(labelled) == 442 and labelled.clips["label"].tolist() == clips["label"].tolist()
    assert examine(roots, official=path, progress=False).differences == ()
    rows[0][3] = 2
    missing = rows.pop()
    rows += [["casme2", "sub04", "EP12_01f", 0], ["SAMM", "99", "099_1_1", 1]]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    examination = examine(roots, official=path, progress=False)
    differing = [fault.clip for fault in examination.differences]
    assert sorted(differing) == sorted([rows[0][2], "EP12_01f", missing[2], "099_1_1"])
    assert examination.status == 1


def test_the_doctor_counts_them(roots: list[Path], tmp_path: Path) -> None:
    examination = examine([*roots, casme3(tmp_path)], progress=False)
    differing = [
        count
        for d in examination.diagnoses
        for count in d.counts
        if count.published not in (None, count.found)
    ]
    assert differing == []
    known = [count for d in examination.diagnoses for count in d.counts if count.published is not None]
    assert len(known) == 9 + 10 + 5 + 13
    assert all(count.found == count.published for count in examination.composite)
    assert examination.composite[-2:] == (Count("all clips", 442, 442), Count("all subjects", 68, 68))
    assert [d.status for d in examination.diagnoses] == [1, 0, 0, 0] and examination.status == 1
