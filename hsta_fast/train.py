"""Training and testing under a subject-disjoint protocol: the one loop.

Every random draw is seeded from (seed, fold, epoch), so no fold depends on another, and a run that was killed
goes on as if it had not been.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from tqdm import tqdm

from .checkpoint import load_model, save_model
from .config import TrainConfig, from_json
from .data import Augment, Batch, picture_recipe, steps
from .environment import info_text
from .experiment import Experiment, describe, first_faults, fold_parts, inner_of, moved, prepare, subject_ids
from .files import write_atomically
from .model import HSTA
from .optim import Loss, learning_rate, parameter_groups
from .protocol import Fold, best_epoch, read_predictions, score, table, write_report, write_seeds
from .run import FoldFolder, RunFolder, check_clips, fold_folder, read_config
from .team import team

_PUBLISH_EVERY = (
    30.0  # seconds at least between reports of an unfinished run: folds may take less than a report
)


class NonFiniteLossError(ArithmeticError):
    """The loss is no number any more; training stopped before the last good checkpoint was overwritten."""


def main(cfg: TrainConfig) -> Path:
    """Train and test every fold, pool the predictions, write the report; returns the run's folder.

    In a team of processes (see `team`) each trains the folds that it takes. Several seeds are as many runs in
    the folder, and a table of their scores.

    Raises:
        ValueError: data, settings or a run folder that do not fit.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss is nan or infinite.
    """
    cfg.check()
    if cfg.seeds == 1:
        return train_run(cfg)
    folder = cfg.runs / cfg.name
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is a run of one seed: give another --name")
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    runs = {n: train_run(cfg.part(f"seed{n}", seed=n, seeds=1)) for n in seeds}
    if team().leads:
        print(f"\n{write_seeds(folder, runs)}\n\neach seed: {folder / 'seeds.csv'}")
    return folder


def train_run(cfg: TrainConfig) -> Path:
    """`main` for one seed."""
    ours = team()
    cfg = replace(cfg, resume=cfg.resume or ours.restarts > 0)
    exp = prepare(cfg, device=ours.device(cfg.device))

    def open_run(leads: bool) -> RunFolder:
        path, config = cfg.runs / cfg.name, describe(exp)
        run = RunFolder(path, config, resume=cfg.resume, team=ours.size > 1, leads=leads)
        run.same_clips(exp.data.table.clips.assign(**stamp(cfg)))
        if leads:
            columns = ["dataset", "subject", "clip", "onset", "what", "action"]
            faults = [asdict(fault) for fault in exp.data.table.faults]
            run.same_folds(fold_parts(exp).assign(**stamp(cfg)))
            run.write_table("faults.csv", pd.DataFrame(faults, columns=columns).assign(**stamp(cfg)))
            print_experiment(exp, run)
            publish(exp, run)  # what a process that was killed had left undone
        return run

    run = ours.lead_first(open_run)
    train_folds(exp, run)
    if ours.leads:
        if ours.size > 1:  # the last fold may be another's, who is still writing
            publish(exp, run)
        print(f"\n{table(run.path)}\n\nreport: {run.path / 'report.html'}")
    return run.path


def train_folds(exp: Experiment, run: RunFolder) -> None:
    """Train every wanted fold that nobody else does; return when all are finished, by whomever."""
    unpublished, published = False, time.monotonic()
    wanted = [n for n, fold in enumerate(exp.folds) if not exp.cfg.only or fold.name in exp.cfg.only]
    while waiting := [n for n in wanted if not run.fold(n).finished]:
        took = False
        for number in waiting:
            with run.fold(number).take() as mine:
                if not mine or run.fold(number).finished:
                    continue
                train_fold(exp, run.fold(number), number)
            took = unpublished = True
            if time.monotonic() - published > _PUBLISH_EVERY:
                publish(exp, run)
                unpublished, published = False, time.monotonic()
        if not took:
            time.sleep(0.2)  # others have them; whoever dies gives them back
    if unpublished:
        publish(exp, run)


def publish(exp: Experiment, run: RunFolder) -> None:
    """Pool the predictions of the finished folds and write their report."""
    with run.writing():
        if run.collect(len(exp.folds)):
            write_report(run.path)


def print_experiment(exp: Experiment, run: RunFolder) -> None:
    """What runs, on what, with which clips."""
    clips, data = exp.data.table, exp.data
    print(f"{info_text(exp.dtype)}\n\ndevice {exp.device}, {exp.dtype}: {exp.why}")
    print("".join(f"LEAKY: {reason}\n" for reason in exp.cfg.leaks()), end="")
    counts = zip(exp.class_counts(np.arange(len(data))), exp.labels.classes, strict=True)
    print(
        f"{len(data)} clips of {len(set(subject_ids(clips)))} subjects:",
        ", ".join(f"{n} {c}" for n, c in counts),
    )
    recipe = picture_recipe(data.sampling, exp.cfg.image_size, exp.cfg.apex)
    print("\n".join(f"{name}: {_words(how)}" for name, how in recipe.items()))
    if exp.dropped:
        print("outside the label set:", ", ".join(f"{n} {emotion}" for emotion, n in exp.dropped.items()))
    print("".join(f"{line}\n" for line in first_faults(clips, f", all in {run.path / 'faults.csv'}")), end="")


def _words(value: object) -> str:
    """Plain values of a recipe in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def train_fold(exp: Experiment, folder: FoldFolder, number: int) -> None:
    """Train fold `number` to the epoch that is to be tested; save its model and predictions."""
    cfg, fold = exp.cfg, exp.folds[number]
    title = f"fold {fold.name} ({number + 1} of {len(exp.folds)})"
    epochs = choose_epoch(exp, folder, number, title) if cfg.select == "inner" else cfg.epochs
    model, answers = fit(exp, folder, fold, (number,), epochs, title)
    if cfg.select == "best-test-epoch":
        epochs = best_epoch(exp.data.labels[fold.test], answers, len(exp.labels.classes)) + 1
    save_model(model, folder.path / "model.safetensors", notes=stamp(cfg))
    predictions = predictions_table(exp, fold, predict(exp, model, fold.test))
    folder.finish(predictions.assign(epoch=epochs, **stamp(cfg)))


def choose_epoch(exp: Experiment, folder: FoldFolder, number: int, title: str) -> int:
    """The epoch with the best UF1, pooled over inner folds of the training subjects; 1 is the first."""
    truth, answers = [], []
    for i, inner in enumerate(inner_of(exp, number)):
        own = folder.inner(i)
        path = own.path / "answers.npy"
        if not path.exists():
            # Longer than any outer fold's numbers, so that no two trainings draw the same.
            _, seen = fit(exp, own, inner, (number, i + 1, 1), exp.cfg.epochs, f"{title}, inner {inner.name}")
            write_atomically(path, partial(np.save, arr=seen))
        (own.path / "state.pt").unlink(missing_ok=True)
        truth.append(exp.data.labels[inner.test])
        answers.append(np.load(path))
    classes = len(exp.labels.classes)
    return best_epoch(np.concatenate(truth), np.concatenate(answers, axis=1), classes) + 1


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


def stamp(cfg: TrainConfig) -> dict[str, str]:
    """The column that scores which must not be believed carry with them, or none."""
    return {"leaky": " ".join(cfg.leaks())} if cfg.leaks() else {}


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
    rows = exp.data.table.clips.iloc[fold.test][["dataset", "subject", "clip", "onset"]]
    answers = {"fold": fold.name, "label": exp.data.labels[fold.test], "predicted": probabilities.argmax(1)}
    shares = {f"p_{name}": probabilities[:, i] for i, name in enumerate(exp.labels.classes)}
    return rows.reset_index(drop=True).assign(**answers, **shares)


def seed_torch(*numbers: int) -> None:
    """Seed torch from several numbers, without the collisions that their sum would have."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def evaluate(path: Path, data: Sequence[Path] = ()) -> str:
    """Predict the test clips of a run's finished folds anew, from its saved models, and score that.

    Args:
        path: the run's folder.
        data: where the data sets are now, if they have moved: one folder for each of --data and --more-data.

    Returns:
        The run's table of scores on record, then the new scores and how the predictions differ.

    Raises:
        ValueError: `path` is no run, has no finished fold, or its data are not what they were.
    """
    cfg = from_json(read_config(path))
    exp = prepare(moved(cfg, data) if data else cfg)
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
    before = read_predictions(path / "predictions.csv")
    both = now.merge(before, on=key, suffixes=("", "_before"))
    if not len(both) == len(now) == len(before):
        raise ValueError(
            f"{path / 'predictions.csv'} wants the {len(now)} clips of the finished folds, got {len(before)} "
            f"clips, {len(both)} of them among those"
        )
    other = int((both["label"] != both["label_before"]).sum() + (both["fold"] != both["fold_before"]).sum())
    if other:
        raise ValueError(
            f"{path / 'predictions.csv'} has other labels or folds than the run, in {other} places"
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
