"""The figures of a profile: what they show, and that it can be read."""

from itertools import combinations
from typing import Any

from hsta_fast.profiling import plots

# Operations per byte, and operations per second, of parts that lie close together.
CLOSE = {
    "USTA products": (152.0, 30.8e9),
    "USTA attention": (139.0, 20.2e9),
    "embedding": (168.0, 22.8e9),
    "USTA pointwise": (2.0, 3.1e9),
    "CSTA": (1.84, 3.0e9),
    "optimiser": (0.43, 3.7e9),
}


def facts(frames: int = 1) -> dict[str, Any]:
    rows = [
        {"part": part, "seconds": 0.1, "flops": x, "bytes": 1.0, "flops_per_second": y}
        for part, (x, y) in CLOSE.items()
    ]
    cells = [{"batch": 1, "frames": 2 * count, "peer": "eager"} for count in range(1, frames + 1)]
    call = {"peer": "eager", "what": "training step", "seconds": 1.0, "frames": 6, "batch": 1, "parts": rows}
    return {
        "model": "hsta_base",
        "dtype": "float32",
        "machine": {"name": "CPU"},
        "ceilings": {"products": {"float32": 39e9, "bfloat16": 126e9}, "memory": 8.7e9},
        "parts": [call],
        "cells": cells,
    }


def test_no_words_of_the_roofline_cover_each_other() -> None:
    figure = plots.roofline_figure(facts())
    figure.draw_without_rendering()
    [axes] = figure.axes
    boxes = {words.get_text(): words.get_window_extent() for words in axes.texts}
    assert boxes.keys() >= {*CLOSE, "memory: 8.7 GB/s", "matrix product, float32: 39 GFLOP/s"}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)
    for part, (x, y) in CLOSE.items():
        for name, box in boxes.items():
            assert not box.contains(*axes.transData.transform((x, y))), (name, "on the mark of", part)


def test_one_shape_has_no_figure_of_scaling() -> None:
    assert not plots.has_scaling(facts())
    assert plots.has_scaling(facts(frames=2))
