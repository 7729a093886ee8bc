"""Training and testing under a subject-disjoint protocol: the one loop.

Every random draw is seeded from (seed, fold, epoch), so no fold depends on another, and a run that was killed
goes on as if it had not been.
"""

import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load_model, save_model
from .config import TrainConfig, from_json
from .data import Augment, Batch, steps
from .environment import info_text
from .experiment import Experiment, describe, prepare, subject_ids
from .model import HSTA
from .optim import Loss, learning_rate, parameter_groups
from .protocol import Fold, read_predictions, score, table, write_report
from .run import RunFolder, check_clips, fold_folder, read_config


class NonFiniteLossError(ArithmeticError):
    """The loss is no number any more; training stopped before the last good checkpoint was overwritten."""


def main(cfg: TrainConfig) -> Path:
    """Train and test every fold, pool the predictions, write the report; returns the run's folder.

    Raises:
        ValueError: data, settings or a run folder that do not fit.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss is nan or infinite.
    """
    exp = prepare(cfg)
    run = RunFolder(cfg.runs / cfg.name, describe(exp), resume=cfg.resume)
    clips = exp.data.table
    run.same_clips(clips.clips)
    columns = ["dataset", "subject", "clip", "onset", "what", "action"]
    run.write_table("faults.csv", pd.DataFrame([asdict(fault) for fault in clips.faults], columns=columns))
    print_experiment(exp, run)
    publish(exp, run)  # what a process that was killed had left undone
    for number, fold in enumerate(exp.folds):
        if not run.finished(number) and (not cfg.only or fold.name in cfg.only):
            train_fold(exp, run, number)
            publish(exp, run)
    print(f"\n{table(run.path)}\n\nreport: {run.path / 'report.html'}")
    return run.path


def publish(exp: Experiment, run: RunFolder) -> None:
    """Pool the predictions of the finished folds and write their report."""
    if run.collect_predictions(len(exp.folds)):
        write_report(run.path)


def print_experiment(exp: Experiment, run: RunFolder) -> None:
    """What runs, on what, with which clips."""
    clips, data = exp.data.table, exp.data
    print(f"{info_text(exp.dtype)}\n\ndevice {exp.device}, {exp.dtype}: {exp.why}")
    counts = zip(exp.class_counts(np.arange(len(data))), exp.labels.classes, strict=True)
    print(
        f"{len(data)} clips of {len(set(subject_ids(clips)))} subjects:",
        ", ".join(f"{n} {c}" for n, c in counts),
    )
    if exp.dropped:
        print("outside the label set:", ", ".join(f"{n} {emotion}" for emotion, n in exp.dropped.items()))
    if clips.faults:
        print(
            f"{len(clips.faults)} faults of the data set, all in {run.path / 'faults.csv'}; the first ones:"
        )
        print("\n".join(f"  {fault}" for fault in clips.faults[:5]))


def train_fold(exp: Experiment, run: RunFolder, number: int) -> None:
    """Train fold `number` to its last epoch, keeping states on the way; save its model and predictions."""
    cfg, data, fold, device = exp.cfg, exp.data, exp.folds[number], exp.device
    seed_torch(cfg.seed, number, 0)
    model = HSTA(cfg.architecture(len(exp.labels.classes))).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=(0.9, 0.999), fused=True)
    counts = exp.class_counts(fold.train) if cfg.class_weights else None
    loss_of = Loss(cfg.loss, smoothing=cfg.label_smoothing, counts=counts).to(device)
    done = 0
    if (state := run.load_state(number)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epoch"]
    run.keep_metrics(fold.name, done)
    per_epoch = steps(len(fold.train), cfg.batch_size)
    augment = Augment(flip=cfg.flip, crop=cfg.crop) if cfg.flip or cfg.crop else None

    title = f"fold {fold.name} ({number + 1} of {len(exp.folds)})"
    epochs = tqdm(range(done, cfg.epochs), title, initial=done, total=cfg.epochs, unit="epoch", mininterval=5)
    for epoch in epochs:
        seed_torch(cfg.seed, number, epoch + 1)
        start = time.perf_counter()
        model.train()
        total = torch.zeros(2, device=device)  # summed loss, right answers
        batches = data.batches(
            fold.train,
            batch_size=cfg.batch_size,
            seed=(cfg.seed, number, epoch + 1),
            train=True,
            augment=augment,
            balance=cfg.balance,
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
                want_finite(loss.item(), f"fold {fold.name}, epoch {epoch + 1}, step {step + 1}", run, number)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if cfg.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad)
            optimizer.step()
            total += torch.stack([loss.detach() * len(label), (logits.argmax(1) == label).sum()])
        train_loss, train_acc = (total / len(fold.train)).tolist()
        seconds = time.perf_counter() - start
        logits = predict(exp, model, fold.test)
        truth = torch.from_numpy(data.labels[fold.test]).to(device)
        test_loss, test_acc = loss_of(logits, truth).item(), (logits.argmax(1) == truth).float().mean().item()
        for value in (train_loss, test_loss):
            want_finite(value, f"fold {fold.name}, epoch {epoch + 1}", run, number)
        entry = {"fold": fold.name, "epoch": epoch + 1, "lr": lr, "train_loss": train_loss}
        entry |= {"train_acc": train_acc, "test_loss": test_loss, "test_acc": test_acc}
        run.add_metrics(entry | {"seconds": seconds, "clips_per_second": len(fold.train) / seconds})
        epochs.set_postfix(loss=f"{train_loss:.3f}", train=f"{train_acc:.2f}", test=f"{test_acc:.2f}")
        if (epoch + 1) % cfg.save_every == 0 or epoch + 1 == cfg.epochs:
            state = {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            run.save_state(number, state)

    save_model(model, run.fold(number) / "model.safetensors")
    run.finish_fold(number, predictions_table(exp, fold, predict(exp, model, fold.test)))


def want_finite(loss: float, where: str, run: RunFolder, number: int) -> None:
    """Raise NonFiniteLossError for a loss that is nan or infinite, saying what is kept."""
    if not math.isfinite(loss):
        state = run.fold(number) / "state.pt"
        kept = f"the last good checkpoint is {state}" if state.exists() else "there is no checkpoint yet"
        raise NonFiniteLossError(f"{where}: wanted a finite loss, got {loss}; {kept}")


def frames(model: HSTA, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The frames that the model's branches take, on the device, as bytes: the model normalises them."""
    given = {"video": batch.video, "special": batch.special}
    return {name: given[name].to(device, non_blocking=True) for name in model.config.branches}


@torch.inference_mode()
def predict(exp: Experiment, model: HSTA, indices: np.ndarray) -> Tensor:
    """Logits (n, classes) in float32 of the clips at `indices`, on the model's device."""
    model.eval()
    cfg = exp.cfg
    logits = []
    for batch in exp.data.batches(indices, batch_size=cfg.batch_size, seed=(cfg.seed,), train=False):
        with exp.autocast():
            logits.append(model(**frames(model, batch, exp.device)).float())
    return torch.cat(logits)


def predictions_table(exp: Experiment, fold: Fold, logits: Tensor) -> pd.DataFrame:
    """One row per test clip: who it is, its fold, label, answer, and the probability of each class."""
    probabilities = logits.double().softmax(1).cpu().numpy()
    rows = exp.data.table.clips.iloc[fold.test][["dataset", "subject", "clip", "onset"]]
    answers = {"fold": fold.name, "label": exp.data.labels[fold.test], "predicted": probabilities.argmax(1)}
    shares = {f"p_{name}": probabilities[:, i] for i, name in enumerate(exp.labels.classes)}
    return rows.reset_index(drop=True).assign(**answers, **shares)


def seed_torch(*numbers: int) -> None:
    """Seed torch from several numbers, without the collisions that their sum would have."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def evaluate(path: Path, data: Path | None = None) -> str:
    """Predict the test clips of a run's finished folds anew, from its saved models, and score that.

    Args:
        path: the run's folder.
        data: where the data set is now, if it has moved.

    Returns:
        The run's table of scores on record, then the new scores and how the predictions differ.

    Raises:
        ValueError: `path` is no run, has no finished fold, or its data are not what they were.
    """
    cfg = from_json(read_config(path))
    exp = prepare(cfg if data is None else replace(cfg, data=data, annotation=None))
    check_clips(path / "clips.csv", exp.data.table.clips)
    parts = []
    for number, fold in enumerate(exp.folds):
        folder = fold_folder(path, number)
        if (folder / "predictions.csv").exists():
            model = load_model(folder / "model.safetensors").to(exp.device)
            parts.append(predictions_table(exp, fold, predict(exp, model, fold.test)))
    if not parts:
        raise ValueError(f"{path} has no finished fold yet")
    now = pd.concat(parts, ignore_index=True)
    key = ["dataset", "subject", "clip", "onset"]
    both = now.merge(read_predictions(path / "predictions.csv"), on=key, suffixes=("", "_before"))
    if len(both) != len(now):
        raise ValueError(
            f"{path / 'predictions.csv'} wants the {len(now)} clips of the finished folds, got {len(both)}"
        )
    shares = [column for column in now.columns if column.startswith("p_")]
    changed = int((both["predicted"] != both["predicted_before"]).sum())
    largest = np.abs(both[shares].to_numpy() - both[[f"{s}_before" for s in shares]].to_numpy()).max()
    new = score(now["label"], now["predicted"], len(shares), absent="zero")
    return (
        f"{table(path)}\n\npredicted anew from the saved models: UF1 {new.uf1:.3f}, UAR {new.uar:.3f}, "
        f"ACC {new.acc:.3f} on {len(now)} clips; {changed} answers differ from predictions.csv, "
        f"probabilities by at most {largest:.1e}"
    )
