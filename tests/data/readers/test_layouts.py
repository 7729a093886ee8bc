"""Where frames and annotation may lie: below the folder that is given, in each dataset's known layouts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsta_fast.data import read_dataset, read_datasets, recognise
from hsta_fast.data.doctor import Diagnosis, as_text, examine
from hsta_fast.data.readers import casme2, samm, smic, tree
from hsta_fast.data.readers.annotation import find_annotation
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.data.readers.folders import FolderNames, find_subjects

from .. import fake_datasets
from ..fake_datasets import Cells, casme2_row, casme3_row, csv_row, frames, samm_row, smic_row

COPIES = {
    "casme2": (fake_datasets.casme2_copy, casme2_row, "sub01/EP02_01f/img46.jpg"),
    "samm": (fake_datasets.samm_copy, samm_row, "006/006_1_2/006_05562.jpg"),
    "smic": (fake_datasets.smic_long_copy, smic_row, "SMIC_HS_E/s20/s20_ne_01/image17581039.jpg"),
    "casme3": (fake_datasets.casme3_copy, casme3_row, "spNO.1/b/color/175.jpg"),
}
ME = "cas(me)3_part_A_ME_label_JpgIndex_v2.csv"
MAE = "cas(me)3_part_A_MaE_label_JpgIndex_v2.csv"


def diagnosis(root: Path, annotation: Path | None = None) -> Diagnosis:
    (found,) = examine([root], annotation=annotation, progress=False).diagnoses
    return found


def first_frames(root: Path) -> list[str]:
    return [paths[0] for paths in read_dataset(root).clips["frames"]]


@pytest.mark.parametrize("dataset", COPIES)
@pytest.mark.parametrize(
    ("table", "copy"), [("", "a/b/c/d/e"), ("annotation", "data/part_A"), ("x/y", "x/y"), ("x", "x/y/z")]
)
def test_table_and_frames_may_lie_below_the_folder(
    tmp_path: Path, dataset: str, table: str, copy: str
) -> None:
    write, row, frame = COPIES[dataset]
    write(tmp_path / copy, [row()])
    (own,) = (path for path in (tmp_path / copy).iterdir() if path.suffix in (".csv", ".xlsx"))
    (tmp_path / table).mkdir(parents=True, exist_ok=True)
    own.rename(tmp_path / table / own.name)
    assert recognise(tmp_path)[0] == dataset
    assert first_frames(tmp_path) == [f"{copy}/{frame}"]
    found = diagnosis(tmp_path)
    assert (found.dataset, found.status) == (dataset, 0)
    assert tmp_path / found.annotation == tmp_path / table / own.name


def test_the_nearest_level_with_a_table_counts(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path / "a/copy", [samm_row()])
    near = fake_datasets.sheet(tmp_path / "b" / "near.xlsx", fake_datasets.SAMM_HEADER, [samm_row()])
    fake_datasets.table(tmp_path / "notes.csv", ("a", "b"), [])
    assert find_annotation(tmp_path, samm.COLUMNS) == near
    fake_datasets.table(tmp_path / "a" / "other.csv", fake_datasets.SAMM_HEADER, [samm_row()])
    with pytest.raises(
        ValueError, match="one annotation file, got a/other.csv, b/near.xlsx; name one with --annotation"
    ):
        read_dataset(tmp_path, "samm")
    assert len(read_dataset(tmp_path, annotation=near)) == 1


def test_a_plain_table_counts_only_in_the_folder_itself(tmp_path: Path) -> None:
    fake_datasets.csv_copy(tmp_path / "own", [csv_row()])
    with pytest.raises(ValueError, match="got no csv or xlsx file, here or up to 6 levels below"):
        read_dataset(tmp_path)
    with pytest.raises(ValueError, match="expected an annotation file in this folder"):
        read_dataset(tmp_path, "csv")


def test_nothing_outside_is_searched(tmp_path: Path) -> None:
    outside = fake_datasets.samm_copy(tmp_path / "outside", [samm_row()])
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "inside/table.xlsx").symlink_to(outside / "SAMM_Micro_FACS_Codes_v2.xlsx")
    (root / "inside/circle").symlink_to(root)
    with pytest.raises(ValueError, match="got no csv or xlsx file"):
        read_dataset(root)
    fake_datasets.samm_copy(root / "deep/copy", [samm_row()])
    (root / "again").symlink_to(root / "deep")
    assert len(read_dataset(root)) == 1


def test_a_search_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of frames are left after a few names, long series after a few folders, and all at the limit."""
    for subject in range(12):
        for recording in "ab":
            frames(tmp_path / f"data/spNO.{subject}/{recording}/color", [f"{n}.jpg" for n in range(40)])
    seen: list[str] = []
    list_folder = tree._list

    def counted(real: str, path: str, place: str, *, is_root: bool) -> tuple[tree.Folder, dict[str, str]]:
        seen.append(path)
        return list_folder(real, path, place, is_root=is_root)

    monkeypatch.setattr(tree, "_list", counted)
    assert find_subjects(tmp_path, re.compile("sub[0-9]+")) == []
    in_subjects = [path for path in seen if path.startswith("data/spNO.")]
    assert len(in_subjects) == 3 + 6 + 6
    seen.clear()
    assert find_subjects(tmp_path, re.compile(r"spNO\.[0-9]+")) == ["data"] and seen == ["", "data"]
    # Clips of a subject: the series is searched wholly where its first folders have some.
    assert len(find_subjects(tmp_path, re.compile("color"))) == 24
    monkeypatch.setattr(tree, "MAX_FOLDERS", 5)
    seen.clear()
    assert find_subjects(tmp_path, re.compile("x")) == [] and len(seen) == 5
    with pytest.raises(ValueError, match="5 folders searched, no more: give the folder of the copy itself"):
        fake_datasets.table(tmp_path / "table.csv", fake_datasets.SAMM_HEADER, [samm_row()])
        read_dataset(tmp_path)


def test_many_tables_below_are_no_annotation(tmp_path: Path) -> None:
    for number in range(17):
        fake_datasets.table(tmp_path / f"features/{number}.csv", fake_datasets.SAMM_HEADER, [samm_row()])
    fake_datasets.samm_copy(tmp_path / "copy", [samm_row()])
    assert len(read_dataset(tmp_path)) == 1


def test_several_datasets_below_one_folder(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(tmp_path / "CASME2", [casme2_row()])
    fake_datasets.samm_copy(tmp_path / "SAMM/long", [samm_row()])
    with pytest.raises(
        ValueError,
        match="expected one dataset, got CASME II in CASME2 and SAMM in SAMM/long; give the folder of each",
    ):
        read_dataset(tmp_path)
    assert len(read_datasets([tmp_path / "CASME2", tmp_path / "SAMM"])) == 2
    assert first_frames(tmp_path / "SAMM") == ["long/006/006_1_2/006_05562.jpg"]
    fake_datasets.smic_cropped_copy(tmp_path / "SMIC", [("s1", "negative", "s1_ne_01")])
    with pytest.raises(ValueError, match="SAMM in SAMM/long and SMIC-HS in SMIC/HS; give the folder of each"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("dataset", COPIES)
def test_an_unknown_layout_is_one_line(tmp_path: Path, dataset: str) -> None:
    write, row, _ = COPIES[dataset]
    clip = "Filename"
    others: dict[str, list[Cells]] = {
        "casme2": [row(), row(**{clip: "EP03_02"}), row(Subject=2)],
        "samm": [row(), row(**{clip: "006_1_3"}), row(Subject="007", **{clip: "007_1_1"})],
        "smic": [row(), row(**{clip: "s20_ne_02"}), row(Subject=3, **{clip: "s3_ne_01"})],
        "casme3": [row(), row(**{clip: "c"}), row(Subject="spNO.2")],
    }
    write(tmp_path / "elsewhere", others[dataset])
    (own,) = (path for path in (tmp_path / "elsewhere").iterdir() if path.suffix in (".csv", ".xlsx"))
    root = tmp_path / "copy"
    for name in ("by_emotion/anger", "by_emotion/fear", "code", "notes", "videos"):
        (root / name).mkdir(parents=True)
    own.rename(root / own.name)
    found = diagnosis(root)
    assert (found.status, found.faults, found.dataset) == (2, (), dataset)
    assert re.fullmatch(
        r".*copy: expected at least one usable clip, got none: no clip of the table \(3, of 2 subjects\) has "
        r"a folder, such as \S*; looked for [A-Z()3 -]*I* as .*, here or up to 6 levels below \(7 folders "
        r"searched\); found here: by_emotion, code, notes and 1 more",
        found.error,
    ), found.error
    assert "unusable" in as_text(examine([root], progress=False)) and "\n" not in found.error
    with pytest.raises(ValueError, match=r"no clip of the table \(3, of 2 subjects\) has"):
        read_dataset(root)


def test_other_clips_than_those_of_the_table_are_one_line(tmp_path: Path) -> None:
    rows = [casme2_row(Subject=subject) for subject in range(1, 5)]
    fake_datasets.casme2_copy(tmp_path / "raw", [casme2_row(Filename="other")])
    fake_datasets.casme2_copy(tmp_path / "no", rows)
    (tmp_path / "raw/CASME2-coding-20140508.xlsx").unlink()
    (tmp_path / "no/CASME2-coding-20140508.xlsx").rename(tmp_path / "coding.xlsx")
    (tmp_path / "no").rename(tmp_path.parent / f"{tmp_path.name}-no")
    assert re.search(
        r"\(4, of 4 subjects\) has a folder, such as raw/sub01/EP02_01f; .*found in raw: sub01$",
        diagnosis(tmp_path).error,
    )
    # A part of the copy is listed row by row, as ever.
    frames(tmp_path / "raw/sub03/EP02_01f", [f"img{n}.jpg" for n in range(46, 51)])
    found = diagnosis(tmp_path)
    assert found.status == 1 and [fault.subject for fault in found.faults] == ["sub01", "sub02", "sub04"]


def test_old_layouts_keep_their_folders(tmp_path: Path) -> None:
    """Features in folders of the same names are not taken for frames, however near they are."""
    fake_datasets.casme2_copy(tmp_path, [casme2_row()])
    (tmp_path / "features/cropped/sub01/EP02_01f").mkdir(parents=True)
    assert first_frames(tmp_path) == ["sub01/EP02_01f/img46.jpg"]
    assert casme2.READER.versions(tmp_path) == {"raw": ""}
    # Nor do frames that were found before the search went so deep give way to those that were not.
    frames(tmp_path / "a/b/Cropped/sub01/EP02_01f", [f"reg_img{n}.jpg" for n in range(46, 51)])
    fake_datasets.smic_cropped_copy(tmp_path / "a/SMIC", [("s1", "negative", "s1_ne_01")])
    assert recognise(tmp_path) == ("casme2", "raw")
    (tmp_path / "a/SMIC/HS").rename(tmp_path / "HS")
    with pytest.raises(ValueError, match="got casme2 and smic; name one with --dataset"):
        recognise(tmp_path)
    table = tmp_path / "CASME2-coding-20140508.xlsx"
    assert recognise(tmp_path, table) == ("casme2", "raw")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """What is said of tables that have nothing to do with a dataset, and of those that have."""
    for name in ("x", "y"):
        fake_datasets.table(tmp_path / f"downloads/{name}.csv", ("name", "age"), [])
    with pytest.raises(
        ValueError, match="got 2 tables without the columns of any; the folder holds: downloads$"
    ):
        read_dataset(tmp_path)
    header = [name for name in fake_datasets.SAMM_HEADER if name != "Apex Frame"]
    fake_datasets.table(tmp_path / "downloads/samm.csv", header, [])
    with pytest.raises(ValueError, match=r"got as SAMM: .*samm\.csv: expected also the columns Apex Frame"):
        read_dataset(tmp_path)


# SMIC


@pytest.mark.parametrize("camera", ["VIS", "SMIC-NIR-E"])
@pytest.mark.parametrize("inner", ["", "cropped", "cropped/all"])
def test_other_cameras_of_smic_are_refused(tmp_path: Path, camera: str, inner: str) -> None:
    """Whichever folder of such a copy is given."""
    top = tmp_path / camera
    frames(top / inner / "s1/micro/negative/s1_ne_01", ["reg_image1.jpg", "reg_image2.jpg"])
    frames(top / inner / "s2/s2_ne_01", ["image1.jpg"])
    for root in (tmp_path, top, top / inner):
        with pytest.raises(ValueError, match="SMIC expected the camera HS, got SMIC-(VIS|NIR) in .*only"):
            read_dataset(root)
        with pytest.raises(ValueError, match="only SMIC-HS is read"):
            read_dataset(root, "smic")
    fake_datasets.smic_cropped_copy(tmp_path, [("s1", "negative", "s1_ne_01")])
    assert smic.READER.versions(tmp_path)["cropped"] == "HS"


def test_hs_of_smic_is_read_in_any_folder(tmp_path: Path) -> None:
    for folder in ("NIR-lab/SMIC_all_cropped", "VIS/SMIC/HS", "HS_long/SMIC-E"):
        frames(tmp_path / folder / "s1/micro/negative/s1_ne_01", ["reg_image1.jpg", "reg_image2.jpg"])
        assert recognise(tmp_path / folder) == ("smic", "cropped")


def test_a_plain_table_that_is_named_wins(tmp_path: Path) -> None:
    fake_datasets.smic_cropped_copy(tmp_path, [("s1", "negative", "s1_ne_01")])
    path = fake_datasets.table(
        tmp_path / "clips.csv",
        fake_datasets.CSV_HEADER,
        [csv_row(path="HS/s1/micro/negative/s1_ne_01", onset=7, apex=8, offset=9)],
    )
    assert recognise(tmp_path) == ("smic", "cropped")
    assert recognise(tmp_path, path) == ("csv", "folders and videos")
    assert read_dataset(tmp_path, annotation=path).clips["clip"].tolist() == ["smile"]


# CAS(ME)3


def clip_package(root: Path, rows: list[Cells], macro: list[Cells] = [], kind: str = "") -> Path:  # noqa: B006
    """The clips as distributed: frames, depth and video beside each other; `kind`: such as "_cropped"."""
    for package, here in (("Part_A_ME_clip", rows), ("Part_A_MaE_clip", macro)):
        for row in here:
            name = f"{row['Subject']}_{row['Filename']}_{row['Onset']}"
            numbers = range(row["Onset"], row["Offset"] + 1)
            frames(root / f"{package}{kind}/frame/{name}", [f"{n}.jpg" for n in numbers])
            frames(root / f"{package}{kind}/depth/{name}", [f"{n}.png" for n in numbers])
            (root / f"{package}{kind}/video").mkdir(exist_ok=True)
            (root / f"{package}{kind}/video/{name}.mp4").touch()
    fake_datasets.table(root / "annotation" / ME, fake_datasets.CASME3_HEADER, rows)
    if macro:
        fake_datasets.table(root / "annotation" / MAE, fake_datasets.CASME3_HEADER, macro)
    return root


ROWS = [casme3_row(), casme3_row(Onset=176), casme3_row(Subject="spNO.20", Filename="c", Onset=177)]
MACRO = [casme3_row(Onset=178, Apex=178), casme3_row(Onset=176, Filename="d")]


def test_casme3_in_clips(tmp_path: Path) -> None:
    root = clip_package(tmp_path, ROWS, MACRO)
    assert recognise(root) == ("casme3", "part A, clips")
    table = read_casme3(root)
    assert table.faults == () and table.clips["subject"].tolist() == ["spNO.1", "spNO.1", "spNO.20"]
    assert table.clips["clip"].tolist() == ["b", "b", "c"]
    assert table.clips["frames"].tolist() == [
        tuple(
            f"Part_A_ME_clip/frame/{row['Subject']}_{row['Filename']}_{row['Onset']}/{number}.jpg"
            for number in range(row["Onset"], 180)
        )
        for row in ROWS
    ]
    both = read_casme3(root, expressions=("micro", "macro"))
    assert both.faults == () and both.remarks == ()
    of_macro = both.clips[both.clips["expression"] == "macro"]
    assert [paths[0] for paths in of_macro["frames"]] == [
        "Part_A_MaE_clip/frame/spNO.1_b_178/178.jpg",
        "Part_A_MaE_clip/frame/spNO.1_d_176/176.jpg",
    ]
    found = diagnosis(root)
    assert (found.version, found.annotation, found.status) == ("part A, clips", f"annotation/{ME}", 0)
    assert found.counts[:2] == tuple(
        type(found.counts[0])(*count)
        for count in (("micro-expressions", 3, 860), ("macro-expressions", 2, 3346))
    )
    # The same clips as from the recordings: the same identity, so that runs and predictions fit.
    recordings = fake_datasets.casme3_copy(tmp_path / "recordings", ROWS)
    key = ["dataset", "subject", "clip", "onset", "apex", "offset", "emotion"]
    assert read_casme3(recordings).clips[key].equals(table.clips[key])


@pytest.mark.parametrize("inner", ["", "frame", "Part_A_ME_clip", "Part_A_ME_clip/frame"])
def test_casme3_given_by_a_folder_of_the_package(tmp_path: Path, inner: str) -> None:
    """Also unpacked twice into a folder of its own name, and with names in another case than the table's."""
    root = clip_package(tmp_path, ROWS)
    (root / "Part_A_ME_clip").rename(root / "x")
    top = root / "Part_A_ME_clip"
    top.mkdir()
    (root / "x").rename(top / "Part_A_ME_clip" if inner.startswith("Part") else root / "y")
    if not inner.startswith("Part"):
        top.rmdir()
        (root / "y").rename(top)
    (folder,) = top.rglob("frame/spNO.1_b_175")
    folder.rename(folder.parent / "spno.1_B_0175")
    table = read_casme3(top / inner, annotation=root / "annotation" / ME)
    assert len(table) == 3 and table.faults == ()
    assert not any("depth" in path for paths in table.clips["frames"] for path in paths)
    assert table.clips["clip"].tolist() == ["B", "b", "c"]


def test_casme3_cropped_clips_win(tmp_path: Path) -> None:
    root = clip_package(clip_package(tmp_path, ROWS, MACRO), ROWS, kind="_cropped")
    assert recognise(root) == ("casme3", "part A, clips, cropped")
    assert first_frames(root)[0] == "Part_A_ME_clip_cropped/frame/spNO.1_b_175/175.jpg"
    # Macro-expressions are not taken from pictures of another kind.
    both = read_casme3(root, expressions=("micro", "macro"))
    assert set(both.clips["expression"]) == {"micro"} and both.faults == ()
    remark, copies = both.remarks
    assert copies == (
        "frames are read from Part_A_ME_clip_cropped/frame; Part_A_ME_clip/frame holds the same subjects"
    )
    assert remark.startswith("2 macro-expressions are not read: no clip of the table (2, of 1 subjects)")
    assert diagnosis(root).status == 0
    clip_package(root, ROWS, MACRO, kind="_cropped")
    assert len(read_casme3(root, expressions=("micro", "macro"))) == 5
    # As others crop them: without the folder frame, in a folder of another name.
    for path in (root / "Part_A_ME_clip_cropped/frame").iterdir():
        path.rename(root / "Part_A_ME_clip_cropped" / path.name)
    (root / "Part_A_ME_clip_cropped").rename(root / "Part_A_ME_clip_scrfd_cropped")
    assert first_frames(root)[0] == "Part_A_ME_clip_scrfd_cropped/spNO.1_b_175/175.jpg"


def test_casme3_which_version_is_read(tmp_path: Path) -> None:
    root = clip_package(tmp_path, ROWS)
    fake_datasets.casme3_copy(root / "part_A", ROWS)
    (root / "part_A/cas(me)3_part_A_ME_label.csv").unlink()
    fake_datasets.frames(root / "flow/spNO.1_b_175", ["175.jpg"])  # nearer, and no frames
    assert recognise(root) == ("casme3", "part A, clips")
    assert first_frames(root)[0] == "Part_A_ME_clip/frame/spNO.1_b_175/175.jpg"
    for part in ("part_B", "Part C"):
        fake_datasets.casme3_copy(root / part, ROWS)
        (root / part / "cas(me)3_part_A_ME_label.csv").unlink()
    (root / "Part_A_ME_clip").rename(tmp_path.parent / f"{tmp_path.name}-gone")
    (root / "flow").rename(root / "depth_flow")
    assert recognise(root) == ("casme3", "part A")
    assert first_frames(root)[0] == "part_A/spNO.1/b/color/175.jpg"
    # Recordings in the folder itself win, as they always did.
    clip_package(root, ROWS, kind="_cropped")
    fake_datasets.casme3_copy(root, ROWS)
    (root / "cas(me)3_part_A_ME_label.csv").unlink()
    assert recognise(root) == ("casme3", "part A")
    assert first_frames(root)[0] == "spNO.1/b/color/175.jpg"


def test_casme3_without_the_clips_of_macro_expressions(tmp_path: Path) -> None:
    """One remark, not a fault for each of 3346 rows; missing micro-expressions are a fault."""
    root = clip_package(tmp_path, ROWS, MACRO)
    (root / "Part_A_MaE_clip").rename(tmp_path.parent / f"{tmp_path.name}-macro")
    found = diagnosis(root)
    assert found.table is not None and found.status == 0 and len(found.table.remarks) == 1
    (tmp_path.parent / f"{tmp_path.name}-macro").rename(root / "Part_A_MaE_clip")
    (root / "Part_A_ME_clip").rename(tmp_path.parent / f"{tmp_path.name}-micro")
    found = diagnosis(root)
    (fault,) = found.faults
    assert fault.action == "3 micro-expressions left out" and found.status == 1
    with pytest.raises(ValueError, match=r"no clip of the table \(3, of 2 subjects\) has"):
        read_dataset(root)


def test_other_spellings_are_found_without_a_search_for_each(tmp_path: Path) -> None:
    for name in ("spNO.1_b_175", "spno.2_B_0007", "a b"):
        (tmp_path / name).mkdir()
    names = FolderNames(tmp_path)
    asked = ("spNO.1_b_175", "SPNO.1_B_175", "spNO.2_b_7", "A  B", "ab", "x")
    assert [names.on_disk("", name) for name in asked] == [
        *("spNO.1_b_175", "spNO.1_b_175", "spno.2_B_0007", "a b", "ab", "x")
    ]
    (tmp_path / "A B").mkdir()
    with pytest.raises(ValueError, match=r"\.: expected one folder for 'A  b', got A B, a b"):
        FolderNames(tmp_path).on_disk("", "A  b")
