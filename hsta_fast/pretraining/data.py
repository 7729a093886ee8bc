"""The clips of a pretraining: those of the datasets, whatever their labels."""

from dataclasses import replace

from ..clips import natural_key, person_key, subject_ids
from ..data import ClipData, ClipTable, Sampling, load_inputs
from ..spelling import did_you_mean
from ..training.labelled import read_clips
from ..training.setup import cache_of
from .settings import PretrainConfig


def clips_without_labels(cfg: PretrainConfig) -> ClipTable:
    """The clips of all datasets of `cfg`, without those of the subjects in `cfg.leave_out`.

    Raises:
        ValueError: unusable data, an unknown subject, or no subject is left.
    """
    table = read_clips(cfg.as_training())
    ids = subject_ids(table.clips)
    known = sorted(set(ids), key=natural_key)
    by_key = {person_key(subject) for subject in known}
    unknown = [subject for subject in cfg.leave_out if person_key(subject) not in by_key]
    if unknown:
        meant = did_you_mean(unknown[0], known)
        raise ValueError(f"--leave-out expected subjects such as {known[0]}, got {unknown[0]!r}{meant}")
    out = {person_key(subject) for subject in cfg.leave_out}
    kept = table.clips[[person_key(subject) not in out for subject in ids]].reset_index(drop=True)
    if not len(kept):
        raise ValueError(f"--leave-out expected fewer than all {len(known)} subjects, got {len(out)}")
    return replace(table, clips=kept)


def load_clips(cfg: PretrainConfig, table: ClipTable) -> ClipData:
    """The clips that can be shown, with their frames.

    Raises:
        ValueError: unusable frames.
    """
    sampling = Sampling(
        num_frames=cfg.num_frames, video=cfg.sampling, offset_cap=cfg.offset_cap, special=cfg.special
    )
    cache = cache_of(cfg.as_training())
    clips, frames, _ = load_inputs(
        table, sampling, cfg.image_size, apex=cfg.apex, cache=cache, strict=cfg.strict
    )
    # Batches have labels; here they mean nothing.
    return ClipData(replace(clips, clips=clips.clips.assign(label=0)), frames, sampling)


def subjects_of(data: ClipData) -> list[str]:
    """The subjects, "dataset/subject", in natural order."""
    return sorted(set(map(str, data.subjects)), key=natural_key)
