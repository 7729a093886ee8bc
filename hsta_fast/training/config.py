"""The training configuration and the two recipes: the paper's and the published code's."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..data import LABEL_SETS, READERS, Apex, Balance, DatasetName, FlowMethod, SpecialFrame
from ..model import BRANCHES, Head, HSTAConfig, model_config

Protocol = Literal["loso", "kfold", "composite", "cross-dataset", "published-folds"]
Select = Literal["last", "inner", "best-test-epoch"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. The defaults are the paper's recipe; see `recipe_config` for the published code's."""

    data: Path
    """Folder of a data set: CASME II, SAMM, SMIC-HS or CAS(ME)3 as it comes, or a table of your own clips."""
    more_data: tuple[Path, ...] = ()
    """Folders of further data sets, read with it as one."""
    dataset: DatasetName = "auto"
    """Which data set `data` holds, where its files do not tell."""
    annotation: Path | None = None
    """Annotation file, csv or xlsx, where the folder holds several."""
    labels: str = "emotion7"
    """Label set: emotion7; emotion3 (negative, positive, surprise); objective7 (classes I to VII); megc2019
    (the composite of CASME II, SAMM and SMIC-HS); or a mapping file (.json or .csv)."""
    strict: bool = False
    """Stop at the first fault of the data set instead of listing it."""
    cache: str = "auto"
    """Folder in which decoded frames are kept; auto is .cache in --runs, none keeps them in memory."""
    cache_gb: float = 50.0
    """Largest size of the cache in gigabytes; what was not used for longest goes first."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = "hsta"
    """Name of the run: its folder in `runs`."""
    resume: bool = False
    """Continue the run of this name where it stopped."""
    save_every: int = 5
    """Epochs between checkpoints."""

    model: str = "hsta_base"
    """hsta_tiny, hsta_small or hsta_base."""
    num_layers: int | None = None
    """K, HSTA layers (the model's own by default)."""
    n_special: int | None = None
    """USTA layers of the special branch in each HSTA layer."""
    n_video: int | None = None
    """USTA layers of the video branch in each HSTA layer."""
    csta: bool = True
    """Crossmodal attention at the end of each HSTA layer."""
    branches: tuple[Literal["special", "video"], ...] = ("special", "video")
    """Both modalities, or one."""
    head: Head = "cls"
    """What is classified: the CLS of each branch, also its last token, or the mean over its tokens."""

    image_size: int = 224
    """Side of the square frames in pixels."""
    num_frames: int = 6
    """T, video frames."""
    sampling: Literal["uniform", "random"] = "uniform"
    """Video frames: evenly from onset to offset, or random and sorted."""
    offset_cap: int | None = None
    """Frames after the onset beyond which none is taken."""
    special: tuple[SpecialFrame, SpecialFrame] = ("onset", "apex")
    """The two special frames."""
    flow: FlowMethod | None = None
    """Optical flow, onset to apex and apex to offset, in the place of the two special frames."""
    apex: Apex = "annotated"
    """Where the annotation has no apex: the middle frame (annotated) or by motion; motion-all: everywhere."""
    flip: bool = False
    """Augmentation: mirror left and right, half of the time."""
    crop: int = 0
    """Augmentation: shift by up to so many pixels."""

    protocol: Protocol = "loso"
    """loso: leave one subject out; kfold: k folds of whole subjects; composite: loso over several data sets
    pooled; cross-dataset: --train-on some, --test-on others; published-folds: folds by clip, subjects shared,
    for comparison only: stamps every output leaky."""
    folds: int = 5
    """k of kfold and published-folds."""
    fold_files: Path | None = None
    """published-folds: a csv or a folder of lists to read them from (docs/evaluation.md)."""
    datasets: tuple[str, ...] = ()
    """Only the clips of these data sets; all by default."""
    train_on: tuple[str, ...] = ()
    """cross-dataset: names of the data sets to train on."""
    test_on: tuple[str, ...] = ()
    """cross-dataset: names of the data sets to test on."""
    macro: bool = False
    """Macro-expressions as extra training data, never of a fold's test subjects."""
    select: Select = "last"
    """The epoch that is tested: the last; inner: the best on inner folds of the training subjects;
    best-test-epoch: the best on the test clips, for comparison only: stamps every output leaky."""
    inner_folds: int = 3
    """k of the inner folds, by subject."""
    seeds: int = 1
    """Whole runs with the seeds --seed, --seed + 1, ...; their mean and standard deviation are shown."""
    only: tuple[str, ...] = ()
    """Names of the folds to train; all by default."""
    shuffle_labels: bool = False
    """Control: labels are shuffled among all clips, so a score above chance means a fault in the pipeline."""
    onset_only: bool = False
    """Control: every frame is the onset frame, which shows no movement."""

    epochs: int = 150
    batch_size: int = 32
    lr: float = 5e-5
    """Peak learning rate (AdamW)."""
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    """Learning rate at the first step."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    decay_all: bool = True
    """Weight decay on biases, norms and CLS too."""
    layer_decay: float = 1.0
    """Factor of the learning rate for each HSTA layer further from the head."""
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    dropout: float = 0.0
    drop_path: float = 0.0
    loss: Literal["ce", "mse"] = "ce"
    """Cross entropy, or the paper's squared error of the raw outputs against the one-hot label."""
    label_smoothing: float = 0.0
    class_weights: bool = False
    """Weight the loss by 1 / clips of the class."""
    balance: Balance = "even"
    """even: classes shown equally often; matched: even, with each subject's classes side by side in a batch;
    weighted: drawn with replacement by 1 / frequency; none: as they come."""

    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "auto"
    """Of the matrix products (autocast); parameters stay float32. float16 trains with a loss scale."""

    def check(self) -> None:
        """Raise ValueError, naming the flag, for a setting that does not fit."""

        def want(condition: bool, name: str, wanted: str) -> None:
            if not condition:
                raise ValueError(f"--{name.replace('_', '-')} wants {wanted}, got {getattr(self, name)!r}")

        for name in ("epochs", "batch_size", "save_every", "image_size", "num_frames", "seeds"):
            want(getattr(self, name) >= 1, name, "a whole number >= 1")
        for name in ("warmup_epochs", "crop", "seed", "weight_decay", "warmup_lr", "min_lr"):
            want(getattr(self, name) >= 0, name, "a number >= 0")
        want(0 < self.cache_gb < math.inf, "cache_gb", "a finite number > 0")
        want(bool(self.cache), "cache", "a folder, auto or none")
        want(self.lr > 0, "lr", "a number > 0")
        want(0 < self.layer_decay <= 1, "layer_decay", "a number in (0, 1]")
        want(0 <= self.label_smoothing < 1, "label_smoothing", "a number in [0, 1)")
        want(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "a number > 0")
        known = self.labels in LABEL_SETS or self.labels.lower().endswith((".json", ".csv"))
        want(known, "labels", f"one of {', '.join(LABEL_SETS)}, or a .json or .csv file")
        want(self.dataset in ("auto", *READERS), "dataset", f"auto or one of {', '.join(READERS)}")
        plain = self.name.isprintable() and 0 < len(self.name) <= 100
        plain = plain and Path(self.name).name == self.name and self.name not in (".", "..")
        want(plain, "name", "one folder name of at most 100 characters")
        for name, kind in (("protocol", Protocol), ("select", Select), ("dtype", Dtype)):
            choices = get_args(kind)
            want(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        want(self.inner_folds >= 2, "inner_folds", "a whole number >= 2")
        crosses, by_clip = self.protocol == "cross-dataset", self.protocol == "published-folds"
        want(crosses or not self.train_on, "train_on", "--protocol cross-dataset")
        want(crosses or not self.test_on, "test_on", "--protocol cross-dataset")
        want(by_clip or self.fold_files is None, "fold_files", "--protocol published-folds")
        self.architecture(2)  # its own checks

    def cache_folder(self) -> Path | None:
        """Where decoded frames are kept; None: nowhere."""
        if self.cache == "none":
            return None
        return self.runs / ".cache" if self.cache == "auto" else Path(self.cache)

    def part(self, name: str, **changes: Any) -> "TrainConfig":
        """A run in the folder of this one, which keeps its frames where this one does."""
        folder = self.cache_folder()
        cache = "none" if folder is None else str(folder)
        return replace(self, runs=self.runs / self.name, name=name, cache=cache, **changes)

    def leaks(self) -> list[str]:
        """Why scores of this configuration are leaky, one sentence each; empty where they are not."""
        reasons = []
        if self.protocol == "published-folds":
            reasons.append("--protocol published-folds: folds by clip, the same people in training and test.")
        if self.select == "best-test-epoch":
            reasons.append("--select best-test-epoch: the epoch was chosen by its score on the test clips.")
        return reasons

    def architecture(self, num_classes: int) -> HSTAConfig:
        """The model's configuration for so many classes."""
        given = {"num_layers": self.num_layers, "n_special": self.n_special, "n_video": self.n_video}
        config = model_config(
            self.model,
            num_classes=num_classes,
            csta=self.csta,
            branches=tuple(b for b in BRANCHES if b in self.branches),
            head=self.head,
            dropout=self.dropout,
            drop_path=self.drop_path,
            **{name: value for name, value in given.items() if value is not None},
        )
        if self.num_frames % config.tubelet_depth:
            depth = config.tubelet_depth
            raise ValueError(
                f"--num-frames wants a multiple of the tubelet depth {depth}, got {self.num_frames}"
            )
        patches = [p for p, b in zip(config.patch_sizes, BRANCHES, strict=True) if b in config.branches]
        if self.image_size < max(patches):
            raise ValueError(
                f"--image-size wants at least one patch of {max(patches)}, got {self.image_size}"
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
    """The configuration of a recipe, "paper" or "published", with further settings on top.

    Raises:
        ValueError: an unknown recipe or setting, or a value that does not fit.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe wants one of {tuple(RECIPES)}, got {recipe!r}")
    unknown = sorted(set(settings) - {field.name for field in fields(TrainConfig)})
    if unknown:
        raise ValueError(f"a training configuration has no {unknown}")
    config = TrainConfig(**{**RECIPES[recipe], **settings})
    config.check()
    return config


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values; what only says how to run it (`resume`) is left out."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "resume"}
    values["more_data"] = tuple(str(path) for path in config.more_data)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_json`; names that are no setting are left aside.

    Raises:
        ValueError: a setting is missing or of the wrong kind.
    """
    kinds = {field.name: field.type for field in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name in kinds:
            settings[name] = tuple(value) if isinstance(value, list) else value
    for name in ("data", "runs", "annotation", "fold_files"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    settings["more_data"] = tuple(Path(path) for path in settings.get("more_data", ()))
    try:
        config = TrainConfig(**settings)
        config.check()
    except TypeError as error:
        raise ValueError(f"not a training configuration: {error}") from error
    return config


def stamp(cfg: TrainConfig) -> dict[str, str]:
    """The column that scores which must not be believed carry with them, or none."""
    return {"leaky": " ".join(cfg.leaks())} if cfg.leaks() else {}
