"""Tables of scores for LaTeX: a tabular with the rules of the package booktabs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SCORES = ("uf1", "uar", "acc")
HEADS = {"uf1": "UF1", "uar": "UAR", "acc": "ACC", "f1": "F1", "f1_both": "F1 both"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text as LaTeX shows it; breaks of lines become spaces."""
    return re.sub(r"""[\\~^<>|"&%$#_{}]""", lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def tabular(head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], notes: Sequence[str] = ()) -> str:
    """A tabular whose first column is text and whose others are numbers.

    Args:
        head: the column heads, as LaTeX.
        groups: rows of cells, as LaTeX, with a rule between two groups; an empty group is left out.
        notes: sentences below the table, as plain text.
    """
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
    lines += [_row(head), "\\midrule"]
    for number, group in enumerate(group for group in groups if group):
        lines += ["\\midrule"] * bool(number) + [_row(row) for row in group]
    lines.append("\\bottomrule")
    width = "p{0.9\\linewidth}"
    lines += [
        f"\\multicolumn{{{len(head)}}}{{{width}}}{{\\footnotesize {escape(note)}}} \\\\" for note in notes
    ]
    return "\n".join([*lines, "\\end{tabular}", ""])


def latex_table(summary: Mapping[str, Any]) -> str:
    """The scores of a run, its interval and baseline, and those of each dataset if it has several.

    summary: the content of a summary.json. Why a run is leaky, and its notes, stand below the table.
    """
    leaky = " (leaky)" if summary["leaky"] else ""
    rows = [[escape(summary["run"]) + leaky, *numbers(summary["pooled"])]]
    if summary["interval"] is not None:
        ends = [summary["interval"][name] for name in SCORES]
        rows.append([r"95\,\% over subjects", *(f"{low:.3f}--{high:.3f}" for low, high in ends)])
    rows.append(["majority class", *numbers(summary["majority_baseline"])])
    datasets = summary["per_dataset"]
    each = [[escape(own["dataset"]) + leaky, *numbers(own)] for own in datasets if len(datasets) > 1]
    return tabular(["", "UF1", "UAR", "ACC"], [rows, each], remarks(summary["leaky"], summary["notes"]))


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def numbers(scores: Mapping[str, float]) -> list[str]:
    """UF1, UAR and ACC with three digits."""
    return [f"{scores[name]:.3f}" for name in SCORES]


def remarks(leaky: Sequence[str], notes: Sequence[str]) -> list[str]:
    """What must stand below the scores of a run."""
    return [*(f"Leaky: {reason}" for reason in leaky), *notes]
