"""Sets up what a run works on: the clips, their labels, the folds, the device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clips import subject_ids
from ..cpu_speed import measured
from ..data import (
    NEUTRAL,
    Cache,
    CachedArrays,
    ClipData,
    ClipTable,
    LabelSet,
    Sampling,
    check_flow_method,
    describe_inputs,
    load_inputs,
    times_shown,
)
from ..environment import cuda_dtype
from ..faces import Detector
from ..files import check_writable
from ..inputs import ModelInputs
from ..protocol import Fold
from ..spelling import did_you_mean
from .config import TrainConfig, to_json
from .initial import InitialWeights
from .labelled import label_clips, roots_of
from .optim import positive_weights
from .provenance import dtype_of_run
from .run_checks import read_starts
from .splits import inner_of, make_folds

RENDERED = "Rendered faces: these scores prove the machinery and say nothing about people."
AS_STARTED = "the run was started with it"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A configuration with its data, folds and device on this machine.

    `dropped`: the number of clips outside the label set, by emotion; `tested`: the people of all test folds;
    `leaks`: why the scores are leaky; `remarks`: what else a reader of them must know; `why`: the reason for
    the dtype; `initial`: what every model starts from.
    """

    cfg: TrainConfig
    initial: InitialWeights
    data: ClipData
    labels: LabelSet
    dropped: dict[str, int]
    folds: list[Fold]
    tested: list[str]
    leaks: list[str]
    remarks: list[str]
    device: torch.device
    dtype: torch.dtype
    why: str

    def autocast(self) -> torch.autocast:
        """The context in which the model runs: products in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def model_inputs(self) -> ModelInputs:
        """What a model of this experiment is trained on."""
        cfg, sampling = self.cfg, self.data.sampling
        return ModelInputs(
            classes=self.labels.classes,
            image_size=cfg.image_size,
            num_frames=sampling.num_frames,
            sampling=sampling.video,
            offset_cap=sampling.offset_cap,
            special=sampling.special,
            flow=sampling.flow,
            apex=cfg.apex,
            onset_only=sampling.onset_only,
            crop_face=cfg.crop_face,
            face=cfg.face,
            face_detector=Detector.named(cfg.face_detector).name,
            stabilise=cfg.stabilise,
            magnify=cfg.magnify,
            framing=self.data.framing,
            task=cfg.task,
            neutral=cfg.with_neutral,
        )

    def class_counts(self, indices: np.ndarray) -> np.ndarray:
        """The number of clips of each class, or that show each unit, at `indices`; int64 (classes,)."""
        if self.cfg.task == "units":
            return self.data.labels[indices].sum(0)
        return np.bincount(self.data.labels[indices], minlength=len(self.labels.classes))

    def positive_weights(self, indices: np.ndarray) -> np.ndarray:
        """The weights of the clips that show each unit, in a training on those at `indices`."""
        targets = self.data.labels[indices]
        return positive_weights(targets, times_shown(targets, self.cfg.balance))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a run before any frame is decoded.

    cfg: with the name of a label set where its `labels` were "auto"; clips: the labelled clips of the
    annotation, some of which may have unreadable frames; labels_not_here: datasets that the label set names
    and that are not among the data; remarks: what a reader of the scores must know of the action units.
    """

    cfg: TrainConfig
    initial: InitialWeights
    sampling: Sampling
    labels: LabelSet
    clips: ClipTable
    dropped: dict[str, int]
    labels_not_here: list[str]
    remarks: list[str]
    device: torch.device
    dtype: torch.dtype
    why: str


def set_up(cfg: TrainConfig, *, device: str | None = None) -> Experiment:
    """Pick the device (`device`, by default that of `cfg`), read annotation and frames, make the folds.

    Raises:
        ValueError: as `plan`, or unusable frames.
    """
    return decode(plan(cfg, device=device))


def plan(cfg: TrainConfig, *, device: str | None = None, run: Path | None = None) -> Plan:
    """All of `set_up` that needs no frame, so that whatever is wrong is said before they are decoded.

    run: the folder of the run that is continued, or scored again: its dtype holds (see `dtype_of_run`), and
        what its models started from (see `InitialWeights`).

    Raises:
        ValueError: an invalid setting, a device that does not exist, unusable data, a protocol that does not
            work on these clips, or an unknown fold in `cfg.only`.
    """
    cfg.check()
    find_device(device or cfg.device)
    if cfg.crop_face is not None:
        Detector.named(cfg.face_detector).check()
    initial = InitialWeights(cfg, run)
    sampling = Sampling(
        num_frames=cfg.num_frames,
        video=cfg.sampling,
        offset_cap=cfg.offset_cap,
        special=cfg.special,
        flow=cfg.flow,
        onset_only=cfg.onset_only,
    )
    if cfg.flow is not None:
        check_flow_method(cfg.flow)
    labelled = label_clips(cfg)
    cfg = labelled.cfg
    check_folds(cfg, labelled.clips)
    # Last, because it may have to build the extension, which it times.
    widths = cfg.architecture(num_classes=2).widths
    starts = read_starts(run) if run is not None and cfg.dtype == "auto" else []
    picked, dtype, why = pick_device(device or cfg.device, cfg.dtype, width=max(widths), starts=starts)
    return Plan(
        cfg=cfg,
        initial=initial,
        sampling=sampling,
        labels=labelled.labels,
        clips=labelled.clips,
        dropped=labelled.dropped,
        labels_not_here=labelled.not_here,
        remarks=labelled.remarks,
        device=picked,
        dtype=dtype,
        why=why,
    )


def decode(plan: Plan) -> Experiment:
    """Read the frames of `plan` and make the folds of the clips that can be shown.

    Raises:
        ValueError: unusable frames, or the protocol does not work on the clips that are left.
    """
    cfg = plan.cfg
    clips, frames, flow = load_inputs(
        plan.clips,
        plan.sampling,
        cfg.image_size,
        apex=cfg.apex,
        recipe=cfg.picture_recipe(),
        cache=cache_of(cfg),
        strict=cfg.strict,
    )
    if cfg.shuffle_labels:
        labels, shown = clips.clips["label"].to_numpy(copy=True), clips.clips["expression"] != NEUTRAL
        labels[shown] = np.random.default_rng(cfg.seed).permutation(labels[shown])
        clips = replace(clips, clips=clips.clips.assign(label=labels))
    folds, remarks = check_folds(cfg, clips)
    tested = sorted(set(subject_ids(clips.clips).iloc[np.concatenate([fold.test for fold in folds])]))
    remarks += [*plan.remarks, *plan.initial.remarks(tested)]
    if names := ", ".join(plan.labels_not_here):
        remarks.append(f"{cfg.labels} speaks of data sets that are not here: {names}.")
    units = plan.labels.classes if cfg.task == "units" else ()
    data = ClipData(clips, frames, plan.sampling, flow, units)
    for fold in folds:
        shown, last = data.labels[fold.train], len(plan.labels.classes) - 1
        never = [unit for k, unit in enumerate(units) if not shown[:, k].any()]
        if cfg.with_neutral and not (shown == last).any():
            never = [plan.labels.classes[last]]
        if never:
            what = f"No training clip of fold {fold.name} shows {', '.join(never)}"
            remarks.append(f"{what}, so no model could learn that.")
    return Experiment(
        cfg=cfg,
        initial=plan.initial,
        data=data,
        labels=plan.labels,
        dropped=plan.dropped,
        folds=folds,
        tested=tested,
        leaks=[*cfg.leaks(), *plan.initial.leaks(tested)],
        remarks=remarks,
        device=plan.device,
        dtype=plan.dtype,
        why=plan.why,
    )


def known_after_decoding(cfg: TrainConfig) -> list[str]:
    """The columns of a run's clips.csv that differ in `Plan.clips`, besides the clips that are left out."""
    return ["apex"] * (cfg.apex != "annotated") + ["label"] * cfg.shuffle_labels


def check_folds(cfg: TrainConfig, clips: ClipTable) -> tuple[list[Fold], list[str]]:
    """`make_folds`, and a check of the folds in `cfg.only` and of the inner folds of those to be trained."""
    folds, remarks = make_folds(cfg, clips)
    names = [fold.name for fold in folds]
    unknown = sorted(set(cfg.only) - set(names))
    if unknown:
        meant = did_you_mean(unknown[0], names)
        raise ValueError(f"--only expected folds of {', '.join(names)}, got {', '.join(unknown)}{meant}")
    if cfg.select == "inner":
        for fold in folds:
            if not cfg.only or fold.name in cfg.only:
                inner_of(cfg, clips, fold)
    return folds, remarks


def cache_of(cfg: TrainConfig) -> Cache | None:
    """The cache of decoded frames; None with --cache none."""
    folder = cfg.cache_folder()
    return None if folder is None else Cache(folder=folder, limit=int(cfg.cache_gb * 1e9))


def fill_cache(cfg: TrainConfig) -> str:
    """Write all model inputs of the run `cfg` to the cache; returns a summary, with the dataset's faults.

    Raises:
        ValueError: as `set_up`; --cache is none; or something could not be written to the cache.
        OSError: the cache cannot be created or written.
    """
    cfg.check()
    cfg.check_warm_up()  # said here, before what `train` with the same flags would refuse is decoded
    cache = cache_of(cfg)
    if cache is None:
        raise ValueError("--cache expected the folder to fill, got 'none'")
    check_writable(cache.folder, "--cache", cache.folder)
    data = set_up(cfg, device="cpu").data  # the run's own device may be on another machine
    arrays = {"frames": data.store.pixels, "flows": data.flow}
    cached = {name: items for name, items in arrays.items() if isinstance(items, CachedArrays)}
    not_written = sum(items.in_memory for items in cached.values())
    if not_written:
        raise ValueError(f"{cache.folder}: {not_written} frames or flows could not be written, see above")
    counts = ", ".join(f"{len(set(items.places))} {name}" for name, items in cached.items())
    size = sum(sum(part.nbytes for part in items.parts) for items in cached.values())
    summary = f"{cache.folder}: {len(data)} clips, {counts}, {size / 1e6:.0f} MB, checked"
    return "\n".join([summary, *remarks_and_faults(data.table, ", all listed by hsta-fast doctor")])


def remarks_and_faults(clips: ClipTable, where: str) -> list[str]:
    """Lines with the remarks, the number of faults and the first ones; where: where all faults are."""
    lines = [f"remark: {remark}" for remark in clips.remarks]
    if clips.faults:
        lines.append(f"{len(clips.faults)} faults of the dataset{where}; the first ones:")
    return [*lines, *(f"  {fault}" for fault in clips.faults[:5])]


def with_data_roots(cfg: TrainConfig, data: Sequence[Path]) -> TrainConfig:
    """`cfg` with its datasets in the folders `data`, in the same order.

    An annotation inside the first folder is looked for in its new place.

    Raises:
        ValueError: the number of folders differs.
    """
    before = roots_of(cfg)
    if len(data) != len(before):
        names = ", ".join(map(str, before))
        raise ValueError(f"--data expected a folder for each of {names}, got {len(data)} for {len(before)}")
    annotation = cfg.annotation
    if annotation is not None and annotation.is_relative_to(cfg.data):
        annotation = data[0] / annotation.relative_to(cfg.data)
    return replace(cfg, data=data[0], more_data=tuple(data[1:]), annotation=annotation)


def find_device(device: str) -> torch.device:
    """The device of this name; "auto": a CUDA device where there is one.

    Raises:
        ValueError: the device does not exist.
    """
    cuda = torch.cuda.is_available()
    try:
        picked = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ValueError(f"--device expected auto, cpu, cuda or cuda:0, got {device!r}") from error
    available = 1 if picked.type == "cpu" else torch.cuda.device_count() if picked.type == "cuda" else 0
    if (picked.index or 0) >= available:
        found = f"torch {torch.__version__} finds no such device"
        raise ValueError(f"--device expected a device of this machine, got {device}: {found}")
    return picked


def pick_device(
    device: str, dtype: str, *, width: int = 768, starts: Sequence[Mapping[str, Any]] = ()
) -> tuple[torch.device, torch.dtype, str]:
    """The device and the dtype of the matrix products, each "auto" or as requested, and why this dtype.

    Args:
        device: "auto", or a device's name.
        dtype: "auto", or a dtype's name. "auto" on a CPU is measured once, in 50 ms (`hsta_fast.cpu_speed`).
        width: of the widest branch of the model.
        starts: of the run that is continued (`read_starts`): "auto" is what it has on this kind of device.

    Raises:
        ValueError: the device does not exist.
    """
    picked = find_device(device)
    if dtype != "auto":
        slow = ", but torch multiplies float16 on CPUs up to a thousand times slower than float32"
        why = "as asked for" + slow * (picked.type == "cpu" and dtype == "float16")
        return picked, getattr(torch, dtype), why
    if (before := dtype_of_run(starts, picked.type)) is not None:
        return picked, getattr(torch, before), AS_STARTED
    if picked.type == "cuda":
        return picked, *cuda_dtype(picked)
    rates = measured().rates(width)
    float32 = max(rates.torch, rates.panels)
    why = f"products at width {width}: {rates.bfloat16:.0f} GFLOP/s in bfloat16, {float32:.0f} in float32"
    return picked, torch.bfloat16 if rates.bfloat16_pays() else torch.float32, why


def is_rendered(cfg: TrainConfig) -> bool:
    """Whether any of the datasets is rendered."""
    return any((root / "synthetic.json").exists() for root in roots_of(cfg))


def caveats(cfg: TrainConfig) -> list[str]:
    """What a reader of the scores must know about the data and the labels, one sentence each."""
    notes = []
    if is_rendered(cfg):
        notes.append(RENDERED)
    if cfg.shuffle_labels:
        notes.append("Control: labels shuffled among all clips.")
    if cfg.onset_only:
        notes.append("Control: every frame is the onset frame.")
    if cfg.macro:
        notes.append("Macro-expressions of the training subjects were training data; none was tested.")
    return notes


def describe(exp: Experiment) -> dict[str, Any]:
    """The contents of config.json: the settings, and what follows from them on these data.

    --resume compares this (except MAY_CHANGE): rewording a sentence here stops older runs from continuing.
    """
    cfg, weights = exp.cfg, dict[str, Any]()
    if cfg.task == "units":
        each = {fold.name: exp.positive_weights(fold.train).round(4).tolist() for fold in exp.folds}
        weights = {"positive_weights": each}
    return (
        describe_settings(cfg, exp.labels, exp.data.sampling, exp.initial)
        | {
            "num_folds": len(exp.folds),
            "train_counts": {fold.name: exp.class_counts(fold.train).tolist() for fold in exp.folds},
            "notes": [*caveats(cfg), *exp.remarks],
            "leaky": exp.leaks,
        }
        | weights
    )


def describe_settings(
    cfg: TrainConfig, labels: LabelSet, sampling: Sampling, initial: InitialWeights
) -> dict[str, Any]:
    """The part of `describe` that no clip changes."""
    return to_json(cfg) | {
        "classes": list(labels.classes),
        "architecture": asdict(initial.architecture(len(labels.classes))),
        "pretrained": initial.record,
        "pictures": describe_inputs(sampling, cfg.image_size, cfg.apex, cfg.picture_recipe()),
    }
