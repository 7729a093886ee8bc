"""The training script: build the model and the optimiser, train a fold epoch by epoch, predict.

Every random draw is seeded from (seed, fold, epoch), so no fold depends on another, and a training that was
killed and is resumed from its last checkpoint gives (on the CPU) the numbers of an uninterrupted one. One
process trains a fold, or a `Team` of several, each with its share of every batch.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from ..data import Augment, Batch, steps
from ..model import HSTA
from ..protocol import Fold, best_epoch
from ..recompute import apply_memory
from ..wrappers import unwrap
from . import stopping
from .compiled import CompiledModel, batch_sizes
from .config import leak_columns
from .distributed import ALONE, Team
from .epoch_part import EpochPart, part_if_stopped
from .optim import Loss, UnitLoss, check_finite, decisions, freeze, learning_rate, share_right
from .progress import Progress
from .run_folder import FoldFolder
from .setup import Experiment
from .step import TrainStep, make_optimizer
from .step_graph import StepGraph
from .workers import workers


@dataclass
class FoldTraining:
    """The training of one fold: what it works on, what it learns, and how far it is."""

    exp: Experiment
    folder: FoldFolder
    fold: Fold
    stream: tuple[int, ...]  # seeds this training, together with the run's seed and the epoch
    model: HSTA
    compiled: CompiledModel  # what a step calls
    step: TrainStep
    # The class predicted for each test clip after each epoch, int64 (epochs, test clips); of action units 0
    # or 1, (epochs, test clips, units).
    predictions: Tensor
    epochs_done: int = 0
    best: dict[str, Tensor] | None = None  # weights of the epoch that is best on the test clips, if asked for
    part: EpochPart = field(default_factory=EpochPart)  # of the next epoch
    team: Team = ALONE


def fit(
    exp: Experiment,
    folder: FoldFolder,
    fold: Fold,
    stream: tuple[int, ...],
    epochs: int,
    progress: Progress,
    team: Team = ALONE,
) -> tuple[HSTA, np.ndarray]:
    """Train `epochs` epochs of a schedule of `cfg.epochs`; write checkpoints and metrics to `folder`.

    All ranks of `team` call this together.

    Returns:
        The model after the last epoch (with --select best-test-epoch: after the best one), and the class
        predicted for each test clip after each epoch, int64 (epochs, test clips), or its units (see
        `FoldTraining`).

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        Stopped: SIGUSR1 came; a checkpoint after the last step is written.
    """
    training = build(exp, folder, fold, stream, team)
    load_checkpoint(training)
    progress.start(training.epochs_done)
    setting = "off" if team.kind == "fsdp" else exp.cfg.compile  # its hooks cannot be part of one graph
    training.compiled.start(setting)
    # Recomputing notes the state of the random draws, which a graph cannot.
    if setting != "off" and exp.cfg.memory == "fast":
        training.step.graph = StepGraph(training.model.parameters())
    first = training.epochs_done
    for epoch in range(first, epochs):
        trained = train_epoch(training, epoch, progress)
        seconds = training.part.seconds
        tested = score_test_clips(training, epoch)
        speed = {"seconds": seconds, "clips_per_second": len(fold.train) / seconds}
        metrics: dict[str, Any] = {"fold": fold.name, "epoch": epoch + 1, **trained, **tested}
        metrics |= leak_columns(exp.leaks) | speed
        folder.append_metrics(metrics)
        progress.epoch(metrics)
        if epoch == first:
            trained_at_once = workers().size / team.size  # folds
            measured = team.gather(seconds)[0]  # those of one rank, so that all decide alike
            seconds_left = measured * team.from_main(progress.epochs_left) / trained_at_once
            decision = training.compiled.decide(setting, exp.device, seconds_left)
            if decision is not None:
                progress.say(decision)
                if training.step.graph is not None and training.compiled.on:
                    training.step.graph.forget()  # it was captured from the model as it is
        if (epoch + 1) % exp.cfg.save_every == 0 or epoch + 1 == epochs:
            save_checkpoint(training)
    if training.best is not None:
        team.load_weights(training.model, training.best)
    return team.whole(training.model), training.predictions.numpy()


def build(
    exp: Experiment, folder: FoldFolder, fold: Fold, stream: tuple[int, ...], team: Team = ALONE
) -> FoldTraining:
    """The model, as it is before the first step or, to be filled from a checkpoint, with random weights."""
    cfg, device = exp.cfg, exp.device
    seed_torch(cfg.seed, *stream, 0)
    model = HSTA(exp.initial.architecture(len(exp.labels.classes)))
    if not team.from_main(folder.state_file.exists):
        exp.initial.load_into(model)
    model.to(device)
    freeze(model, cfg.freeze)  # before the team: it exchanges the gradients of the others alone
    apply_memory(model, cfg.memory)
    sizes = batch_sizes(cfg.batch_size, cfg.accumulate, team.size)
    compiled = CompiledModel(model, sizes=sizes, configuration=(model.config, device, exp.dtype, cfg.memory))
    # Gradients too small for float16 would become zero. In other dtypes the scaler does nothing.
    scaler = GradScaler(device.type, enabled=exp.dtype == torch.float16)
    loss = loss_of(exp, fold).to(device)
    predictions = torch.empty(0, *exp.data.labels[fold.test].shape, dtype=torch.int64, device="cpu")
    called = team.wrap(model, compiled)  # before the optimiser: it may replace the parameters by shards
    optimizer = make_optimizer(model, cfg)
    ranks = team.size
    step = TrainStep(called, loss, optimizer, scaler, exp.autocast, cfg.clip_grad, cfg.accumulate, ranks)
    return FoldTraining(exp, folder, fold, stream, model, compiled, step, predictions, team=team)


def loss_of(exp: Experiment, fold: Fold) -> Loss | UnitLoss:
    """The loss of a training of `fold`, weighted by the classes of its training clips."""
    smoothing = exp.cfg.label_smoothing
    if exp.cfg.task == "units":
        return UnitLoss(exp.positive_weights(fold.train), smoothing=smoothing)
    counts = exp.class_counts(fold.train) if exp.cfg.class_weights else None
    return Loss(exp.cfg.loss, smoothing=smoothing, counts=counts)


def train_epoch(training: FoldTraining, epoch: int, progress: Progress) -> dict[str, float]:
    """One pass over the training clips; `epoch` counts from 0."""
    cfg, device, team, part = training.exp.cfg, training.exp.device, training.team, training.part
    of_rank = (0, team.rank) if team.rank else ()  # dropout differs between ranks; 0: as a single process
    seed_torch(cfg.seed, *training.stream, epoch + 1, *of_rank)
    totals = part.begin(team, device)
    training.model.train()
    num_steps = steps(len(training.fold.train), cfg.batch_size)
    where = f"fold {training.fold.name}, epoch {epoch + 1}"
    start = time.perf_counter() - part.seconds
    batches = progress.batches(training_batches(training, epoch), num_steps, part.steps)
    for step, batch in enumerate(batches, start=part.steps):
        lr = learning_rate(cfg, epoch + step / num_steps)
        label, whole = (labels.to(device, non_blocking=True) for labels in (batch.label, batch.whole))
        inputs = model_inputs(training.model, batch, device)
        logits, loss = training.step.backward(inputs, label, whole, counts=batch.counts)
        # Reading a number makes the CPU wait for the GPU, so on a GPU every 50th step only.
        if device.type == "cpu" or step % 50 == 0:
            of_batch = team.sum(loss.clone()).item()  # not of this rank: all raise, or none
            check_finite(of_batch, f"{where}, step {step + 1}", training.folder.state_file)
        training.step.update(lr)
        totals += torch.stack([loss * len(whole), share_right(logits, label).sum() * batch.counts])
        stopped = part_if_stopped(step + 1, totals, time.perf_counter() - start, team)
        if stopped is not None:
            check_finite(stopped.totals[0].item(), f"{where}, step {step + 1}", training.folder.state_file)
            training.part = stopped
            save_checkpoint(training)
            when = f"SIGUSR1 in {where}, after step {step + 1} of {num_steps}"
            raise stopping.Stopped(f"{when}; {stopping.SAVED}")
    train_loss, train_acc = (team.sum(totals) / len(training.fold.train)).tolist()
    check_finite(train_loss, where, training.folder.state_file)
    part.seconds = time.perf_counter() - start
    lr = learning_rate(cfg, epoch + (num_steps - 1) / num_steps)
    return {"lr": lr, "train_loss": train_loss, "train_acc": train_acc}


def training_batches(training: FoldTraining, epoch: int) -> Iterator[Batch]:
    """The shuffled, balanced and augmented batches of an epoch that are left to train."""
    cfg = training.exp.cfg
    return training.exp.data.batches(
        training.fold.train,
        batch_size=cfg.batch_size,
        seed=(cfg.seed, *training.stream, epoch + 1),
        train=True,
        augment=Augment(flip=cfg.flip, crop=cfg.crop) if cfg.flip or cfg.crop else None,
        balance=cfg.balance,
        device=training.exp.device,
        share=training.team.share,
        first=training.part.steps,
    )


def score_test_clips(training: FoldTraining, epoch: int) -> dict[str, float]:
    """Test loss and accuracy; `training` gets the predictions, with best-test-epoch the best weights too."""
    exp, test = training.exp, training.fold.test
    logits = predict(exp, training.model, test, training.team)
    truth = torch.from_numpy(exp.data.labels[test]).to(exp.device)
    predicted = decisions(logits, truth)
    test_loss = training.step.loss(logits, truth).item()
    check_finite(test_loss, f"fold {training.fold.name}, epoch {epoch + 1}", training.folder.state_file)
    training.predictions = torch.cat([training.predictions, predicted[None].cpu()])
    by_test_score = exp.cfg.select == "best-test-epoch"
    if by_test_score and best_epoch(truth.cpu(), training.predictions, logits.shape[1]) == epoch:
        training.best = {k: v.detach().cpu().clone() for k, v in unwrap(training.model)[1].items()}
    training.epochs_done, training.part = epoch + 1, EpochPart()
    return {"test_loss": test_loss, "test_acc": share_right(logits, truth).mean().item()}


@torch.inference_mode()
def predict(exp: Experiment, model: HSTA, indices: np.ndarray, team: Team = ALONE) -> Tensor:
    """Logits (n, classes) in float32 of the clips at `indices`, on the model's device.

    All ranks of `team` call this together, and each gets the logits of all clips.
    """
    model.eval()
    cfg, logits = exp.cfg, []
    batches = exp.data.batches(
        indices,
        batch_size=cfg.batch_size,
        seed=(cfg.seed,),
        train=False,
        device=exp.device,
        share=team.share,
    )
    for batch in batches:
        with exp.autocast():
            of_batch = model(**model_inputs(model, batch, exp.device)).float()
        logits.append(of_batch if batch.counts else of_batch[:0])
    return team.joined(logits)


def model_inputs(model: HSTA, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The inputs of the model's branches, on the device."""
    inputs = {"video": batch.video, "special": batch.special}
    return {name: inputs[name].to(device, non_blocking=True) for name in model.config.branches}


def save_checkpoint(training: FoldTraining) -> None:
    """Save all that `load_checkpoint` needs to continue after this epoch."""
    state = {
        "model": unwrap(training.model)[1],
        "optimizer": training.team.optimizer_state(training.step.optimizer),
        "scaler": training.step.scaler.state_dict(),
        "epoch": training.epochs_done,
        "predictions": training.predictions,
        "best": training.best,
        "part": vars(training.part),
    }
    training.folder.save_state(state)


def load_checkpoint(training: FoldTraining) -> None:
    """Continue from the fold's last checkpoint, if there is one; drop metrics of later epochs."""
    team = training.team
    if (state := team.from_main(training.folder.load_state)) is not None:
        team.load_weights(training.model, state["model"])
        team.load_optimizer(training.step.optimizer, state["optimizer"])
        if state.get("scaler"):  # empty if saved on a device that needs no loss scale
            training.step.scaler.load_state_dict(state["scaler"])
        # Older states call them answers.
        training.predictions = state["predictions" if "predictions" in state else "answers"]
        training.epochs_done, training.best = state["epoch"], state["best"]
        training.part = EpochPart(**state.get("part", {}))
        if not team.is_main:
            training.part.totals.zero_()  # the main process has those of all
    training.folder.truncate_metrics(training.epochs_done)


def seed_torch(*numbers: int) -> None:
    """Seed torch from several numbers, without the collisions that their sum would have."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
