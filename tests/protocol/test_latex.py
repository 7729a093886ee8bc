"""Tables for LaTeX: structure, escapes, and the numbers of the report. (No LaTeX runs here.)"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hsta_fast.protocol import latex_table, write_report, write_seeds
from hsta_fast.protocol.latex import escape, tabular


def cells_of(tex: str) -> list[list[str]]:
    """The rows of a tabular, which must be balanced and have its rules and as many cells in each row."""
    lines = tex.splitlines()
    assert lines[0] == "% \\usepackage{booktabs}" and lines[-1] == "\\end{tabular}"
    width = len(re.fullmatch(r"\\begin{tabular}{(lr+)}", lines[1])[1])  # type: ignore[index]
    assert lines.count("\\toprule") == lines.count("\\bottomrule") == 1 and "\\midrule" in lines
    plain = re.sub(r"\\[{}\\]", "", tex)
    assert plain.count("{") == plain.count("}")
    rows = []
    for line in lines[2:-1]:
        if line.startswith(("\\toprule", "\\midrule", "\\bottomrule")):
            continue
        assert line.endswith(r" \\")
        row = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        spans = re.match(r"\\multicolumn{(\d+)}", line)
        assert int(spans[1]) == width if spans else len(row) == width
        rows.append([cell.strip() for cell in row])
    return rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b 95 % & #1 $x {y}", r"a\_b 95 \% \& \#1 \$x \{y\}"),
        (r"c:\data", r"c:\textbackslash{}data"),
        (
            '~a^2 <b> |c| "d"',
            r"\textasciitilde{}a\textasciicircum{}2 \textless{}b\textgreater{} "
            r"\textbar{}c\textbar{} \textquotedbl{}d\textquotedbl{}",
        ),
        ("two\nlines\tand more", "two lines and more"),
        ("Ünïcode 中", "Ünïcode 中"),
    ],
)
def test_names_are_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_rules_stand_between_groups_that_have_rows() -> None:
    tex = tabular(["", "A"], [[["x", "1"]], [], [["y", "2"], ["z", "3"]]], ["100 % sure"])
    body = [line for line in tex.splitlines()[2:-1]]
    assert body == [
        "\\toprule",
        " & A \\\\",
        "\\midrule",
        "x & 1 \\\\",
        "\\midrule",
        "y & 2 \\\\",
        "z & 3 \\\\",
        "\\bottomrule",
        "\\multicolumn{2}{p{0.9\\linewidth}}{\\footnotesize 100 \\% sure} \\\\",
    ]
    assert cells_of(tex)[0] == ["", "A"]


def test_the_table_of_a_run_has_the_numbers_of_its_summary(
    make_run: Callable[..., Path], predictions: pd.DataFrame
) -> None:
    two = predictions.assign(dataset=["a_1" if i % 2 else "b" for i in range(60)])
    run = make_run(two, leaky=["by_clip"], notes=["Rendered faces."])
    write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    tex = (run / "scores.tex").read_text()
    assert tex == latex_table(summary)
    rows = cells_of(tex)
    assert rows[0] == ["", "UF1", "UAR", "ACC"]
    assert rows[1] == ["rendered (leaky)", *(f"{summary['pooled'][n]:.3f}" for n in ("uf1", "uar", "acc"))]
    assert rows[2][1] == "{:.3f}--{:.3f}".format(*summary["interval"]["uf1"])
    assert rows[3] == [
        "majority class",
        *(f"{summary['majority_baseline'][n]:.3f}" for n in ("uf1", "uar", "acc")),
    ]
    assert [row[0] for row in rows[4:6]] == [r"a\_1 (leaky)", "b (leaky)"]
    assert r"Leaky: by\_clip" in rows[6][0] and "Rendered faces." in rows[7][0]
    assert "over subjects" not in latex_table(summary | {"interval": None})


def test_the_table_of_seeds(tmp_path: Path) -> None:
    runs = {3: tmp_path / "seed3", 4: tmp_path / "seed4"}
    for seed, run in runs.items():
        pooled = {"uf1": seed / 10, "uar": 0.5, "acc": 0.75}
        summary = {"pooled": pooled, "leaky": ["by clip"], "notes": ["Rendered faces."]}
        run.mkdir()
        (run / "summary.json").write_text(json.dumps(summary))
    write_seeds(tmp_path, runs)
    rows = cells_of((tmp_path / "seeds.tex").read_text())
    assert rows[0][0].endswith("(leaky), seed") and rows[0][1:] == ["UF1", "UAR", "ACC"]
    assert rows[1:5] == [
        ["3", "0.300", "0.500", "0.750"],
        ["4", "0.400", "0.500", "0.750"],
        ["mean", "0.350", "0.500", "0.750"],
        ["standard deviation", "0.071", "0.000", "0.000"],
    ]
    assert "Leaky: by clip" in rows[5][0] and "Rendered faces." in rows[6][0]
