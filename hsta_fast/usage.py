"""A command's words: read by tyro, and what is wrong with them said in one line.

tyro makes flags and help of a function's signature. Its messages are boxes of several lines, so when it
refuses the words, the first of them that is wrong is looked for here.
"""

import argparse
import contextlib
import inspect
import io
import os
import re
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructTypeInfo,
)

from .flags import OptionalValue
from .spelling import did_you_mean

Command = Callable[..., None]

_NARROWEST = 40  # columns; in less than 10 tyro never ends
_CONFIG = (tyro.conf.OmitArgPrefixes,)  # a group's flags are not named after the group

# What the scripts that tyro writes lack, as replacements of their lines. They embed a program in Python, in
# which only single quotes may be added: that of fish stands in double quotes.
_ADDED_TO_SCRIPT = {
    r"^(COMPLETION_SPEC = .*)$": r"""\1
COMPLETION_SPEC['options'].append({'flags': ['--version'], 'description': 'show the version', 'type': 'flag'})
for shell in ('bash', 'zsh', 'fish'):
    COMPLETION_SPEC['subcommands']['completion']['subcommands'][shell] = {'description': shell}""",
    # A word that is no command and no flag is a path.
    r"for completion in completions:": "for completion in completions or ['__TYRO_COMPLETE_FILES__']:",
    # bash itself completes paths, with a / after folders and spaces quoted, where a function finds nothing.
    r"COMPREPLY=\(\$\(compgen -f .*\)\)": "COMPREPLY=()",
    r"^complete -F": "complete -o default -F",
}


class UsageError(ValueError):
    """The words cannot be understood, or a flag has a value that no data make possible: exit status 2."""


@contextlib.contextmanager
def as_usage_error(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Raise a ValueError, or this kind of it, as UsageError: it is of checks that look at the flags alone."""
    try:
        yield
    except kind as error:
        raise UsageError(str(error)) from error


def parse(name: str, command: Command, words: Sequence[str], examples: str = "") -> Callable[[], None]:
    """The command with the arguments that `words` give it.

    Args:
        name: its name.
        command: its function.
        words: what follows the name on the command line.
        examples: what to print after its help.

    Raises:
        UsageError: one line naming the first wrong word.
        SystemExit: the words ask for help, which has been printed.
    """
    said = io.StringIO()
    try:
        with wide_enough(), contextlib.redirect_stderr(said):
            return tyro.cli(
                _deferred(command),
                prog=f"hsta-fast {name}",
                args=words,
                config=_CONFIG,
                registry=_one_line_helps(),
            )
    except SystemExit as ended:
        if not ended.code:
            print(examples, end="")
            raise
    raise UsageError(_first_fault(name, command, words) or _on_one_line(said.getvalue(), name))


def flags_of(command: Command) -> dict[str, Any]:
    """The type of each setting that is a flag of `command`, by its name with `_`."""
    return {name: kind for name, (kind, is_flag) in _arguments(command).items() if is_flag}


def _arguments(command: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each argument, or of each field of a dataclass, and whether it is a flag, not a place."""
    hints = get_type_hints(getattr(command, "func", command), include_extras=True)
    found: dict[str, tuple[Any, bool]] = {}
    for name, kind in hints.items():
        plain, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if is_dataclass(plain):
            found |= _arguments(plain)
        elif name != "return":
            found[name] = (plain, tyro.conf.Positional not in extras)
    return found


def flags_given(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words up to the next one, of which it may take only some."""
    given: list[tuple[str, list[str]]] = []
    for word in words:
        if word == "--":
            break
        if word.startswith("-") and word.lstrip("-")[:1].isalpha():
            flag, sign, value = word.partition("=")
            given.append((flag.replace("_", "-"), [value] if sign else []))
        elif given:
            given[-1][1].append(word)
    return given


def read_first(words: Sequence[str], *names: str) -> argparse.Namespace:
    """The values of these flags alone, None where they are not given; nothing else of `words` is judged."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")
    return parser.parse_known_args(words)[0]


def separated(text: str | None) -> list[str]:
    """The words of a flag's value, which commas separate; none if it is not given."""
    return [] if text is None else [word.strip() for word in text.split(",")]


def _one_line_helps() -> ConstructorRegistry:
    """The rules of tyro, except that a setting's help has no line breaks, and some flags may stand alone.

    tyro keeps line breaks of an indented docstring: they make ragged paragraphs of the help, and completions
    of the words in the second line.
    """
    registry, inside = ConstructorRegistry(), threading.Lock()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or not inside.acquire(blocking=False):
            return None  # tyro's own rule
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside.release()
        if not isinstance(spec, StructConstructorSpec):
            return None  # tyro says what is wrong
        alone = _optional_values(info.type)
        fields = []
        for one in spec.fields:
            kind = _with_optional_value(alone[one.name]) if one.name in alone else one.type
            fields.append(replace(one, type=kind, helptext=partial(_joined, one.helptext)))
        return replace(spec, fields=tuple(fields))

    return registry


def _optional_values(command: Any) -> dict[str, OptionalValue]:
    """The arguments of a command, or fields of a dataclass, whose flags may stand alone."""
    found: dict[str, OptionalValue] = {}
    for name, kind in get_type_hints(getattr(command, "func", command), include_extras=True).items():
        plain, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if is_dataclass(plain):
            found |= _optional_values(plain)
        for extra in extras:
            if isinstance(extra, OptionalValue):
                found[name] = extra
    return found


def _with_optional_value(kind: OptionalValue) -> Any:
    """The type `float | None` to tyro, of a flag that may stand alone."""

    def read(words: list[str]) -> float | None:
        if len(words) > 1:
            raise ValueError(f"at most one value, got {len(words)}")
        return None if words == ["None"] else float(words[0]) if words else kind.alone

    spec = PrimitiveConstructorSpec(
        nargs="*",
        metavar=kind.metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[float | None, spec]


def _joined(text: str | Callable[[], str | None] | None) -> str | None:
    """A help text, or what gives one, in one line."""
    text = text() if callable(text) else text
    return text and " ".join(text.split())


def completion(commands: dict[str, Command], shell: str) -> str:
    """The script with which `shell` completes the commands, their flags and, else, the names of files."""
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name, help=summary(command))(command)
    script = io.StringIO()
    # "-" is the standard output.
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
        words = ["--tyro-write-completion", shell, "-"]
        app.cli(prog="hsta-fast", args=words, config=_CONFIG, registry=_one_line_helps())
    text = script.getvalue()
    for before, after in _ADDED_TO_SCRIPT.items():
        text = re.sub(before, after, text, flags=re.MULTILINE)
    return text


def summary(command: Command) -> str:
    """The first line of what a command says of itself."""
    return (inspect.getdoc(getattr(command, "func", command)) or "").partition("\n")[0]


@contextlib.contextmanager
def wide_enough() -> Iterator[None]:
    """Inside, the terminal has at least _NARROWEST columns."""
    if shutil.get_terminal_size().columns >= _NARROWEST:
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_NARROWEST)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _deferred(command: Command) -> Callable[..., Callable[[], None]]:
    """A function with the signature of `command` that only binds its arguments."""

    @wraps(getattr(command, "func", command))
    def bind(*arguments: Any, **named: Any) -> Callable[[], None]:
        return partial(command, *arguments, **named)

    bind.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return bind


def as_flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _first_fault(name: str, command: Command, words: Sequence[str]) -> str | None:
    """What is wrong with the first flag that is unknown, lacks a value or has a wrong one, or is missing."""
    kinds, given, may_stand_alone = flags_of(command), flags_given(words), _optional_values(command)
    off = {f"no_{setting}": kind for setting, kind in kinds.items() if kind is bool}
    for flag, values in given:
        kind = (kinds | off).get(_setting(flag)) if flag.startswith("--") else None
        if kind is None:
            known = off if flag.startswith("--no") else kinds
            meant = did_you_mean(flag, map(as_flag, known)) or f"; hsta-fast {name} --help lists them"
            return f"{name} expected one of its flags, got {flag!r}{meant}"
        alone = not values and _setting(flag) in may_stand_alone
        if not alone and (fault := _fault_of(kind, values)) is not None:
            return f"{as_flag(_setting(flag))} expected {fault}"
    missing = _required(command) - {_setting(flag) for flag, _ in given}
    if missing:
        return f"{name} expected {as_flag(min(missing))}, got none; hsta-fast {name} --help says what it is"
    places = [kind for kind, is_flag in _arguments(command).values() if not is_flag]
    if places and words and (fault := _fault_of_word(places[0], words[0])) is not None:
        return f"{name} expected {fault}"
    plain = [word for word in words if not word.startswith("-")]
    most = [(values, _most_values((kinds | off)[_setting(flag)])) for flag, values in given]
    taken = sum(min(len(values), limit) for values, limit in most)
    if not places and len(plain) > taken:
        begin = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        extra = [*words[:begin], *(value for values, limit in most for value in values[limit:])]
        return f"{name} expected flags, got {extra[0]!r}; hsta-fast {name} --help lists them"
    if places and len(plain) <= taken:  # none is left for the place
        what = f"one of {', '.join(get_args(places[0]))}" if get_origin(places[0]) is Literal else "PATH"
        return f"{name} expected {what}, got none; hsta-fast {name} --help says what it is"
    return None


def _most_values(kind: Any) -> int:
    """How many words a flag of the type `kind` takes at most."""
    if kind is bool:
        return 0
    parts = get_args(kind) if get_origin(kind) is tuple else (kind,)
    return sys.maxsize if parts[-1] is Ellipsis else len(parts)


def _setting(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _fault_of(kind: Any, values: Sequence[str]) -> str | None:
    """What a flag of the type `kind` expects, and what it got; None if `values` begin as they should."""
    if get_origin(kind) in (Union, types.UnionType):  # a type or None
        [kind] = [one for one in get_args(kind) if one is not type(None)]
        if values[:1] == ["None"]:
            return None
    if kind is bool:
        return None
    number, parts = 1, (kind,)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        number = len(parts)
        if parts[-1] is Ellipsis:
            number, parts = len(values), parts[:1] * len(values)
    faults = (_fault_of_word(part, value) for part, value in zip(parts, values, strict=False))
    if (fault := next(filter(None, faults), None)) is not None:
        return fault
    if len(values) < number:
        return f"{number} value{'s' * (number > 1)}, got {len(values) or 'none'}"
    return None


def _fault_of_word(kind: Any, word: str) -> str | None:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if word not in choices:
            return f"one of {', '.join(choices)}, got {word!r}{did_you_mean(word, choices)}"
    elif kind in (int, float):
        try:
            kind(word)
        except ValueError:
            return f"{'a whole number' if kind is int else 'a number'}, got {word!r}"
    return None


def _required(command: Command) -> set[str]:
    """The flags that must be given."""
    hints = get_type_hints(getattr(command, "func", command))
    found: set[str] = set()
    for name, parameter in inspect.signature(command).parameters.items():
        kind, default = hints[name], parameter.default
        if is_dataclass(kind):
            found |= _unset(kind if default is parameter.empty else default)
        elif default is parameter.empty and name in flags_of(command):
            found.add(name)
    return found


def _unset(settings: Any) -> set[str]:
    """The settings of a dataclass that have no default, or, of an instance and those inside, no value."""
    if isinstance(settings, type):
        return {f.name for f in fields(settings) if f.default is MISSING and f.default_factory is MISSING}
    found: set[str] = set()
    for field in fields(settings):
        value = getattr(settings, field.name)
        found |= _unset(value) if is_dataclass(value) else {field.name} if value is tyro.MISSING else set()
    return found


def _on_one_line(box: str, name: str) -> str:
    """The first part of one of tyro's boxes, without its borders."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:-1]]
    ends = [i for i, line in enumerate(lines) if set(line) == {"─"}]
    text = " ".join(lines[: ends[0] if ends else None])
    return f"{' '.join(text.split())}; hsta-fast {name} --help lists what it expects"
