"""Trains and tests one fold of a run, with its inner folds if they choose the epoch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..checkpoint import save_model
from ..files import write_atomically
from ..protocol import best_epoch
from .config import TrainConfig, leak_columns
from .distributed import ALONE, Team
from .evaluate import predictions_table
from .gallery import add_gallery
from .loop import fit, predict
from .progress import RunProgress
from .run_folder import FoldFolder, scalars_folder
from .scalars import FoldScalars
from .setup import Experiment, caveats
from .splits import inner_of


def train_fold(
    exp: Experiment,
    folder: FoldFolder,
    number: int,
    run_progress: RunProgress | None = None,
    team: Team = ALONE,
) -> None:
    """Train fold `number` up to the epoch to test; save its model and predictions.

    All ranks of `team` call this together; the main process writes.
    """
    cfg, fold, run_progress = exp.cfg, exp.folds[number], run_progress or RunProgress()
    inner = cfg.select == "inner"
    epochs = choose_epoch(exp, folder, number, run_progress, team) if inner else cfg.epochs
    scalars = scalars_of(cfg, folder, number) if team.is_main else None
    before = epochs_of_fold(cfg) - cfg.epochs
    with run_progress.training(
        number, fold_title(exp, number), epochs, before=before, scalars=scalars
    ) as progress:
        model, predicted = fit(exp, folder, fold, (number,), epochs, progress, team)
    if cfg.select == "best-test-epoch":
        epochs = best_epoch(exp.data.labels[fold.test], predicted, len(exp.labels.classes)) + 1
    logits = predict(exp, model, fold.test, team)
    if not team.is_main:
        return
    notes = exp.initial.notes(exp.data.subjects[fold.train].tolist()) | leak_columns(exp.leaks)
    # The file may be published, so the remarks on its start name nobody.
    if remarks := [*caveats(cfg), *exp.initial.remarks(exp.tested, named=False)]:
        notes["caveats"] = " ".join(remarks)
    save_model(model, folder.path / "model.safetensors", inputs=exp.model_inputs(), notes=notes)
    predictions = predictions_table(exp, fold, logits)
    add_gallery(exp, folder.path, model, fold, predictions)
    folder.finish(predictions.assign(epoch=epochs, **leak_columns(exp.leaks)))


def choose_epoch(
    exp: Experiment,
    folder: FoldFolder,
    number: int,
    run_progress: RunProgress | None = None,
    team: Team = ALONE,
) -> int:
    """The epoch (1, 2, ...) with the best UF1, pooled over inner folds of the training subjects."""
    truth, predictions, run_progress = [], [], run_progress or RunProgress()
    for i, inner in enumerate(inner_of(exp.cfg, exp.data.table, exp.folds[number])):
        inner_folder = folder.inner(i)
        path = inner_folder.path / "answers.npy"
        predicted = team.from_main(partial(_load_if_there, path))
        if predicted is None:
            # The trailing 1: SeedSequence ignores trailing zeros, so without it the seed of the weights,
            # (seed, number, i + 1, 0), would equal that of epoch i + 1 of the outer fold.
            stream, epochs = (number, i + 1, 1), exp.cfg.epochs
            title = f"{fold_title(exp, number)}, inner {inner.name}"
            with run_progress.training(number, title, epochs, before=i * epochs, last=False) as progress:
                _, predicted = fit(exp, inner_folder, inner, stream, epochs, progress, team)
            if team.is_main:
                write_atomically(path, partial(np.save, arr=predicted))
        if team.is_main:
            inner_folder.state_file.unlink(missing_ok=True)
        truth.append(exp.data.labels[inner.test])
        predictions.append(predicted)
    classes = len(exp.labels.classes)
    return best_epoch(np.concatenate(truth), np.concatenate(predictions, axis=1), classes) + 1


def scalars_of(cfg: TrainConfig, folder: FoldFolder, number: int) -> Callable[[], FoldScalars] | None:
    """Makes the writer of TensorBoard scalars of fold `number`; None without --log tensorboard."""
    if "tensorboard" not in cfg.log:
        return None
    return lambda: FoldScalars(scalars_folder(cfg.runs / cfg.name, number), folder.metrics())


def epochs_of_fold(cfg: TrainConfig) -> int:
    """The largest number of epochs that a fold takes, with its inner folds."""
    return cfg.epochs * (1 + (cfg.inner_folds if cfg.select == "inner" else 0))


def fold_title(exp: Experiment, number: int) -> str:
    """Names fold `number` in messages."""
    return f"fold {exp.folds[number].name} ({number + 1} of {len(exp.folds)})"


def _load_if_there(path: Path) -> np.ndarray | None:
    return np.load(path) if path.exists() else None
