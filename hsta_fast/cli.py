"""The command line: arguments only."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .ablate import ablate
from .ablations import EXPERIMENTS
from .config import RECIPES, TrainConfig, recipe_config
from .data import SynthConfig, render
from .environment import info_text
from .protocol import audit
from .team import team
from .train import NonFiniteLossError, evaluate
from .train import main as train_main

_USAGE = """hsta-fast: Hierarchical Space-Time Attention for micro-expression recognition

  hsta-fast synth      render faces of many subjects that perform micro-expressions
  hsta-fast train      train and test under a subject-disjoint protocol
  hsta-fast evaluate   score a run again from its saved models
  hsta-fast audit      score anybody's predictions again, and look for shared subjects
  hsta-fast ablate     the rows of one of the paper's tables, its figures beside
  hsta-fast info       versions, devices, and which implementation of each op runs

Each takes --help."""


def _synth(args: Sequence[str]) -> None:
    print(render(tyro.cli(SynthConfig, prog="hsta-fast synth", args=args)))


def _settings(command: str, what: str, args: Sequence[str], **changes: Any) -> TrainConfig:
    # The recipe is read first: it sets the defaults that all other arguments start from.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", choices=list(RECIPES), default="paper")
    known, rest = first.parse_known_args(args)
    defaults = replace(recipe_config(known.recipe, data=Path(), **changes), data=tyro.MISSING)
    description = f"{what} --recipe {{paper,published}} sets the defaults shown here."
    prog = f"hsta-fast {command}"
    return tyro.cli(TrainConfig, prog=prog, description=description, args=rest, default=defaults)


def _train(args: Sequence[str]) -> None:
    train_main(_settings("train", "Train and test.", args))


def _ablate(args: Sequence[str]) -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--table", default="")
    first.add_argument("--rows", nargs="+", default=[])
    known, rest = first.parse_known_args(args)
    what = f"Run the rows of a table of the paper: --table {{{','.join(EXPERIMENTS)}}} [--rows ROW ...]."
    # The paper's 5 folds, but by subject; --protocol published-folds has them by clip, as the paper.
    cfg = _settings("ablate", what, rest, protocol="kfold", name=f"ablation-{known.table}")
    text = ablate(cfg, known.table, known.rows)
    if team().leads:
        print(f"\n{text}")


def _audit(args: Sequence[str]) -> None:
    def run(
        path: Annotated[Path, tyro.conf.Positional],
        clips: Path | None = None,
        folds: Path | None = None,
        absent: Literal["zero", "skip", "raise"] = "zero",
    ) -> None:
        """Score predictions again; exit status 1 where they are known to leak.

        Args:
            path: a csv with the columns label and predicted; dataset, subject, clip, onset, fold where known.
            clips: a csv of all clips that were there to train on, to find shared subjects.
            folds: a csv or folder of what each fold trained on, such as a run's folds.csv.
            absent: a class without a clip in the truth counts as zero, is skipped, or raises.
        """
        text, leaks = audit(path, clips, folds, absent=absent)
        print(text)
        if leaks:
            sys.exit(1)

    tyro.cli(run, prog="hsta-fast audit", args=args)


def _evaluate(args: Sequence[str]) -> None:
    def run(path: Annotated[Path, tyro.conf.Positional], data: Path | None = None) -> None:
        """Score a run again.

        Args:
            path: the run's folder, such as runs/hsta.
            data: where the data set is now, if it has moved.
        """
        print(evaluate(path, data))

    tyro.cli(run, prog="hsta-fast evaluate", args=args)


def _info(args: Sequence[str]) -> None:
    tyro.cli(lambda: print(info_text()), prog="hsta-fast info", args=args)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "synth": _synth,
    "train": _train,
    "evaluate": _evaluate,
    "audit": _audit,
    "ablate": _ablate,
    "info": _info,
}


def main() -> None:
    """Run the command that the arguments name; errors of the user's input are one line and exit status 1."""
    command, *args = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(_USAGE)
        return
    if command not in _COMMANDS:
        sys.exit(f"hsta-fast wants one of {', '.join(_COMMANDS)}, got {command!r}")
    try:
        _COMMANDS[command](args)
    except (ValueError, OSError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted" + ("; --resume continues the run" if command in ("train", "ablate") else ""))
