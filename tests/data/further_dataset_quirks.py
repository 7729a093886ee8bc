"""The quirks of the further datasets, planted in fake copies; run by test_dataset_quirks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsta_fast.data import Expression, apply_labels, label_set, read_dataset, recognise
from hsta_fast.data.clips import ENDS_AT_APEX, LEFT_OUT, MIDDLE_APEX
from hsta_fast.data.readers.casme import SECOND_APEX
from hsta_fast.data.readers.four_dme import EMOTION_OF_FLAG, MANY_FLAGS

from . import further_datasets as further
from .dataset_quirks import left_out, only_fault, quirk
from .fake_datasets import (
    CSV_HEADER,
    casme2_copy,
    casme2_row,
    csv_row,
    frames,
    sheet,
    table,
)
from .further_datasets import casme_row, dfme_row, four_dme_row, mmew_row, samm_long_row, squared_row

BOTH: tuple[Expression, ...] = ("micro", "macro")

# MMEW


@quirk(
    "MMEW",
    "the columns of CASME II, and `remarks`",
    "told from CASME II by its folders, and without frames by `remarks`",
)
def _(root: Path) -> None:
    further.mmew_copy(root / "mmew", [mmew_row()])
    assert recognise(root / "mmew") == ("mmew", "frames")
    sheet(root / "table/MMEW_Micro_Exp.xlsx", further.MMEW_HEADER, [mmew_row()])
    assert recognise(root / "table") == ("mmew", "no frames")
    casme2_copy(root / "casme2", [casme2_row()])
    header = [*casme2_row(), "remarks"]
    sheet(root / "casme2/CASME2-coding-20140508.xlsx", header, [casme2_row()])
    assert recognise(root / "casme2") == ("casme2", "raw")
    # Without remarks the folders suffice; with a plain table beside it is still MMEW.
    sheet(root / "mmew/MMEW_Micro_Exp.xlsx", further.MMEW_HEADER[:-1], [mmew_row()])
    own = table(root / "mmew/clips.csv", CSV_HEADER, [csv_row(path="Micro_Expression/surprise/S06-07-001")])
    assert recognise(root / "mmew") == ("mmew", "frames")
    assert read_dataset(root / "mmew", annotation=own).clips["dataset"].tolist() == ["csv"]


@quirk("MMEW", "a subject that is S06 or 6", "one person, S06")
def _(root: Path) -> None:
    rows = [mmew_row(), mmew_row(Subject=6, OnsetFrame=2), mmew_row(Subject="06", OnsetFrame=3)]
    found = read_dataset(further.mmew_copy(root, rows))
    assert found.clips["subject"].tolist() == ["S06"] * 3 and found.faults == ()


@quirk(
    "MMEW",
    "a wrong apex or offset",
    "the middle frame is used as apex; a clip whose frames are not all on disk is left out",
)
def _(root: Path) -> None:
    rows = [mmew_row(ApexFrame=9), mmew_row(Filename="S06-07-002", OffsetFrame=9)]
    found = read_dataset(further.mmew_copy(root, rows))
    assert found.clips["apex"].tolist() == [3]
    assert [fault.action for fault in found.faults] == [MIDDLE_APEX, LEFT_OUT]
    assert "first Micro_Expression/surprise/S06-07-002/8.jpg" in found.faults[1].what


@quirk("MMEW", "a clip in the folder of another emotion", "read, with the emotion of the table, and listed")
def _(root: Path) -> None:
    further.mmew_copy(root, [mmew_row()])
    row = mmew_row(**{"Estimated Emotion": "fear"})
    sheet(root / "MMEW_Micro_Exp.xlsx", further.MMEW_HEADER, [row])
    found = read_dataset(root)
    assert found.clips["emotion"].tolist() == ["fear"] and found.clips["frames"][0][0].count("surprise")
    only_fault(found, "emotion 'fear' of a clip in the folder 'surprise'", "emotion taken from the table")


@quirk("MMEW", "a clip in the folders of two emotions", "read where the table says; elsewhere left out")
def _(root: Path) -> None:
    rows = [mmew_row(), mmew_row(Filename="S06-07-002")]
    further.mmew_copy(root, rows)
    frames(root / "Micro_Expression/fear/S06-07-001", ["1.jpg"])
    assert len(read_dataset(root)) == 2
    rows[0]["Estimated Emotion"] = "anger"
    sheet(root / "MMEW_Micro_Exp.xlsx", further.MMEW_HEADER, rows)
    left_out(read_dataset(root), "expected one folder named 'S06-07-001', got Micro_Expression/fear/S06")


@quirk("MMEW", "a clip named after another subject", "clip left out")
def _(root: Path) -> None:
    rows = [mmew_row(), mmew_row(Subject="S07", OnsetFrame=2)]
    left_out(read_dataset(further.mmew_copy(root, rows)), "filename expected a clip of subject S07")


@quirk("MMEW", "macro-expressions beside the micro-expressions", "not read")
def _(root: Path) -> None:
    frames(root / "Macro_Expression/S06/surprise/S06-07-001", ["1.jpg"])
    assert read_dataset(further.mmew_copy(root, [mmew_row()])).faults == ()


# DFME


@quirk("DFME", "`AD38` and `M58` among the action units", "no action units: ignored in the objective class")
def _(root: Path) -> None:
    units = ("4+7+AD38", "M58+12", "AD38", "4")
    rows = [dfme_row(AU=text, OnsetFrame=109 + n) for n, text in enumerate(units)]
    found = read_dataset(further.dfme_copy(root, rows))
    assert found.clips["objective_class"].tolist() == [3, 1, 0, 3]
    assert found.clips["action_units"].tolist() == [*units]


@quirk(
    "DFME",
    "rows without an emotion (the test parts)",
    "kept, with one remark for all; `dfme_7` drops them, `objective7` does not",
)
def _(root: Path) -> None:
    rows = [dfme_row(OnsetFrame=number, Emotion=None) for number in (107, 108)]
    found = read_dataset(further.dfme_copy(root, [dfme_row(), *rows]))
    assert len(found) == 3 and found.faults == ()
    assert [remark for remark in found.remarks if "2 of 3 rows have no emotion" in remark]
    assert apply_labels(found, label_set("dfme_7"))[1] == {"without an emotion": 2}
    assert len(apply_labels(found, label_set("objective7"))[0]) == 3
    # A table without the column is known by the folders.
    header = [name for name in further.DFME_HEADER if name not in ("Emotion", "EmotionId")]
    sheet(root / "training_full_with_AU.xlsx", header, rows)
    assert recognise(root) == ("dfme", "frames") and len(read_dataset(root)) == 2


@quirk("DFME", "`Fps` of 500, 300 or 200", "not needed: onset, apex and offset are frame numbers")
def _(root: Path) -> None:
    rows = [dfme_row(OnsetFrame=107 + number, Fps=fps) for number, fps in enumerate((500, 300, 200))]
    found = read_dataset(further.dfme_copy(root, rows))
    assert found.clips["onset"].tolist() == [107, 108, 109] and found.faults == ()


@quirk("DFME", "folders of several parts", "all are read")
def _(root: Path) -> None:
    further.dfme_copy(root / "data", [dfme_row()])
    other = dfme_row(Subject="sub0200", Filename="sub0200_01")
    further.dfme_copy(root / "data", [other], part="DFME_test_A")
    sheet(root / "data/training_full_with_AU.xlsx", further.DFME_HEADER, [dfme_row(), other])
    first = read_dataset(root / "data").clips["frames"].map(lambda names: names[0]).tolist()
    assert first == ["DFME_train/sub0001_01/00109.png", "DFME_test_A/sub0200_01/00109.png"]


# CASME


@quirk("CASME", "folders named as those of CASME II", "told apart by the columns, and by the images' names")
def _(root: Path) -> None:
    assert recognise(further.casme_copy(root / "a", [casme_row()])) == ("casme", "raw")
    assert recognise(further.casme_copy(root / "b", [casme_row()], "reg_")) == ("casme", "cropped")
    sheet(root / "c/casme.xlsx", further.CASME_HEADER, [casme_row()])  # has all columns of SMIC-HS, too
    assert recognise(root / "c") == ("casme", "no frames")


@quirk("CASME", "`ApexF1` and `ApexF2`", "the first is the apex; one remark counts the second")
def _(root: Path) -> None:
    rows = [casme_row(ApexF2=11), casme_row(OnsetF=9)]
    found = read_dataset(further.casme_copy(root, rows))
    assert found.clips["apex"].tolist() == [10, 10] and found.faults == ()
    assert "CASME: 1 of 2 rows have a second apex (ApexF2); the first, ApexF1, is used" in found.remarks


@quirk("CASME", "two columns without a name", "skipped")
def _(root: Path) -> None:
    assert further.CASME_HEADER.count(None) == 2
    assert len(read_dataset(further.casme_copy(root, [casme_row()]))) == 1


@quirk(
    "CASME", "a row that does not fit the folders on disk", "clip left out; the first missing file is named"
)
def _(root: Path) -> None:
    found = read_dataset(further.casme_copy(root, [casme_row(), casme_row(OnsetF=9, OffsetF=16)]))
    left_out(found, "frames missing on disk: 2 of 8, first sub01/EP01_5/EP01_5-15.jpg")


@quirk(
    "CASME",
    "an `ApexF1` outside onset..offset beside an `ApexF2` inside",
    "the second is the apex, and the row is listed",
)
def _(root: Path) -> None:
    rows = [casme_row(ApexF1=0, ApexF2=11), casme_row(OnsetF=9, ApexF2=0)]
    found = read_dataset(further.casme_copy(root, rows))
    assert found.clips["apex"].tolist() == [11, 10] and found.clips["apex_annotated"].all()
    only_fault(found, "apex expected a frame in 8..12, got '0' in ApexF1", SECOND_APEX)


# 4DME


@quirk(
    "4DME",
    "an uncertain action unit, `AU4+AU7(k)`",
    "objective class unknown, `objective7` drops the clip; one remark counts them",
)
def _(root: Path) -> None:
    rows = [four_dme_row(), four_dme_row(Onset=31, AUs="AU4+AU7(k)")]
    found = read_dataset(further.four_dme_copy(root, rows))
    assert found.clips["objective_class"].tolist() == [3, 0] and found.faults == ()
    assert [remark for remark in found.remarks if "4DME: 1 of 2 rows have an uncertain" in remark]


@quirk(
    "4DME",
    "several of the five flags",
    "listed; the label sets `4dme` and `emotion3` drop the clip, `objective7` does not",
)
def _(root: Path) -> None:
    rows = [four_dme_row(), four_dme_row(Onset=31, Surprise=1)]
    found = read_dataset(further.four_dme_copy(root, rows))
    assert found.clips["emotion"].tolist() == ["negative", "negative+surprise"]
    only_fault(found, "2 flags are set: negative, surprise", MANY_FLAGS)
    for labels in ("4dme", "emotion3"):
        assert apply_labels(found, label_set(labels))[1] == {"negative+surprise": 1}
    assert apply_labels(found, label_set("objective7"))[1] == {}


@quirk("4DME", "`eye blink`", "kept; one remark counts them")
def _(root: Path) -> None:
    found = read_dataset(further.four_dme_copy(root, [four_dme_row(**{"eye blink": 1})]))
    assert "4DME: 1 of 1 rows are marked as having an eye blink" in found.remarks and found.faults == ()


@quirk("4DME", "no flag is set", "the cell of `Emotion` is the emotion")
def _(root: Path) -> None:
    row = four_dme_row(Negative=0, Emotion="Repression")
    assert read_dataset(further.four_dme_copy(root, [row])).clips["emotion"].tolist() == ["repression"]


@quirk("4DME", "a flag that is not the word of `Emotion`", "the flag is the emotion, and the row is listed")
def _(root: Path) -> None:
    found = read_dataset(further.four_dme_copy(root, [four_dme_row(Emotion="Positive")]))
    assert found.clips["emotion"].tolist() == ["negative"]
    only_fault(found, "emotion positive, flag negative", EMOTION_OF_FLAG)


@quirk("4DME", "a flag that is 0, No, n, False or -", "not set")
def _(root: Path) -> None:
    unset = (0, "0.0", "No", "n", False, "-", None)
    rows = [four_dme_row(Onset=28 + n, Offset=36, Surprise=cell) for n, cell in enumerate(unset)]
    found = read_dataset(further.four_dme_copy(root, rows))
    assert set(found.clips["emotion"]) == {"negative"} and len(found) == 7


# CAS(ME)^2


@quirk("CAS(ME)^2", "no row of column names", "columns are read by their place")
def _(root: Path) -> None:
    further.squared_copy(root, [squared_row()])
    assert recognise(root) == ("casme_squared", "raw")
    (clip,) = read_dataset(root).clips.to_dict("records")
    assert (clip["onset"], clip["apex"], clip["offset"]) == (557, 559, 561)
    assert (clip["emotion"], clip["action_units"], clip["objective_class"]) == ("negative", "4+9", 4)


@quirk("CAS(ME)^2", "a blank row or column names above the first sheet's rows", "skipped")
def _(root: Path) -> None:
    for above in ([None], [], ["Participant", "Expression", "Onset", "Apex"]):
        found = read_dataset(further.squared_copy(root, [above, squared_row()]))
        assert len(found) == 1 and found.faults == ()
    further.squared_copy(root, [squared_row()[:3]])
    with pytest.raises(ValueError, match=r"got the folders of CAS\(ME\)\^2; as CAS\(ME\)\^2: ") as error:
        recognise(root)
    assert "SMIC-HS:" not in str(error.value) and "the folders of SMIC-HS" not in str(error.value)


@quirk(
    "CAS(ME)^2",
    "participants and videos under other names than the folders (s15, 0401)",
    "named by the second and third sheet; without these sheets the copy is refused",
)
def _(root: Path) -> None:
    further.squared_copy(root, [squared_row()])
    clips = read_dataset(root).clips
    assert clips["subject"].tolist() == ["s15"] and clips["clip"].tolist() == ["15_0401girlcrashing"]
    further.squared_copy(root, [squared_row(), squared_row(9), squared_row(1, "sad7_1")])
    assert [fault.action for fault in read_dataset(root).faults] == [LEFT_OUT] * 2
    further.squared_copy(root, [squared_row()], sheets=2)
    with pytest.raises(
        ValueError, match=r"expected names of subjects and videos in sheets 2 and 3, got none"
    ):
        read_dataset(root)


@quirk("CAS(ME)^2", "a folder of s19 named after 23", "found by the code of its video")
def _(root: Path) -> None:
    further.squared_copy(root, [squared_row(3, "happy1_1", onset=2, apex=4, offset=6)])
    clips = read_dataset(root).clips
    assert clips["subject"].tolist() == ["s19"] and clips["clip"].tolist() == ["23_0502funnyerrors"]


@quirk("CAS(ME)^2", "an offset of 0", "the clip ends at its apex, and is listed")
def _(root: Path) -> None:
    found = read_dataset(further.squared_copy(root, [squared_row(offset=0)]))
    assert found.clips["offset"].tolist() == [559]
    only_fault(found, "offset expected a frame, got 0", ENDS_AT_APEX)


@quirk("CAS(ME)^2", "action units that are `NULL`", "objective class unknown")
def _(root: Path) -> None:
    found = read_dataset(further.squared_copy(root, [squared_row(units="NULL")]))
    assert found.clips["action_units"].tolist() == [""] and found.clips["objective_class"].tolist() == [0]


@quirk("CAS(ME)^2", "macro-expressions in the table", "skipped unless asked for")
def _(root: Path) -> None:
    rows = [squared_row(), squared_row(onset=555, kind="macro-expression")]
    further.squared_copy(root, rows)
    assert len(read_dataset(root)) == 1 and len(read_dataset(root, expressions=BOTH)) == 2


@quirk("CAS(ME)^2", "a macro-expression without a folder", "listed only where it was asked for")
def _(root: Path) -> None:
    rows = [squared_row(), squared_row(1, "disgust1_1", kind="macro-expression")]
    further.squared_copy(root, rows)
    assert read_dataset(root).faults == ()
    left_out(read_dataset(root, expressions=BOTH), "rawpic/s15: expected a folder of video 0101, got none")


@quirk("CAS(ME)^2", "a name written `CAS(ME)2` or `CAS(ME)²` in a label file", "not taken for CASME II")
def _(root: Path) -> None:
    further.squared_copy(root, [squared_row()])
    path = root / "own.csv"
    for name in ("CAS(ME)2", "CAS(ME)²", "CAS(ME)^2", "casme_squared"):
        path.write_text(f"word,class,dataset\nnegative,no,{name}\nnegative,yes,casme2\n", encoding="utf-8")
        assert label_set(str(path)).words("casme_squared") == {"negative": "no"}


# SAMM Long Videos


@quirk("SAMM Long Videos", "column names in row 10, no emotions", "read; `objective7` needs none")
def _(root: Path) -> None:
    further.samm_long_copy(root, [samm_long_row()])
    assert recognise(root) == ("samm_long", "long videos")
    found = read_dataset(root)
    assert found.clips["emotion"].tolist() == [""] and found.faults == ()
    assert apply_labels(found, label_set("objective7"))[0].clips["label"].tolist() == [2]


@quirk(
    "SAMM Long Videos", "the clips of a recording in one folder, 006_1", "found by the clip's name, 006_1_2"
)
def _(root: Path) -> None:
    rows = [samm_long_row(), samm_long_row(Filename="006_1_3", Onset=564)]
    clips = read_dataset(further.samm_long_copy(root, rows)).clips
    assert clips["clip"].tolist() == ["006_1_2", "006_1_3"]
    assert clips["frames"][1][0] == "SAMM_longvideos/006_1/006_1_0564.jpg"


@quirk("SAMM Long Videos", "macro-expressions in the table (`Type`)", "skipped unless asked for")
def _(root: Path) -> None:
    further.samm_long_copy(root, [samm_long_row(), samm_long_row(Filename="006_1_3", Type="Macro")])
    assert len(read_dataset(root)) == 1 and len(read_dataset(root, expressions=BOTH)) == 2


@quirk("SAMM Long Videos", "an offset of 0", "the clip ends at its apex, and is listed")
def _(root: Path) -> None:
    found = read_dataset(further.samm_long_copy(root, [samm_long_row(Offset=0)]))
    assert found.clips["offset"].tolist() == [564]
    only_fault(found, "offset expected a frame, got 0", ENDS_AT_APEX)


@quirk("SAMM Long Videos", "a clip named after another subject", "clip left out")
def _(root: Path) -> None:
    rows = [samm_long_row(), samm_long_row(Subject=7)]
    left_out(read_dataset(further.samm_long_copy(root, rows)), "filename expected a clip of subject 7")
