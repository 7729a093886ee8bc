"""A run of the benchmarks: members in turn, results file, summary, what is left out."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.record import Recorder, machine, read, write
from tests.forked import ROOT, Forked

BENCHMARKS = """
import pathlib, time
from benchmarks.compare import OURS
LOG = pathlib.Path(__file__).with_name("log")
def member(name):
    def step():
        with LOG.open("a") as file:
            file.write(name + "\\n")
    return lambda: step
def broken():
    raise ValueError("no such shape")
def members(*names):
    return {name: member(name) for name in names}
def bench_turns(compare):
    compare("op, turns", members(OURS, "published", "SDPA"), least=4, seconds=0.0, notes={"clips": 3})
def bench_peer_fails(compare):
    given = {OURS: member(OURS), "published": broken, "SDPA": member("SDPA")}
    compare("op, peer fails", given, least=2, seconds=0.0)
def bench_ours_fails(compare):
    compare("op, ours fails", {OURS: broken, **members("published")})
def bench_too_long(compare):
    compare("op, too long", members(OURS, "published"), flop=1e18)
def bench_compiled(compare):
    compare("op, compiled", members(OURS, "published compiled"), least=2, seconds=0.0)
"""


class Ran(NamedTuple):
    status: int
    said: str
    folder: Path

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        [path] = (self.folder / "results").glob("*.json")
        record = read(path)
        assert record is not None
        return {entry["group"]: entry for entry in record["groups"]}


def run(folder: Path, *options: str) -> Ran:
    (folder / "bench_some.py").write_text(BENCHMARKS)
    given = ["-p", "benchmarks.conftest", "-p", "no:cacheprovider", "--benchmark-only", "-q", *options]
    # Of its own, not a worker of the pytest that runs this test: pytest-benchmark refuses to be timed there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = Forked(
        f"import os, sys, pytest; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(folder)!r})\n"
        "sys.exit(pytest.main(sys.argv[1:]))",
        ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "--rootdir=.", *given],
        environment=environment,
    )
    said, _ = process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, said, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Every benchmark of the file, with a C++ compiler that only seems to be there."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return run(folder, f"--results={folder / 'results'}", f"--benchmark-json={folder / 'plugin.json'}")


def test_rounds_alternate_and_no_member_always_follows_the_same(whole: Ran) -> None:
    assert set(whole.groups["op, turns"]["ms"]) == {"hsta_fast", "published", "SDPA"}
    rounds = {name: len(times) for name, times in whole.groups["op, turns"]["ms"].items()}
    assert rounds == dict.fromkeys(rounds, 4)
    log = (whole.folder / "log").read_text().split()
    first_calls = ["hsta_fast", "published", "SDPA"]
    begin = log.index("SDPA") - 2
    log = log[begin : begin + 18]
    assert log[:6] == first_calls * 2  # once to prepare, once to estimate the number of rounds
    turns = [log[i : i + 3] for i in range(6, 18, 3)]
    assert turns == [["SDPA", "published", "hsta_fast"], ["published", "SDPA", "hsta_fast"]] * 2


def test_each_group_is_in_the_results_file_with_date_and_load(whole: Ran) -> None:
    for entry in whole.groups.values():
        assert entry["date"].endswith("+00:00") and entry["load"] >= 0.0
    assert whole.groups["op, turns"]["clips"] == 3
    [path] = (whole.folder / "results").glob("*.json")
    assert path.stem == machine()["slug"]
    record = json.loads(path.read_text())
    assert record["machine"]["cores"] >= 1 and "torch" in record["versions"]


def test_a_failing_peer_fails_the_benchmark_after_the_others_are_timed(whole: Ran) -> None:
    entry = whole.groups["op, peer fails"]
    assert set(entry["ms"]) == {"hsta_fast", "SDPA"}
    assert entry["failed"] == {"published": "ValueError: no such shape"}
    assert "op, peer fails, published: FAILED: ValueError: no such shape" in whole.said
    assert whole.status == 1
    assert "op, ours fails" not in whole.groups
    assert "bench_ours_fails" in whole.said


def test_a_group_that_does_not_fit_is_left_out_and_named(whole: Ran) -> None:
    assert "op, too long" not in whole.groups
    assert "op, too long: it takes about " in whole.said.split("left out")[1]


def test_a_compiled_member_without_a_graph_is_a_failure(whole: Ran) -> None:
    entry = whole.groups["op, compiled"]
    found = entry.get("left_out", {}) | entry.get("failed", {})  # without a C++ compiler it is left out
    assert "no graph was compiled" in found["published compiled"] or "compiler" in found["published compiled"]
    assert set(entry["ms"]) == {"hsta_fast"}


def test_the_summary_has_one_line_per_group_and_no_table(whole: Ran) -> None:
    for group in ("op, turns", "op, peer fails", "op, compiled"):
        assert sum(line.startswith(f"{group}  ") for line in whole.said.splitlines()) == 1
    assert "Legend:" not in whole.said and "OPS" not in whole.said


def test_the_json_of_pytest_benchmark_has_ours_and_the_peers_figures(whole: Ran) -> None:
    found = json.loads((whole.folder / "plugin.json").read_text())["benchmarks"]
    [turns] = [b for b in found if b["group"] == "op, turns"]
    assert len(turns["stats"]["data"]) == 4
    assert len(turns["extra_info"]["ms"]["published"]) == 4


def test_a_second_run_replaces_its_groups_and_keeps_the_others(whole: Ran, tmp_path: Path) -> None:
    [path] = (whole.folder / "results").glob("*.json")
    record = read(path)
    assert record is not None
    copy = tmp_path / path.name
    write(copy, record)
    before = whole.groups
    recorder = Recorder(tmp_path)
    recorder.record["machine"] = record["machine"]  # threads differ: tests have one
    recorder.add(before["op, turns"] | {"load": 99.0})
    after = read(copy)
    assert after is not None
    loads = {entry["group"]: entry["load"] for entry in after["groups"]}
    assert loads == {group: entry["load"] for group, entry in before.items()} | {"op, turns": 99.0}
    record["versions"]["torch"] = "0.1"  # figures of other versions are not mixed with new ones
    write(copy, record)
    recorder.add(before["op, turns"])
    after = read(copy)
    assert after is not None and [entry["group"] for entry in after["groups"]] == ["op, turns"]


def test_a_damaged_results_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json expected JSON, got .*; delete it and measure again"):
        read(tmp_path / "a.json")


def test_k_chooses_groups_and_a_table_is_printed_if_its_columns_are_asked_for(tmp_path: Path) -> None:
    ran = run(tmp_path, "-k", "turns", "--benchmark-columns=median,rounds")
    assert ran.status == 0
    assert "Median" in ran.said and "op, turns  " in ran.said and "op, peer fails" not in ran.said
    assert not (tmp_path / "results").exists()
