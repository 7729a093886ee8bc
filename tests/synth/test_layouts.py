"""The readers read rendered data of each layout as exactly the clips that were rendered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import pytest
from openpyxl import load_workbook

from hsta_fast.data import apply_labels, label_set, read_dataset, recognise
from hsta_fast.synth.layouts import EXPRESSIONS
from hsta_fast.synth.render import render, subject_frames
from hsta_fast.synth.settings import SynthConfig

from ..data import fake_datasets, further_datasets

FIRST = ("casme2", "samm", "smic", "casme3")
FURTHER = ("mmew", "dfme", "casme", "4dme", "casme_squared", "samm_long")
LAYOUTS = (*FIRST, *FURTHER)
GREY = ("samm", "4dme", "samm_long")
EMOTIONS = ("happy", "surprise", "disgust", "sad")
WORDS = {
    "casme2": ("happiness", "surprise", "disgust", "sadness"),
    "samm": ("Happiness", "Surprise", "Disgust", "Sadness"),
    "smic": ("positive", "surprise", "negative", "negative"),
    "casme3": EMOTIONS,
    **dict.fromkeys(("mmew", "dfme", "casme"), ("happiness", "surprise", "disgust", "sadness")),
    **dict.fromkeys(("4dme", "casme_squared"), ("positive", "surprise", "negative", "negative")),
    "samm_long": ("", "", "", ""),  # no emotions
}
VERSIONS = {
    "casme2": "raw",
    "samm": "grey frames",
    "smic": "long",
    "casme3": "part A",
    "mmew": "frames",
    "dfme": "frames",
    "casme": "raw",
    "4dme": "grey",
    "casme_squared": "raw",
    "samm_long": "long videos",
}
SMIC_FIRST = 17_580_000


def settings(out: Path, layout: Any) -> SynthConfig:
    return SynthConfig(
        out=out, layout=layout, subjects=2, clips_per_subject=8, size=32, emotions=EMOTIONS, processes=1
    )


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {layout: render(settings(folder / layout, layout)) for layout in LAYOUTS}


def planned(layout: str) -> list[dict[str, Any]]:
    """The clips that the renderer plans, with the values expected in the table."""
    clips: dict[tuple[int, str, int], dict[str, Any]] = {}
    for subject in (1, 2):
        for recording, _, _, plan, word in subject_frames(settings(Path("unused"), layout), subject):
            shift = SMIC_FIRST if layout == "smic" else 0
            clips[subject, recording, plan.onset] = {
                "dataset": layout,
                "subject": subject,
                "recording": recording,
                "onset": plan.onset + shift,
                "apex": plan.apex,
                "offset": plan.offset + shift,
                "emotion": WORDS[layout][EMOTIONS.index(word)],
                "units": EXPRESSIONS[word][0],
                "class": ("I", "II", "III", "IV", "V", "VI", "VII").index(EXPRESSIONS[word][1]) + 1,
            }
    return list(clips.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_back_exactly(roots: dict[str, Path], layout: str) -> None:
    root = roots[layout]
    assert recognise(root) == (layout, VERSIONS[layout])
    table = read_dataset(root)
    assert table.faults == ()
    plan = planned(layout)
    assert len(table) == len(plan) == 16
    names = {
        "casme2": lambda n: f"sub{n:02d}", "samm": lambda n: f"{n:03d}", "smic": lambda n: f"s{n:02d}",
        "casme3": lambda n: f"spNO.{n}", "mmew": lambda n: f"S{n:02d}", "dfme": lambda n: f"sub{n:04d}",
        "casme": lambda n: f"sub{n:02d}", "4dme": lambda n: f"S{n:02d}",
        "casme_squared": lambda n: f"s{n + 14}", "samm_long": lambda n: f"{n:03d}",
    }  # fmt: skip
    rows = {(row["subject"], row["onset"]): row for row in table.clips.to_dict("records")}
    for clip in plan:
        row = rows[names[layout](clip["subject"]), clip["onset"]]
        assert (row["dataset"], row["offset"]) == (layout, clip["offset"])
        middle = (clip["onset"] + clip["offset"]) // 2  # SMIC has no apex: its place is taken
        assert row["apex"] in ((middle, middle + 1) if layout == "smic" else (clip["apex"],))
        assert row["emotion"].casefold() == clip["emotion"].casefold()
        if layout != "smic":
            assert row["objective_class"] == clip["class"]
            assert row["action_units"].replace("AU", "").split("+AD")[0].split("+M")[0] == clip["units"]
        numbers = [int(re.findall("[0-9]+", Path(name).stem)[-1]) for name in row["frames"]]
        assert numbers == list(range(clip["onset"], clip["offset"] + 1))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "casme3"])
def test_the_pictures_are_the_same_in_every_layout(roots: dict[str, Path], layout: str) -> None:
    """Every frame of every clip; some are grey, and DFME's are not compressed with loss."""
    ours, others = read_dataset(roots[layout]).clips, read_dataset(roots["casme3"]).clips
    for (_, row), (_, other) in zip(ours.iterrows(), others.iterrows(), strict=True):
        for name, twin in zip(row["frames"], other["frames"], strict=True):
            path, reference = roots[layout] / name, roots["casme3"] / twin
            if layout in GREY:
                picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                grey = cv2.imread(str(reference), cv2.IMREAD_GRAYSCALE)
                assert picture is not None and grey is not None and picture.shape == (32, 32)
                assert cv2.absdiff(picture, grey).mean() < 3
            elif layout == "dfme":
                picture, jpeg = cv2.imread(str(path)), cv2.imread(str(reference))
                assert picture is not None and jpeg is not None
                assert 0 < cv2.absdiff(picture, jpeg).mean() < 4
            else:
                assert path.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize(
    ("layout", "file", "sheet", "line", "header"),
    [
        ("casme2", "CASME2-coding-20140508.xlsx", "Sheet1", 1, fake_datasets.CASME2_HEADER),
        ("samm", "SAMM_Micro_FACS_Codes_v2.xlsx", "MICRO ONLY", 14, fake_datasets.SAMM_HEADER),
        ("smic", "SMIC-HS-E_annotation.xlsx", "HS", 1, fake_datasets.SMIC_HEADER),
        ("mmew", "MMEW_Micro_Exp.xlsx", "Sheet1", 1, further_datasets.MMEW_HEADER),
        ("dfme", "training_full_with_AU.xlsx", "Sheet1", 1, further_datasets.DFME_HEADER),
        ("casme", "casme.xlsx", "Sheet1", 1, further_datasets.CASME_HEADER),
        ("4dme", "4DME_Labelling_Micro_release v1.xlsx", "Sheet1", 1, further_datasets.FOUR_DME_HEADER),
        (
            *("samm_long", "SAMM_LongVideos_V3_Release.xlsx", "FACS_Movement_Only", 10),
            further_datasets.SAMM_LONG_HEADER,
        ),
    ],
)
def test_columns_are_the_datasets(
    roots: dict[str, Path], layout: str, file: str, sheet: str, line: int, header: tuple[str | None, ...]
) -> None:
    rows = list(load_workbook(roots[layout] / file)[sheet].iter_rows(values_only=True))
    assert rows[line - 1] == header
    assert len(rows) == line + 16


def test_a_table_without_column_names(roots: dict[str, Path]) -> None:
    """CAS(ME)^2: rows of nine cells; the other sheets name subjects and videos."""
    book = load_workbook(roots["casme_squared"] / "CAS(ME)^2code_final(Updated).xlsx")
    rows, subjects, videos = (list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets)
    assert len(rows) == 16 and {len(row) for row in rows} == {9}
    assert rows[0][:2] == (1, "disgust1_1") and rows[0][7] == "micro-expression"
    assert subjects == [("15", "s15", 1), ("16", "s16", 2)]
    assert videos == [("0101", "disgust1"), ("0102", "disgust2")]


@pytest.mark.parametrize("layout", FURTHER)
def test_the_usual_labels_fit(roots: dict[str, Path], layout: str) -> None:
    table = read_dataset(roots[layout])
    labelled, dropped = apply_labels(table, label_set(table.default_labels[layout]))
    assert len(labelled) == 16 and dropped == {}
    assert labelled.clips["label"].nunique() == (3 if WORDS[layout].count("negative") else 4)


@pytest.mark.parametrize(("layout", "dropped"), [("casme2", {"sadness": 4}), ("samm", {}), ("smic", {})])
def test_labels_of_the_composite(roots: dict[str, Path], layout: str, dropped: dict[str, int]) -> None:
    """With each dataset's own words; the composite has no sadness from CASME II."""
    table, left = apply_labels(read_dataset(roots[layout]), label_set("megc2019"))
    assert {word.casefold(): count for word, count in left.items()} == dropped
    assert len(table) == 16 - sum(dropped.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_settings_are_kept(
    roots: dict[str, Path], layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    render(settings(roots[layout], layout))
    assert "kept" in capsys.readouterr().out
    other = LAYOUTS[(LAYOUTS.index(layout) + 1) % len(LAYOUTS)]
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(settings(roots[layout], other))


@pytest.mark.parametrize(
    ("layout", "word"), [("casme2", "anger"), ("smic", "others"), ("dfme", "others"), ("casme", "anger")]
)
def test_emotions_that_a_dataset_lacks_are_named(tmp_path: Path, layout: Any, word: str) -> None:
    wanted = f"--emotions of {layout} expected words out of .*, got {word}"
    with pytest.raises(ValueError, match=wanted):
        render(SynthConfig(out=tmp_path / "x", layout=layout, emotions=("happy", word)))
