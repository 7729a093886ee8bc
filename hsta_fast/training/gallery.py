"""Pictures of a fold's misclassified test clips: the movement, and where the model looks.

Onset, apex and their difference; and, for a model with CSTA, the weights of its last layer over the frames.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..checkpoint import load_model
from ..csta_maps import AttentionMaps, attention_maps
from ..data import Batch
from ..files import check_writable
from ..locks import locked
from ..model import HSTA
from ..pictures import enlarged_difference, heat, jpeg, resized
from ..protocol import (
    GALLERY,
    Fold,
    Picture,
    read_predictions,
    summary_of,
    worst_errors,
    write_gallery,
    write_report,
)
from .loop import model_inputs
from .run_folder import fold_folder
from .setup import Experiment

SIDE = 192  # of a picture, in pixels


def add_gallery(exp: Experiment, folder: Path, model: HSTA, fold: Fold, predictions: pd.DataFrame) -> None:
    """Write gallery.json of a fold; predictions: one row per clip of `fold.test`, in that order."""
    if exp.cfg.gallery:
        errors = worst_errors(predictions, exp.cfg.gallery)
        pictures = list(_pictures(exp, model, fold.test[errors.index]))
        write_gallery(folder, exp.cfg.gallery, errors, pictures)


def add_missing_gallery(exp: Experiment, path: Path) -> str:
    """Add the gallery to a run that has none, and write its report again; returns a sentence, or ""."""
    if not exp.cfg.gallery or next(path.glob(f"folds/*/{GALLERY}"), None) is not None:
        return ""
    finished = {n: fold_folder(path, n) for n in range(len(exp.folds))}
    finished = {n: folder for n, folder in finished.items() if (folder / "predictions.csv").exists()}
    try:
        for folder in (path, *finished.values()):
            check_writable(folder, "path", path)
    except OSError as error:
        return f"no gallery of misclassified clips is added: {error}"
    for number, folder in finished.items():
        model = load_model(folder / "model.safetensors").to(exp.device)
        add_gallery(exp, folder, model, exp.folds[number], read_predictions(folder / "predictions.csv"))
    with locked(path / ".writing.lock"):
        before = summary_of(path) if (path / "summary.json").exists() else {}
        report = write_report(path, before.get("trained"))
    return f"misclassified clips added to {report}"


def _pictures(exp: Experiment, model: HSTA, indices: np.ndarray) -> Iterator[list[Picture]]:
    """The pictures of each clip at `indices`, rows of the table."""
    config = model.config
    if not (config.csta and len(config.branches) == 2):
        yield from (_movement(exp, index) for index in indices.tolist())
        return
    if not len(indices):
        return
    seed, size = (exp.cfg.seed,), exp.cfg.batch_size
    for batch in exp.data.batches(indices, batch_size=size, seed=seed, train=False, device=exp.device):
        with exp.autocast():
            maps = attention_maps(model, **model_inputs(model, batch, exp.device))
        maps = AttentionMaps(*(x.cpu() for x in maps))
        for i, index in enumerate(batch.index.tolist()):
            yield _movement(exp, index) + _looks(exp, model, batch, maps, i)


def _movement(exp: Experiment, index: int) -> list[Picture]:
    """Onset, apex and their difference, as far as these frames are decoded."""
    onset, apex = (exp.data.picture(index, position) for position in (0, _apex(exp, index)))
    pictures = [_picture(name, x) for name, x in (("onset", onset), ("apex", apex)) if x is not None]
    if onset is not None and apex is not None:
        grey, times = enlarged_difference(onset, apex)
        pictures.append(_picture(f"apex minus onset, times {times}", grey))
    return pictures


def _looks(exp: Experiment, model: HSTA, batch: Batch, maps: AttentionMaps, i: int) -> list[Picture]:
    """The weights of both CLS, mean over the heads, over the frames of clip i of a batch."""
    config, sampling, index = model.config, exp.data.sampling, int(batch.index[i])
    shown = exp.data.test_positions(index, (exp.cfg.seed,))
    nearest = int(abs(shown - _apex(exp, index)).argmin())
    over_video = maps.special[i, :, nearest // config.tubelet_depth].mean(0).numpy()
    over_special = maps.video[i].mean(0)[-1].numpy()
    title = f"special CLS over video frame {nearest + 1} of {len(shown)}"
    pictures = [_heat(title, batch.video[i, :, nearest].cpu().numpy(), over_video, config.patch_sizes[1])]
    if sampling.flow is not None:
        under, title = exp.data.picture(index, _apex(exp, index)), "video CLS over the flow, on the apex"
    else:
        under = batch.special[i, :, 1].cpu().numpy()
        shows = "the onset, given twice" if exp.cfg.onset_only else " and ".join(sampling.special)
        title = f"video CLS over {shows}"
    if under is not None:
        pictures.append(_heat(title, under, over_special, config.patch_sizes[0]))
    return pictures


def _heat(title: str, frame: np.ndarray, weights: np.ndarray, patch: int) -> Picture:
    """A grey frame (3, H, W) coloured where a patch has more than the mean of the weights (h, w)."""
    image, peak = heat(frame, weights, patch, SIDE)
    return Picture(f"{title}, peak {peak:.1f} times the mean", jpeg(image))


def _picture(title: str, frame: np.ndarray) -> Picture:
    return Picture(title, jpeg(resized(frame, SIDE)))


def _apex(exp: Experiment, index: int) -> int:
    """The position of a clip's apex among its frames."""
    clip = exp.data.table.clips.iloc[index]
    return int(clip["apex"] - clip["onset"])
