"""Targets, verdicts, and the tables of the docs, which are those of the results files."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_model, docs_drop_in
from benchmarks.compare import PRODUCT, SIDE
from benchmarks.docs import PAGES, regenerated
from benchmarks.processes import ROOT
from benchmarks.record import write
from benchmarks.summary import group_lines, in_words, summary
from benchmarks.targets import TARGETS, Ratio, Target, floor_ms, ratio, verdict


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_the_docs_are_those_of_the_results(page: str) -> None:
    """If this fails: `make docs`."""
    text = (ROOT / page).read_text()
    assert "<!-- measured: " in text
    assert regenerated(text) == text


def entry(group: str, ms: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    return {"group": group, "date": "2026-01-02T03:04:05+00:00", "load": 0.5, "ms": ms} | more


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down in the third round slows both."""
    found = entry("g", {"hsta_fast": [1.0, 1.0, 10.0], "published": [2.0, 4.0, 30.0]})
    assert ratio(found, "published", "hsta_fast") == Ratio(3.0, 2.5, 3.5)
    assert ratio(found, "SDPA", "hsta_fast") is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Ratio(2.0, 1.5, 2.5), "2.00 x faster than SDPA (1.50 to 2.50)"),
        (Ratio(0.5, 0.4, 0.8), "2.00 x slower than SDPA (1.25 to 2.50)"),
        (Ratio(1.1, 0.9, 1.2), "as fast as SDPA (0.90 to 1.20)"),
    ],
)
def test_verdicts_in_words(found: Ratio, words: str) -> None:
    assert in_words(found, "SDPA") == words


def test_the_line_of_a_group_names_the_fastest_peer_and_the_published_one() -> None:
    times = {"hsta_fast": [10.0] * 3, "published": [40.0] * 3, "SDPA": [20.0] * 3, PRODUCT: [1.0] * 3}
    [line] = group_lines(entry("op, shape", times))
    assert re.fullmatch(
        r"op, shape +10.0 ms  2.00 x faster than SDPA \(2.00 to 2.00\), 4.00 x faster than published .*", line
    )
    _, variant = group_lines(entry("op, shape", times | {"hsta_fast int8": [5.0] * 3}))
    assert variant.startswith("  hsta_fast int8 ")
    for words in ("4.00 x faster than SDPA", "8.00 x faster than published", "2.00 x faster than hsta_fast"):
        assert words in variant


TARGET = Target(text="it", group="g", slow="published", bound=2.0)


def test_targets_are_met_missed_or_not_measured() -> None:
    assert verdict(TARGET, []).word == "not measured"
    assert verdict(TARGET, [entry("g", {"hsta_fast": [1.0] * 2})]).word == "not measured"
    times = {"hsta_fast": [1.0] * 2, "published": [2.0] * 2}
    assert verdict(TARGET, [entry("g", times)]).word == "met"
    assert verdict(TARGET, [entry("g", times | {"published": [1.9] * 2})]).word == "missed"
    growth = Target(text="it", group="g", slow="long", fast="short", bound=1.3, per_flop=True)
    ms = {"short": [1.0] * 2, "long": [5.0] * 2}
    assert verdict(growth, [entry("g", ms, flop={"short": 1.0, "long": 4.0})]).word == "met"
    assert verdict(growth, [entry("g", ms, flop={"short": 1.0, "long": 3.0})]).word == "missed"


def test_the_floor_is_the_operations_at_the_rate_of_the_product() -> None:
    found = entry("g", {"hsta_fast": [9.0] * 2, PRODUCT: [2.0] * 2}, flop={"hsta_fast": 6.0 * SIDE**3})
    assert floor_ms(found, "hsta_fast") == 6.0
    assert floor_ms(found, "published") is None


def test_every_target_is_of_a_group_and_members_that_are_timed() -> None:
    timed: dict[str, set[str]] = {}

    def compare(group: str, members: dict[str, Any], **how: Any) -> None:
        timed[group] = set(members)

    for case in bench_model.CPU_CASES:
        bench_model.bench_cpu(compare, *case)
    bench_model.bench_compiled(compare)
    bench_model.bench_frames(compare)
    for target in TARGETS:
        assert {target.slow, target.fast} <= timed[target.group], target.text


def test_the_summary_names_what_was_left_out() -> None:
    group = TARGETS[0].group
    lines = summary([entry(group, {"hsta_fast": [1.0] * 2, "published": [2.0] * 2})], {"other": "no time"})
    text = "\n".join(lines)
    assert "2.00 x  met" in text and "other: no time" in text
    assert TARGETS[-1].text not in text  # its group was not asked for
    assert "busy" not in text
    busy = entry("g", {"hsta_fast": [1.0] * 2}) | {"load": 1e4}
    assert "the machine was busy (load 10000.0)" in "\n".join(summary([busy], {}))


PAGE = """before
<!-- measured: machines -->
<!-- end -->
between
<!-- measured: op: op -->
old
<!-- end -->
<!-- measured: targets -->
<!-- end -->
<!-- measured: cuda -->
<!-- end -->
"""
MACHINE = {"slug": "a-card", "name": "A Card", "cores": 2, "threads": 2, "simd": "AVX2"}


def test_blocks_are_written_from_the_results(tmp_path: Path) -> None:
    assert regenerated(PAGE, tmp_path).count("Not measured.") == 3
    groups = [
        entry("op, small", {"hsta_fast": [1.0] * 2, "published": [3.0] * 2}),
        entry("op, large", {"hsta_fast": [100.0] * 2, "published": [250.0] * 2}),
    ]
    record = {"machine": MACHINE, "versions": {"python": "3", "torch": "2"}, "groups": groups}
    write(tmp_path / "a.json", record)
    (tmp_path / "card.json").write_text('{"device": "H", "stages": {}}')
    text = regenerated(PAGE, tmp_path)
    assert regenerated(text, tmp_path) == text
    for line in (
        "| op | hsta_fast | published |",
        "| small | 1 | 3 (3.00 x) |",
        "| large | 100 | 250 (2.50 x) |",
        "| A Card, 2 cores (AVX2) | 2 | python 3, torch 2 | 2026-01-02 | 0.5 to 0.5 |",
        "H:",
    ):
        assert line in text.splitlines(), line
    assert text.startswith("before\n") and "\nbetween\n" in text and "old" not in text
    assert text.count("not measured") == len(TARGETS) + text.count("x  not measured")
    write(tmp_path / "b.json", record | {"machine": MACHINE | {"name": "B"}})
    assert "\nB, 2 cores (AVX2):\n" in regenerated(PAGE, tmp_path)


def test_a_block_without_a_known_name_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"machine": MACHINE, "versions": {}, "groups": []})
    with pytest.raises(KeyError):
        regenerated("<!-- measured: nonsense -->\n<!-- end -->\n", tmp_path)


def drop_in_entry(model: str, direction: str, before: list[float], after: list[float]) -> dict[str, Any]:
    ms = {"hsta_fast": after, "the original": before}
    return {
        "group": f"drop-in, {model}, B 1, {direction}",
        "ms": ms,
        "peak MiB": {"hsta_fast": 10.0, "the original": 40.0},
    }


def test_models_of_other_libraries_have_a_line_each_and_a_verdict() -> None:
    entries = [
        drop_in_entry("a cross-attention", "forward", [60.0, 66.0], [10.0, 10.0]),
        drop_in_entry("a model", "forward", [9.0, 9.0], [10.0, 10.0]),
        drop_in_entry("a model", "training step", [20.0, 20.0], [10.0, 10.0]),
    ]
    rows = docs_drop_in.of_cpu({"groups": entries})
    assert docs_drop_in.table(rows) == [
        ("a cross-attention, B 1", "63.0 -> 10.0 (6.30 x)", "", "40 -> 10"),
        ("a model, B 1", "9 -> 10.0 (0.90 x)", "20.0 -> 10.0 (2.00 x)", "40 -> 10"),
    ]
    asked = docs_drop_in.verdict(rows, layers=5, everything=0.95)
    assert asked == (
        "Asked: cross-attention layers forward at least 5 x: met, 6.30 x; "
        "everything at least 0.95 x: missed, 0.90 x.\n"
    )
