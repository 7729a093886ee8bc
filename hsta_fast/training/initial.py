"""What the models of a run start from: random weights, or files of pretrained ones."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..model import HSTA, HSTAConfig
from ..pretrained import OF_THE_SOURCE, OURS, InitReport, PretrainedStart, in_words, notes_of
from .config import TrainConfig
from .run_checks import read_config
from .seen import Seen, notes_on_people

PRETRAINED_FRAMES = "pretrained_frames"  # a note of a pretrained model, see `frames_note`
_NOT_FROZEN = ("head", "last norm")


class InitialWeights:
    """The first weights of a run's models, and what they decide of the architecture.

    Attributes:
        record: what config.json says of the files (`PretrainedStart.record`); None: the weights are random.
        report: what became of every key; None where the weights are random, or the run continues.

    Args:
        cfg: the run.
        run: the folder of the run that is continued, or scored again. What its config.json says holds, and
            the files are read only if a training begins.

    Raises:
        ValueError: a file that is no start of this model; or the run was started with other files.
    """

    def __init__(self, cfg: TrainConfig, run: Path | None = None) -> None:
        self._cfg = cfg
        self._start: PretrainedStart | None = None
        self._fields: dict[str, Any] = {}
        self.record: dict[str, Any] | None = None
        self.report: InitReport | None = None
        given = [name for name in ("init", "init_special") if getattr(cfg, name) is not None]
        before = read_config(run) if run is not None and (run / "config.json").exists() else {}
        if record := before.get("pretrained"):
            for name in ("init", "init_special"):
                if (name in record) != (name in given):
                    was, got = record[name]["file"] if name in record else "no file", getattr(cfg, name)
                    raise ValueError(f"{_flag(name)} expected {was}, as at the start of {run}, got {got}")
            self.record = record
            self._fields = {name: tuple(before["architecture"][name]) for name in OF_THE_SOURCE}
        elif given:
            self._start = PretrainedStart(cfg.init, cfg.init_special, cfg.init_layers)
            config = self._start.adapt(cfg.architecture(2))
            self._fields = {name: getattr(config, name) for name in OF_THE_SOURCE}
            self.report = self._start.prepare(config)[1]
            self.record = self._start.record(config, self.report)

    def architecture(self, num_classes: int) -> HSTAConfig:
        """The model's configuration for `num_classes` classes."""
        return replace(self._cfg.architecture(num_classes), **self._fields)

    def load_into(self, model: HSTA) -> None:
        """Give a new model its first weights; it keeps its random ones where there is no file.

        Raises:
            ValueError: a file is not there, or not the one that the run was started with.
        """
        if self.record is None:
            return
        if self._start is None:
            start = PretrainedStart(self._cfg.init, self._cfg.init_special, self._cfg.init_layers)
            for name, file in start.files.items():
                if file.sha256 != (before := self.record[name]["sha256"]):
                    raise ValueError(
                        f"{_flag(name)} expected the file that the run was started with, SHA-256 {before}, "
                        f"for the folds that have not begun, got {file.path}, SHA-256 {file.sha256}"
                    )
            self._start = start
        self._start.load_into(model)

    def lines(self) -> list[str]:
        """The files and what was taken of them, in words."""
        if self.record is None:
            return []
        random = [part for part in self.record["left"] if not part.startswith(_NOT_FROZEN)]
        layers = self._cfg.freeze
        frozen = f"--freeze {layers} keeps random weights too, as no file has them: {', '.join(random)}"
        return [*in_words(self.record), *([frozen] if layers and random else [])]

    def notes(self, trained: Iterable[str]) -> dict[str, str]:
        """Those of a model of the run that was trained on the subjects `trained`, "dataset/subject"."""
        starts = {self._record[name]["file"]: seen for name, seen in self._seen().items()}
        return notes_on_people(starts, trained) | ({} if self.record is None else notes_of(self.record))

    def leaks(self, tested: Collection[str]) -> list[str]:
        """Why the run's scores are leaky, one sentence for each file that has seen labels of `tested`."""
        found = {name: seen.leak(tested) for name, seen in self._seen().items()}
        return [f"{_flag(name)} {self._record[name]['file']}: {leak}" for name, leak in found.items() if leak]

    def remarks(self, tested: Collection[str], *, named: bool = True) -> list[str]:
        """What a reader of the scores must know, one sentence for each file.

        tested: the subjects of the test folds, "dataset/subject".
        named: with the names of some who are tested and were seen.
        """
        found, seen = [], self._seen()
        for name in self._files():
            file = self._record[name]
            text = f"The models start from pretrained weights, {file['file']} ({file['source']})"
            if name in seen:
                text += f", {seen[name].remark(tested, named=named)}{self._other_frames(file['notes'])}"
            said = [file["notes"][name] for name in ("leaky", "caveats") if name in file["notes"]]
            found.append(f"{text}. Its notes: {' '.join(said)}" if said else f"{text}.")
        return found

    def _other_frames(self, notes: Mapping[str, str]) -> str:
        """Says that a model with these notes was pretrained on other frames than the run's; or nothing."""
        own = frames_note(self._cfg.image_size, self._cfg.num_frames)
        theirs = notes.get(PRETRAINED_FRAMES, own)
        return "" if theirs == own else f"; it was pretrained on frames {theirs}, here they are {own}"

    @property
    def _record(self) -> dict[str, Any]:
        return self.record or {}

    def _files(self) -> list[str]:
        return [name for name in ("init", "init_special") if name in self._record]

    def _seen(self) -> dict[str, Seen]:
        """Whom the files of ours have seen, by "init" and "init_special"."""
        files = {name: self._record[name] for name in self._files()}
        return {name: Seen.of(file["notes"]) for name, file in files.items() if file["source"] == OURS}


def frames_note(image_size: int, num_frames: int) -> str:
    """The size of frames in pixels and their number, in words."""
    return f"of {image_size} x {image_size} pixels, {num_frames} a clip"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
