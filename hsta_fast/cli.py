"""The command line: which command runs, with which defaults, and how it ends. The commands: `commands.py`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import hsta_fast

from . import commands, console, interrupt
from .extension import BuildError
from .files import one_line, reason
from .help_text import examples_of, overview
from .spelling import did_you_mean
from .training import stopping
from .training.config import RECIPES, Recipe, recipe_config
from .training.config_file import read_settings
from .training.optim import NonFiniteLossError
from .training.setting_groups import SettingGroups
from .usage import (
    UsageError,
    as_usage_error,
    completion,
    flags_given,
    flags_of,
    parse,
    read_first,
    summary,
)

Shell = Literal["bash", "zsh", "fish"]

_TRAINING = ("prepare", "train", "ablate")  # the commands that take the settings of a run


def _completion(shell: Annotated[Shell, tyro.conf.Positional]) -> None:
    """Print the script that completes commands and flags in a shell.

    Args:
        shell: which one.
    """
    print(completion(_commands(), shell), end="")


def _commands(args: Sequence[str] = ()) -> dict[str, Callable[..., None]]:
    """The function of each command, with the defaults that the recipe, the table and the file in `args` give.

    Raises:
        UsageError: the file cannot be read, or its settings are wrong.
    """
    # These are read first, because the defaults of all other arguments depend on them.
    known = read_first(args, "recipe", "table", "config")
    given: dict[str, Any] = {}
    if known.config:
        kinds = flags_of(commands.ablate if args[0] == "ablate" else commands.train)
        del kinds["config"]
        with as_usage_error():
            given = read_settings(Path(known.config), kinds)
    recipe = known.recipe or given.get("recipe")
    chosen: Recipe = recipe if recipe in RECIPES else "paper"
    own = {name: value for name, value in given.items() if name not in ("recipe", "table", "rows")}
    settings = replace(recipe_config(chosen, data=Path()), **{"data": tyro.MISSING, **own})
    train: dict[str, Any] = {"recipe": chosen, "config": None, "settings": SettingGroups.of(settings)}
    # The paper's 5 folds, but by subject; --protocol published-folds splits by clip, as the paper does.
    table = known.table or given.get("table", "")
    of_table = replace(settings, **{"protocol": "kfold", "name": f"ablation-{table}", **own})
    ablate = train | {"settings": SettingGroups.of(of_table)}
    ablate |= {name: given[name] for name in ("table", "rows") if name in given}
    return {
        "synth": commands.synth,
        "doctor": commands.doctor,
        "prepare": partial(commands.prepare, **train),
        "pretrain": commands.pretrain,
        "train": partial(commands.train, **train),
        "evaluate": commands.evaluate,
        "spot": commands.spot,
        "predict": commands.predict,
        "export": commands.export,
        "audit": commands.audit,
        "compare": commands.compare,
        "ablate": partial(commands.ablate, **ablate),
        "serve": commands.serve,
        "info": commands.info,
        "profile": commands.profile,
        "build": commands.build,
        "completion": _completion,
    }


def _run(args: Sequence[str]) -> None:
    """Parse the arguments and run the command.

    Raises:
        UsageError: an unknown command, or words that it does not understand.
    """
    name = args[0]
    if name in ("-h", "--help"):
        summaries = {name: summary(command) for name, command in _commands().items()}
        print(overview(summaries, hsta_fast.__version__), end="")
    elif name == "--version":
        print(f"hsta-fast {hsta_fast.__version__}")
    elif name not in (names := list(_commands())):
        meant = did_you_mean(name, [*names, "--help", "--version"]) or "; hsta-fast --help lists them"
        raise UsageError(f"command expected one of {', '.join(names)}, got {name!r}{meant}")
    elif name in _TRAINING and args[1:] and not args[1].startswith("-"):
        raise UsageError(f"{name} expected flags, got {args[1]!r}: --data gives the folder of the dataset")
    else:
        known = _commands(args)
        try:
            parse(name, known[name], args[1:], examples_of(name))()
        except UsageError as error:
            flag, given = str(error).partition(" ")[0], dict(flags_given(args))
            if not flag.startswith("--") or flag in given or "--config" not in given:
                raise
            raise UsageError(f"{given['--config'][0]}: {error}") from error  # its value is the file's


def main() -> None:
    """Run the command that the arguments name.

    Errors are one line. Exit status: 0 done; 1 an error; 2 the arguments cannot be understood, or one has a
    value that no data make possible; 75 stopped by SIGUSR1, to be continued; 130 interrupted (Ctrl-C).
    `doctor` and `audit` have their own 1 and 2. A command whose output cannot be written runs to its end and
    has exit status 1.
    """
    interrupt.end_in_words()
    console.use_utf8()
    console.protect()
    args = sys.argv[1:] or ["--help"]
    try:
        _run(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, ImportError, MemoryError, NonFiniteLossError, BuildError) as error:
        sys.exit(f"error: {one_line(error)}")
    except stopping.Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        sys.exit(interrupt.STOPPED)
    except SystemExit as ended:
        if ended.code or console.lost() is None:
            raise
    except KeyboardInterrupt:
        interrupt.end_interrupted(
            "--resume continues the run if it has begun" * (args[0] in ("train", "ablate", "pretrain"))
        )
    if (lost := console.lost()) is not None:
        sys.exit(
            1 if isinstance(lost, BrokenPipeError) else f"error: could not write the output: {reason(lost)}"
        )
