"""The models that predict a video: those of a run's finished folds, or one file or folder of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_model
from ..data.sampling import Sampling
from ..hub import from_pretrained
from ..inputs import ModelInputs
from ..model import HSTA
from ..training.run_checks import is_run, read_run_config
from ..training.run_models import finished_models
from .calibration import Calibration, calibrate

KEPT_BYTES = 2**30  # models that take more are read again for each group of clips
_NOT_INPUTS = ("versions",)  # fields of ModelInputs in which the models of a run may differ
_SHOWN_NOTES = ("leaky", "caveats")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Models with the same inputs and classes, whose probabilities are averaged.

    Attributes:
        name: of the run, the file or the folder.
        readers: what loads each model, by the name of its fold.
        size: bytes of all their parameters together.
        inputs: what they were trained on.
        caveats: what their files say to readers of their scores.
        calibration: fitted on the run's held-out predictions; None for a model by itself.
    """

    name: str
    readers: Mapping[str, Callable[[], HSTA]]
    size: int
    inputs: ModelInputs
    caveats: tuple[str, ...]
    calibration: Calibration | None
    _kept: dict[str, HSTA] = field(default_factory=dict, repr=False)

    def models(self) -> Iterator[tuple[str, HSTA]]:
        """Each model with its name; together they stay in memory if that is at most `KEPT_BYTES`."""
        for name, read in self.readers.items():
            model = self._kept.get(name) or read()
            if self.size <= KEPT_BYTES:
                self._kept[name] = model
            yield name, model

    @property
    def sampling(self) -> Sampling:
        """How the frames of a clip are selected."""
        inputs = self.inputs
        return Sampling(
            num_frames=inputs.num_frames,
            video=inputs.sampling,  # type: ignore[arg-type]
            offset_cap=inputs.offset_cap,
            special=inputs.special,  # type: ignore[arg-type]
            flow=inputs.flow,  # type: ignore[arg-type]
            onset_only=inputs.onset_only,
        )


@torch.inference_mode()
def logits_of(ensemble: Ensemble, video: Tensor, special: Tensor, device: torch.device) -> np.ndarray:
    """The logits of each model, float64 (models, B, classes); the models compute in float32.

    Args:
        ensemble: the models.
        video: uint8 (B, 3, T, H, W).
        special: (B, 3, 2, H, W), uint8, or float32 with optical flow.
        device: where the models run.
    """
    inputs = {"video": video.to(device), "special": special.to(device)}
    found = []
    for _, model in ensemble.models():
        chosen = {name: inputs[name] for name in model.config.branches}
        found.append(model.to(device)(**chosen).double().cpu().numpy())
    return np.stack(found)


def load_ensemble(
    source: Path | str | HSTA, *, fold: str | None = None, sure_accuracy: float = 0.9
) -> Ensemble:
    """The models of a run, or one model.

    Args:
        source: the folder of a run (the models of its finished folds), a model's file, a folder of
            `save_pretrained`, or a model in memory, which is used in eval mode.
        fold: of a run, the name of the fold whose model alone is used.
        sure_accuracy: see `calibrate`.

    Raises:
        ValueError: it is none of these, has no finished fold of this name, does not say what it was trained
            on, or the models of the run differ in it; one line.
    """
    if isinstance(source, HSTA):
        return _of_one("model", source.eval())
    path = Path(source)
    if not path.is_dir() or not is_run(path):
        if fold is not None:
            raise ValueError(f"--fold expected the folder of a run, got {path}")
        return _of_one(path.name, _single(path))
    models = finished_models(path)
    if fold is not None and fold not in models:
        raise ValueError(f"--fold expected a finished fold of {path}: {', '.join(models)}, got {fold}")
    chosen = models if fold is None else {fold: models[fold]}
    described, caveats, size = dict[str, ModelInputs](), dict[str, None](), 0
    for name, file in chosen.items():
        model = load_model(file)
        described[name] = _inputs_of(model, file)
        caveats |= dict.fromkeys(_caveats(model))
        size += _bytes(model)
    inputs = _the_same(path, described)
    caveats |= dict.fromkeys(str(text) for text in read_run_config(path).get("leaky", ()))
    return Ensemble(
        name=path.resolve().name,
        readers={name: (lambda file=file: load_model(file)) for name, file in chosen.items()},  # type: ignore[misc]
        size=size,
        inputs=inputs,
        caveats=tuple(caveats),
        calibration=calibrate(path / "predictions.csv", inputs.classes, sure_accuracy),
    )


def _single(path: Path) -> HSTA:
    """The model of a file, or of a folder of `save_pretrained`."""
    if path.is_file():
        return load_model(path)
    if not path.is_dir():
        raise ValueError(f"model expected a run, a model's file or its folder, got {path}: no such file")
    try:
        of_hub = {"architecture", "inputs"} <= json.loads((path / "config.json").read_text("utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        of_hub = False
    if not of_hub:
        read_run_config(path)  # says what is wrong with it as a run
        raise ValueError(f"model expected a run, a model's file or its folder, got {path}")
    return from_pretrained(path)


def _of_one(name: str, model: HSTA) -> Ensemble:
    return Ensemble(
        name=name,
        readers={name: lambda: model},
        size=0,
        inputs=_inputs_of(model, name),
        caveats=tuple(_caveats(model)),
        calibration=None,
    )


def _inputs_of(model: HSTA, name: Path | str) -> ModelInputs:
    if model.inputs is None:
        raise ValueError(
            f"model expected to say what it was trained on, {name} does not: save it with save_model(..., "
            "inputs=ModelInputs(...))"
        )
    if model.inputs.task != "emotion":
        raise ValueError(
            f"model expected one of emotions, got one of action units, {name}: predict reads classes as "
            "alternatives, of which a clip has one"
        )
    return model.inputs


def _caveats(model: HSTA) -> list[str]:
    return [model.notes[name] for name in _SHOWN_NOTES if name in model.notes]


def _bytes(model: HSTA) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _the_same(run: Path, described: Mapping[str, ModelInputs]) -> ModelInputs:
    """The inputs of all models of a run; ValueError naming the field in which two differ."""
    (first, inputs), *others = described.items()
    for name, other in others:
        for of in fields(inputs):
            before, now = getattr(inputs, of.name), getattr(other, of.name)
            if of.name not in _NOT_INPUTS and before != now:
                what = f"{of.name} is {before!r} for fold {first} and {now!r} for fold {name}"
                raise ValueError(
                    f"{run} expected models with the same inputs, got others: {what}; use --fold"
                )
    return inputs
