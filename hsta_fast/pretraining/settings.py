"""The settings of a pretraining and their help."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..data import Apex, DatasetName, SpecialFrame
from ..model import BRANCHES, HSTAConfig
from ..spelling import did_you_mean
from ..training.config import TrainConfig
from ..training.settings import Dtype
from .objective import Target


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining. Settings that `train` has too mean the same there."""

    data: Path
    """Folder of a dataset as released (docs/data.md lists them), or with a table of your own clips, which
    needs no column of emotions."""
    more_data: tuple[Path, ...] = ()
    """Folders of more datasets, used together with the first."""
    dataset: DatasetName = "auto"
    """Which dataset --data holds; auto: detect it from its files."""
    annotation: Path | None = None
    """Annotation file, csv or xlsx, if the folder of --data holds none or several."""
    macro: bool = False
    """Use the macro-expressions too."""
    leave_out: tuple[str, ...] = ()
    """Subjects to leave out, such as casme3/spNO.1: those that the model will be tested on."""
    strict: bool = False
    """Stop at the first fault of the dataset instead of listing it."""
    cache: str = "auto"
    """Folder for decoded frames; auto: .cache in --runs; none: keep them in memory."""
    cache_gb: float = 50.0
    """Largest size of the cache in gigabytes; the least recently used frames are deleted first."""

    model: str = "hsta_base"
    """hsta_tiny, hsta_small or hsta_base."""
    num_layers: int | None = None
    """K, the number of HSTA layers; by default that of the model."""
    n_special: int | None = None
    """USTA layers of the special branch in each HSTA layer."""
    n_video: int | None = None
    """USTA layers of the video branch in each HSTA layer."""
    branches: tuple[Literal["special", "video"], ...] = ("special", "video")
    """The branches to pretrain: both, or one, as for optical flow in the special branch (video)."""

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
    apex: Apex = "annotated"
    """Apex source: annotated (middle frame if missing), motion (estimated if missing), motion-all (always
    estimated)."""
    flip: bool = True
    """Augmentation: mirror left and right with probability 0.5."""
    crop: int = 4
    """Augmentation: shift by up to this many pixels."""

    target: Target = "difference"
    """What is predicted: difference (of each frame from the first, in squares of 4 pixels) or pixels
    (VideoMAE)."""
    mask_ratio: float = 0.5
    """Share of the positions in the image that are hidden, at every time."""
    visible_weight: float = 1.0
    """Weight of the loss over visible tokens, beside that over the hidden ones; 0: hidden ones only
    (VideoMAE)."""
    decoder_layers: int = 2
    """USTA layers of each branch's decoder, which has half the branch's width."""

    epochs: int = 200
    batch_size: int = 32
    lr: float = 1e-3
    """Peak learning rate (AdamW)."""
    warmup_epochs: int = 10
    warmup_lr: float = 1e-6
    """Learning rate at the first step."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    """Of matrices; biases, norms, CLS and mask token have none."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; none: no limit."""
    seed: int = 0
    """Seed of all randomness."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = "pretrain"
    """Name of the pretraining, and of its folder in --runs."""
    resume: bool = False
    """Continue the pretraining of this name from its last checkpoint."""
    overwrite: bool = False
    """Delete the pretraining of this name, and start it again."""
    save_every: int = 5
    """Epochs between checkpoints."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "auto"
    """Dtype of the matrix products (autocast); parameters stay float32. float16 uses a loss scale."""

    def as_training(self) -> TrainConfig:
        """The settings that a training has too; the others have its defaults."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return TrainConfig(**{name: own[name] for name in own if name in _OF_TRAINING})

    def architecture(self) -> HSTAConfig:
        """The configuration of the model, with a head of as many classes as by default."""
        return self.as_training().architecture(HSTAConfig.num_classes)

    def check(self) -> None:
        """Raise ValueError, naming the flag, for an invalid setting; `check_warm_up` is apart."""
        self.as_training().check()
        if self.target not in get_args(Target):
            meant = did_you_mean(self.target, get_args(Target))
            known = ", ".join(get_args(Target))
            raise ValueError(f"--target expected one of {known}, got {self.target!r}{meant}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio expected a number between 0 and 1, got {self.mask_ratio}")
        if not 0 <= self.visible_weight < math.inf:
            raise ValueError(f"--visible-weight expected a finite number >= 0, got {self.visible_weight}")
        if self.decoder_layers < 1:
            raise ValueError(f"--decoder-layers expected a whole number >= 1, got {self.decoder_layers}")
        architecture = self.architecture()
        for d in architecture.branch_ids:
            patch = architecture.patch_sizes[d]
            if self.image_size < 2 * patch:
                raise ValueError(
                    f"--image-size expected at least {2 * patch}, two patches of the {BRANCHES[d]} branch, "
                    f"got {self.image_size}"
                )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values, without how to start."""
        values = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("resume", "overwrite")
        }
        values["more_data"] = [str(path) for path in self.more_data]
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


_OF_TRAINING = {field.name for field in fields(TrainConfig)}
