"""Which spotted interval of a recording is which annotated one's true positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np


def match_intervals(
    truth: Sequence[tuple[int, int]], spotted: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The true positives of one recording: places in `truth` and in `spotted`, the most similar pair first.

    The intervals are (onset, offset), inclusive. See `spotting.score_spotting` for the pairing.
    """
    pairs = _similar_pairs(truth, spotted)
    total = _most_pairs(pairs)
    taken: list[tuple[int, int]] = []
    while pairs:
        (true, found), *rest = pairs
        left = [pair for pair in rest if pair[0] != true and pair[1] != found]
        # Pairs without a rival need no search.
        if len(left) == len(rest) or len(taken) + 1 + _most_pairs(left) == total:
            taken.append((true, found))
            rest = left
        pairs = rest
    return taken


def _similar_pairs(
    truth: Sequence[tuple[int, int]], spotted: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The places of all pairs whose intersection is at least half of their union, in order of preference."""
    onsets, offsets = np.array(spotted, np.int64).reshape(-1, 2).T
    ranked = []
    for place, (onset, offset) in enumerate(truth):
        shared = np.minimum(offsets, offset) - np.maximum(onsets, onset) + 1
        lengths = (offset - onset + 1) + (offsets - onsets + 1)
        # shared / (lengths - shared) >= 1/2, in integers.
        for other in np.flatnonzero((shared > 0) & (3 * shared >= lengths)).tolist():
            similar = Fraction(int(shared[other]), int(lengths[other] - shared[other]))
            ranked.append((-similar, (onset, offset, place), (*spotted[other], other)))
    return [(true[2], found[2]) for _, true, found in sorted(ranked)]


def _most_pairs(pairs: Sequence[tuple[int, int]]) -> int:
    """The size of the largest set of pairs without a common end (Kuhn's algorithm)."""
    options: dict[int, list[int]] = {}
    for true, found in pairs:
        options.setdefault(true, []).append(found)
    owner: dict[int, int] = {}
    return sum(_find_partner(true, options, owner) for true in options)


def _find_partner(start: int, options: Mapping[int, Sequence[int]], owner: dict[int, int]) -> bool:
    """Give `start` a partner, moving others to other partners where that is needed; whether it has one."""
    came_from: dict[int, int] = {}  # partner -> who asked for it
    asking = [start]
    for true in asking:
        for found in options[true]:
            if found in came_from:
                continue
            came_from[found] = true
            if found in owner:
                asking.append(owner[found])
                continue
            while True:  # a free one: all on the way here move on by one
                true = came_from[found]
                before = next((other for other, who in owner.items() if who == true), None)
                owner[found] = true
                if before is None:
                    return True
                del owner[before]
                found = before
    return False
