"""The settings of rendered data, and the file in which a rendered folder says them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .faults import chosen_faults
from .layouts import LAYOUTS

NOTE = "Rendered faces, no recordings: nothing measured on them says anything about people."
RENDERER = 1  # increased whenever the same settings give other frames
SETTINGS_FILE = "synthetic.json"
LONG_SCENE = "640x480"

_ONLY_CLIPS = ("layout", "clips_per_subject", "size", "quality", "faults")
_ONLY_LONG = ("minutes", "fps", "expressions", "recordings")


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """What to render. The number of processes does not change the bytes of a subject with a given seed."""

    out: Path
    """Folder to write; new, empty, or holding the same dataset."""
    layout: Literal[
        "casme2", "samm", "smic", "casme3", "mmew", "dfme", "casme", "4dme", "casme_squared", "samm_long"
    ] = "casme3"
    """Whose names, columns and words: CASME II (raw), SAMM, SMIC-HS (long recordings), CAS(ME)3 part A, MMEW,
    DFME, CASME, 4DME (grey), CAS(ME)^2 or SAMM Long Videos."""
    subjects: int | None = None
    """Number of faces; by default 40, with --long 2."""
    clips_per_subject: int = 24
    """Clips of each subject, the emotions as balanced as possible."""
    size: int = 112
    """Height and width of a frame in pixels."""
    scene: str = ""
    """Width x height of a larger frame, such as 640x480, somewhere in which the face lies; by default the
    face fills the frame (with --long: 640x480)."""
    strength: tuple[float, float] = (1.2, 1.5)
    """Lowest and highest peak displacement of a clip, in pixels at 112 x 112 (other sizes in proportion)."""
    drift: float = 1.0
    """Factor on the small movement of the head."""
    emotions: tuple[str, ...] = ("happy", "surprise", "disgust")
    """Emotion words, out of others, disgust, surprise, fear, anger, sad, happy."""
    long: bool = False
    """Render videos of minutes, with blinks, talking and head turns, of other people than without it."""
    minutes: float = 1.0
    """With --long: minutes of each recording."""
    fps: float = 200.0
    """With --long: frames a second."""
    expressions: float = 6.0
    """With --long: micro-expressions a minute; 0 = blinks, talking and head turns alone."""
    recordings: int = 1
    """With --long: recordings of each subject."""
    seed: int = 0
    """Seed of all randomness."""
    quality: int = 95
    """JPEG quality; DFME's frames are PNG."""
    faults: tuple[str, ...] = ()
    """Faults to put into one clip each: names from docs/data.md, or all for those the layout can have."""
    processes: int = 0
    """Processes that render in parallel; 1 = only this one, 0 = one for each processor core."""

    @property
    def faces(self) -> int:
        """The number of subjects."""
        if self.subjects is None:
            return 2 if self.long else 40
        return self.subjects

    @property
    def scene_size(self) -> tuple[int, int] | None:
        """Width and height of the scene; None where the face fills the frame, or the text is no size."""
        match = re.fullmatch("([0-9]{1,4})x([0-9]{1,4})", self.scene or LONG_SCENE * self.long)
        return (int(match[1]), int(match[2])) if match else None

    def check(self) -> None:
        """Raise ValueError, naming the flag, for the first setting that is out of range."""
        low, high = self.strength
        words = LAYOUTS[self.layout].words
        unknown = [word for word in self.emotions if word not in words]
        different = len(set(self.emotions)) == len(self.emotions)
        per_subject, least = self.clips_per_subject, 1 if self.long else 2
        width, height = self.scene_size or (0, 0)
        fits = 256 <= height <= width <= 4096 and width % 2 == height % 2 == 0
        checks = (
            *self._not_both(),
            (self.faces >= least, f"--subjects expected at least {least}, got {self.faces}"),
            (per_subject >= 1, f"--clips-per-subject expected at least 1, got {per_subject}"),
            (32 <= self.size <= 1024, f"--size expected 32..1024 pixels, got {self.size}"),
            (
                fits or not self.scene,
                "--scene expected width x height such as 640x480: even numbers of 256..4096 pixels, not "
                f"higher than wide, got {self.scene!r}",
            ),
            # Beyond 4 pixels the field would fold the face over itself.
            (0 < low <= high <= 4, f"--strength expected 0 < low <= high <= 4 pixels, got ({low}, {high})"),
            (0 <= self.drift <= 10, f"--drift expected 0..10, got {self.drift}"),
            (
                not unknown,
                f"--emotions of {self.layout} expected words out of {', '.join(words)}, "
                f"got {', '.join(unknown)}",
            ),
            (len(self.emotions) >= 2, f"--emotions expected at least 2 words, got {len(self.emotions)}"),
            (different, f"--emotions expected different words, got {self.emotions}"),
            (0.05 <= self.minutes <= 60, f"--minutes expected 0.05..60, got {self.minutes}"),
            (25 <= self.fps <= 1000, f"--fps expected 25..1000 frames a second, got {self.fps}"),
            # Each lasts up to a third of a second, and is a second or more from the next.
            (0 <= self.expressions <= 30, f"--expressions expected 0..30 a minute, got {self.expressions}"),
            (1 <= self.recordings <= 26, f"--recordings expected 1..26, got {self.recordings}"),
            (self.seed >= 0, f"--seed expected 0 or more, got {self.seed}"),
            (1 <= self.quality <= 100, f"--quality expected 1..100, got {self.quality}"),
            (self.processes >= 0, f"--processes expected 0 or more, got {self.processes}"),
        )
        for valid, message in checks:
            if not valid:
                raise ValueError(message)
        clips, faults = self.faces * per_subject, chosen_faults(self.layout, self.faults)
        if len(faults) >= clips:
            raise ValueError(f"--faults expected fewer than the {clips} clips, got {len(faults)}")

    def _not_both(self) -> list[tuple[bool, str]]:
        """Checks that no setting is given which means nothing with, or without, --long."""
        defaults = {field.name: field.default for field in fields(self)}
        names, what = (_ONLY_CLIPS, "no --long") if self.long else (_ONLY_LONG, "--long")
        pairs = [(name, what) for name in names]
        if self.scene and not self.long:
            pairs.append(("size", "no --scene"))
        return [
            (
                getattr(self, name) == defaults[name],
                f"--{name.replace('_', '-')} expected {beside} beside it, got {getattr(self, name)}",
            )
            for name, beside in pairs
        ]

    def as_text(self) -> str:
        """What `SETTINGS_FILE` holds: all settings that change a byte."""
        chosen: dict[str, Any] = {**asdict(self), "subjects": self.faces}
        unused = ("out", "processes", *(_ONLY_CLIPS if self.long else (*_ONLY_LONG, "long")))
        for name in unused:
            del chosen[name]
        # Left out at their defaults, so that datasets rendered before these settings existed still match.
        for name, default in (("layout", "casme3"), ("faults", ()), ("scene", ""), ("drift", 1.0)):
            if chosen.get(name) == default:
                del chosen[name]
        return json.dumps({"note": NOTE, "renderer": RENDERER, **chosen}, indent=2) + "\n"


def is_finished(cfg: SynthConfig, last: str) -> bool:
    """Whether the folder `cfg.out` has this dataset, with its file `last`; ValueError for anything else."""
    if not cfg.out.exists():
        return False
    if not cfg.out.is_dir():
        raise ValueError(f"{cfg.out}: expected a folder to render into, got a file")
    if not any(cfg.out.iterdir()):
        return False
    said = cfg.out / SETTINGS_FILE
    if not said.is_file():
        raise ValueError(
            f"{cfg.out}: expected a new or empty folder to render into, got one with other files in it"
        )
    if said.read_text(encoding="utf-8") != cfg.as_text():
        raise ValueError(
            f"{cfg.out}: has a dataset rendered with other settings (see {said}); choose another folder"
        )
    return (cfg.out / last).is_file()
