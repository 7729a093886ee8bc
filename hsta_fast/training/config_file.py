"""Settings in a file: the config.json of a run, or a YAML or JSON file of flags."""

import json
import re
import types
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from ..files import open_plain
from ..spelling import did_you_mean

# The least that tells the config.json of a run from a file of flags: see `run_checks.is_run`.
_OF_A_RUN = {"classes", "num_folds"}


def read_settings(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file, by name; names are written with `-` or `_`.

    Paths stay as they are written: they are relative to the current folder. In the config.json of a run,
    names that are no setting (its classes, notes, ...) are ignored.

    Args:
        path: a mapping in YAML, or in JSON if its name ends in .json.
        kinds: the type of each setting.

    Raises:
        ValueError: one line naming the file and the key: no such file, no mapping, an unknown setting, one
            that is given twice, or a value of another type.
    """
    try:
        with open_plain(path, "a file of settings") as file:
            text = file.read().decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text, object_pairs_hook=_without_duplicates)
        else:
            found = yaml.load(text, _Loader)  # a SafeLoader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping of settings to values, got {_kind_of(found)}")
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name in kinds:
            if name in settings:
                raise ValueError(f"{path}: expected {name} once, got it twice")
            settings[name] = _convert(value, kinds[name], f"{path}: {key}")
        elif not found.keys() >= _OF_A_RUN:
            meant = did_you_mean(name, kinds)
            raise ValueError(f"{path}: expected names of settings, got {str(key)!r}{meant}")
    return settings


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_OTHER_IN_YAML_1_1 = (_INT, _FLOAT, "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is given twice and reads numbers as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        pairs = [
            (self.construct_object(key, True), self.construct_object(value, True))
            for key, value in node.value
        ]
        return _without_duplicates(pairs)


# In YAML 1.1, which PyYAML reads, 1:30 is 90, 010 is 8, 5e-5 is a text, and 2026-01-31 is none.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in rules if tag not in _OTHER_IN_YAML_1_1]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (
    (_INT, r"[-+]?(?:0|[1-9][0-9_]*)$"),
    (_FLOAT, r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    (_FLOAT, r"[-+]?[0-9]+[eE][-+]?[0-9]+$"),
    (_FLOAT, r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def _without_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, Hashable):
            raise ValueError(f"expected names of settings, got {key!r}")
        if key in found:
            raise ValueError(f"expected {key} once, got it twice")
        found[key] = value
    return found


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A value from a file as a value of the type `kind`.

    Raises:
        ValueError: it has another type.
    """
    if get_origin(kind) in (Union, types.UnionType):  # a type or None
        [kind] = [one for one in get_args(kind) if one is not type(None)]
        if value is None:
            return None
    words = get_args(kind)
    if get_origin(kind) is Literal:
        if value in words:
            return value
        meant = did_you_mean(str(value), words)
        raise ValueError(f"{where} expected one of {', '.join(words)}, got {value!r}{meant}")
    if get_origin(kind) is tuple:
        of_each = words[:1] if words[-1] is Ellipsis else words
        if isinstance(value, list) and (words[-1] is Ellipsis or len(value) == len(words)):
            return tuple(_convert(part, of_each[i % len(of_each)], where) for i, part in enumerate(value))
        number = "" if words[-1] is Ellipsis else f" of {len(words)}"
        raise ValueError(f"{where} expected a list{number}, got {_kind_of(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if type(value) is kind:
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}.get(
        kind, "text"
    )
    raise ValueError(f"{where} expected {expected}, got {_kind_of(value)}")


def _kind_of(value: Any) -> str:
    """A value in words that tell "3" from 3."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return f"the text {value!r}" if isinstance(value, str) else str(value)
