"""The rows of one of the paper's tables as runs on the data at hand, with the paper's figures beside."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..files import write_text
from ..protocol import summary_of
from . import runner
from .config import TrainConfig, to_json
from .loop import NonFiniteLossError
from .paper_tables import ASSUMED, EXPERIMENTS, PAPER
from .run_folder import MAY_CHANGE, as_read, differing, read_config
from .workers import team

_WARNING = (
    "The paper's figures are on its data under its protocol: Tables 1 to 4 and 7 and Figure 3 on CAS(ME)3 "
    "with 5 folds by clip, which share subjects between training and test; Tables 5 and 6 leave one subject "
    "out. Data and protocol differ here: no figure of one side says that the other is better."
)


def ablate(cfg: TrainConfig, table: str, rows: Sequence[str] = ()) -> str:
    """Run rows of a table, each a run in the folder <runs>/<name>; write ablation.csv; return it as text.

    A row that these data do not allow is listed with the reason and the others go on. What a row sets wins
    over `cfg`. Rows that an earlier call has finished stay. In a team of processes the lead alone gets the
    text.

    Raises:
        ValueError: there is no such table or row, or none of the rows could be run.
    """
    if table not in EXPERIMENTS:
        raise ValueError(f"--table wants one of {', '.join(EXPERIMENTS)}, got {table!r}")
    unknown = sorted(set(rows) - set(EXPERIMENTS[table]))
    if unknown:
        raise ValueError(f"--rows wants rows among {', '.join(EXPERIMENTS[table])}, got {', '.join(unknown)}")
    wanted, remarks = rows or list(EXPERIMENTS[table]), {}
    for row in wanted:
        try:
            runner.main(_part(cfg, table, row))
            remarks[row] = ""
        except (ValueError, NonFiniteLossError) as error:
            remarks[row] = f"not run: {error}"
        if team().leads:
            frame = _collect(cfg, table, wanted, remarks)
            write_text(cfg.runs / cfg.name / "ablation.csv", frame.to_csv(index=False))
    if all(remarks.values()):
        row = wanted[0]
        raise ValueError(f"table {table}: no row could be run; {row} was {remarks[row]}")
    return _text(cfg, table, frame) if team().leads else ""


def _part(cfg: TrainConfig, table: str, row: str) -> TrainConfig:
    """The run of a row."""
    settings = EXPERIMENTS[table][row]
    if settings.get("protocol", cfg.protocol) != cfg.protocol:
        settings = {**settings, "fold_files": None, "train_on": (), "test_on": ()}
    return cfg.part(row, **settings)


def _collect(cfg: TrainConfig, table: str, wanted: Sequence[str], remarks: dict[str, str]) -> pd.DataFrame:
    """A line for each wanted row and for each that an earlier call has finished with the same settings."""
    lines = []
    for row in EXPERIMENTS[table]:
        part = _part(cfg, table, row)
        seeds = range(part.seed, part.seed + part.seeds)
        parts = [part.part(f"seed{n}", seed=n, seeds=1) for n in seeds] if part.seeds > 1 else [part]
        there = remarks.get(row) == "" or all(_is_run_of(one) for one in parts)
        if row not in wanted and not there:
            continue
        found = [summary_of(one.runs / one.name) for one in parts] if there else []
        means: dict[Any, float] = pd.DataFrame([summary["pooled"] for summary in found]).mean().to_dict()
        paper = dict(zip(("paper_uf1", "paper_uar", "paper_acc"), PAPER[table].get(row, ()), strict=False))
        leaky = " ".join(found[0]["leaky"] if found else part.leaks())
        lines.append({"row": row, **means, **paper, "remark": remarks.get(row, ""), "leaky": leaky})
    columns = ["row", "uf1", "uar", "acc", "paper_uf1", "paper_uar", "paper_acc", "remark", "leaky"]
    return pd.DataFrame(lines).reindex(columns=columns)


def _is_run_of(part: TrainConfig) -> bool:
    """Whether the folder of a run holds one that is finished, with these very settings and data."""
    run = part.runs / part.name
    if not (run / "summary.json").is_file():
        return False
    free = set(MAY_CHANGE) - {"data", "more_data"}
    return not differing(read_config(run), as_read(to_json(part)), free)


def _text(cfg: TrainConfig, table: str, frame: pd.DataFrame) -> str:
    name = "Figure 3" if table == "figure3" else f"Table {table}"
    leaky = sorted(set(frame["leaky"]) - {""})
    lines = [f"{name} of the paper, run on {cfg.data}", *(f"LEAKY: {reason}" for reason in leaky)]
    lines += [f"WARNING: {_WARNING}", *(f"assumed: {text}" for text in ASSUMED.get(table, ())), ""]
    width = max(8, *(len(row) + 2 for row in frame["row"]))
    here = "here" + (" (leaky)" if leaky else "")
    lines.append(f"{'':<{width}}{here:<24}{'the paper':<24}")
    lines.append(f"{'row':<{width}}" + f"{'UF1':<8}{'UAR':<8}{'ACC':<8}" * 2)
    for row in frame.to_dict("records"):
        paper = "".join(_cell(row[key]) for key in ("paper_uf1", "paper_uar", "paper_acc"))
        own = "".join(_cell(row[key]) for key in ("uf1", "uar", "acc"))
        lines.append(f"{row['row']:<{width}}{own}{paper}{row['remark']}".rstrip())
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-' if pd.isna(value) else f'{value:.3f}':<8}"
