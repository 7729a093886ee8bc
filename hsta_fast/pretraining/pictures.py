"""Pictures of a pretraining: what was hidden and what the model makes of it, and the loss curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..model import BRANCHES
from ..protocol.plots import as_shipped, new_figure, png
from ..training.loop import model_inputs
from .loop import Pretraining, draw_masks
from .objective import targets

_CLIPS = 3
_SIDE, _GAP = 224, 8  # of a picture, in pixels
_GREY = 128  # of a hidden position
_DEVIATIONS = 3.0  # of a difference: from blue to red
_COLUMNS = ("last frame", "visible to the encoder", "target", "reconstruction")


@as_shipped
def loss_curve(metrics: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """The loss of each branch per epoch, as the bytes of a PNG file."""
    figure = new_figure(6.4, 3.6, title)
    axes = figure.subplots()
    for name in BRANCHES:
        if f"loss_{name}" in metrics[0]:
            losses = [line[f"loss_{name}"] for line in metrics]
            axes.plot([line["epoch"] for line in metrics], losses, label=f"{name} branch")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    return png(figure)


@torch.inference_mode()
def reconstructions(training: Pretraining) -> bytes:
    """Clips of different subjects, their targets and what the model predicts, as the bytes of a PNG file.

    One row for each branch of a clip. Masks are drawn with the seed of the epoch after the last.
    """
    cfg, data, autoencoder = training.cfg, training.data, training.autoencoder
    autoencoder.eval()
    _, firsts = np.unique(data.subjects, return_index=True)
    chosen = np.sort(firsts)[:_CLIPS]
    batch = next(data.batches(chosen, batch_size=len(chosen), seed=(cfg.seed,), train=False))
    frames = model_inputs(autoencoder.model, batch, training.device)
    masks = draw_masks(autoencoder, len(chosen), cfg.mask_ratio, (cfg.seed, cfg.epochs + 1))
    rows: list[tuple[str, list[np.ndarray]]] = []
    for name, mask in masks.items():
        with training.autocast():
            shown = _pictures(training, name, frames[name], mask.to(training.device))
        rows += [(f"{data.subjects[i]}, {name}", [x[n] for x in shown]) for n, i in enumerate(chosen)]
    return png(_figure(rows, f"{cfg.name}: target {cfg.target}, mask ratio {cfg.mask_ratio:g}"))


def _pictures(training: Pretraining, name: str, frames: Tensor, hidden: Tensor) -> list[np.ndarray]:
    """Of each clip the four columns, (B, H, W, 3) uint8 or (B, H, W) in standard deviations."""
    autoencoder, d = training.autoencoder, BRANCHES.index(name)
    config, target = autoencoder.model.config, training.cfg.target
    depth, p = config.tubelet_depth, config.patch_sizes[d]
    predicted, order, _ = autoencoder.predict(d, frames, hidden)
    in_order = torch.zeros_like(predicted, dtype=torch.float32)
    in_order.scatter_(1, order[:, :, None].expand_as(predicted), predicted.float())
    side = frames.shape[3] // p
    last = frames[:, :, -1, : side * p, : side * p].permute(0, 2, 3, 1).cpu().numpy()
    mask = hidden.view(-1, side, side).repeat_interleave(p, 1).repeat_interleave(p, 2).cpu().numpy()
    visible = np.where(mask[..., None], _GREY, last).astype(np.uint8)
    wanted = targets(frames, target, depth, p)
    if target == "difference":
        return [last, visible, *(_last_of_tokens(x, side, depth).cpu().numpy() for x in (wanted, in_order))]
    # Mean and deviation of a hidden tubelet are not predicted: those of the frames are taken.
    x = rearrange(
        frames[..., : side * p, : side * p].float() / 255,
        "b c (gt t) (gh p) (gw q) -> b (gt gh gw) c (t p q)",
        t=depth,
        p=p,
        q=p,
    )
    pixels = in_order.view_as(x) * x.std(3, keepdim=True) + x.mean(3, keepdim=True)
    drawn = [_last_frame(patches, side, depth, p) for patches in (x, pixels)]
    return [last, visible, *drawn]


def _last_of_tokens(tokens: Tensor, side: int, depth: int) -> Tensor:
    """The last frame (B, h, w) of differences (B, N, t c c)."""
    cells = int((tokens.shape[2] // depth) ** 0.5)
    pattern = "b (gt gh gw) (t p q) -> b (gt t) (gh p) (gw q)"
    return rearrange(tokens, pattern, gh=side, gw=side, t=depth, p=cells, q=cells)[:, -1]


def _last_frame(patches: Tensor, side: int, depth: int, p: int) -> np.ndarray:
    """The last frame (B, H, W, 3) uint8 of tubelets (B, N, 3, t p p) on the scale 0..1."""
    pattern = "b (gt gh gw) c (t p q) -> b (gt t) (gh p) (gw q) c"
    x = rearrange(patches, pattern, gh=side, gw=side, t=depth, p=p, q=p)[:, -1]
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


@as_shipped
def _figure(rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str) -> Figure:
    """A grid of pictures, drawn as one: matplotlib would take seconds for an axes of each."""
    step = _SIDE + _GAP
    canvas = np.full((len(rows) * step - _GAP, len(_COLUMNS) * step - _GAP, 3), 255, dtype=np.uint8)
    for i, (_, pictures) in enumerate(rows):
        for j, picture in enumerate(pictures):
            if picture.ndim == 2:
                share = picture / (2 * _DEVIATIONS) + 0.5
                picture = np.rint(colormaps["RdBu_r"](share)[..., :3] * 255).astype(np.uint8)
            drawn = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
            canvas[i * step : i * step + _SIDE, j * step : j * step + _SIDE] = drawn
    figure = new_figure(7.2, 1.75 * len(rows), title)
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="none")
    axes.set_xticks([j * step + _SIDE / 2 for j in range(len(_COLUMNS))], _COLUMNS, fontsize=8)
    axes.set_yticks(
        [i * step + _SIDE / 2 for i in range(len(rows))],
        [label for label, _ in rows],
        fontsize=7,
        rotation=90,
        va="center",
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
