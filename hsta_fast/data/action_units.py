"""Action units as the datasets write them, and the objective classes of their sets (Davison et al. 2018)."""

import re

# Davison et al. 2018: the class of an exact set of action units; every other set is class VII.
_UNITS_OF_CLASS = {
    1: "6 12 6+12 6+7+12 7+12",
    2: "1+2 5 25 1+2+25 25+26 5+24",
    3: "23 4 4+7 4+5 4+5+7 17+24 4+6+7 4+38",
    4: "10 9 4+9 4+40 4+5+40 4+7+9 4+9+17 4+7+10 4+5+7+9 7+10",
    5: "1 15 1+4 6+15 15+17",
    6: "1+2+4 20",
}
_CLASS_OF_UNITS = {
    frozenset(int(unit) for unit in units.split("+")): number
    for number, sets in _UNITS_OF_CLASS.items()
    for units in sets.split()
}
OBJECTIVE_CLASSES = ("I", "II", "III", "IV", "V", "VI", "VII")


def action_units(text: str) -> frozenset[int] | None:
    """The numbers of the action units in a cell such as "4+L7" or "R12B"; None if they are unknown.

    Letters of side and intensity are ignored, and so are the other codes of FACS: action descriptors such as
    "AD38" and movements of the head such as "M58". They are unknown for no unit, for "?", for a unit marked
    as uncertain, "7(k)", for a choice such as "4 or 7" or "4/7", and for numbers that are not units, such as
    those of a date.
    """
    words = re.sub(r"\.0+\b", "", text.casefold())  # some programs write a single unit as 12.0
    words = re.sub(r"(?<![a-z])(?:ad|m)\s*[0-9]+", "", words)
    units = frozenset(map(int, re.findall(r"[0-9]{1,9}", words)))
    choice = re.search(r"\?|\(\s*k\s*\)|(?<![a-z])or(?![a-z])|[0-9]\s*/\s*[0-9]", words)
    return None if not units or max(units) > 99 or choice else units


def objective_class(text: str) -> int:
    """The objective class 1..7 of the units in a cell; 0 if they are unknown (see `action_units`)."""
    units = action_units(text)
    return 0 if units is None else _CLASS_OF_UNITS.get(units, 7)


def parse_objective_class(text: str) -> int:
    """The class written as I..VII or 1..7; 0 for a blank; ValueError for anything else."""
    word = text.strip().upper()
    if not word:
        return 0
    if word in OBJECTIVE_CLASSES:
        return OBJECTIVE_CLASSES.index(word) + 1
    if match := re.fullmatch(r"([1-7])(?:\.0*)?", word):
        return int(match[1])
    raise ValueError(f"objective class expected I..VII or 1..7, got {text!r}")
