"""The quirks of each dataset, planted in fake copies, and the outcome; run by test_dataset_quirks.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsta_fast.data import ClipTable, apply_labels, label_set, read_dataset, recognise
from hsta_fast.data.clips import LEFT_OUT, MIDDLE_APEX

from . import fake_datasets
from .fake_datasets import casme2_row, casme3_row, samm_row, smic_row

Plant = Callable[[Path], None]
QUIRKS: dict[tuple[str, str], tuple[str, Plant]] = {}


def quirk(dataset: str, what: str, outcome: str) -> Callable[[Plant], Plant]:
    """Register a function that plants a quirk in an empty folder and asserts its outcome."""

    def register(plant: Plant) -> Plant:
        assert (dataset, what) not in QUIRKS
        QUIRKS[dataset, what] = outcome, plant
        return plant

    return register


def only_fault(table: ClipTable, what: str, action: str) -> None:
    (fault,) = table.faults
    assert what in fault.what and fault.action == action, fault


def left_out(table: ClipTable, what: str) -> None:
    """One clip is in the table, another is left out with this fault."""
    assert len(table) == 1
    only_fault(table, what, LEFT_OUT)


# CASME II


@quirk("CASME II", "two columns without a name", "skipped")
def _(root: Path) -> None:
    assert fake_datasets.CASME2_HEADER.count(None) == 2
    table = read_dataset(fake_datasets.casme2_copy(root, [casme2_row()]))
    assert len(table) == 1 and table.faults == ()


@quirk("CASME II", "an apex that is `/` (sub04 EP12_01f)", "the middle frame is used as apex")
def _(root: Path) -> None:
    table = read_dataset(
        fake_datasets.casme2_copy(root, [casme2_row(Subject=4, Filename="EP12_01f", ApexFrame="/")])
    )
    assert table.clips["apex"].tolist() == [48]
    only_fault(table, "apex expected a frame in 46..50, got '/'", MIDDLE_APEX)


@quirk("CASME II", "an action unit that is `?`", "objective class unknown, `objective7` drops the clip")
def _(root: Path) -> None:
    rows = [casme2_row(), casme2_row(OnsetFrame=47, **{"Action Units": "4+?"})]
    table = read_dataset(fake_datasets.casme2_copy(root, rows))
    assert table.clips["objective_class"].tolist() == [1, 0]
    assert apply_labels(table, label_set("objective7"))[1] == {"happiness": 1}


@quirk("CASME II", "action units with `L` and `R`", "the side is ignored in the objective class")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.casme2_copy(root, [casme2_row(**{"Action Units": "L1+R2"})]))
    assert table.clips["objective_class"].tolist() == [2]
    assert table.clips["action_units"].tolist() == ["L1+R2"]


@quirk("CASME II", "raw and cropped frames in one folder", "the cropped ones are read")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(fake_datasets.casme2_copy(root, [casme2_row()]), [casme2_row()], cropped=True)
    assert recognise(root) == ("casme2", "cropped")
    assert read_dataset(root).clips["frames"][0][0].startswith("Cropped/")


@quirk("CASME II", "a subject that is a number, folders `sub01`", "matched; 1, 01 and sub01 are one person")
def _(root: Path) -> None:
    rows = [casme2_row(), casme2_row(Subject="01", OnsetFrame=47), casme2_row(Subject="sub1", OnsetFrame=48)]
    assert read_dataset(fake_datasets.casme2_copy(root, rows)).clips["subject"].tolist() == ["sub01"] * 3


# SAMM


@quirk("SAMM", "column names in row 14", "found in any of the first 40 rows")
def _(root: Path) -> None:
    fake_datasets.samm_copy(root, [samm_row()])
    path = root / "SAMM_Micro_FACS_Codes_v2.xlsx"
    for above in (0, 13, 39):
        fake_datasets.sheet(path, fake_datasets.SAMM_HEADER, [samm_row()], above=above)
        assert len(read_dataset(root)) == 1
    fake_datasets.sheet(path, fake_datasets.SAMM_HEADER, [samm_row()], above=40)
    with pytest.raises(ValueError, match="expected also the columns Subject"):
        read_dataset(root, "samm")


@quirk("SAMM", "frame numbers whose width differs by clip", "read by their value")
def _(root: Path) -> None:
    fake_datasets.samm_copy(root, [samm_row()], width=5)
    other = samm_row(Filename="006_1_3", **{"Onset Frame": 98, "Apex Frame": 99, "Offset Frame": 101})
    fake_datasets.samm_copy(root, [other], width=4)
    fake_datasets.samm_copy(root, [samm_row(), other])
    (root / "006/006_1_3/006_00100.jpg").unlink()  # of width 5, beside 006_0100.jpg
    for number in (98, 99, 101):
        (root / f"006/006_1_3/006_{number:05d}.jpg").unlink()
    table = read_dataset(root)
    assert table.faults == () and table.clips["frames"][1][2] == "006/006_1_3/006_0100.jpg"


@quirk("SAMM", "an apex outside onset..offset (028_4_1, 032_3_1)", "the middle frame is used as apex")
def _(root: Path) -> None:
    rows = [
        samm_row(Subject="028", Filename="028_4_1", **{"Apex Frame": 5561}),
        samm_row(Subject="032", Filename="032_3_1", **{"Apex Frame": 5567}),
    ]
    table = read_dataset(fake_datasets.samm_copy(root, rows))
    assert table.clips["apex"].tolist() == [5564, 5564]
    assert [fault.action for fault in table.faults] == [MIDDLE_APEX] * 2


@quirk("SAMM", "action units with `R`, `L`, `T`, `B` and intensity letters", "ignored in the objective class")
def _(root: Path) -> None:
    units = {"Action Units": "R12B + 6C", "Objective Classes": None}
    table = read_dataset(fake_datasets.samm_copy(root, [samm_row(**units)]))
    assert table.clips["objective_class"].tolist() == [1]


@quirk("SAMM", "action units joined by `or`", "the class comes from the file; without one it is unknown")
def _(root: Path) -> None:
    units = {"Action Units": "AU12 or AU14", "Objective Classes": None}
    rows = [samm_row(**units | {"Objective Classes": 1}), samm_row(**units | {"Onset Frame": 5563})]
    assert read_dataset(fake_datasets.samm_copy(root, rows)).clips["objective_class"].tolist() == [1, 0]


@quirk("SAMM", "a subject written 6 or 006", "one person, 006")
def _(root: Path) -> None:
    fake_datasets.samm_copy(root, [samm_row()])
    rows = [samm_row(Subject=6), samm_row(**{"Onset Frame": 5563})]
    fake_datasets.sheet(root / "SAMM_Micro_FACS_Codes_v2.xlsx", fake_datasets.SAMM_HEADER, rows, above=13)
    assert read_dataset(root).clips["subject"].tolist() == ["006", "006"]


@quirk("SAMM", "a clip named after another subject", "clip left out")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.samm_copy(root, [samm_row(), samm_row(Subject="007")]))
    left_out(table, "filename expected a clip of subject 007, got '006_1_2'")


# SMIC-HS


@quirk("SMIC-HS", "no apex", "the middle frame is used as apex; not a fault")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.smic_long_copy(root, [smic_row()]))
    assert table.clips["apex"].tolist() == [17581041] and table.faults == ()


@quirk(
    "SMIC-HS",
    "a second expression in a row (`Onset2F`)",
    "the first is the clip; the second, which has no emotion of its own, is left out and listed",
)
def _(root: Path) -> None:
    rows = [smic_row(Onset2F=17581050, Offset2F=17581055, TotalMF2=6)]
    table = read_dataset(fake_datasets.smic_long_copy(root, rows))
    assert table.clips["onset"].tolist() == [17581039]
    (fault,) = table.faults
    assert (fault.clip, fault.onset, fault.action) == ("s20_ne_01", 17581050, LEFT_OUT)
    assert "expression 2 of the row, 17581050..17581055" in fault.what


@quirk(
    "SMIC-HS",
    "ids with different padding (`s1_ne_01`, `s01_ne_01`)",
    "one id, s01_ne_01, whatever the folder is called",
)
def _(root: Path) -> None:
    rows = [smic_row(Subject="01", Filename="s1_ne_01"), smic_row(Subject="02", Filename="s02_ne_1")]
    fake_datasets.smic_long_copy(root, rows)
    (root / "SMIC_HS_E/s02").rename(root / "SMIC_HS_E/s2")
    table = read_dataset(root)
    assert table.clips["clip"].tolist() == ["s01_ne_01", "s02_ne_01"]
    assert table.clips["frames"].map(lambda frames: Path(frames[0]).parent.as_posix()).tolist() == [
        "SMIC_HS_E/s01/s1_ne_01",
        "SMIC_HS_E/s2/s02_ne_1",
    ]
    (root / "combined_3class_gt.csv").write_text("smic,s01,s01_ne_01,0\nsmic,s2,s2_ne_01,0\n")
    labelled, _ = apply_labels(table, label_set("megc2019", [root]))
    assert len(labelled) == 2 and labelled.faults == ()


@quirk(
    "SMIC-HS",
    "s18_sur_03, surprise by name and in the official list, negative in the annotation",
    "surprise: if name and annotation differ, the name wins and the clip is listed",
)
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.smic_long_copy(root, [smic_row(Subject=18, Filename="s18_sur_03")]))
    assert table.clips["emotion"].tolist() == ["surprise"]
    only_fault(table, "emotion 'negative' of a clip named s18_sur_03", "taken as surprise, by its name")


@quirk(
    "SMIC-HS",
    "sheets and folders of the other cameras (VIS, NIR), and non_micro",
    "only the clips of HS are read",
)
def _(root: Path) -> None:
    fake_datasets.smic_long_copy(root, [smic_row()])  # its workbook has a sheet VIS with the same columns
    assert len(read_dataset(root)) == 1
    fake_datasets.smic_cropped_copy(root / "SMIC_all_cropped", [("s1", "negative", "s1_ne_01")])
    fake_datasets.frames(root / "VIS/s1/micro/negative/s1_ne_02", ["reg_image1.jpg", "reg_image2.jpg"])
    assert read_dataset(root).clips["clip"].tolist() == ["s01_ne_01"]


@quirk("SMIC-HS", "a clip named after another subject", "clip left out")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.smic_long_copy(root, [smic_row(), smic_row(Subject=2)]))
    left_out(table, "filename expected a clip of subject s02, got 's20_ne_01'")


@quirk("SMIC-HS", "a cropped clip with a frame missing between others", "the image before it is used")
def _(root: Path) -> None:
    fake_datasets.smic_cropped_copy(root, [("s3", "positive", "s3_po_08")])
    folder = root / "HS/s3/micro/positive/s3_po_08"
    (folder / "reg_image8.jpg").unlink()
    table = read_dataset(root)
    assert [Path(path).name for path in table.clips["frames"][0]] == [f"reg_image{n}.jpg" for n in (7, 7, 9)]
    only_fault(table, "1 of 3 frame numbers have no image", "the image before stands in")


@quirk("SMIC-HS", "a folder that cannot be read", "listed; its clips are left out")
def _(root: Path) -> None:
    clips = [(f"s{n}", "positive", f"s{n}_po_01") for n in (1, 2, 3, 4, 5)]
    fake_datasets.smic_cropped_copy(root / "copy", clips)
    hs = root / "copy/HS"
    (hs / "s2").rename(root / "s2")
    (hs / "s2").symlink_to(root / "s2")
    (hs / "s3/micro/positive").rename(root / "positive")
    (hs / "s3/micro/positive").symlink_to(root / "positive")
    (hs / "s4/micro/positive/again").symlink_to("again")
    (hs / "s5/micro").rename(hs / "s5/Micro")
    table = read_dataset(root / "copy")
    assert table.clips["subject"].tolist() == ["s01", "s04", "s05"]
    said = [(fault.subject, fault.clip, fault.what.split(": ", 1)[1], fault.action) for fault in table.faults]
    out = "expected a path inside the root, 'HS/s"
    loop = "expected a readable file or folder, got: too many levels of symbolic links"
    assert said == [
        ("s2", "s2", f"{out}2' leads out of it", LEFT_OUT),
        ("s3", "positive", f"{out}3/micro/positive' leads out of it", LEFT_OUT),
        ("s4", "again", f"HS/s4/micro/positive/again: {loop}", LEFT_OUT),
    ]


@quirk("SMIC-HS", "164 clips in the folders, 162 rows in the annotation", "each version is read as it is")
def _(root: Path) -> None:
    fake_datasets.smic_cropped_copy(root, [("s20", "negative", f"s20_ne_{n:02d}") for n in (1, 2)])
    fake_datasets.smic_long_copy(root, [smic_row()])
    assert read_dataset(root).clips["clip"].tolist() == ["s20_ne_01", "s20_ne_02"]
    long = read_dataset(root, annotation=root / "SMIC-HS-E_annotation.xlsx")
    assert long.clips["clip"].tolist() == ["s20_ne_01"]
    assert long.clips["frames"][0][0].startswith("SMIC_HS_E/")


# CAS(ME)3


@quirk("CAS(ME)3", "several clips in one recording", "all are read; the onset identifies them")
def _(root: Path) -> None:
    rows = [casme3_row(), casme3_row(Onset=176), casme3_row(Onset=180, Apex=181, Offset=182)]
    table = read_dataset(fake_datasets.casme3_copy(root, rows))
    assert table.clips["onset"].tolist() == [175, 176, 180] and table.faults == ()


@quirk("CAS(ME)3", "frames missing on disk", "clip left out; the first missing file is named")
def _(root: Path) -> None:
    fake_datasets.casme3_copy(root, [casme3_row(), casme3_row(Onset=180, Apex=181, Offset=182)])
    (root / "spNO.1/b/color/181.jpg").unlink()
    left_out(read_dataset(root), "1 of 3, first spNO.1/b/color/181.jpg")


@quirk("CAS(ME)3", "an apex before the onset", "the middle frame is used as apex")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.casme3_copy(root, [casme3_row(Apex=170)]))
    assert table.clips["apex"].tolist() == [177]
    only_fault(table, "apex expected a frame in 175..179, got '170'", MIDDLE_APEX)


@quirk("CAS(ME)3", "an offset before the apex", "the middle frame is used as apex")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.casme3_copy(root, [casme3_row(Apex=180)]))
    assert table.clips["apex"].tolist() == [177]
    only_fault(table, "apex expected a frame in 175..179, got '180'", MIDDLE_APEX)


@quirk("CAS(ME)3", "an offset of 0, or before the onset", "clip left out")
def _(root: Path) -> None:
    for offset in (0, 174):
        table = read_dataset(
            fake_datasets.casme3_copy(root, [casme3_row(), casme3_row(Onset=176, Offset=offset)])
        )
        left_out(table, "offset expected a frame not before onset")


@quirk(
    "CAS(ME)3",
    "micro-expressions of 3455 frames and of 730 (spNO.190/m, onset 8)",
    "clips left out: at most 600 frames are accepted",
)
def _(root: Path) -> None:
    for length in (3455, 730):
        long = casme3_row(Onset=8, Offset=7 + length)
        left_out(
            read_dataset(fake_datasets.casme3_copy(root, [casme3_row(), long])),
            f"clip expected at most 600 frames, got {length}",
        )


@quirk("CAS(ME)3", "`others` and `Others`", "the same word")
def _(root: Path) -> None:
    rows = [casme3_row(emotion="others"), casme3_row(Onset=176, emotion="Others")]
    assert read_dataset(fake_datasets.casme3_copy(root, rows)).clips["emotion"].tolist() == [
        "others",
        "others",
    ]


@quirk("CAS(ME)3", "a recording `L` in the table, `l` on disk", "found; the clip gets the folder's name")
def _(root: Path) -> None:
    fake_datasets.casme3_copy(root, [casme3_row(Filename="l")])
    fake_datasets.casme3_copy(root, [casme3_row(Filename="L")])
    for path in (root / "spNO.1/L/color").iterdir():
        path.unlink()
    (root / "spNO.1/L/color").rmdir()
    (root / "spNO.1/L").rmdir()
    assert read_dataset(root).clips["clip"].tolist() == ["l"]


@quirk("CAS(ME)3", "macro-expressions in the table", "skipped unless asked for")
def _(root: Path) -> None:
    rows = [
        casme3_row(Onset=n, **{"Expression type": f"M{kind}cro-expression"})
        for n, kind in ((175, "i"), (176, "a"))
    ]
    table = read_dataset(fake_datasets.casme3_copy(root, rows))
    assert table.clips["onset"].tolist() == [175] and table.faults == ()
    assert len(read_dataset(root, expressions=("micro", "macro"))) == 2


# Composite


@quirk(
    "MEGC 2019",
    "the official list and the rules differ",
    "the list wins; each clip that differs, or is in only one of them, is listed",
)
def _(root: Path) -> None:
    rows = [samm_row(Filename=f"006_1_{n}") for n in (1, 2, 3)]
    table = read_dataset(fake_datasets.samm_copy(root, rows))
    (root / "combined_3class_gt.csv").write_text("samm,6,006_1_1,2\nsamm,6,006_1_2,0\nsamm,7,007_1_1,1\n")
    labelled, _ = apply_labels(table, label_set("megc2019", [root]))
    assert labelled.clips["label"].tolist() == [2, 0]
    said = [(fault.clip, fault.what, fault.action) for fault in labelled.faults]
    assert said == [
        ("006_1_2", "the official list says negative, the rule surprise", "labelled as in the list"),
        ("006_1_3", "the official list says nothing, the rule surprise", LEFT_OUT),
        ("007_1_1", "in the official list, not among the clips of this copy", LEFT_OUT),
    ]


@quirk(
    "MEGC 2019",
    "sub04 EP12_01f, sub05 EP09_05f, and sub24 EP07_01, EP07_04f and EP10_03 of CASME II",
    "not part of the composite: dropped and counted",
)
def _(root: Path) -> None:
    pairs = ((1, "EP02_01f"), (4, "EP12_01f"), (5, "EP09_05F"))
    rows = [casme2_row(Subject=s, Filename=clip, **{"Estimated Emotion": "disgust"}) for s, clip in pairs]
    for clip in ("EP07_01", "EP07_04f", "EP10_03"):
        rows.append(casme2_row(Subject=24, Filename=clip, **{"Estimated Emotion": "surprise"}))
    labelled, dropped = apply_labels(
        read_dataset(fake_datasets.casme2_copy(root, rows)), label_set("megc2019")
    )
    assert labelled.clips["clip"].tolist() == ["EP02_01f"] and dropped == {"disgust": 2, "surprise": 3}
