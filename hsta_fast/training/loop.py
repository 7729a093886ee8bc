"""The training script: build the model and the optimiser, train a fold epoch by epoch, predict.

Every random draw is seeded from (seed, fold, epoch), so no fold depends on another, and a training that was
killed and is resumed from its last checkpoint gives (on the CPU) the numbers of an uninterrupted one.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from ..data import Augment, Batch, steps
from ..model import HSTA
from ..protocol import Fold, best_epoch
from ..recompute import set_memory
from .config import leak_columns
from .optim import Loss, check_finite, learning_rate
from .progress import Progress
from .run_folder import FoldFolder
from .setup import Experiment
from .step import TrainStep, make_optimizer


@dataclass
class FoldTraining:
    """The training of one fold: what it works on, what it learns, and how far it is."""

    exp: Experiment
    folder: FoldFolder
    fold: Fold
    stream: tuple[int, ...]  # seeds this training, together with the run's seed and the epoch
    model: HSTA
    step: TrainStep
    predictions: Tensor  # the class predicted for each test clip after each epoch, int64 (epochs, test clips)
    epochs_done: int = 0
    best: dict[str, Tensor] | None = None  # weights of the epoch that is best on the test clips, if asked for


def fit(
    exp: Experiment, folder: FoldFolder, fold: Fold, stream: tuple[int, ...], epochs: int, progress: Progress
) -> tuple[HSTA, np.ndarray]:
    """Train `epochs` epochs of a schedule of `cfg.epochs`; write checkpoints and metrics to `folder`.

    Returns:
        The model after the last epoch (with --select best-test-epoch: after the best one), and the class
        predicted for each test clip after each epoch, int64 (epochs, test clips).

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    training = build(exp, folder, fold, stream)
    load_checkpoint(training)
    progress.start(training.epochs_done)
    for epoch in range(training.epochs_done, epochs):
        start = time.perf_counter()
        trained = train_epoch(training, epoch, progress)
        seconds = time.perf_counter() - start
        tested = score_test_clips(training, epoch)
        speed = {"seconds": seconds, "clips_per_second": len(fold.train) / seconds}
        metrics: dict[str, Any] = {"fold": fold.name, "epoch": epoch + 1, **trained, **tested}
        metrics |= leak_columns(exp.cfg) | speed
        folder.append_metrics(metrics)
        progress.epoch(metrics)
        if (epoch + 1) % exp.cfg.save_every == 0 or epoch + 1 == epochs:
            save_checkpoint(training)
    if training.best is not None:
        training.model.load_state_dict(training.best)
    return training.model, training.predictions.numpy()


def build(exp: Experiment, folder: FoldFolder, fold: Fold, stream: tuple[int, ...]) -> FoldTraining:
    """The model, freshly initialised, and what trains it."""
    cfg, device = exp.cfg, exp.device
    seed_torch(cfg.seed, *stream, 0)
    model = HSTA(cfg.architecture(len(exp.labels.classes))).to(device)
    set_memory(model, cfg.memory)
    # Gradients too small for float16 would become zero. In other dtypes the scaler does nothing.
    scaler = GradScaler(device.type, enabled=exp.dtype == torch.float16)
    counts = exp.class_counts(fold.train) if cfg.class_weights else None
    loss = Loss(cfg.loss, smoothing=cfg.label_smoothing, counts=counts).to(device)
    predictions = torch.empty(0, len(fold.test), dtype=torch.int64, device="cpu")
    optimizer = make_optimizer(model, cfg)
    step = TrainStep(model, loss, optimizer, scaler, exp.autocast, cfg.clip_grad, cfg.accumulate)
    return FoldTraining(exp, folder, fold, stream, model, step, predictions)


def train_epoch(training: FoldTraining, epoch: int, progress: Progress) -> dict[str, float]:
    """One pass over the training clips; `epoch` counts from 0."""
    cfg, device = training.exp.cfg, training.exp.device
    seed_torch(cfg.seed, *training.stream, epoch + 1)
    training.model.train()
    num_steps = steps(len(training.fold.train), cfg.batch_size)
    where = f"fold {training.fold.name}, epoch {epoch + 1}"
    totals = torch.zeros(2, device=device)  # summed loss, correct predictions
    batches = training_batches(training, epoch)
    for step, batch in enumerate(progress.batches(batches, num_steps)):
        lr = learning_rate(cfg, epoch + step / num_steps)
        label = batch.label.to(device, non_blocking=True)
        logits, loss = training.step.backward(model_inputs(training.model, batch, device), label)
        # Reading a number makes the CPU wait for the GPU, so on a GPU every 50th step only.
        if device.type == "cpu" or step % 50 == 0:
            check_finite(loss.item(), f"{where}, step {step + 1}", training.folder.state_file)
        training.step.update(lr)
        totals += torch.stack([loss * len(label), (logits.argmax(1) == label).sum()])
    train_loss, train_acc = (totals / len(training.fold.train)).tolist()
    check_finite(train_loss, where, training.folder.state_file)
    return {"lr": lr, "train_loss": train_loss, "train_acc": train_acc}


def training_batches(training: FoldTraining, epoch: int) -> Iterator[Batch]:
    """The shuffled, balanced and augmented batches of an epoch."""
    cfg = training.exp.cfg
    return training.exp.data.batches(
        training.fold.train,
        batch_size=cfg.batch_size,
        seed=(cfg.seed, *training.stream, epoch + 1),
        train=True,
        augment=Augment(flip=cfg.flip, crop=cfg.crop) if cfg.flip or cfg.crop else None,
        balance=cfg.balance,
        device=training.exp.device,
    )


def score_test_clips(training: FoldTraining, epoch: int) -> dict[str, float]:
    """Test loss and accuracy; `training` gets the predictions, with best-test-epoch the best weights too."""
    exp, test = training.exp, training.fold.test
    logits, truth = predict(exp, training.model, test), torch.from_numpy(exp.data.labels[test]).to(exp.device)
    predicted = logits.argmax(1)
    test_loss = training.step.loss(logits, truth).item()
    check_finite(test_loss, f"fold {training.fold.name}, epoch {epoch + 1}", training.folder.state_file)
    training.predictions = torch.cat([training.predictions, predicted[None].cpu()])
    by_test_score = exp.cfg.select == "best-test-epoch"
    if by_test_score and best_epoch(truth.cpu(), training.predictions, logits.shape[1]) == epoch:
        training.best = {k: v.detach().cpu().clone() for k, v in training.model.state_dict().items()}
    training.epochs_done = epoch + 1
    return {"test_loss": test_loss, "test_acc": (predicted == truth).float().mean().item()}


@torch.inference_mode()
def predict(exp: Experiment, model: HSTA, indices: np.ndarray) -> Tensor:
    """Logits (n, classes) in float32 of the clips at `indices`, on the model's device."""
    model.eval()
    cfg, logits = exp.cfg, []
    batches = exp.data.batches(
        indices, batch_size=cfg.batch_size, seed=(cfg.seed,), train=False, device=exp.device
    )
    for batch in batches:
        with exp.autocast():
            logits.append(model(**model_inputs(model, batch, exp.device)).float())
    return torch.cat(logits)


def model_inputs(model: HSTA, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The inputs of the model's branches, on the device."""
    inputs = {"video": batch.video, "special": batch.special}
    return {name: inputs[name].to(device, non_blocking=True) for name in model.config.branches}


def save_checkpoint(training: FoldTraining) -> None:
    """Save all that `load_checkpoint` needs to continue after this epoch."""
    step = training.step
    parts = {name: getattr(step, name).state_dict() for name in ("model", "optimizer", "scaler")}
    progress = {"epoch": training.epochs_done, "predictions": training.predictions, "best": training.best}
    training.folder.save_state(parts | progress)


def load_checkpoint(training: FoldTraining) -> None:
    """Continue from the fold's last checkpoint, if there is one; drop metrics of later epochs."""
    if (state := training.folder.load_state()) is not None:
        training.model.load_state_dict(state["model"])
        training.step.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty if saved on a device that needs no loss scale
            training.step.scaler.load_state_dict(state["scaler"])
        # Older states call them answers.
        training.predictions = state["predictions" if "predictions" in state else "answers"]
        training.epochs_done, training.best = state["epoch"], state["best"]
    training.folder.truncate_metrics(training.epochs_done)


def seed_torch(*numbers: int) -> None:
    """Seed torch from several numbers, without the collisions that their sum would have."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
