"""What the tables of people's copies look like, besides the published files; see dataset_quirks.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hsta_fast.data import apply_labels, label_set, read_dataset
from hsta_fast.data.clips import AS_BLANK, LEFT_OUT
from hsta_fast.data.doctor import examine

from . import fake_datasets
from .dataset_quirks import left_out, quirk
from .fake_datasets import casme2_row, casme3_row, csv_row, samm_row

CODING = "CASME2-coding-20140508.xlsx"


@quirk("CASME II", "a column `Objective Classes`", "its classes win over the action units")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    for name in ("Objective Classes", "Objective_class", "objective_classes"):
        rows = [casme2_row(**{name: 5})]
        fake_datasets.sheet(root / CODING, [*fake_datasets.CASME2_HEADER, name], rows)
        table = read_dataset(root)
        assert table.clips["objective_class"].tolist() == [5]
    assert table.remarks == (f"{CODING}: column 'objective_classes' is read as objective class",)


@quirk(
    "CASME II", "`CASME2-ObjectiveClasses.xlsx` beside the coding", "its classes win over the action units"
)
def _(root: Path) -> None:
    rows = [casme2_row(), casme2_row(Subject=2), casme2_row(Subject=3), casme2_row(Subject=4)]
    fake_datasets.casme2_copy(root, rows)
    header = ["Subject", "Filename", "Objective Class"]
    classes: list[fake_datasets.Cells] = [
        {"Subject": 1, "Filename": "EP02_01f", "Objective Class": 3},
        {"Subject": "sub02", "Filename": "EP02_1F", "Objective Class": "IV"},
        {"Subject": 4, "Filename": "EP02_01f", "Objective Class": 2},
        {"Subject": 4, "Filename": "EP02_01f", "Objective Class": 5},  # which of them cannot be told
        {"Subject": "nobody", "Filename": "EP02_01f", "Objective Class": 7},
    ]
    path = fake_datasets.sheet(root / "CASME2-ObjectiveClasses.xlsx", header, classes)
    table = read_dataset(root)
    assert table.clips["objective_class"].tolist() == [3, 4, 1, 1] and table.faults == ()
    said = "the objective classes of 2 of 4 rows are those of CASME2-ObjectiveClasses.xlsx"
    assert table.remarks == (said,)
    assert read_dataset(root, annotation=root / CODING).remarks == (said,)
    # The coding's own column comes first, and of two tables it cannot be told which is meant.
    fake_datasets.sheet(root / "with.xlsx", [*fake_datasets.CASME2_HEADER, "Objective Class"], [casme2_row()])
    assert read_dataset(root, annotation=root / "with.xlsx").clips["objective_class"].tolist() == [1]
    assert read_dataset(root, annotation=root / CODING).clips["objective_class"].tolist() == [3, 4, 1, 1]
    path.rename(root / "b.xlsx")
    fake_datasets.sheet(root / "a.xlsx", header, classes)
    table = read_dataset(root, annotation=root / CODING)
    assert table.clips["objective_class"].tolist() == [1] * 4
    assert table.remarks == ("a.xlsx and b.xlsx have objective classes, so neither is read",)


@quirk("CAS(ME)3", "no column `emotion`", "read; `--labels objective7` labels the clips")
def _(root: Path) -> None:
    """The form of the csv files that the paper's authors published: one for each kind of expression."""
    rows = [casme3_row(), casme3_row(Subject="spNO.2", **{"Objective class": "I"})]
    fake_datasets.casme3_copy(root, [*rows, casme3_row(Onset=176)])
    next(root.glob("*.csv")).unlink()
    header = [*fake_datasets.CASME3_HEADER[:-2], "Expression type", "Objective class"]
    for kind, of_kind in (("Micro", rows), ("Macro", [casme3_row(Onset=176)])):
        typed = [row | {"Expression type": f"{kind}-expression"} for row in of_kind]
        fake_datasets.table(root / f"{kind}-expression.csv", header, typed)
    table = read_dataset(root)
    assert table.clips["emotion"].tolist() == ["", ""] and table.faults == ()
    assert apply_labels(table, label_set("objective7"))[0].clips["label"].tolist() == [2, 0]
    words = "^label set 'emotion7' expected emotions, got clips of casme3 without one: --labels objective7"
    with pytest.raises(ValueError, match=words):
        apply_labels(table, label_set("emotion7"))
    both = read_dataset(root, expressions=("micro", "macro"))
    assert both.clips["expression"].tolist() == ["micro", "micro", "macro"]
    (diagnosis,) = examine([root], progress=False).diagnoses
    assert diagnosis.status == 0
    assert [count.what for count in diagnosis.counts] == [
        "micro-expressions",
        "macro-expressions",
        "subjects",
    ]


@quirk("MEGC 2019", "a copy of the list with column names, or more columns", "read by the names")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.samm_copy(root, [samm_row(), samm_row(Filename="006_1_3")]))
    path = root / "combined_3class_gt.csv"
    plain = "samm,006,006_1_2,1\nsamm,006,006_1_3,0\n"
    path.write_text(plain)
    listed = label_set(str(path)).listed
    forms = [
        "dataset,subject,filename,label\n" + plain,
        "dataset,sub,filename_o,label,apex,imagename,sub_filename\n"
        "samm,006,006_1_2,1,,006_006_1_2.jpg,\nsamm,006,006_1_3,0,,006_006_1_3.jpg,\n",
        ",Dataset,Subject,Filename,Class,onset\n0,SAMM,6,6_1_2,1,5\n1,SAMM,6,6_1_3,0,7\n",
        plain.replace(",", ";"),
        ("dataset,subject,clip,gt\n" + plain).replace(",", "\t"),
    ]
    for text in forms:
        path.write_text(text)
        assert label_set(str(path)).listed == label_set("megc2019", [root]).listed == listed, text
        labelled = apply_labels(table, label_set(str(path)))[0]
        assert labelled.clips["label"].tolist() == [1, 0]
    path.write_text("dataset,subject,filename,label\n")
    with pytest.raises(ValueError, match=r"gt.csv: expected the clips of the composite, got no row"):
        label_set(str(path))


@quirk("any", "semicolons or tabs between the cells", "read like commas: the column names decide")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    (root / CODING).unlink()
    rows = [casme2_row(**{"Action Units": "4;7,L1", "Estimated Emotion": "disgust"})]
    for name, separator in (("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.csv", ",")):
        path = fake_datasets.table(root / name, fake_datasets.CASME2_HEADER, rows, separator=separator)
        table = read_dataset(root)
        assert table.clips[["action_units", "emotion"]].values.tolist() == [["4;7,L1", "disgust"]]
        assert table.faults == () and table.remarks == ()
        # A title with other signs above the names changes nothing, nor does a row that is too long.
        text = f"A copy, of {separator}\n{path.read_text()}1{separator * 20}x\n"
        path.write_text(text)
        left_out(read_dataset(root), "row expected a cell for each column, got 1 more")
        path.write_text(path.read_text().replace("ApexFrame", "Peak"))
        with pytest.raises(ValueError, match=r"expected also the columns ApexFrame, got Subject, Filename,"):
            read_dataset(root)
        path.write_text('"Subject"' + separator + '"never closed')
        with pytest.raises(ValueError, match=r"expected a \w+-separated table, got line 1: unexpected end"):
            read_dataset(root)
        path.unlink()


@quirk("any", "an old Excel file (`.xls`)", "read with the extra `xls`; without it, what to install is said")
def _(root: Path) -> None:
    header = [name for name in fake_datasets.CASME2_HEADER if name is not None]
    fake_datasets.casme2_copy(root, [casme2_row()])
    expected = read_dataset(root)
    path = fake_datasets.old_sheet(
        root / "CASME2_label_Ver_2.xls", header, [casme2_row(), casme2_row(OnsetFrame="x")]
    )
    assert len(read_dataset(root).faults) == 0, "a new workbook beside an old one is the one that is read"
    (root / CODING).unlink()
    table = read_dataset(root)
    assert table.clips.equals(expected.clips)
    (fault,) = table.faults
    assert "row 3: onset and offset expected integers, got 'x' and '50'" in fault.what
    how = (
        r"_2.xls: expected the package xlrd for an old Excel file: pip install 'hsta_fast\[xls\]', or save it"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "xlrd", None)
        with pytest.raises(ValueError, match=how):
            read_dataset(root)
    path.write_bytes(b"no workbook")
    with pytest.raises(ValueError, match=r"_2.xls: expected an Excel workbook, got Unsupported format"):
        read_dataset(root)


@quirk(
    "any",
    "a formula that was never calculated",
    "listed; the clip is left out, or in an optional column the cell is taken as blank",
)
def _(root: Path) -> None:
    rows = [
        samm_row(),
        samm_row(**{"Onset Frame": "=D15+1"}),
        samm_row(**{"Onset Frame": 5563, "Objective Classes": "=D15", "Action Units": "12"}),
        dict.fromkeys(fake_datasets.SAMM_HEADER, "=A1"),
        samm_row(**{"Onset Frame": 5564, "Notes": "=D15"}),
    ]
    fake_datasets.samm_copy(root, [samm_row()])
    fake_datasets.sheet(root / "SAMM_Micro_FACS_Codes_v2.xlsx", fake_datasets.SAMM_HEADER, rows, above=13)
    table = read_dataset(root)
    assert table.clips["onset"].tolist() == [5562, 5563, 5564]
    assert table.clips["objective_class"].tolist() == [7, 1, 7]
    how = "; open the table in Excel or LibreOffice and save it"
    said = [(fault.what.split(": ", 1), fault.action) for fault in table.faults]
    formula = "row expected values, got a formula without a value in"
    assert said == [
        (["SAMM_Micro_FACS_Codes_v2.xlsx row 16", f"{formula} onset frame{how}"], LEFT_OUT),
        (["SAMM_Micro_FACS_Codes_v2.xlsx row 17", f"{formula} objective classes{how}"], AS_BLANK),
        (
            [
                "SAMM_Micro_FACS_Codes_v2.xlsx row 18",
                f"{formula} subject, filename, onset frame, apex frame, offset frame, action units, "
                f"estimated emotion, objective classes{how}",
            ],
            LEFT_OUT,
        ),
    ]


@quirk(
    "any",
    "an optional column of another name (`AU`, `Label`)",
    "a remark: read if it can mean nothing else, otherwise not read",
)
def _(root: Path) -> None:
    header = ["subject", "clip", "path", "AU", "Emotion"]
    row = csv_row(AU="4+7", Emotion="happy")
    fake_datasets.csv_copy(root, [row], header)
    table = read_dataset(root)
    assert table.clips[["action_units", "objective_class", "emotion"]].values.tolist() == [
        ["4+7", 3, "happy"]
    ]
    assert table.remarks == ("clips.csv: column 'AU' is read as action units",)
    row |= {"Label": "sad", "Offest": 3, "action units": "12", "notes": "x", "": "y"}
    fake_datasets.csv_copy(
        root, [row], ["subject", "clip", "path", "AU", "Label", "Offest", "action units", "notes", ""]
    )
    table = read_dataset(root)
    assert table.clips[["action_units", "emotion", "offset"]].values.tolist() == [["12", "", 7]]
    assert table.remarks == (
        "clips.csv: column 'AU' is not read: action units is there",
        "clips.csv: column 'Label' is not read; did you mean emotion?",
        "clips.csv: column 'Offest' is not read; did you mean offset?",
        "clips.csv: column not read: 'notes'",
    )
    with pytest.raises(
        ValueError, match=r"needs none; clips.csv: column 'Label' is not read; did you mean emotion\?$"
    ):
        apply_labels(table, label_set("emotion7"))
    path = root / "own.csv"
    path.write_text("word,class,datasets\nhappy,a,csv\nsad,b,csv\n")
    with pytest.raises(ValueError, match=r"own.csv: column 'datasets' is not read; did you mean dataset\?"):
        label_set(str(path))
