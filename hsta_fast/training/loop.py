"""The training script: build the model and the optimiser, train, predict."""

import math
import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from tqdm import tqdm

from ..clips import KEY
from ..data import Augment, Batch, steps
from ..model import HSTA
from ..protocol import Fold, best_epoch
from .config import stamp
from .optim import Loss, learning_rate, parameter_groups
from .run_folder import FoldFolder
from .setup import Experiment


class NonFiniteLossError(ArithmeticError):
    """The loss is no number any more; training stopped before the last good checkpoint was overwritten."""


def fit(
    exp: Experiment, folder: FoldFolder, fold: Fold, numbers: tuple[int, ...], epochs: int, title: str
) -> tuple[HSTA, np.ndarray]:
    """Train on a fold for `epochs` of the schedule's `cfg.epochs`, keeping states on the way.

    numbers: what seeds this training, besides the run's seed and the epoch.

    Returns:
        The model after the last epoch (or where `cfg.select` says so the one that is best on the test clips),
        and the class answered for each test clip after each epoch, int64 (epochs, test clips).
    """
    cfg, data, device = exp.cfg, exp.data, exp.device
    seed_torch(cfg.seed, *numbers, 0)
    model = HSTA(cfg.architecture(len(exp.labels.classes))).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=(0.9, 0.999), fused=True)
    counts = exp.class_counts(fold.train) if cfg.class_weights else None
    # Gradients too small for float16 would vanish; in other dtypes it hands everything on as it is.
    scaler = GradScaler(device.type, enabled=exp.dtype == torch.float16)
    loss_of = Loss(cfg.loss, smoothing=cfg.label_smoothing, counts=counts).to(device)
    truth = torch.from_numpy(data.labels[fold.test]).to(device)
    done, answers, best = 0, torch.empty(0, len(truth), dtype=torch.int64), None
    if (state := folder.load_state()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, answers, best = state["epoch"], state["answers"], state["best"]
        if state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
    folder.keep_metrics(done)
    per_epoch = steps(len(fold.train), cfg.batch_size)
    augment = Augment(flip=cfg.flip, crop=cfg.crop) if cfg.flip or cfg.crop else None

    progress = tqdm(range(done, epochs), title, initial=done, total=epochs, unit="epoch", mininterval=5)
    for epoch in progress:
        seed_torch(cfg.seed, *numbers, epoch + 1)
        start = time.perf_counter()
        model.train()
        total = torch.zeros(2, device=device)  # summed loss, right answers
        batches = data.batches(
            fold.train,
            batch_size=cfg.batch_size,
            seed=(cfg.seed, *numbers, epoch + 1),
            train=True,
            augment=augment,
            balance=cfg.balance,
            device=device,
        )
        bar = tqdm(batches, f"epoch {epoch + 1}", total=per_epoch, leave=False, disable=None, unit="batch")
        for step, batch in enumerate(bar):
            lr = learning_rate(cfg, epoch + step / per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            label = batch.label.to(device, non_blocking=True)
            with exp.autocast():
                logits = model(**frames(model, batch, device))
            loss = loss_of(logits.float(), label)
            # Looking at a number makes a GPU wait: there only now and then, and at the end of the epoch.
            if device.type == "cpu" or step % 50 == 0:
                want_finite(loss.item(), f"fold {fold.name}, epoch {epoch + 1}, step {step + 1}", folder)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if cfg.clip_grad is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad)
            scaler.step(optimizer)  # leaves out a step whose gradients overflowed, and halves the scale
            scaler.update()
            total += torch.stack([loss.detach() * len(label), (logits.argmax(1) == label).sum()])
        train_loss, train_acc = (total / len(fold.train)).tolist()
        seconds = time.perf_counter() - start
        logits = predict(exp, model, fold.test)
        test_loss, test_acc = loss_of(logits, truth).item(), (logits.argmax(1) == truth).float().mean().item()
        for value in (train_loss, test_loss):
            want_finite(value, f"fold {fold.name}, epoch {epoch + 1}", folder)
        answers = torch.cat([answers, logits.argmax(1, keepdim=True).T.cpu()])
        if cfg.select == "best-test-epoch" and best_epoch(truth.cpu(), answers, logits.shape[1]) == epoch:
            best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        entry = {"fold": fold.name, "epoch": epoch + 1, "lr": lr, "train_loss": train_loss}
        entry |= {"train_acc": train_acc, "test_loss": test_loss, "test_acc": test_acc}
        entry |= stamp(cfg)
        folder.add_metrics(entry | {"seconds": seconds, "clips_per_second": len(fold.train) / seconds})
        progress.set_postfix(loss=f"{train_loss:.3f}", train=f"{train_acc:.2f}", test=f"{test_acc:.2f}")
        if (epoch + 1) % cfg.save_every == 0 or epoch + 1 == epochs:
            state = {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            folder.save_state(state | {"scaler": scaler.state_dict(), "answers": answers, "best": best})
    if best is not None:
        model.load_state_dict(best)
    return model, answers.numpy()


def want_finite(loss: float, where: str, folder: FoldFolder) -> None:
    """Raise NonFiniteLossError for a loss that is nan or infinite, saying what is kept."""
    if not math.isfinite(loss):
        state = folder.path / "state.pt"
        kept = f"the last good checkpoint is {state}" if state.exists() else "there is no checkpoint yet"
        raise NonFiniteLossError(f"{where}: wanted a finite loss, got {loss}; {kept}")


def frames(model: HSTA, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The pictures that the model's branches take, on the device; the model normalises bytes, not flow."""
    given = {"video": batch.video, "special": batch.special}
    return {name: given[name].to(device, non_blocking=True) for name in model.config.branches}


@torch.inference_mode()
def predict(exp: Experiment, model: HSTA, indices: np.ndarray) -> Tensor:
    """Logits (n, classes) in float32 of the clips at `indices`, on the model's device."""
    model.eval()
    cfg = exp.cfg
    logits = []
    batches = exp.data.batches(
        indices, batch_size=cfg.batch_size, seed=(cfg.seed,), train=False, device=exp.device
    )
    for batch in batches:
        with exp.autocast():
            logits.append(model(**frames(model, batch, exp.device)).float())
    return torch.cat(logits)


def predictions_table(exp: Experiment, fold: Fold, logits: Tensor) -> pd.DataFrame:
    """One row per test clip: who it is, its fold, label, answer, and the probability of each class."""
    probabilities = logits.double().softmax(1).cpu().numpy()
    rows = exp.data.table.clips.iloc[fold.test][list(KEY)]
    answers = {"fold": fold.name, "label": exp.data.labels[fold.test], "predicted": probabilities.argmax(1)}
    shares = {f"p_{name}": probabilities[:, i] for i, name in enumerate(exp.labels.classes)}
    return rows.reset_index(drop=True).assign(**answers, **shares)


def seed_torch(*numbers: int) -> None:
    """Seed torch from several numbers, without the collisions that their sum would have."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
