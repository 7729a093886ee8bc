"""Runs the rows of one of the paper's tables on the user's data, with the paper's scores next to them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from ..files import write_text
from ..protocol import summary_of
from ..spelling import did_you_mean
from . import runner
from .config import TrainConfig, settled
from .optim import NonFiniteLossError
from .paper_tables import ASSUMED, EXPERIMENTS, PAPER
from .run_checks import MAY_CHANGE, as_read, differing, read_config
from .workers import workers

_WARNING = (
    "The paper's figures are on its data under its protocol: Tables 1 to 4 and 7 and Figure 3 on CAS(ME)3 "
    "with 5 folds by clip, which share subjects between training and test; Tables 5 and 6 leave one subject "
    "out. Data and protocol differ here, so the two sides of this table cannot be compared."
)


def ablate(cfg: TrainConfig, table: str, rows: Sequence[str] = ()) -> str:
    """Run rows of a table, each a run in the folder <runs>/<name>; write ablation.csv; return it as text.

    A row's settings override those of `cfg`. A row that cannot be run on these data is listed with the
    reason, and the others continue. Rows that an earlier call has finished stay in the table. With several
    workers, only the main process gets the text; the others get "".

    Raises:
        ValueError: an unknown table or row, a row whose run exists or cannot be continued, or none of the
            rows could be run.
    """
    check_rows(table, rows)
    if cfg.task != "emotion":
        raise ValueError(f"--task expected emotion, which the paper's tables are of, got {cfg.task}")
    requested, remarks = rows or list(EXPERIMENTS[table]), dict[str, str]()
    started: list[str] = []
    configs = {row: _row_config(cfg, table, row) for row in requested}
    runs = {row: runner.seed_runs(row_cfg) for row, row_cfg in configs.items()}
    all_runs = [run for of_row in runs.values() for run in of_row]
    workers().main_process_first(partial(runner.check_before_reading, cfg, all_runs))
    for row in requested:
        try:
            runner.train_runs(configs[row], runs[row])
            started.append(row)
        except (ValueError, MemoryError, NonFiniteLossError) as error:
            remarks[row] = f"not run: {error}"
        for done in started:  # with --join, others may have finished by now what they trained before
            finished = cfg.dry_run or all(map(runner.is_finished, runs[done]))
            remarks[done] = "" if finished else "not finished: other processes train the rest"
        if workers().is_main and not cfg.dry_run:
            frame = _score_rows(cfg, table, requested, remarks)
            write_text(cfg.runs / cfg.name / "ablation.csv", frame.to_csv(index=False))
    if not started:
        row = requested[0]
        raise ValueError(f"table {table}: no row could be run; {row} was {remarks[row]}")
    if cfg.dry_run:
        return "\n".join(f"{row}: {remark or 'can be run'}" for row, remark in remarks.items())
    return _text(cfg, table, frame) if workers().is_main else ""


def check_rows(table: str, rows: Sequence[str]) -> None:
    """Raise ValueError for an unknown table, or a row that it lacks."""
    if table not in EXPERIMENTS:
        meant = did_you_mean(table, EXPERIMENTS)
        raise ValueError(f"--table expected one of {', '.join(EXPERIMENTS)}, got {table!r}{meant}")
    unknown = sorted(set(rows) - set(EXPERIMENTS[table]))
    if unknown:
        known, got = (", ".join(map(repr, names)) for names in (EXPERIMENTS[table], unknown))
        meant = did_you_mean(unknown[0], EXPERIMENTS[table])
        raise ValueError(f"--rows expected rows of {known}, got {got}{meant}")


def _row_config(cfg: TrainConfig, table: str, row: str) -> TrainConfig:
    """The settings of the run of a row."""
    settings = EXPERIMENTS[table][row]
    if settings.get("protocol", cfg.protocol) != cfg.protocol:
        settings = {**settings, "fold_files": None, "train_on": (), "test_on": ()}
    return cfg.child_run(row, **settings)


def _score_rows(
    cfg: TrainConfig, table: str, requested: Sequence[str], remarks: dict[str, str]
) -> pd.DataFrame:
    """A line for each requested row, and each that an earlier call has finished with the same settings."""
    lines = []
    for row in EXPERIMENTS[table]:
        row_cfg = _row_config(cfg, table, row)
        runs = runner.seed_runs(row_cfg)
        finished = remarks.get(row) == "" or all(_is_finished(run) for run in runs)
        if row not in requested and not finished:
            continue
        summaries = [summary_of(run.runs / run.name) for run in runs] if finished else []
        means: dict[Any, float] = pd.DataFrame([summary["pooled"] for summary in summaries]).mean().to_dict()
        paper = dict(zip(("paper_uf1", "paper_uar", "paper_acc"), PAPER[table].get(row, ()), strict=False))
        leaky = " ".join(summaries[0]["leaky"] if summaries else row_cfg.leaks())
        lines.append({"row": row, **means, **paper, "remark": remarks.get(row, ""), "leaky": leaky})
    columns = ["row", "uf1", "uar", "acc", "paper_uf1", "paper_uar", "paper_acc", "remark", "leaky"]
    return pd.DataFrame(lines).reindex(columns=columns)


def _is_finished(cfg: TrainConfig) -> bool:
    """Whether the run of `cfg` exists and is finished, with the same settings and data."""
    run = cfg.runs / cfg.name
    if not (run / "summary.json").is_file():
        return False
    ignore = set(MAY_CHANGE) - {"data", "more_data"}
    return not differing(read_config(run), as_read(settled(cfg)), ignore)


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
        ours = "".join(_cell(row[key]) for key in ("uf1", "uar", "acc"))
        lines.append(f"{row['row']:<{width}}{ours}{paper}{row['remark']}".rstrip())
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-' if pd.isna(value) else f'{value:.3f}':<8}"
