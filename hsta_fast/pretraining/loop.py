"""The training loop of a pretraining.

Every random draw is seeded from (seed, epoch, step), so that one that was stopped and is continued ends (on
the CPU) with the numbers of an uninterrupted one.
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..data import Augment, Batch, ClipData, steps
from ..model import BRANCHES, HSTA
from ..training import stopping
from ..training.distributed import ALONE
from ..training.epoch_part import EpochPart, part_if_stopped
from ..training.loop import model_inputs, seed_torch
from ..training.optim import check_finite, learning_rate
from ..training.progress import Progress
from .autoencoder import MaskedAutoencoder
from .folder import PretrainFolder
from .objective import tube_masks
from .settings import PretrainConfig


@dataclass
class Pretraining:
    """What is trained, with what, and how far it is."""

    cfg: PretrainConfig
    data: ClipData
    folder: PretrainFolder
    device: torch.device
    dtype: torch.dtype
    autoencoder: MaskedAutoencoder
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    epochs_done: int = 0
    part: EpochPart = field(default_factory=EpochPart)  # of the next epoch; totals: the loss of each branch

    def autocast(self) -> torch.autocast:
        """The context in which the model runs: products in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def build(
    cfg: PretrainConfig, data: ClipData, folder: PretrainFolder, device: torch.device, dtype: torch.dtype
) -> Pretraining:
    """The model and its decoders, freshly initialised, and the optimiser."""
    seed_torch(cfg.seed, 0)
    autoencoder = MaskedAutoencoder(
        HSTA(cfg.architecture()),
        image_size=cfg.image_size,
        num_frames=cfg.num_frames,
        target=cfg.target,
        visible_weight=cfg.visible_weight,
        decoder_layers=cfg.decoder_layers,
    ).to(device)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in autoencoder.named_parameters():
        groups[parameter.dim() > 1 and not ("cls_token" in name or "mask_token" in name)].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": some, "weight_decay": cfg.weight_decay if decays else 0.0}
            for decays, some in groups.items()
        ],
        lr=cfg.lr,
        betas=(0.9, 0.95),  # those of masked autoencoders (He et al. 2022, Tong et al. 2022)
        fused=True,
    )
    # Gradients too small for float16 would become zero. In other dtypes the scaler does nothing.
    scaler = GradScaler(device.type, enabled=dtype == torch.float16)
    return Pretraining(cfg, data, folder, device, dtype, autoencoder, optimizer, scaler)


def fit(training: Pretraining, progress: Progress) -> HSTA:
    """Train the epochs that are left; write checkpoints and metrics; returns the model.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        Stopped: SIGUSR1 came; a checkpoint after the last step is written.
    """
    cfg, folder = training.cfg, training.folder
    load_checkpoint(training)
    progress.start(training.epochs_done)
    for epoch in range(training.epochs_done, cfg.epochs):
        metrics = train_epoch(training, epoch, progress)
        training.epochs_done, training.part = epoch + 1, EpochPart()
        folder.append_metrics({"epoch": epoch + 1, **metrics})
        progress.epoch(metrics)
        if (epoch + 1) % cfg.save_every == 0 or epoch + 1 == cfg.epochs:
            save_checkpoint(training)
    return training.autoencoder.model


def train_epoch(training: Pretraining, epoch: int, progress: Progress) -> dict[str, float]:
    """One pass over the clips; `epoch` counts from 0. Returns the epoch's metrics."""
    cfg, part, device = training.cfg, training.part, training.device
    clips, schedule = len(training.data), cfg.as_training()
    num_steps, where = steps(clips, cfg.batch_size), f"epoch {epoch + 1}"
    training.autoencoder.train()
    totals = part.totals.to(device)
    start = time.perf_counter() - part.seconds
    batches = training.data.batches(
        range(clips),
        batch_size=cfg.batch_size,
        seed=(cfg.seed, epoch + 1),
        train=True,
        augment=Augment(flip=cfg.flip, crop=cfg.crop) if cfg.flip or cfg.crop else None,
        device=device,
        first=part.steps,
    )
    for step, batch in enumerate(progress.batches(batches, num_steps, part.steps), start=part.steps):
        losses = train_step(training, batch, epoch, step, learning_rate(schedule, epoch + step / num_steps))
        # Reading a number makes the CPU wait for the GPU, so on a GPU every 50th step only.
        if device.type == "cpu" or step % 50 == 0:
            check_finite(losses.sum().item(), f"{where}, step {step + 1}", training.folder.state_file)
        totals += losses * len(batch.index)
        stopped = part_if_stopped(step + 1, totals, time.perf_counter() - start, ALONE)
        if stopped is not None:
            training.part = stopped
            save_checkpoint(training)
            when = f"SIGUSR1 in {where}, after step {step + 1} of {num_steps}"
            raise stopping.Stopped(f"{when}; saved: --resume continues the run")
    of_branches = dict(zip(BRANCHES, (totals / clips).tolist(), strict=True))
    loss = sum(of_branches.values())
    check_finite(loss, where, training.folder.state_file)
    seconds = time.perf_counter() - start
    return {
        "lr": learning_rate(schedule, epoch + (num_steps - 1) / num_steps),
        "loss": loss,
        **{f"loss_{name}": of_branches[name] for name in training.autoencoder.model.config.branches},
        "seconds": seconds,
        "clips_per_second": clips / seconds,
    }


def train_step(training: Pretraining, batch: Batch, epoch: int, step: int, lr: float) -> Tensor:
    """One step of the optimiser; returns the losses of the special and the video branch, (2,) detached."""
    cfg, autoencoder, optimizer = training.cfg, training.autoencoder, training.optimizer
    frames = model_inputs(autoencoder.model, batch, training.device)
    masks = draw_masks(autoencoder, len(batch.index), cfg.mask_ratio, (cfg.seed, epoch + 1, step))
    with training.autocast():
        losses = autoencoder(frames, {name: mask.to(training.device) for name, mask in masks.items()})
    optimizer.zero_grad(set_to_none=True)
    training.scaler.scale(sum(losses.values())).backward()
    for group in optimizer.param_groups:
        group["lr"] = lr
    if cfg.clip_grad is not None:
        training.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(autoencoder.parameters(), cfg.clip_grad)
    training.scaler.step(optimizer)  # skips a step whose gradients overflowed
    training.scaler.update()  # and then halves the scale
    zero = torch.zeros((), device=training.device)
    return torch.stack([losses[name].detach() if name in losses else zero for name in BRANCHES])


def draw_masks(
    autoencoder: MaskedAutoencoder, clips: int, ratio: float, seed: tuple[int, ...]
) -> dict[str, Tensor]:
    """The hidden positions of each branch, bool (clips, P) on the CPU."""
    return {
        name: tube_masks(clips, autoencoder.positions[name], ratio, (*seed, d + 1))
        for d, name in enumerate(BRANCHES)
        if name in autoencoder.model.config.branches
    }


def save_checkpoint(training: Pretraining) -> None:
    """Save all that `load_checkpoint` needs to continue."""
    training.folder.save_state(
        {
            "model": training.autoencoder.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "epoch": training.epochs_done,
            "part": vars(training.part),
        }
    )


def load_checkpoint(training: Pretraining) -> None:
    """Continue from the last checkpoint, if there is one; drop metrics of later epochs."""
    if (state := training.folder.load_state()) is not None:
        training.autoencoder.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if saved on a device that needs no loss scale
            training.scaler.load_state_dict(state["scaler"])
        training.epochs_done, training.part = state["epoch"], EpochPart(**state["part"])
    training.folder.truncate_metrics(training.epochs_done)
