"""What is read of a recording for several clips at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import hsta_fast
from hsta_fast.data.frames.apex import apex_picture, apex_position
from hsta_fast.data.sampling import Sampling
from hsta_fast.faces import magnify
from hsta_fast.predicting.clip_inputs import Clip, Recipe, with_apexes
from tests.spotting.recordings import MemoryStream, bump, film


def test_apexes_of_all_clips_are_found_in_one_pass() -> None:
    """Each as it is found alone; overlapping clips, and in any order."""
    times = np.arange(90) / 100
    stream = film(times, mouth=1.9 * (bump(times, 0.1, 0.2, 0.3) + bump(times, 0.6, 0.7, 0.8)))
    passes: list[int] = []

    class Counted(MemoryStream):
        def chosen(self, numbers: Any, convert: Any = None) -> Any:
            passes.append(len(set(numbers)))
            return super().chosen(numbers, convert)

    counted = Counted(stream.frames, stream.times)
    inputs = hsta_fast.ModelInputs(
        classes=("a", "b"), image_size=32, num_frames=4, apex="motion-all", magnify=2.0
    )
    recipe = Recipe(inputs=inputs, sampling=Sampling(num_frames=4))
    clips = [Clip(55, 85, 60, 2.0), Clip(5, 35), Clip(20, 62), Clip(5, 7)]
    found = with_apexes(counted, clips, recipe)
    assert passes == [len({*range(5, 63), *range(55, 86)})]
    for clip, one in zip(clips, found, strict=True):
        pictures = [apex_picture(picture) for _, picture in stream.chosen(range(clip.onset, clip.offset + 1))]
        shown = [magnify(now, pictures[0], 2.0) for now in pictures]
        assert one == replace(clip, apex=clip.onset + apex_position(shown))
    passes.clear()
    known = replace(recipe, inputs=replace(inputs, apex="motion"))
    assert with_apexes(counted, clips[:1], known) == clips[:1] and passes == []
