"""Scores of one configuration under several seeds: their mean and standard deviation."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ..files import write_text
from .latex import HEADS, escape, remarks, tabular
from .report import summary_of

SEED_FILES = ("seeds.csv", "seeds.tex")  # what `write_seeds` writes


def write_seeds(folder: Path, runs: Mapping[int, Path]) -> str:
    """Write seeds.csv, one row per seed, into `folder`; return it as text with mean and standard deviation.

    The text's table is also written for LaTeX, as seeds.tex.

    runs: the folder of the finished run of each seed. The standard deviation is that of a sample (n - 1).

    Raises:
        ValueError: a run has no summary.json.
    """
    summaries = {seed: summary_of(path) for seed, path in runs.items()}
    rows = [{"seed": seed, **summary["pooled"]} for seed, summary in summaries.items()]
    table = pd.DataFrame(rows)
    leaky = next(iter(summaries.values()))["leaky"]
    if leaky:
        table["leaky"] = " ".join(leaky)
    write_text(folder / "seeds.csv", table.to_csv(index=False))
    head = f"{folder.name}: {len(runs)} seeds, pooled scores of each" + (", LEAKY" if leaky else "")
    lines = [head, *(f"LEAKY: {reason}" for reason in leaky), ""]
    pooled = list(next(iter(summaries.values()))["pooled"])
    heads = [HEADS[name] for name in pooled]
    lines.append(f"{'seed':<18}" + "".join(f"{head:>8}" for head in heads))
    scores = table[pooled]
    named = [*zip(table["seed"].astype(str), scores.to_numpy(), strict=True)]
    named += [("mean", scores.mean().to_numpy()), ("standard deviation", scores.std(ddof=1).to_numpy())]
    lines += [f"{name:<18}" + "".join(f"{value:>8.3f}" for value in values) for name, values in named]
    notes = next(iter(summaries.values()))["notes"]
    rows_tex = [[name, *(f"{value:.3f}" for value in values)] for name, values in named]
    head_tex = [f"{escape(folder.name)}{' (leaky)' if leaky else ''}, seed", *heads]
    text = tabular(head_tex, [rows_tex[:-2], rows_tex[-2:]], remarks(leaky, notes))
    write_text(folder / "seeds.tex", text)
    return "\n".join(lines)
