"""Label sets by name, or from a user's mapping file.

A csv file has the columns `word` and `class`, and `dataset` if datasets differ. A blank class drops the clips
of that word. Classes are numbered in the order in which they first appear.

A json file is an object with "classes" (a list, in order) and "mapping" (word -> class or null). It may have
"column" ("emotion", the default, or "objective_class", whose words are 0 for unknown and 1 to 7) and
"datasets" (dataset -> the entries that differ from "mapping" for its clips).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import open_plain
from ..clips import brief
from ..readers.annotation import Columns, rows_of
from ..readers.sheets import read_text
from .megc2019 import composite_labels, is_official_list, official_labels
from .sets import LABEL_SETS, LabelSet, dataset_id

_COLUMNS = Columns(required=("word", "class"), optional=("dataset",))


def label_set(name: str, roots: Sequence[Path] = ()) -> LabelSet:
    """The label set called `name`, or that of a .json or .csv file.

    roots: folders of the data, which may hold the official list of "megc2019".

    Raises ValueError for an unknown name or a file that cannot be read.
    """
    if name == "megc2019":
        return composite_labels(roots)
    if name in LABEL_SETS:
        return LABEL_SETS[name]
    path = Path(name)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(
            f"--labels expected one of {', '.join(LABEL_SETS)}, or a .json or .csv file, got {name!r}"
        )
    return _from_json(path) if path.suffix.lower() == ".json" else _from_csv(path)


def _from_csv(path: Path) -> LabelSet:
    sheets = read_text(path)
    if is_official_list(sheets):
        return official_labels(path)
    classes: list[str] = []
    mappings: dict[str, dict[str, str | None]] = {}
    rows, remarks = rows_of(path, sheets, _COLUMNS)
    if remarks:
        raise ValueError(f"{path}: {remarks[0]}")
    for row in rows:
        mapping = mappings.setdefault(row["dataset"], {})
        word, name = row["word"].casefold(), row["class"]
        if not word or row.excess:
            raise ValueError(f"{path} row {row.number}: expected a word and its class, got {dict(row.cells)}")
        if word in mapping:
            raise ValueError(f"{path} row {row.number}: expected each word once, got {word!r} again")
        mapping[word] = name or None
        if name and name not in classes:
            classes.append(name)
    shared = mappings.pop("", {})
    own = {dataset: {**shared, **mapping} for dataset, mapping in mappings.items()}
    return _checked(path, tuple(classes), shared, own)


def _from_json(path: Path) -> LabelSet:
    try:
        with open_plain(path, "a label file") as file:
            text = file.read()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        data = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a label file in json: {error}") from error
    known = {"classes", "mapping", "column", "datasets"}
    if not isinstance(data, dict) or not {"classes", "mapping"} <= set(data) <= known:
        got = ", ".join(map(repr, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f'{path}: expected an object with "classes" and "mapping", got {got}')
    classes = data["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f'{path}: "classes" expected a list of names, got {classes!r}')
    column = data.get("column", "emotion")
    if column not in ("emotion", "objective_class"):
        raise ValueError(f'{path}: "column" expected "emotion" or "objective_class", got {column!r}')
    datasets = data.get("datasets", {})
    if not isinstance(datasets, dict):
        raise ValueError(f'{path}: "datasets" expected an object, got {datasets!r}')
    shared = _mapping(path, data["mapping"])
    own = {dataset: {**shared, **_mapping(path, mapping)} for dataset, mapping in datasets.items()}
    return _checked(path, tuple(classes), shared, own, column)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each name once, got {twice!r} again")
    return found


def _mapping(path: Path, mapping: Any) -> dict[str, str | None]:
    if not isinstance(mapping, dict) or not all(
        name is None or isinstance(name, str) for name in mapping.values()
    ):
        raise ValueError(
            f"{path}: mapping expected an object, word -> class or null, got {brief(repr(mapping))}"
        )
    try:
        return _each_once([(word.strip().casefold(), name) for word, name in mapping.items()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(
    path: Path,
    classes: tuple[str, ...],
    mapping: dict[str, str | None],
    own: Mapping[str, Mapping[str, str | None]],
    column: Any = "emotion",
) -> LabelSet:
    if len({dataset_id(name) for name in own}) < len(own):
        raise ValueError(f"{path}: expected each dataset once, got {', '.join(own)}")
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ValueError(f"{path}: expected at least 2 different classes, got {list(classes)}")
    return LabelSet(name=str(path), classes=classes, column=column, mapping=mapping, of_dataset=own)
