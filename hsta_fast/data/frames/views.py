"""How each clip's pictures are shown, if they are not shown whole: see `hsta_fast.faces`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...clips import KEY, identity
from ...faces import FIRST, PLAIN, Alignment, ClipView, Face, FaceCrop, PictureRecipe, align_faces, find_faces
from ...faces.align import OUTSIDE
from ...faces.stabilise import SIDE, stabilise_fingerprint
from ..clips import LEFT_OUT, ClipTable, FaultLog, fault_of
from ..remarks import border_remarks
from .cache import Cache, CachedArrays, Made, load_arrays
from .chunks import ArraySpec, digest
from .decode import by_file, content_keys, read_files


@dataclass(frozen=True, eq=False)
class Views:
    """How the clips of a table are shown; each dictionary has the name of a clip (`identity`) as its key.

    Attributes:
        recipe: what is done to all of them.
        of: the view of each clip.
        keys: everything that tells its pictures from those of another clip that shows the same frames.
    """

    recipe: PictureRecipe = PLAIN
    of: Mapping[str, ClipView] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that a view's pictures depend on besides `keys` and the frame; not the enlarging.

        Raise "cut out" whenever a change of the code changes the bytes.
        """
        if not self.keys:
            return {}
        return {"cut out": 1} | ({"stabilise": stabilise_fingerprint()} if self.recipe.stabilise else {})


WHOLE = Views()


def clip_views(
    table: ClipTable,
    recipe: PictureRecipe,
    *,
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, Views]:
    """The views of the clips, found once if cached, and the table without the clips that have none.

    A clip without a face in its first frames, or whose first frames cannot be read, is listed in the faults.

    Raises:
        ValueError: no clip is left; or, if `strict`, a clip would be left out.
        ImportError: see `find_faces`.
    """
    if recipe.is_plain:
        return table, WHOLE
    clips = table.clips
    firsts = [tuple(frames[:FIRST]) for frames in clips["frames"]]
    paths = list(dict.fromkeys(path for first in firsts for path in first))
    contents = content_keys(table.root, paths, progress=progress)
    log, kept = FaultLog(strict=strict), np.ones(len(clips), dtype=bool)

    def leave_out(errors: Mapping[int, str]) -> None:
        for row, what in errors.items():
            if kept[row]:
                log.add(fault_of(clips.iloc[row].to_dict(), what, LEFT_OUT))
                kept[row] = False

    names = [identity(*(clip[key] for key in KEY)) for clip in clips.to_dict("records")]
    alignments: list[Alignment | None] = [None] * len(clips)
    remarks: list[str] = []
    if recipe.crop is not None:
        found = _load_alignments(table.root, firsts, contents, recipe.crop, cache, progress)
        leave_out(found.errors)
        alignments = [_unpacked(found[row]) if kept[row] else None for row in range(len(clips))]
        outside = {names[row]: float(found[row][-1]) for row in np.flatnonzero(kept).tolist()}
        remarks = border_remarks(outside.items(), OUTSIDE)
    references: dict[int, np.ndarray] = {}
    if recipe.stabilise:
        rows = np.flatnonzero(kept).tolist()
        onsets = [(firsts[row][0], alignments[row]) for row in rows]
        arrays = _load_references(table.root, onsets, contents, cache, progress)
        leave_out({rows[number]: what for number, what in arrays.errors.items()})
        references = {row: arrays[number] for number, row in enumerate(rows) if kept[row]}
    if not kept.any():
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        raise ValueError(f"{table.root}: expected a clip with a face, got none of {len(clips)}{first}")
    of, keys = {}, {}
    for row in np.flatnonzero(kept).tolist():
        alignment = alignments[row]
        of[names[row]] = ClipView(alignment, references.get(row))
        parts = [alignment.fingerprint] if alignment is not None else ["whole"]
        if recipe.stabilise or recipe.magnify:
            parts.append(f"from {contents[firsts[row][0]]}")
        keys[names[row]] = " ".join(parts)
    left = replace(
        table,
        clips=clips[kept].reset_index(drop=True),
        faults=(*table.faults, *log.faults),
        remarks=(*table.remarks, *remarks),
    )
    return left, Views(recipe, of, keys)


def _load_alignments(
    root: Path,
    firsts: Sequence[Sequence[str]],
    contents: Mapping[str, str | ValueError],
    crop: FaceCrop,
    cache: Cache | None,
    progress: bool,
) -> CachedArrays:
    """Of each clip its alignment, the box and score of its face, and how much lies outside: float64 (12,)."""

    def make(numbers: list[int]) -> list[Made]:
        wanted = [path for number in numbers for path in firsts[number]]
        seen = iter(read_files(root, wanted, [partial(_faces_and_size, crop)] * len(wanted), contents))
        made: list[Made] = []
        for number in numbers:
            found = [next(seen) for _ in firsts[number]]
            try:
                made.append(_packed(firsts[number], found, crop))
            except ValueError as error:
                made.append(error)
        return made

    keys = [digest("\n".join(str(contents[path]) for path in first).encode()) for first in firsts]
    fingerprint = {**crop.fingerprint(), "opencv": cv2.__version__}
    spec = ArraySpec(name="alignments", fingerprint=fingerprint, shape=(12,), dtype="float64")
    groups = by_file([first[0] for first in firsts])
    return load_arrays(spec, keys, make, groups=groups, cache=cache, progress=progress)


def _faces_and_size(crop: FaceCrop, image: np.ndarray) -> tuple[list[Face], tuple[int, int]]:
    return find_faces(image, crop.detector), (image.shape[1], image.shape[0])


def _packed(
    paths: Sequence[str],
    found: Sequence[tuple[list[Face], tuple[int, int]] | ValueError],
    crop: FaceCrop,
) -> np.ndarray:
    good = []
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, ValueError):
            raise ValueError(f"{path}: {one}")
        good.append(one)
    made = align_faces([faces for faces, _ in good], crop)
    assert made.box is not None
    box = made.box
    face = (box.x, box.y, box.width, box.height, box.score)
    return np.array([*made.corner, *made.right, *made.down, *face, made.outside(*good[0][1])])


def _unpacked(row: np.ndarray) -> Alignment:
    numbers = [float(value) for value in row]
    x, y, width, height, score = numbers[6:11]
    corner, right, down = ((numbers[i], numbers[i + 1]) for i in (0, 2, 4))
    return Alignment(corner, right, down, Face(x, y, width, height, score))


def _load_references(
    root: Path,
    onsets: Sequence[tuple[str, Alignment | None]],
    contents: Mapping[str, str | ValueError],
    cache: Cache | None,
    progress: bool,
) -> CachedArrays:
    """Of each clip the picture to which its head is held: `onset_reference`, uint8 (SIDE, SIDE)."""
    paths = [path for path, _ in onsets]

    def make(numbers: list[int]) -> list[Made]:
        converts = [partial(_reference, onsets[number][1]) for number in numbers]
        made = read_files(root, [paths[number] for number in numbers], converts, contents)
        return [
            ValueError(f"{paths[number]}: {one}") if isinstance(one, ValueError) else one
            for number, one in zip(numbers, made, strict=True)
        ]

    keys = [
        f"{contents[path]} {'whole' if alignment is None else alignment.fingerprint}"
        for path, alignment in onsets
    ]
    fingerprint = {**stabilise_fingerprint(), "opencv": cv2.__version__}
    spec = ArraySpec(name="references", fingerprint=fingerprint, shape=(SIDE, SIDE), dtype="uint8")
    return load_arrays(spec, keys, make, groups=by_file(paths), cache=cache, progress=progress)


def _reference(alignment: Alignment | None, onset: np.ndarray) -> np.ndarray:
    view = ClipView.of(onset, alignment, stabilise=True)
    assert view.reference is not None
    return view.reference
