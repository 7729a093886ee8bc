"""The configurations of the paper's ablation tables, as overrides for `create_model`.

The paper's formulas for the table headings are lost in its text version. Assumed: video before special, the
order in which the text names them (Tables 1 and 2), and (K; n_s; n_v) in Table 3, which two cells shared
with Table 4 confirm.
"""

from typing import Any

Row = dict[str, Any]


def _row(num_layers: int, n_special: int, n_video: int, csta: bool = True) -> Row:
    return {"num_layers": num_layers, "n_special": n_special, "n_video": n_video, "csta": csta}


_DEPTHS = (0, 1, 2, 4, 6, 8, 10, 12)

# USTA layers in one branch, none in the other, without CSTA; the first group of columns is taken to be video.
TABLE_1: dict[str, Row] = {
    **{f"video {n}": _row(1, 0, n, csta=False) for n in _DEPTHS},
    **{f"special {n}": _row(1, n, 0, csta=False) for n in _DEPTHS},
}

# Each part alone and together; a3 is taken to be video, a4 special.
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
