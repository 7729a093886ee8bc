"""The training configuration and the two recipes: the paper's and the published code's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..data import LABEL_SETS, Apex, Balance, DatasetName, FlowMethod, SpecialFrame
from ..model import BRANCHES, Head, HSTAConfig, list_models, model_config
from ..recompute import Memory
from ..spelling import did_you_mean

Protocol = Literal["loso", "kfold", "composite", "cross-dataset", "published-folds"]
Select = Literal["last", "inner", "best-test-epoch"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]
Recipe = Literal["paper", "published"]
START = ("resume", "overwrite", "join", "dry_run")  # settings that say how to start a run, not what it is


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The dataset, its clips and its labels."""

    data: Path
    """Folder of a dataset as released (docs/data.md lists them), or with a table of your own clips."""
    more_data: tuple[Path, ...] = ()
    """Folders of more datasets, used together with the first."""
    dataset: DatasetName = "auto"
    """Which dataset --data holds; auto: detect it from its files."""
    annotation: Path | None = None
    """Annotation file, csv or xlsx, if the folder of --data holds none or several."""
    labels: str = "auto"
    """Label set: auto (that of the dataset's own literature; megc2019 for several of CASME II, SAMM and
    SMIC-HS); a name from docs/data.md, such as emotion7, emotion3, objective7; or a .json or .csv file."""
    strict: bool = False
    """Stop at the first fault of the dataset instead of listing it."""
    cache: str = "auto"
    """Folder for decoded frames; auto: .cache in --runs; none: keep them in memory."""
    cache_gb: float = 50.0
    """Largest size of the cache in gigabytes; the least recently used frames are deleted first."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The run's folder, and how to start it."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = "hsta"
    """Name of the run, and of its folder in --runs."""
    resume: bool = False
    """Continue the run of this name from its last checkpoint."""
    overwrite: bool = False
    """Delete the run of this name, and start it again."""
    join: bool = False
    """Start or continue the run beside other processes that do the same: each trains folds that are free,
    and ends when none is left."""
    dry_run: bool = False
    """Do all up to the first step, print what would be trained, and write no run."""
    save_every: int = 5
    """Epochs between checkpoints."""
    gallery: int = 24
    """Most misclassified clips that the report shows, with frames of the dataset; 0: none."""
    log: tuple[Literal["tensorboard"], ...] = ()
    """Where the metrics of each epoch go, besides the run's own files: tensorboard."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The architecture."""

    model: str = "hsta_base"
    """hsta_tiny, hsta_small or hsta_base."""
    num_layers: int | None = None
    """K, the number of HSTA layers; by default that of the model."""
    n_special: int | None = None
    """USTA layers of the special branch in each HSTA layer."""
    n_video: int | None = None
    """USTA layers of the video branch in each HSTA layer."""
    csta: bool = True
    """Crossmodal attention (CSTA) at the end of each HSTA layer."""
    branches: tuple[Literal["special", "video"], ...] = ("special", "video")
    """The input modalities: both, or one."""
    head: Head = "cls"
    """What is classified: the CLS of each branch, also its last token, or the mean over its tokens."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What the model is shown of a clip."""

    image_size: int = 224
    """Height and width of the frames in pixels."""
    num_frames: int = 6
    """T, the number of video frames."""
    sampling: Literal["uniform", "random"] = "uniform"
    """Video frames: uniform from onset to offset, or random and sorted."""
    offset_cap: int | None = None
    """Take no frame more than this many frames after the onset."""
    special: tuple[SpecialFrame, SpecialFrame] = ("onset", "apex")
    """The two special frames."""
    flow: FlowMethod | None = None
    """Method of the optical flow (onset to apex, apex to offset) that replaces the two special frames."""
    apex: Apex = "annotated"
    """Apex source: annotated (middle frame if missing), motion (estimated if missing), motion-all (always
    estimated)."""
    flip: bool = False
    """Augmentation: mirror left and right with probability 0.5."""
    crop: int = 0
    """Augmentation: shift by up to this many pixels."""


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """The folds, and the epoch that is tested."""

    protocol: Protocol = "loso"
    """loso: leave one subject out; kfold: k folds of whole subjects; composite: loso over several datasets
    pooled; cross-dataset: --train-on some, --test-on others; published-folds: folds by clip, which share
    subjects, for comparison only: every output is marked leaky."""
    folds: int = 5
    """Number of folds of kfold and published-folds."""
    fold_files: Path | None = None
    """published-folds: the csv or folder of lists that defines them (docs/evaluation.md)."""
    datasets: tuple[str, ...] = ()
    """Use only the clips of these datasets; all by default."""
    train_on: tuple[str, ...] = ()
    """cross-dataset: names of the datasets to train on."""
    test_on: tuple[str, ...] = ()
    """cross-dataset: names of the datasets to test on."""
    macro: bool = False
    """Train on macro-expressions too, but never on those of a fold's test subjects."""
    select: Select = "last"
    """The epoch to test: last; inner: the best on inner folds of the training subjects; best-test-epoch: the
    best on the test clips, for comparison only: every output is marked leaky."""
    inner_folds: int = 3
    """Number of inner folds, split by subject."""
    seeds: int = 1
    """Number of runs, with the seeds --seed, --seed + 1, ...; their mean and standard deviation are shown."""
    only: tuple[str, ...] = ()
    """Names of the folds to train; all by default."""
    shuffle_labels: bool = False
    """Control: shuffle the labels among all clips; a score above chance then shows a fault."""
    onset_only: bool = False
    """Control: use the onset frame, which shows no movement, for every frame."""


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The schedule, the optimiser and the loss."""

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
    """Apply weight decay to biases, norms and CLS too."""
    layer_decay: float = 1.0
    """Factor on the learning rate per HSTA layer, counted down from the head."""
    clip_grad: float | None = None
    """Largest norm of the gradient; none: no limit."""
    dropout: float = 0.0
    drop_path: float = 0.0
    loss: Literal["ce", "mse"] = "ce"
    """Cross entropy, or the paper's squared error between raw outputs and one-hot label (Eq. 16)."""
    label_smoothing: float = 0.0
    class_weights: bool = False
    """Weight the loss by 1 / (number of training clips of the class)."""
    balance: Balance = "even"
    """even: every class equally often; matched: even, with each subject's classes together in a batch;
    weighted: drawn with replacement by 1 / class frequency; none: every clip once."""
    seed: int = 0
    """Seed of all randomness."""


@dataclass(frozen=True, kw_only=True)
class HardwareSettings:
    """The device and its numbers."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "auto"
    """Dtype of the matrix products (autocast); parameters stay float32. float16 uses a loss scale."""
    memory: Memory = "fast"
    """What the backward computes again to save memory: fast: nothing; balanced: norms and activations; small:
    all but the attention. The numbers are the same, but for rounding where a CPU multiplies in C++."""
    distribute: Literal["folds", "ddp", "fsdp"] = "folds"
    """What the processes of torchrun share: folds, each training some of its own; or each fold, trained by
    all together, with copies of the model (ddp) or with shards of it (fsdp)."""
    accumulate: int = 1
    """Micro-batches that share a step of the optimiser: each takes a part of --batch-size, and the gradients
    are those of the whole batch."""
    compile: Compile = "auto"
    """torch.compile of the model in training; auto: on a CUDA device, after the first epoch, if enough of the
    training is left to pay for it (docs/gpu.md); not on a CPU, where compiling takes minutes."""


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
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} expected {expected}, got {getattr(self, name)!r}")

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
        both = self.distribute == "fsdp" and self.compile == "on"
        require(not both, "compile", "auto or off with --distribute fsdp")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "a number > 0")
        if not self.labels.lower().endswith((".json", ".csv")):
            require_one_of(["auto", *LABEL_SETS], "labels", ", or a .json or .csv file")
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
        require(bool(self.branches), "branches", f"{' or '.join(BRANCHES)}, or both")
        require(self.inner_folds >= 2, "inner_folds", "a whole number >= 2")
        needs = {"train_on": "cross-dataset", "test_on": "cross-dataset", "fold_files": "published-folds"}
        for name, protocol in needs.items():
            if getattr(self, name) and self.protocol != protocol:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} expected --protocol {protocol}, got --protocol {self.protocol}")
        self.architecture(2)  # checks the model's settings together

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
        """Why scores of this configuration are leaky, one sentence each; empty if they are not."""
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


def leak_columns(cfg: TrainConfig) -> dict[str, str]:
    """The column `leaky` that marks every output of a leaky run; empty for any other run."""
    return {"leaky": " ".join(cfg.leaks())} if cfg.leaks() else {}
