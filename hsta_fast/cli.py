"""The command line: arguments only."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .data import DatasetName, doctor
from .environment import info_text
from .extension import PARTS, BuildError, kept, load, missing
from .protocol import audit
from .synth import SynthConfig, render
from .training.ablate import ablate
from .training.config import RECIPES, TrainConfig, recipe_config
from .training.evaluate import evaluate
from .training.loop import NonFiniteLossError
from .training.paper_tables import EXPERIMENTS
from .training.runner import main as train_main
from .training.setup import fill_cache
from .training.workers import team

_USAGE = """hsta-fast: Hierarchical Space-Time Attention for micro-expression recognition

  hsta-fast synth      render faces of many subjects that perform micro-expressions
  hsta-fast doctor     say which data set a folder holds, and what is wrong with it
  hsta-fast prepare    decode the frames that a run needs, ahead of it (same flags as train)
  hsta-fast train      train and test under a subject-disjoint protocol
  hsta-fast evaluate   score a run again from its saved models
  hsta-fast audit      score anybody's predictions again, and look for shared subjects
  hsta-fast ablate     the rows of one of the paper's tables, its figures beside
  hsta-fast info       versions, devices, and which implementation of each op runs
  hsta-fast build      compile the C++ extension now, and not when it is first used

Each takes --help."""


def _synth(args: Sequence[str]) -> None:
    print(render(tyro.cli(SynthConfig, prog="hsta-fast synth", args=args)))


def _doctor(args: Sequence[str]) -> None:
    def run(
        roots: Annotated[tuple[Path, ...], tyro.conf.Positional],
        /,
        dataset: DatasetName = "auto",
        annotation: Path | None = None,
        official: Path | None = None,
        json: bool = False,
    ) -> None:
        """Check every row and every frame of a data set. Exit status: 0 clean, 1 faults, 2 unusable.

        Args:
            roots: its folder; several are also checked as the MEGC 2019 composite.
            dataset: which data set it is, where its files do not tell.
            annotation: its annotation file, where the folder holds none or several.
            official: the composite's list, combined_3class_gt.csv, where no folder holds it.
            json: print one JSON object instead of text.
        """
        try:
            if not roots:
                raise ValueError("doctor wants a folder, got none")
            found = doctor.examine(roots, dataset, annotation=annotation, official=official)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(doctor.UNUSABLE)
        print(dumps(doctor.as_json(found), indent=2) if json else doctor.as_text(found))
        sys.exit(found.status)

    tyro.cli(run, prog="hsta-fast doctor", args=args)


def _settings(command: str, what: str, args: Sequence[str], **changes: Any) -> TrainConfig:
    # The recipe is read first: it sets the defaults that all other arguments start from.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", choices=list(RECIPES), default="paper")
    known, rest = first.parse_known_args(args)
    defaults = replace(recipe_config(known.recipe, data=Path(), **changes), data=tyro.MISSING)
    description = f"{what} --recipe {{paper,published}} sets the defaults shown here."
    prog = f"hsta-fast {command}"
    return tyro.cli(TrainConfig, prog=prog, description=description, args=rest, default=defaults)


def _prepare(args: Sequence[str]) -> None:
    print(fill_cache(_settings("prepare", "Fill the cache for a run with these settings.", args)))


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
        """Score predictions again; exit status 1: they are known to leak, or an error; 2: it cannot be told.

        Args:
            path: a csv with the columns label and predicted; dataset, subject, clip, onset, fold where known.
            clips: a csv of all clips that were there to train on, to find shared subjects.
            folds: a csv or folder of what each fold trained on, such as a run's folds.csv.
            absent: a class without a clip in the truth counts as zero, is skipped, or raises.
        """
        text, status = audit(path, clips, folds, absent=absent)
        print(text)
        if status:
            sys.exit(status)

    tyro.cli(run, prog="hsta-fast audit", args=args)


def _evaluate(args: Sequence[str]) -> None:
    def run(path: Annotated[Path, tyro.conf.Positional], data: tuple[Path, ...] = ()) -> None:
        """Score a run again.

        Args:
            path: the run's folder, such as runs/hsta.
            data: where the data are now, if they have moved: a folder for each of --data and --more-data.
        """
        print(evaluate(path, data))

    tyro.cli(run, prog="hsta-fast evaluate", args=args)


def _info(args: Sequence[str]) -> None:
    tyro.cli(lambda: print(info_text()), prog="hsta-fast info", args=args)


def _build(args: Sequence[str]) -> None:
    def run() -> None:
        """Compile the C++ extension, and its CUDA part where nvcc and a CUDA build of torch are.

        What failed before is tried again. Exit status 1: there is no C++ compiler, or a part cannot be built,
        loaded or kept; the end of its log is printed.
        """
        try:
            for part in PARTS:
                if part == "cuda" and (lacks := missing(part)) is not None:
                    print(f"the extension has no CUDA part: {lacks}")
                elif kept(library := load(part, again=True)):
                    print(f"the extension's {part.upper()} part is {library}")
                else:
                    raise BuildError(f"the extension's {part.upper()} part builds, but cannot be kept")
        except BuildError as error:
            sys.exit(f"error: {error}\n{error.tail()}".strip())

    tyro.cli(run, prog="hsta-fast build", args=args)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "synth": _synth,
    "doctor": _doctor,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "audit": _audit,
    "ablate": _ablate,
    "info": _info,
    "build": _build,
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
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, NonFiniteLossError, BuildError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted" + ("; --resume continues the run" if command in ("train", "ablate") else ""))
