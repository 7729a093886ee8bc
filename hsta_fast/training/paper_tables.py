"""The rows of the paper's tables, and the scores printed for them.

`TABLES` holds the ablations of the model, as overrides for `create_model`; `EXPERIMENTS` holds all tables, as
settings of a run (`config.TrainConfig`). The formulas in the table headings are missing from the text version
of the paper. Assumed: video before special, the order in which the text names them (Tables 1 and 2), and
(K; n_s; n_v) in Table 3, which two cells shared with Table 4 confirm.
"""

from typing import Any

Row = dict[str, Any]


def _row(num_layers: int, n_special: int, n_video: int, csta: bool = True) -> Row:
    return {"num_layers": num_layers, "n_special": n_special, "n_video": n_video, "csta": csta}


_DEPTHS = (0, 1, 2, 4, 6, 8, 10, 12)

# USTA layers in one branch, none in the other, without CSTA; assumed: the first group of columns is video.
TABLE_1: dict[str, Row] = {
    **{f"video {n}": _row(1, 0, n, csta=False) for n in _DEPTHS},
    **{f"special {n}": _row(1, n, 0, csta=False) for n in _DEPTHS},
}

# Each part alone, and together; assumed: a3 is video, a4 special.
TABLE_2: dict[str, Row] = {
    "a1": _row(1, 0, 0, csta=False),
    "a2": _row(1, 0, 0),
    "a3": _row(1, 0, 1, csta=False),
    "a4": _row(1, 1, 0, csta=False),
    "a5": _row(1, 1, 1, csta=False),
    "a6": _row(1, 1, 1),
}

# HSTA layers and USTA layers.
TABLE_3: dict[str, Row] = {
    "b1": _row(1, 1, 1),
    "b2": _row(2, 1, 1),
    "b3": _row(3, 1, 1),
    "b4": _row(3, 1, 2),
    "b5": _row(3, 1, 3),
    "b6": _row(3, 1, 4),
    "b7": _row(3, 1, 5),
    "b8": _row(3, 2, 1),
    "b9": _row(3, 2, 2),
    "b10": _row(3, 3, 1),
    "b11": _row(3, 3, 2),
    "b12": _row(3, 3, 3),
}

# HSTA layers K for three pairs of (n_v; n_s).
TABLE_4: dict[str, Row] = {
    f"K {k}, n_v {n_v}, n_s {n_s}": _row(k, n_s, n_v)
    for n_v, n_s in ((1, 1), (2, 1), (2, 2))
    for k in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
}

TABLES: dict[int, dict[str, Row]] = {1: TABLE_1, 2: TABLE_2, 3: TABLE_3, 4: TABLE_4}

# Settings of complete runs. A depth that a row does not set is the model's default, the paper's choice.
_LOSO: Row = {"protocol": "loso"}
TABLE_5: dict[str, Row] = {
    name: {**_LOSO, "datasets": (name,), "labels": "emotion3"} for name in ("smic", "samm", "casme2")
}
TABLE_6: dict[str, Row] = {
    f"{number} classes": {**_LOSO, "datasets": ("casme3",), "labels": f"emotion{number}"} for number in (3, 7)
}
TABLE_7: dict[str, Row] = {
    "special frames": {"labels": "emotion7"},
    "flow": {"labels": "emotion7", "flow": "dis"},
    "special frames, objective": {"labels": "objective7"},
    "flow, macro, objective": {"labels": "objective7", "flow": "dis", "macro": True},
    "special frames, macro, objective": {"labels": "objective7", "macro": True},
}
FIGURE_3: dict[str, Row] = {
    f"{frames} frames": {**_row(1, 0, 1, csta=False), "num_frames": frames} for frames in range(2, 17, 2)
}

EXPERIMENTS: dict[str, dict[str, Row]] = {
    **{str(number): rows for number, rows in TABLES.items()},
    "5": TABLE_5,
    "6": TABLE_6,
    "7": TABLE_7,
    "figure3": FIGURE_3,
}

ASSUMED: dict[str, tuple[str, ...]] = {
    "1": ("the first group of columns is video, the second special: the headings are lost.",),
    "2": ("a3 is video alone, a4 special alone: the headings are lost.",),
    "3": ("the columns are K, n_s, n_v: the headings are lost; two cells shared with Table 4 agree.",),
    "7": (
        "row 3 is printed with neither input and read as special frames.",
        "the flow is dense (DIS); the published code draws sparse tracks.",
    ),
    "figure3": ("the one layer is video's, without CSTA; of the figure only 'best at 6 frames' survives.",),
}


def _percent(lines: str) -> list[tuple[float, ...]]:
    """Groups of printed ACC UAR UF1 as fractions, in the order UF1, UAR, ACC."""
    values = [round(float(word) / 100, 3) for word in lines.split()]
    return [tuple(values[i : i + 3][::-1]) for i in range(0, len(values), 3)]


# As printed: ACC, UAR, UF1 in percent.
_PRINTED_1 = """
    15.8 14.3 16.1
    37.5 32.4 31.1
    36.5 32.6 29.8
    38.0 33.1 29.8
    41.6 33.6 32.0
    42.1 36.7 33.5
    40.0 35.5 32.0
    40.1 35.6 31.8
    15.8 14.3 16.1
    37.9 32.1 29.4
    38.8 32.6 30.8
    39.3 32.9 31.0
    39.2 33.9 31.0
    39.5 35.5 32.2
    40.9 34.1 31.8
    39.5 34.0 31.4
"""
_PRINTED_2 = """
    15.8 14.3 16.1
    35.5 30.9 28.2
    37.5 32.4 31.1
    37.9 32.5 29.4
    37.1 32.1 29.7
    40.2 33.9 31.6
"""
_PRINTED_3 = """
    40.2 33.9 31.6
    40.8 34.1 32.2
    41.3 34.9 31.3
    40.7 35.1 32.0
    41.0 36.1 33.0
    40.3 36.0 33.2
    40.7 35.8 32.6
    39.8 34.3 31.6
    42.4 36.6 34.8
    41.2 34.5 32.2
    41.0 35.3 30.8
    40.8 35.2 32.8
"""
_PRINTED_4 = """
    40.2 33.9 31.6
    40.8 34.1 32.2
    41.3 34.9 31.3
    40.5 34.8 31.9
    41.2 36.4 33.6
    40.7 36.4 32.9
    41.1 36.0 33.1
    42.8 38.6 35.1
    42.6 35.7 33.7
    42.4 38.5 35.1
    41.0 35.7 31.2
    42.2 36.4 33.5
    40.7 35.1 32.0
    42.6 38.0 35.1
    40.9 36.0 32.5
    41.9 36.2 32.9
    42.8 37.8 35.1
    41.0 36.0 33.8
    41.8 36.8 33.6
    41.3 36.1 33.4
    40.7 33.4 31.1
    40.0 34.5 31.2
    42.4 36.6 34.8
    42.2 36.9 33.6
    43.1 37.4 33.6
    42.1 35.9 33.0
    41.1 36.1 32.4
    40.6 36.3 32.6
    41.5 36.4 33.0
    42.2 37.0 33.3
"""
_PRINTED_7 = """
    42.6 38.0 35.1
    40.1 36.4 35.4
    52.3 43.2 43.0
    48.6 39.3 41.8
    69.8 51.7 52.7
"""

# (UF1, UAR, ACC) of the rows of each table, as fractions; Tables 5 and 6 print no ACC, Figure 3 no number.
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "1": dict(zip(TABLE_1, _percent(_PRINTED_1), strict=True)),
    "2": dict(zip(TABLE_2, _percent(_PRINTED_2), strict=True)),
    "3": dict(zip(TABLE_3, _percent(_PRINTED_3), strict=True)),
    "4": dict(zip(TABLE_4, _percent(_PRINTED_4), strict=True)),
    "5": {"smic": (0.847, 0.780), "samm": (0.847, 0.839), "casme2": (0.925, 0.922)},
    "6": {"3 classes": (0.593, 0.618), "7 classes": (0.341, 0.358)},
    "7": dict(zip(TABLE_7, _percent(_PRINTED_7), strict=True)),
    "figure3": {},
}
