"""The command line: arguments only.

Each command is a function below, whose arguments and help tyro makes from its signature; so is the list of
commands in `hsta-fast --help`. A function imports what it runs, so that help and mistakes in the arguments do
not wait for scikit-learn and matplotlib.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from inspect import getdoc
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

import hsta_fast

from . import console
from .data import DatasetName
from .extension import PARTS, BuildError, kept, load, missing
from .files import reason
from .synth import SynthConfig
from .training.config import RECIPES, Recipe, TrainConfig, recipe_config
from .training.optim import NonFiniteLossError

Settings = Annotated[TrainConfig, tyro.conf.arg(name="")]


def _synth(config: Annotated[SynthConfig, tyro.conf.arg(name="")]) -> None:
    """Render faces of many subjects that perform micro-expressions."""
    from .synth import render

    print(render(config))


def _doctor(
    roots: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="(required)"),
    ],
    /,
    dataset: DatasetName = "auto",
    annotation: Path | None = None,
    official: Path | None = None,
    json: bool = False,
) -> None:
    """Say which dataset a folder holds, and what is wrong with it.

    Checks every row and every frame. Exit status: 0 clean, 1 faults, 2 unusable.

    Args:
        roots: folder of the dataset; several are also checked as the MEGC 2019 composite.
        dataset: which dataset it is; auto: detect it from its files.
        annotation: its annotation file, if the folder holds none or several.
        official: the composite's list, combined_3class_gt.csv, if no folder holds it.
        json: print one JSON object instead of text.
    """
    from .data import doctor
    from .data.readers.folders import check_folder

    try:
        if not roots:
            raise ValueError("doctor expected a folder, got none")
        if not json:  # with it, each folder is judged for itself
            for root in roots:
                check_folder(root)
        found = doctor.examine(roots, dataset, annotation=annotation, official=official)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(doctor.UNUSABLE)
    print(dumps(doctor.as_json(found), indent=2) if json else doctor.as_text(found))
    sys.exit(found.status)


def _prepare(recipe: Recipe = "paper", *, config: Settings) -> None:
    """Decode a run's frames ahead of it (same flags as train).

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        config: the settings.
    """
    from .training.setup import fill_cache

    print(fill_cache(config))


def _train(recipe: Recipe = "paper", *, config: Settings) -> None:
    """Train and test under a subject-disjoint protocol.

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        config: the settings.
    """
    from .training import runner

    runner.main(config)


def _evaluate(path: Annotated[Path, tyro.conf.Positional], data: tuple[Path, ...] = ()) -> None:
    """Score a run again from its saved models.

    Args:
        path: the run's folder, such as runs/hsta.
        data: where the datasets are now, if they have moved: a folder for each of --data and --more-data.
    """
    from .training.evaluate import evaluate

    print(evaluate(path, data))


def _audit(
    path: Annotated[Path, tyro.conf.Positional],
    clips: Path | None = None,
    folds: Path | None = None,
    absent: Literal["zero", "skip", "raise"] = "zero",
    label: str | None = None,
    predicted: str | None = None,
    subject: str | None = None,
    fold: str | None = None,
    classes: str | None = None,
) -> None:
    """Score any predictions again, and look for shared subjects.

    Exit status: 0 no leak, 1 a leak or an error, 2 it cannot be told, or a wrong flag.

    Args:
        path: a table (csv with any separator, xlsx, npy) with a label and a prediction in each row; dataset,
            subject, clip, onset, fold if known. Columns are found by their usual names.
        clips: a table of all clips that were available for training, to find shared subjects.
        folds: a csv or folder of what each fold trained on, such as a run's folds.csv.
        absent: a class without a clip in the truth counts as zero, is skipped, or is an error.
        label: the column of the true classes, or a .npy file of them.
        predicted: the column of the predicted classes; or a .npy file of them, or of scores (clips, K).
        subject: the column of the subjects, or a .npy file of them.
        fold: the column of the folds, or a .npy file of them.
        classes: class names in the order of their numbers, such as negative,positive,surprise.
    """
    from .protocol import audit

    flags = {"label": label, "predicted": predicted, "subject": subject, "fold": fold}
    columns = {name: column for name, column in flags.items() if column is not None}
    names = [] if classes is None else [name.strip() for name in classes.split(",")]
    text, status = audit(path, clips, folds, absent=absent, columns=columns, classes=names)
    print(text)
    if status:
        sys.exit(status)


def _ablate(recipe: Recipe = "paper", rows: tuple[str, ...] = (), *, table: str, config: Settings) -> None:
    """Run the rows of one of the paper's tables.

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        rows: names of the rows to run, such as "video 0"; all by default.
        table: 1 to 7, or figure3.
        config: the settings.
    """
    from .training.ablate import ablate
    from .training.workers import workers

    text = ablate(config, table, rows)
    if workers().is_main:
        print(f"\n{text}")


def _info() -> None:
    """Show versions, devices, and the implementation of each op."""
    from .environment import info_text

    print(info_text())


def _build() -> None:
    """Compile the C++ extension now, not when it is first used.

    With nvcc and a CUDA build of torch, its CUDA part too. What failed before is tried again. Exit status 1:
    there is no C++ compiler, or a part cannot be built, loaded or kept; the end of its log is printed.
    """
    try:
        for part in PARTS:
            if part == "cuda" and (reason := missing(part)) is not None:
                print(f"the extension has no CUDA part: {reason}")
            elif kept(library := load(part, again=True)):
                print(f"the extension's {part.upper()} part is {library}")
            else:
                raise BuildError(f"the extension's {part.upper()} part builds, but cannot be kept")
    except BuildError as error:
        sys.exit(f"error: {error}\n{error.tail()}".strip())


def _commands(args: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The function of each command, with the defaults of the recipe and the table named in `args`."""
    # These two are read first, because the defaults of all other arguments depend on them.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    first.add_argument("--table", nargs="?")
    known, _ = first.parse_known_args(args)
    recipe = known.recipe if known.recipe in RECIPES else "paper"
    settings = replace(recipe_config(recipe, data=Path()), data=tyro.MISSING)
    # The paper's 5 folds, but by subject; --protocol published-folds splits by clip, as the paper does.
    of_table = replace(settings, protocol="kfold", name=f"ablation-{known.table or ''}")
    return {
        "synth": _synth,
        "doctor": _doctor,
        "prepare": partial(_prepare, config=settings),
        "train": partial(_train, config=settings),
        "evaluate": _evaluate,
        "audit": _audit,
        "ablate": partial(_ablate, config=of_table),
        "info": _info,
        "build": _build,
    }


def _run(args: Sequence[str]) -> None:
    """Parse the arguments and run the command.

    Raises:
        ValueError: an unknown command, or a folder without --data.
    """
    name, commands = args[0], _commands(args)
    if name in ("prepare", "train", "ablate") and args[1:] and not args[1].startswith("-"):
        raise ValueError(f"{name} expected flags, got {args[1]!r}: --data gives the folder of the dataset")
    if name in commands:
        tyro.cli(commands[name], prog=f"hsta-fast {name}", args=args[1:])
    elif name == "--version":
        print(f"hsta-fast {hsta_fast.__version__}")
    elif name.startswith("-"):
        _list_commands(commands, args)
    else:
        close = " or ".join(get_close_matches(name, commands)) or "--help"
        raise ValueError(f"command expected one of {', '.join(commands)}, got {name!r}; try {close}")


def _list_commands(commands: dict[str, Callable[..., None]], args: Sequence[str]) -> None:
    """The help of hsta-fast itself: tyro's list of subcommands, with the first line of each docstring."""
    app = SubcommandApp()
    for name, function in commands.items():
        text = getdoc(getattr(function, "func", function)) or ""
        app.command(name=name, help=text.partition("\n")[0])(function)
    what = "Hierarchical Space-Time Attention for micro-expression recognition"
    app.cli(prog="hsta-fast", description=f"{what}, version {hsta_fast.__version__} (--version).", args=args)


def main() -> None:
    """Run the command that the arguments name.

    An error that we find is one line and exit status 1 (`doctor`: 2). One that tyro finds in the flags is a
    box and exit status 2. A command whose output cannot be written runs to its end and has exit status 1.
    """
    console.use_utf8()
    console.protect()
    args = sys.argv[1:] or ["--help"]
    try:
        _run(args)
    except (ValueError, OSError, ImportError, NonFiniteLossError, BuildError) as error:
        sys.exit(f"error: {error}")
    except SystemExit as ended:
        if ended.code or console.lost() is None:
            raise
    except KeyboardInterrupt:
        resumable = args[0] in ("train", "ablate")
        sys.exit("interrupted" + ("; --resume continues the run if it has begun" if resumable else ""))
    if (lost := console.lost()) is not None:
        sys.exit(
            1 if isinstance(lost, BrokenPipeError) else f"error: could not write the output: {reason(lost)}"
        )
