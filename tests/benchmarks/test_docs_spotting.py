"""The table of docs/spotting.md from the results file."""

import json
from pathlib import Path

from benchmarks.docs_spotting import HEADER, rows


def test_the_table_has_a_row_for_each_group(tmp_path: Path) -> None:
    assert rows(tmp_path) == []
    scores = {"tp": 110, "fp": 4, "fn": 10, "f1": 0.94}
    found = {
        "factor": 12.0,
        "floor": 0.2,
        "choosing": {"recordings": 6, "f1 by factor": {"12": {"0.2": 0.98}}},
        "figure": {"recordings": 20, **scores},
        "distractors alone": {"minutes": 4.0, "intervals": 1, "a minute": 0.25},
        "recognised": {"model": "demo", **scores, "uf1": 0.8, "strs": 0.752},
    }
    (tmp_path / "rendered").mkdir()
    (tmp_path / "rendered" / "spotting.json").write_text(json.dumps(found))
    table = rows(tmp_path)
    assert len(table) == 4 and all(len(row) == len(HEADER) for row in table)
    assert table[0][-1] == "0.980" and list(table[1][1:]) == ["110", "10", "4", "0.940"]
    assert "STRS 0.752" in table[2][0] and table[3][3] == "1, 0.25 a minute"
