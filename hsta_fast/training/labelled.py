"""The clips of a run with their labels: classes of a label set, or action units (`--task`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data import (
    ClipTable,
    Expression,
    LabelSet,
    add_neutral,
    apply_labels,
    apply_units,
    default_labels,
    label_set,
    read_datasets,
)
from ..files import as_on_disk
from ..spelling import did_you_mean
from .config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labelled clips of a run.

    cfg: with the name of a label set where its `labels` were "auto"; of action units it is unchanged.
    labels: the label set; of action units its classes are the units.
    dropped: the number of clips outside the label set, by emotion.
    remarks: what a reader of the scores must know of the units, or of the class "nothing".
    not_here: datasets that the label set names and that are not among the data.
    """

    cfg: TrainConfig
    clips: ClipTable
    labels: LabelSet
    dropped: dict[str, int]
    remarks: list[str]
    not_here: list[str]


def label_clips(cfg: TrainConfig) -> Labelled:
    """Read the clips of `cfg` and label them.

    Raises:
        ValueError: unusable data, or clips that cannot be labelled.
    """
    # A file of labels is read before the data are.
    given = None if cfg.labels == "auto" else label_set(cfg.labels, roots_of(cfg))
    found = read_clips(cfg)
    used = only_datasets(found, cfg.datasets)
    if cfg.task == "units":
        clips, units, remarks = apply_units(used)
        labels = LabelSet(name="units", classes=units, mapping={})
        return Labelled(cfg=cfg, clips=clips, labels=labels, dropped={}, remarks=remarks, not_here=[])
    if given is None:
        name, remark = default_labels(used)
        cfg, used = replace(cfg, labels=name), replace(used, remarks=(*used.remarks, remark))
    labels = given or label_set(cfg.labels, roots_of(cfg))
    clips, dropped = apply_labels(used, labels)
    not_here, remarks = labels.unknown_datasets(found.clips["dataset"]), list[str]()
    if cfg.with_neutral:
        where = roots_of(cfg), cfg.dataset, cfg.annotation
        clips, labels, remarks = add_neutral(clips, labels, *where, seed=cfg.seed)
    return Labelled(cfg=cfg, clips=clips, labels=labels, dropped=dropped, remarks=remarks, not_here=not_here)


def roots_of(cfg: TrainConfig) -> tuple[Path, ...]:
    """The folders of all datasets, spelled as on disk."""
    return tuple(as_on_disk(root) for root in (cfg.data, *cfg.more_data))


def read_clips(cfg: TrainConfig) -> ClipTable:
    """The clips of all datasets of `cfg`; with `cfg.macro`, macro-expressions too."""
    kinds: tuple[Expression, ...] = ("micro", "macro") if cfg.macro else ("micro",)
    return read_datasets(
        roots_of(cfg), cfg.dataset, annotation=cfg.annotation, expressions=kinds, strict=cfg.strict
    )


def only_datasets(clips: ClipTable, names: Sequence[str]) -> ClipTable:
    """The clips of the datasets `names`; all if `names` is empty.

    Raises:
        ValueError: one of the datasets has no clip.
    """
    if not names:
        return clips
    known = sorted(set(clips.clips["dataset"]))
    if set(names) - set(known):
        meant = did_you_mean(min(set(names) - set(known)), known)
        raise ValueError(f"--datasets expected some of {', '.join(known)}, got {', '.join(names)}{meant}")
    kept = clips.clips[clips.clips["dataset"].isin(list(names))].reset_index(drop=True)
    return replace(clips, clips=kept, faults=tuple(f for f in clips.faults if f.dataset in names))
