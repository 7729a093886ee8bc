"""What `hsta-fast doctor` finds: the dataset, faults of every row and frame, counts next to the published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..clips import KEY, identity
from ..faces import find_faces
from ..files import as_on_disk
from ..threads import thread_pool
from .clips import UNREADABLE, ClipTable, Fault, fault_of
from .frames.cache import Made
from .frames.decode import by_file, odd_size, read_frames
from .labels.megc2019 import PUBLISHED as COMPOSITE
from .labels.megc2019 import composite_labels, official_labels
from .labels.sets import LABEL_SETS, THREE_CLASSES, LabelSet, apply_labels, name_key
from .readers.annotation import find_annotation
from .readers.base import EXPRESSIONS
from .readers.registry import READERS, check_people, join, recognise, scan, version_of
from .remarks import FaceSizes, darkness_remarks, face_remarks, face_sizes

CLEAN, FAULTS, UNUSABLE = 0, 1, 2  # exit statuses

# What the owners published: clips, subjects, and clips of each emotion. None: not known.
PUBLISHED: dict[str, dict[str, int | None]] = {
    "casme2": {
        "micro-expressions": 255,
        "subjects": 26,
        "others": 99,
        "disgust": 63,
        "happiness": 32,
        "repression": 27,
        "surprise": 25,
        "sadness": 7,
        "fear": 2,
    },
    "samm": {
        "micro-expressions": 159,
        "subjects": 29,
        "anger": 57,
        "happiness": 26,
        "other": 26,
        "surprise": 15,
        "contempt": 12,
        "disgust": 9,
        "fear": 8,
        "sadness": 6,
    },
    "smic": {"micro-expressions": 164, "subjects": 16, "negative": 70, "positive": 51, "surprise": 43},
    # The whole table, faulty rows included. Public code has a part: 687 rows, 87 subjects, 449 / 54 / 184.
    "casme3": {
        "micro-expressions": 860,
        "macro-expressions": 3346,
        "subjects": 94,
        "others": 161,
        "disgust": 250,
        "surprise": 187,
        "fear": 86,
        "anger": 64,
        "sad": 57,
        "happy": 55,
    },
    "mmew": {"micro-expressions": 300, "subjects": 36},
    "dfme": {"micro-expressions": 1856, "subjects": 176},  # of the training part
    "casme": {"micro-expressions": 195},  # Yan et al. 2013; public copies of the table have 189 rows
    # As public code for spotting counts them.
    "casme_squared": {"micro-expressions": 57, "macro-expressions": 300, "subjects": 22},
    "samm_long": {"micro-expressions": 159, "macro-expressions": 343},  # Yap et al. 2020
}
_CASME3_CLASSES = (457, 55, 187)
# Three clips of CASME II changed from sadness to surprise in the coding of 2019.
_CASME2_2019 = {"surprise": 28, "sadness": 4}
_CHANGED_IN_2019 = {name_key("casme2", "sub24", clip) for clip in ("EP07_01", "EP07_04f", "EP10_03")}


@dataclass(frozen=True)
class Count:
    """One count: what is counted, how many are here, how many were published (None: not known)."""

    what: str
    found: int
    published: int | None


@dataclass(frozen=True)
class Diagnosis:
    """The findings for one folder; `error` is one line if it cannot be used, else empty."""

    root: Path
    dataset: str = ""
    version: str = ""
    annotation: str = ""
    table: ClipTable | None = None
    faults: tuple[Fault, ...] = ()
    broken: dict[str, str] | None = None
    counts: tuple[Count, ...] = ()
    frames: int = 0
    error: str = ""
    faces: FaceSizes | None = None

    @property
    def status(self) -> int:
        """CLEAN, FAULTS or UNUSABLE."""
        return UNUSABLE if self.error else FAULTS if self.faults else CLEAN


@dataclass(frozen=True)
class Examination:
    """The findings for all folders, and for the composite of their micro-expressions."""

    diagnoses: tuple[Diagnosis, ...]
    composite: tuple[Count, ...]
    differences: tuple[Fault, ...]

    @property
    def status(self) -> int:
        """The worst status of a folder; at least FAULTS if the composite differs from its list."""
        worst = max(diagnosis.status for diagnosis in self.diagnoses)
        return max(worst, FAULTS if self.differences else CLEAN)


def examine(
    roots: Sequence[Path],
    dataset: str = "auto",
    *,
    annotation: Path | None = None,
    official: Path | None = None,
    progress: bool = True,
) -> Examination:
    """Check every row and every frame of the copies at `roots`.

    official: the composite's official list; default: the one in a root.

    Raises ValueError if the arguments do not fit together or the official list cannot be read.
    """
    if len(roots) > 1 and (dataset != "auto" or annotation is not None):
        raise ValueError(
            "--dataset and --annotation expected one folder of data, got several (recognised by themselves)"
        )
    labels = official_labels(official) if official is not None else None
    roots = [as_on_disk(root) for root in roots]
    diagnoses: tuple[Diagnosis, ...] = ()
    for root in roots:
        earlier = [diagnosis.dataset for diagnosis in diagnoses]
        diagnoses += (_diagnose(root, dataset, annotation, progress, earlier),)
    if official is not None and not any(d.dataset in COMPOSITE for d in diagnoses):
        raise ValueError(f"--official expected a folder of {', '.join(COMPOSITE)}, got none")
    return Examination(diagnoses, *_composite(diagnoses, roots, labels))


def _diagnose(
    root: Path, dataset: str, annotation: Path | None, progress: bool, earlier: Sequence[str]
) -> Diagnosis:
    """The diagnosis of one folder; earlier: the datasets of the folders before it."""
    name = version = ""
    try:
        if dataset == "auto":
            dataset, version = recognise(root, annotation)
        name = dataset
        check_people([*earlier, dataset])
        table = scan(root, dataset, annotation=annotation, expressions=EXPRESSIONS)
        reader = READERS[dataset]
        version = version or version_of(dataset, root, annotation)
        if (dataset, version) != ("smic", "cropped"):  # which has no annotation
            annotation = annotation or find_annotation(root, reader.columns)
    except (ValueError, OSError) as error:
        return Diagnosis(root, name, version, error=" ".join(str(error).split()))
    broken, sizes = check_frames(table, progress=progress)
    remarks, faces = check_first_frames(table)
    table = replace(table, remarks=(*table.remarks, *remarks))
    found = Diagnosis(
        root,
        dataset,
        version,
        _shown(annotation, root) if annotation else "no annotation needed",
        table,
        (*table.faults, *_frame_faults(table, broken, sizes)),
        broken,
        tuple(_counts(table.clips, dataset, _published(dataset, table.clips, annotation))),
        len(broken) + len(sizes),
        faces=faces,
    )
    if not len(table):
        found = replace(found, error=f"{root}: expected at least one usable clip, got none")
    return found


def _shown(annotation: Path, root: Path) -> str:
    """The annotation's path below the root, or its name if it lies elsewhere."""
    return annotation.relative_to(root).as_posix() if annotation.is_relative_to(root) else annotation.name


def check_frames(
    table: ClipTable, *, progress: bool = True
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Over all frames of all clips: path -> what is wrong with it; path -> (width, height) of the others.

    Every frame is decoded as a run would decode it; files are read in parallel, each video once.
    """
    paths = list(dict.fromkeys(path for frames in table.clips["frames"] for path in frames))

    def check_file(positions: list[int]) -> list[tuple[str, Made]]:
        names = [paths[position] for position in positions]
        made = read_frames(table.root, names, lambda image: np.array(image.shape))
        bar.update(len(names))
        return list(zip(names, made, strict=True))

    broken: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    bar = tqdm(total=len(paths), desc=f"check {table.root}", unit="frame", disable=not progress)
    # Threads, not processes: the decoders release the interpreter lock.
    with bar, thread_pool() as pool:
        for found in pool.map(check_file, by_file(paths)):
            broken |= {name: str(made) for name, made in found if isinstance(made, ValueError)}
            sizes |= {n: (int(m[1]), int(m[0])) for n, m in found if not isinstance(m, ValueError)}
    return broken, sizes


def _frame_faults(
    table: ClipTable, broken: Mapping[str, str], sizes: Mapping[str, tuple[int, int]]
) -> list[Fault]:
    faults = []
    for clip in table.clips.to_dict("records"):
        bad = [path for path in clip["frames"] if path in broken]
        more = f" (and {len(bad) - 1} more of its frames)" if len(bad) > 1 else ""
        if what := f"{bad[0]}: {broken[bad[0]]}{more}" if bad else odd_size(clip["frames"], sizes):
            faults.append(fault_of(clip, what, UNREADABLE))
    return faults


def check_first_frames(table: ClipTable) -> tuple[list[str], FaceSizes | None]:
    """Remarks on faces and dark pictures, and the sizes of faces, in the first onset of each person."""
    faces, brightest, no_faces = [], [], list[str]()
    firsts = table.clips.drop_duplicates(["dataset", "subject"]).to_dict("records")
    for clip in firsts:
        (image,) = read_frames(table.root, clip["frames"][:1], lambda image: image)
        if isinstance(image, ValueError):
            continue
        name = identity(*(clip[name] for name in KEY))
        brightest.append((name, float(np.quantile(image, 0.999))))
        try:
            found = [] if no_faces else find_faces(image)[:1]
        except ImportError:
            no_faces = ["the size of faces is not checked: pip install 'hsta_fast[video]'"]
            continue
        height, width = image.shape[:2]
        faces += [(name, face.height / height, face.width / width) for face in found]
    people = 0 if no_faces else len(brightest)
    remarks = [*no_faces, *face_remarks(people, faces), *darkness_remarks(brightest)]
    return remarks, face_sizes(people, faces)


def _published(dataset: str, clips: pd.DataFrame, annotation: Path | None) -> dict[str, int | None]:
    """The published counts of a dataset; of CASME II those of the coding that the copy has."""
    known = PUBLISHED.get(dataset, {})
    if dataset != "casme2":
        return known
    names = zip(clips["subject"], clips["clip"], strict=True)
    changed = [name_key(dataset, *name) in _CHANGED_IN_2019 for name in names]
    words = set(clips.loc[changed, "emotion"])
    is_2019 = words == {"surprise"} if words else annotation is not None and "2019" in annotation.name
    return {**known, **_CASME2_2019} if is_2019 else known


def _counts(clips: pd.DataFrame, dataset: str, known: dict[str, int | None]) -> list[Count]:
    kinds = clips["expression"].value_counts()
    micro = clips[clips["expression"] == "micro"]
    emotions = micro.loc[micro["emotion"] != "", "emotion"].value_counts().to_dict()
    found = {"micro-expressions": int(kinds.get("micro", 0)), "macro-expressions": int(kinds.get("macro", 0))}
    # Of CAS(ME)3, people who have macro-expressions only are not among the published subjects.
    found["subjects"] = int((micro if len(micro) else clips)["subject"].nunique())
    found |= {str(word): int(count) for word, count in emotions.items()}
    words = [word for word in known if word not in ("micro-expressions", "macro-expressions", "subjects")]
    if len(micro) and not emotions:  # the table has none
        words = []
    first = [
        what
        for what in ("micro-expressions", "macro-expressions", "subjects")
        if found[what] or what in known
    ]
    counts = [
        Count(what, found.get(what, 0), known.get(what, None if dataset not in PUBLISHED or not words else 0))
        for what in dict.fromkeys([*first, *words, *sorted(map(str, emotions))])
    ]
    if dataset == "casme3" and emotions:
        classes = LABEL_SETS["emotion3"]
        mapped = micro["emotion"].map(dict(classes.mapping)).value_counts()
        for name, number in zip(THREE_CLASSES, _CASME3_CLASSES, strict=True):
            counts.append(Count(f"3 classes: {name}", int(mapped.get(name, 0)), number))
    return counts


def _composite(
    diagnoses: Sequence[Diagnosis], roots: Sequence[Path], labels: LabelSet | None
) -> tuple[tuple[Count, ...], tuple[Fault, ...]]:
    """The composite's counts over all folders of its datasets, and the differences from an official list."""
    tables = [d.table for d in diagnoses if d.table is not None and len(d.table) and d.dataset in COMPOSITE]
    if not tables:
        return (), ()
    joined = join(tables)
    try:
        labelled, _ = apply_labels(replace(joined, faults=()), labels or composite_labels(roots))
    except ValueError as error:
        return (), (Fault("megc2019", "?", "?", None, str(error), "no composite"),)
    counts = []
    here = [dataset for dataset in COMPOSITE if dataset in set(joined.clips["dataset"])]
    totals = [0, 0, 0, 0]
    for dataset in here:
        clips = labelled.clips[labelled.clips["dataset"] == dataset]
        found = [int((clips["label"] == label).sum()) for label in range(3)] + [clips["subject"].nunique()]
        published = (*COMPOSITE[dataset][0], COMPOSITE[dataset][1])
        for what, number, known in zip((*THREE_CLASSES, "subjects"), found, published, strict=True):
            counts.append(Count(f"{dataset} {what}", number, known))
        totals = [total + number for total, number in zip(totals, found, strict=True)]
    if len(here) == len(COMPOSITE):
        counts += [Count("all clips", sum(totals[:3]), 442), Count("all subjects", totals[3], 68)]
    return tuple(counts), labelled.faults


def as_text(examination: Examination) -> str:
    """The examination as text for people."""
    lines: list[str] = []
    for diagnosis in examination.diagnoses:
        reader = READERS.get(diagnosis.dataset)
        names = (reader.title, diagnosis.version, diagnosis.annotation) if reader else ("not recognised",)
        title = ", ".join(filter(None, names))
        lines += [f"{diagnosis.root}: {title}", ""]
        if diagnosis.error:
            lines += [f"unusable: {diagnosis.error}", ""]
        if diagnosis.faults:
            count = len(diagnosis.faults)
            lines += [f"{count} fault" if count == 1 else f"{count} faults"]
            lines += [*(f"  {fault}" for fault in diagnosis.faults), ""]
        elif not diagnosis.error:
            lines += [f"no fault in any row or any of {diagnosis.frames} frames", ""]
        if diagnosis.table is not None and diagnosis.table.remarks:
            lines += ["remarks", *(f"  {remark}" for remark in diagnosis.table.remarks), ""]
        lines += _table(diagnosis.counts)
    if examination.composite or examination.differences:
        lines += ["MEGC 2019 composite", ""]
        lines += [f"  {fault}" for fault in examination.differences]
        lines += _table(examination.composite)
    return "\n".join(lines).rstrip()


def _table(counts: Sequence[Count]) -> list[str]:
    if not counts:
        return []
    width = max(len(count.what) for count in counts)
    lines = [f"{'':{width}}   found  published"]
    for count in counts:
        known = "not known" if count.published is None else str(count.published)
        mark = "" if count.published in (None, count.found) else "  differs"
        lines.append(f"{count.what:{width}}  {count.found:6}  {known:>9}{mark}")
    return [*lines, ""]


def as_json(examination: Examination) -> dict[str, Any]:
    """The examination as plain values."""
    return {
        "status": examination.status,
        "folders": [
            {
                "root": str(diagnosis.root),
                "dataset": diagnosis.dataset,
                "version": diagnosis.version,
                "annotation": diagnosis.annotation,
                "status": diagnosis.status,
                "error": diagnosis.error,
                "clips": 0 if diagnosis.table is None else len(diagnosis.table),
                "frames": diagnosis.frames,
                "faults": [asdict(fault) for fault in diagnosis.faults],
                "remarks": [] if diagnosis.table is None else list(diagnosis.table.remarks),
                "faces": asdict(diagnosis.faces) if diagnosis.faces else None,
                "broken_frames": diagnosis.broken or {},
                "counts": [asdict(count) for count in diagnosis.counts],
            }
            for diagnosis in examination.diagnoses
        ],
        "composite": [asdict(count) for count in examination.composite],
        "differences": [asdict(fault) for fault in examination.differences],
    }
