"""Predictions of other programs: any separator, workbooks, arrays, usual names of columns, class names."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest

from hsta_fast.protocol.foreign import load_predictions
from hsta_fast.protocol.tables import read_tables

SUBJECT, TRUTH, PREDICTED = ["s1", "s1", "s2", "s2"], [0, 1, 2, 0], [0, 1, 1, 0]
HEAD = ("Subject ID", "Y_true", "y pred")
ROWS = [*zip(SUBJECT, map(str, TRUTH), map(str, PREDICTED), strict=True)]


def joined(separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in (HEAD, *ROWS))


def workbook(path: Path, **sheets: list[tuple[object, ...]]) -> None:
    book = openpyxl.Workbook()
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    del book["Sheet"]
    book.save(path)


def write_book(path: Path) -> None:
    rows: list[tuple[object, ...]] = [
        (s, t, float(p)) for s, t, p in zip(SUBJECT, TRUTH, PREDICTED, strict=True)
    ]
    workbook(path, notes=[("made by hand",)], data=[(), HEAD, *rows, (None,)])


WRITERS: dict[str, Callable[[Path], object]] = {
    "comma": lambda path: path.write_text(joined(",")),
    "semicolon": lambda path: path.write_text(joined(";")),
    "decimal commas": lambda path: path.write_text(joined(";").replace("\n", ";0,25\n")),
    "tab": lambda path: path.write_text(joined("\t")),
    "bar": lambda path: path.write_text(joined("|")),
    "spaces": lambda path: path.write_text(
        joined("  ").replace("Subject ID", "Subject").replace("y p", "y_p")
    ),
    "named": lambda path: path.write_text("sep=;\n" + joined(";")),
    "bom": lambda path: path.write_text(joined(";"), encoding="utf-8-sig"),
    "utf-16": lambda path: path.write_text(joined("\t"), encoding="utf-16"),
    "workbook": write_book,
    "fields": lambda path: save(
        path,
        np.array(
            [*zip(SUBJECT, TRUTH, PREDICTED, strict=True)],
            dtype=[("sub", "U4"), ("gt", int), ("pred", float)],
        ),
    ),
}


def save(path: Path, array: np.ndarray) -> Path:
    """np.save, which would add a suffix to another name."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "theirs"  # the content tells what it is, not the name
    WRITERS[kind](path)
    read = load_predictions(path)
    assert read.rows["label"].tolist() == TRUTH and read.rows["predicted"].tolist() == PREDICTED
    assert read.rows["subject"].tolist() == SUBJECT
    assert read.classes == ["0", "1", "2"] and read.numbers == [0, 1, 2] and read.given == {"subject"}


def test_what_was_guessed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(joined(","))
    assert load_predictions(path).source == {
        "subject": "Subject ID",
        "label": "Y_true",
        "predicted": "y pred",
    }
    path.write_text("label,emotion,predicted\n0,x,0\n1,y,1\n")
    assert load_predictions(path).source == {}, "a column of our own name comes first"
    chosen = load_predictions(path, {"label": "emotion"}, ["y", "x"])
    assert chosen.rows["label"].tolist() == [1, 0] and chosen.rows["predicted"].tolist() == [0, 1]
    assert chosen.source == {}, "named, not guessed"


@pytest.mark.parametrize(
    ("head", "columns", "message"),
    [
        (
            "y_true,truth,predicted",
            {},
            "expected one column for label, got y_true and truth: --label says which",
        ),
        ("label,pred,y_hat", {}, "one column for predicted, got pred and y_hat: --predicted says which"),
        (
            "label,predicted,a",
            {"fold": "b"},
            "--fold expected one of the columns label, predicted, a, got 'b'",
        ),
        ("label,predicted,label", {}, "expected each column once, got several of label"),
        ("a,b,c", {}, r"expected a column label \(or y_true, .*\), got a, b, c; --label names it"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(
    tmp_path: Path, head: str, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(f"{head}\n0,0,0\n1,1,1\n")
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        load_predictions(path, columns)


def test_rows_that_were_trained_on_are_no_fold(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted,split\n0,0,train\n1,1,test\n")
    with pytest.raises(
        ValueError, match="expected the rows of the test part alone, got test, train in the col"
    ):
        load_predictions(path)
    assert load_predictions(path, {"fold": "split"}).rows["fold"].tolist() == ["train", "test"]
    path.write_text("label,predicted,split\n0,0,test\n1,1,test\n")
    assert load_predictions(path).given == {"fold"}


def test_blank_names(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted,fold,sub\n0,0,1,\n\n1,1,,\n")
    with pytest.raises(
        ValueError, match="row 4, column fold: expected a name in every row, or in none, got ''"
    ):
        load_predictions(path)
    path.write_text("label,predicted,fold,sub\n0,0,1,\n1,1,1,\n")
    assert load_predictions(path).given == {"fold"}


@pytest.mark.parametrize(
    ("label", "predicted", "codes", "numbers"),
    [
        ("0 1 2", "2 1 0", ([0, 1, 2], [2, 1, 0]), [0, 1, 2]),
        ("1 2 3", "3.0 2 1", ([0, 1, 2], [2, 1, 0]), [1, 2, 3]),
        ("1 2 2", "1 1 2", ([1, 2, 2], [1, 1, 2]), [0, 1, 2]),
        ("bad good odd", "odd odd bad", ([0, 1, 2], [2, 2, 0]), None),
        ("bad good odd", "3 1 1", ([0, 1, 2], [2, 0, 0]), [1, 2, 3]),
    ],
)
def test_class_names_in_the_order_of_their_numbers(
    tmp_path: Path, label: str, predicted: str, codes: tuple[list[int], list[int]], numbers: list[int] | None
) -> None:
    path = tmp_path / "theirs.csv"
    rows = zip(label.split(), predicted.split(), strict=True)
    path.write_text("label,predicted\n" + "".join(f"{a},{b}\n" for a, b in rows))
    read = load_predictions(path, classes=["bad", "good", "odd"])
    assert (read.rows["label"].tolist(), read.rows["predicted"].tolist()) == codes
    assert read.numbers == numbers and read.classes == ["bad", "good", "odd"]


def test_columns_of_probabilities_name_the_classes_too(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    for predicted in ("0,1", "good,bad", "1,2"):
        first, second = predicted.split(",")
        path.write_text(f"label,predicted,p_good,p_bad\ngood,{first},1,0\nbad,{second},0,1\n")
        read = load_predictions(path)
        assert read.classes == ["good", "bad"]
        assert read.rows["label"].tolist() == read.rows["predicted"].tolist() == [0, 1]


def test_names_that_are_numbers_are_names_if_given(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted\n2,5\n5,2\n")
    read = load_predictions(path, classes=["2", "5"])
    assert read.rows["label"].tolist() == [0, 1] and read.classes == ["2", "5"]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ("0,0\n1,3\n", ["a", "b", "c"], "expected labels from 0 to 2, got 3"),
        ("a,a\nb,x\n", ["a", "b", "c"], "expected labels among a, b, c, got x"),
        ("a,0\nb,1\n", [], r"row 2, column label: .*\(--classes says which number has which name\), got 'a'"),
        ("a,0\nb,b\n", ["a", "b"], "row 3, column predicted: expected a number in every row, .*got 'b'"),
    ],
)
def test_labels_that_fit_no_class(tmp_path: Path, rows: str, classes: list[str], message: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted\n" + rows)
    with pytest.raises(ValueError, match=message):
        load_predictions(path, classes=classes)


def test_arrays(tmp_path: Path) -> None:
    pairs = save(tmp_path / "pairs.npy", np.array([TRUTH, PREDICTED]).T)
    truth, predicted = (save(tmp_path / f"{n}.npy", np.array(v)) for n, v in (("t", TRUTH), ("p", PREDICTED)))
    logits = save(tmp_path / "logits.npy", np.eye(4)[PREDICTED] - 3)  # of 4 classes, one of which has no clip
    names = save(tmp_path / "names.npy", np.array(SUBJECT))
    (tmp_path / "table.csv").write_text("label\n" + "".join(f"{label}\n" for label in TRUTH))
    for path, columns, num_classes in (
        (pairs, {}, 3),
        (predicted, {"label": str(truth)}, 3),
        (truth, {"predicted": str(predicted)}, 3),
        (logits, {"label": str(truth)}, 4),
        (truth, {"predicted": str(logits)}, 4),
        (tmp_path / "table.csv", {"predicted": str(logits)}, 4),
    ):
        read = load_predictions(path, columns | {"subject": str(names)})
        assert read.rows["label"].tolist() == TRUTH and read.rows["predicted"].tolist() == PREDICTED
        assert read.rows["subject"].tolist() == SUBJECT and len(read.classes) == num_classes


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    truth, short = save(tmp_path / "t.npy", np.array(TRUTH)), save(tmp_path / "s.npy", np.array([0, 1]))
    holes = save(tmp_path / "holes.npy", np.array([[0.0, np.nan], [1, 0]]))
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(truth.read_bytes()[:-8])
    (tmp_path / "none.npy").write_bytes(b"no array")
    (tmp_path / "header.npy").write_bytes(truth.read_bytes().replace(b"{", b"(\0", 1))
    for path, columns, message in (
        (truth, {"predicted": str(short)}, rf"^{short}: expected 4 rows, as in {truth}, got 2"),
        (short, {"predicted": str(holes)}, rf"^{holes}: expected finite floats \(clips, K\).*not all finite"),
        (truth, {}, r"expected an array \(clips, 2\) of labels and predictions, or --label FILE"),
        (objects, {}, rf"^{objects}: expected an array of numbers or texts \(.npy\), got: .*Python objects"),
        (
            tmp_path / "header.npy",
            {},
            r"^.*header.npy: expected an array of numbers or texts \(.npy\), got: ",
        ),
        (tmp_path / "cut.npy", {"predicted": str(truth)}, r"cut.npy: expected an array .*got: mmap length"),
        (truth, {"predicted": str(tmp_path / "none.npy")}, "none.npy: expected an array .*got another kind"),
        (save(tmp_path / "i.npy", np.zeros((4, 3), int)), {"label": str(truth)}, "expected finite floats"),
        (save(tmp_path / "w.npy", np.array([[0, 1.5], [1, 1]])), {}, "row 1, column predicted: .*got '1.5'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_predictions(path, columns)
    with pytest.raises(ValueError, match="scores of 2 classes, got 4"):
        load_predictions(truth, {"predicted": str(save(tmp_path / "l.npy", np.eye(4)))}, classes=["a", "b"])


def test_files_that_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    np.savez(tmp_path / "many.npz", a=np.zeros(2))
    for data, message in (
        (b"\xd0\xcf\x11\xe0rest", "got an old Excel file: save it as .xlsx"),
        (b"PK\x03\x04broken", "expected an Excel workbook, got "),
        ((tmp_path / "many.npz").read_bytes(), "of an .npz, save the arrays as .npy"),
        (
            b"label,predicted\n\xe9,1\n",
            "expected UTF-8 text, got invalid continuation byte; save it as UTF-8",
        ),
        (b"label\0", "got zero bytes"),
        (b'label,predicted\n"a,b\n', "expected a table, got line 2: unexpected end of data"),
        (b"label,predicted\n0,1\n0,1,2\n", "row 3: expected no more cells than the 2 columns"),
        (b"", "expected a column label .*got none"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
            load_predictions(path)
    workbook(path, a=[HEAD, *ROWS], b=[HEAD, *ROWS])
    with pytest.raises(ValueError, match="expected these columns in one sheet, got them in a, b"):
        load_predictions(path)


def test_rows_have_their_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    for head in ("\n\n", "sep=;\n\n"):
        path.write_text(head + "label;predicted\n0;0\n\n1;\n")
        [table] = read_tables(path).values()
        assert (table.index + 2).tolist() == [4, 6]
        with pytest.raises(ValueError, match="row 6, column predicted"):
            load_predictions(path)
    pd.testing.assert_frame_equal(
        read_tables(path)[""],
        pd.DataFrame({"label": ["0", "1"], "predicted": ["0", ""]}, index=[2, 4], dtype=object),
    )
