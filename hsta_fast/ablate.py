"""The rows of one of the paper's tables as runs on the data at hand, with the paper's figures beside."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from . import train
from .ablations import ASSUMED, EXPERIMENTS, PAPER
from .config import TrainConfig
from .files import write_text
from .protocol import summary_of
from .team import team

_WARNING = (
    "The paper's figures are on its data under its protocol: Tables 1 to 4 and 7 and Figure 3 on CAS(ME)3 "
    "with 5 folds by clip, which share subjects between training and test; Tables 5 and 6 leave one subject "
    "out. Data and protocol differ here: no figure of one side says that the other is better."
)


def ablate(cfg: TrainConfig, table: str, rows: Sequence[str] = ()) -> str:
    """Run rows of a table, each a run in the folder <runs>/<name>; write ablation.csv; return it as text.

    A row that these data do not allow is listed with the reason and the others go on. What a row sets wins
    over `cfg`.

    Raises:
        ValueError: there is no such table or row, or none of the rows could be run.
    """
    if table not in EXPERIMENTS:
        raise ValueError(f"--table wants one of {', '.join(EXPERIMENTS)}, got {table!r}")
    unknown = sorted(set(rows) - set(EXPERIMENTS[table]))
    if unknown:
        raise ValueError(f"--rows wants rows among {', '.join(EXPERIMENTS[table])}, got {', '.join(unknown)}")
    folder, results = cfg.runs / cfg.name, []
    for row in rows or EXPERIMENTS[table]:
        try:
            scores, remark = _run(cfg, row, EXPERIMENTS[table][row]), ""
        except (ValueError, train.NonFiniteLossError) as error:
            scores, remark = {}, f"not run: {error}"
        paper = dict(zip(("paper_uf1", "paper_uar", "paper_acc"), PAPER[table].get(row, ()), strict=False))
        results.append({"row": row, **scores, **paper, "remark": remark, "leaky": " ".join(cfg.leaks())})
        columns = ["row", "uf1", "uar", "acc", "paper_uf1", "paper_uar", "paper_acc", "remark", "leaky"]
        frame = pd.DataFrame(results).reindex(columns=columns)
        if team().leads:
            write_text(folder / "ablation.csv", frame.to_csv(index=False))
    if frame["uf1"].isna().all():
        raise ValueError(f"table {table}: no row could be run; {frame['row'][0]} was {frame['remark'][0]}")
    return _text(cfg, table, frame)


def _run(cfg: TrainConfig, row: str, settings: dict[str, Any]) -> dict[str, float]:
    """The pooled scores of a row, means where there are several seeds."""
    if settings.get("protocol", cfg.protocol) != cfg.protocol:
        settings = {**settings, "fold_files": None, "train_on": (), "test_on": ()}
    run = train.main(cfg.part(row, **settings))
    if cfg.seeds == 1:
        return summary_of(run)["pooled"]
    seeds = [summary_of(run / f"seed{cfg.seed + i}")["pooled"] for i in range(cfg.seeds)]
    return {str(name): float(value) for name, value in pd.DataFrame(seeds).mean().items()}


def _text(cfg: TrainConfig, table: str, frame: pd.DataFrame) -> str:
    name = "Figure 3" if table == "figure3" else f"Table {table}"
    lines = [f"{name} of the paper, run on {cfg.data}", *(f"LEAKY: {reason}" for reason in cfg.leaks())]
    lines += [f"WARNING: {_WARNING}", *(f"assumed: {text}" for text in ASSUMED.get(table, ())), ""]
    width = max(8, *(len(row) + 2 for row in frame["row"]))
    here = "here" + (" (leaky)" if cfg.leaks() else "")
    lines.append(f"{'':<{width}}{here:<24}{'the paper':<24}")
    lines.append(f"{'row':<{width}}" + f"{'UF1':<8}{'UAR':<8}{'ACC':<8}" * 2)
    for row in frame.to_dict("records"):
        paper = "".join(_cell(row[key]) for key in ("paper_uf1", "paper_uar", "paper_acc"))
        own = "".join(_cell(row[key]) for key in ("uf1", "uar", "acc"))
        lines.append(f"{row['row']:<{width}}{own}{paper}{row['remark']}".rstrip())
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-' if pd.isna(value) else f'{value:.3f}':<8}"
