"""The readers read rendered data of each layout as exactly the clips that were rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
from openpyxl import load_workbook

from hsta_fast.data import apply_labels, label_set, read_dataset, recognise
from hsta_fast.synth.layouts import EXPRESSIONS
from hsta_fast.synth.render import SynthConfig, render, subject_frames

from ..data import fake_datasets

LAYOUTS = ("casme2", "samm", "smic", "casme3")
EMOTIONS = ("happy", "surprise", "disgust", "sad")
WORDS = {
    "casme2": ("happiness", "surprise", "disgust", "sadness"),
    "samm": ("Happiness", "Surprise", "Disgust", "Sadness"),
    "smic": ("positive", "surprise", "negative", "negative"),
    "casme3": EMOTIONS,
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
    versions = {"casme2": "raw", "samm": "grey frames", "smic": "long", "casme3": "part A"}
    assert recognise(root) == (layout, versions[layout])
    table = read_dataset(root)
    assert table.faults == ()
    plan = planned(layout)
    assert len(table) == len(plan) == 16
    names = {
        "casme2": lambda n: f"sub{n:02d}", "samm": lambda n: f"{n:03d}", "smic": lambda n: f"s{n:02d}",
        "casme3": lambda n: f"spNO.{n}",
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
            assert row["action_units"].replace("AU", "") == clip["units"]
        assert len(row["frames"]) == clip["offset"] - clip["onset"] + 1


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_the_pictures_are_the_same_in_every_layout(roots: dict[str, Path], layout: str) -> None:
    """Every frame of every clip; SAMM's are grey."""
    ours, others = read_dataset(roots[layout]).clips, read_dataset(roots["casme3"]).clips
    for (_, row), (_, other) in zip(ours.iterrows(), others.iterrows(), strict=True):
        for name, twin in zip(row["frames"], other["frames"], strict=True):
            path, reference = roots[layout] / name, roots["casme3"] / twin
            if layout == "samm":
                picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                grey = cv2.imread(str(reference), cv2.IMREAD_GRAYSCALE)
                assert picture is not None and grey is not None and picture.shape == (32, 32)
                assert cv2.absdiff(picture, grey).mean() < 3
            else:
                assert path.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize(
    ("layout", "file", "sheet", "line", "header"),
    [
        ("casme2", "CASME2-coding-20140508.xlsx", "Sheet1", 1, fake_datasets.CASME2_HEADER),
        ("samm", "SAMM_Micro_FACS_Codes_v2.xlsx", "MICRO ONLY", 14, fake_datasets.SAMM_HEADER),
        ("smic", "SMIC-HS-E_annotation.xlsx", "HS", 1, fake_datasets.SMIC_HEADER),
    ],
)
def test_columns_are_the_datasets(
    roots: dict[str, Path], layout: str, file: str, sheet: str, line: int, header: tuple[str | None, ...]
) -> None:
    rows = list(load_workbook(roots[layout] / file)[sheet].iter_rows(values_only=True))
    assert rows[line - 1] == header
    assert len(rows) == line + 16


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
    other = LAYOUTS[(LAYOUTS.index(layout) + 1) % 4]
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(settings(roots[layout], other))


@pytest.mark.parametrize(("layout", "word"), [("casme2", "anger"), ("smic", "others")])
def test_emotions_that_a_dataset_lacks_are_named(tmp_path: Path, layout: Any, word: str) -> None:
    wanted = f"--emotions of {layout} expected words out of .*, got {word}"
    with pytest.raises(ValueError, match=wanted):
        render(SynthConfig(out=tmp_path / "x", layout=layout, emotions=("happy", word)))
