"""What would be trained: all of a run up to its first step, without its folder."""

import numpy as np

from ..clips import counted, subject_ids
from ..data import describe_inputs, steps
from ..environment import info_text
from ..memory import account
from ..protocol import Fold
from .loop import build, model_inputs, seed_torch, training_batches
from .optim import check_finite
from .run_checks import check_clips, check_run
from .run_folder import FoldFolder, check_folds, fold_folder
from .setup import Experiment, describe, remarks_and_faults
from .splits import fold_parts, inner_of


def dry_run(exp: Experiment, is_main: bool) -> None:
    """Check and print what a run of `exp` would train, up to the loss of its first batch; write nothing.

    Raises:
        ValueError: the run cannot be started, or continued.
        NonFiniteLossError: the loss of the first batch is NaN or infinite.
    """
    if not is_main:
        return
    cfg, path = exp.cfg, exp.cfg.runs / exp.cfg.name
    check_run(path, describe(exp), resume=cfg.resume, overwrite=cfg.overwrite)
    if cfg.resume and (path / "clips.csv").exists():
        check_clips(path / "clips.csv", exp.data.table.clips)
    if cfg.resume and (path / "folds.csv").exists():
        check_folds(path / "folds.csv", fold_parts(exp.data.table, exp.folds))
    print_experiment(exp, ", all listed by hsta-fast doctor")
    wanted = [n for n, fold in enumerate(exp.folds) if not cfg.only or fold.name in cfg.only]
    states = {n: _epochs_done(exp, n) if cfg.resume else 0 for n in wanted}
    left = {n: cfg.epochs - done for n, done in states.items() if done is not None}
    print(f"\n{_size(exp, left)}")
    for number, epochs in states.items():
        if epochs is None:
            print(f"fold {exp.folds[number].name}: finished")
        elif epochs:
            print(f"fold {exp.folds[number].name}: continues after epoch {epochs}")
    if left:
        print(_first_batch(exp, next(iter(left))))
    print(f"dry run: nothing is trained and no run is written; it would be in {path}")


def _epochs_done(exp: Experiment, number: int) -> int | None:
    """The epochs of the last checkpoint of a fold, 0 without one; None: the fold is finished."""
    folder = FoldFolder(fold_folder(exp.cfg.runs / exp.cfg.name, number))
    if folder.finished:
        return None
    state = folder.load_state()
    return 0 if state is None else state["epoch"]


def _size(exp: Experiment, left: dict[int, int]) -> str:
    """The folds, epochs and steps of the run; left: the epochs that each unfinished fold still needs."""
    cfg = exp.cfg
    per_epoch = {n: steps(len(exp.folds[n].train), cfg.batch_size) for n in left}
    few, many = (end(per_epoch.values(), default=0) for end in (min, max))
    of_epoch = f"{few}" if few == many else f"{few} to {many}"
    total = sum(epochs * per_epoch[n] for n, epochs in left.items())
    folds = f"folds to train: {len(left)} of {len(exp.folds)}"
    text = f"{folds}; epochs: {cfg.epochs}; steps an epoch: {of_epoch}"
    if cfg.select == "inner":
        return f"{text}; before each fold, as many on each of {cfg.inner_folds} inner folds choose the epoch"
    return f"{text}; steps in all: {total}"


def _first_batch(exp: Experiment, number: int) -> str:
    """Build the model of a fold; forward and backward of its first batch, as training would."""
    cfg = exp.cfg
    fold, stream = _first_training(exp, number)
    training = build(exp, FoldFolder(fold_folder(cfg.runs / cfg.name, number)), fold, stream)
    seed_torch(cfg.seed, *stream, 1)
    training.model.train()
    batch = next(training_batches(training, 0))
    inputs = model_inputs(training.model, batch, exp.device)
    loss = training.step.backward(inputs, batch.label.to(exp.device))[1].item()
    check_finite(loss, f"fold {fold.name}, epoch 1, step 1", training.folder.state_file)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    parameters = sum(weight.numel() for weight in training.model.parameters())
    return (
        f"{cfg.model}: {parameters:,} parameters\n{_memory(exp, len(batch.label))}\n"
        f"first batch of fold {fold.name}: {shapes}, loss {loss:.6g} before any step"
    )


def _memory(exp: Experiment, batch: int) -> str:
    """The memory of a step of `batch` clips."""
    cfg = exp.cfg
    found = account(
        exp.initial.architecture(len(exp.labels.classes)),
        batch=batch,
        num_frames=cfg.num_frames,
        image_size=cfg.image_size,
        dtype=exp.dtype,
        memory=cfg.memory,
        accumulate=min(cfg.accumulate, batch),
        device=exp.device.type,
    )
    step, clip = found.peak / 1e9, found.per_clip / 1e6
    return f"memory of a step of {counted(batch, 'clip')}: {step:.2f} GB, {clip:.1f} MB a clip (estimate)"


def _first_training(exp: Experiment, number: int) -> tuple[Fold, tuple[int, ...]]:
    """The clips and the random stream of the first training of a fold, as in `runner.train_fold`."""
    if exp.cfg.select == "inner":
        return inner_of(exp.cfg, exp.data.table, exp.folds[number])[0], (number, 1, 1)
    return exp.folds[number], (number,)


def print_experiment(exp: Experiment, where: str) -> None:
    """Print the implementations, the device, and the clips that the run uses.

    where: a phrase that says where all faults of the dataset are listed.
    """
    clips, data = exp.data.table, exp.data
    print(f"{info_text(exp.dtype)}\n\ndevice {exp.device}, {exp.dtype}: {exp.why}")
    print("".join(f"LEAKY: {reason}\n" for reason in exp.leaks), end="")
    counts = zip(exp.class_counts(np.arange(len(data))), exp.labels.classes, strict=True)
    print(
        f"{counted(len(data), 'clip')} of {counted(subject_ids(clips.clips).nunique(), 'subject')}:",
        ", ".join(f"{n} {c}" for n, c in counts),
    )
    inputs = describe_inputs(data.sampling, exp.cfg.image_size, exp.cfg.apex, exp.cfg.picture_recipe())
    print("\n".join(f"{name}: {_on_one_line(value)}" for name, value in inputs.items()))
    print("".join(f"{line}\n" for line in exp.initial.lines()), end="")
    if exp.dropped:
        print("outside the label set:", ", ".join(f"{n} {emotion}" for emotion, n in exp.dropped.items()))
    print("".join(f"{line}\n" for line in remarks_and_faults(clips, where)), end="")


def _on_one_line(value: object) -> str:
    """A JSON value as words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_on_one_line(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
