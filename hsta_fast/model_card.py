"""The model card: what a model is, what it was trained on, what it scored, and what nobody may read into it.

Every number of a score comes from the predictions of a run. No subject, no path and no user is named.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .clips import counted, subject_ids
from .inputs import PEOPLE, ModelInputs
from .model import HSTA

_LIMITS = (
    "Recognising a facial movement is not knowing what someone feels, means or hides. The model detects no "
    "lies and no intent, and must not be used to judge people.",
    "It expects cropped faces, and special frames from onset and apex: other faces, cameras and movements "
    "than those of its training data are untried.",
)
_USE = """```python
import hsta_fast

model = hsta_fast.HSTA.from_pretrained("folder or owner/name")
probabilities = model({given}).{activation}  # uint8 frames; `model.inputs` says which
```"""
# Notes of a model file that the card shows in its first lines.
_FIRST = {"leaky": "Leaky", "caveats": "Read this first"}


def model_card(model: HSTA, run: Path | None = None, fold: str | None = None) -> str:
    """The text of README.md, in Markdown with the hub's header.

    Args:
        model: the model.
        run: the run that trained it.
        fold: the fold of the run whose model it is.

    Raises:
        ValueError: a file of the run is missing or cannot be read.
    """
    warnings = {title: model.notes[name] for name, title in _FIRST.items() if name in model.notes}
    if run is None or fold is None:
        unknown = "Not stated: this card was written without the run that trained the model."
        sections = {"Training data, protocol and score": [unknown]}
    else:
        of_run, sections = _of_run(run, fold)
        warnings = {**warnings, **of_run}
    # The lists of people are left out. Other notes say how many they are.
    shown_or_left = (*_FIRST, *PEOPLE)
    rest = [f"- {name}: {text}" for name, text in sorted(model.notes.items()) if name not in shown_or_left]
    parts = [
        _HEADER,
        "# HSTA, micro-expressions",
        *(f"> **{title}.** {warnings[title]}" for title in _FIRST.values() if title in warnings),
        _what_it_is(model),
        _use(model),
        *(part for title, body in sections.items() for part in (f"## {title}", *body)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _LIMITS),
    ]
    if rest:
        parts += ["## Notes and licences", "\n".join(rest)]
    return "\n\n".join(parts) + "\n"


def _use(model: HSTA) -> str:
    given = ", ".join(name for name in ("video", "special") if name in model.config.branches)
    return _USE.format(given=given, activation="sigmoid()" if _of_units(model) else "softmax(1)")


def _of_units(model: HSTA) -> bool:
    return model.inputs is not None and model.inputs.task == "units"


_HEADER = """---
library_name: hsta_fast
pipeline_tag: video-classification
tags:
- micro-expressions
- hsta
---"""


def _what_it_is(model: HSTA) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    c, of_units = model.config, _of_units(model)
    lines = [
        f"Hierarchical Space-Time Attention (HSTA) with {count / 1e6:.1f} M parameters: a clip's frames to "
        f"logits of {c.num_classes} {'action units' if of_units else 'classes'}. {c.num_layers} layers, "
        f"branches {' and '.join(c.branches)}, widths {c.widths[0]} (special) and {c.widths[1]} (video)."
    ]
    if model.inputs is None:
        return lines[0] + " The file does not say what it was trained on."
    return "\n\n".join([*lines, _inputs_text(model.inputs)])


def _inputs_text(inputs: ModelInputs) -> str:
    names = "Classes"
    if inputs.task == "units":
        names = "Action units, each shown or not (shown: a probability of at least 0.5)"
    special = f"optical flow ({inputs.flow})" if inputs.flow else f"{' and '.join(inputs.special)} frames"
    return "\n".join(
        [
            f"- {names}, in the order of the logits: {', '.join(inputs.classes)}",
            f"- Frames: {inputs.image_size} x {inputs.image_size} RGB; video: {inputs.num_frames} frames, "
            f"{inputs.sampling} from onset to offset; special: {special}, apex {inputs.apex}",
            *_recipe_lines(inputs),
            f"- Made with {', '.join(f'{name} {number}' for name, number in inputs.versions.items())}",
        ]
    )


def _recipe_lines(inputs: ModelInputs) -> list[str]:
    """What was done to the frames before they were shown, and where the face lay in them."""
    done = [] if inputs.crop_face is None else [f"the face cut out with a margin of {inputs.crop_face:g}"]
    done += ["the head's movement undone"] * inputs.stabilise
    done += [f"movement since the onset enlarged {inputs.magnify:g} times"] * bool(inputs.magnify)
    lines = [f"- Before they were shown: {', '.join(done)}"] if done else []
    if inputs.framing is not None:
        x, y, wide, high = inputs.framing
        where = f"its middle at {x:.2f}, {y:.2f} of the side, {wide:.2f} wide, {high:.2f} high"
        lines.append(f"- The face in the frames, at the median: {where}")
    return lines


def _of_run(run_dir: Path, fold: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the first lines must say of a run, and the sections on its data, protocol, score and audit."""
    from .protocol.overlap import LEAKS
    from .protocol.predictions import read_text_table
    from .protocol.report import is_of_units
    from .protocol.run_scores import TRAIN_COUNTS, read_run
    from .protocol.unit_report import read_unit_run

    of_units = is_of_units(run_dir)
    run: Any = read_unit_run(run_dir) if of_units else read_run(run_dir)
    classes = run.units if of_units else run.classes
    status, verdict = _audit(run_dir)
    subjects = set(subject_ids(read_text_table(run_dir / "clips.csv", ("dataset", "subject"))))
    # The note of a leak names subjects in its sentence: it is left to the audit's verdict.
    notes = [_without_names(note, subjects) for note in run.notes if not note.startswith("Leak:")]
    leaky = [*run.leaky, *([verdict] if status == LEAKS and not run.leaky else [])]
    first = {"Leaky": " ".join(leaky)} if leaky else {}
    if notes:
        first["Read this first"] = " ".join(notes)
    own = run.predictions[run.predictions["fold"] == fold]
    trained_on = dict(zip(classes, run.config[TRAIN_COUNTS].get(fold, ()), strict=False))
    of_training = ", ".join(f"{name} {count}" for name, count in trained_on.items())
    people = own.groupby(["dataset", "subject"]).ngroups
    rows = [
        f"| {name} | {part['subject'].nunique()} | {len(part)} |"
        for name, part in run.predictions.groupby("dataset")
    ]
    labels, by = ("action units", "unit") if of_units else (run.config.get("labels"), "class")
    settings = {name: run.config.get(name) for name in ("epochs", "batch_size", "lr", "seed")}
    sections = {
        "Training data": [
            "\n".join(["| dataset | subjects tested | clips tested |", "|---|---|---|", *rows]),
            f"Labels: {labels}. Clips that trained this model, by {by}: {of_training}. "
            "The frames belong to the owners of the datasets; their terms hold for use of the model too.",
        ],
        "Protocol": [
            f"`{run.config.get('protocol')}`: {len(run.folds)} of {run.num_folds} folds are tested. This is "
            f"the model of one of them; it did not train on the {counted(len(own), 'clip')} of "
            f"{counted(people, 'subject')} that it was tested on. Epoch: {run.epoch} "
            f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}."
        ],
        "Score" + (" (leaky)" if leaky else ""): [
            f"Pooled over the {counted(run.scores.num_clips, 'test clip')} of "
            f"{counted(run.subjects['subject'].nunique(), 'subject')}, each predicted by the model of its "
            "fold, so it is the score of the procedure, not of this file alone.",
            *(_unit_tables(run) if of_units else (_score_table(run, bool(leaky)), _class_table(run))),
        ],
        "Audit": [verdict],
    }
    return first, sections


def _without_names(text: str, subjects: Collection[str]) -> str:
    """The text without its lists of subjects in brackets, such as " (casme2/sub01, casme2/sub02, ...)"."""
    # Longest first: one name may begin another.
    name = f"(?:{'|'.join(re.escape(subject) for subject in sorted(subjects, key=len, reverse=True))})"
    return re.sub(rf" \({name}(?:, {name})*(?:, \.\.\.)?\)", "", text)


def _score_table(run: Any, leaky: bool) -> str:
    from .protocol.run_scores import headline

    def row(name: str, cells: Mapping[str, str]) -> str:
        return f"| {name} | {' | '.join(cells[key] for key in ('uf1', 'uar', 'acc'))} |"

    def numbers(scores: Any) -> dict[str, str]:
        return {key: f"{value:.3f}" for key, value in headline(scores).items()}

    rows = [row("model" + " (leaky)" * leaky, numbers(run.scores))]
    if run.interval is not None:
        interval = {key: f"{low:.3f} to {high:.3f}" for key, (low, high) in run.interval.items()}
        rows.append(row("95 % over subjects", interval))
    rows.append(row("majority class", numbers(run.baseline)))
    return "\n".join(["| pooled | UF1 | UAR | ACC |", "|---|---|---|---|", *rows])


def _class_table(run: Any) -> str:
    columns = zip(run.classes, run.scores.f1, run.scores.recall, run.scores.support, strict=True)
    rows = [f"| {name} | {f1:.3f} | {recall:.3f} | {clips} |" for name, f1, recall, clips in columns]
    return "\n".join(["| class | F1 | recall | clips |", "|---|---|---|---|", *rows])


def _unit_tables(run: Any) -> tuple[str, str]:
    """The mean over the units, and each unit."""
    from .protocol.unit_report import pooled_rows, unit_rows

    means = [f"| {' | '.join(row)} |" for row in pooled_rows(run)]
    units = [f"| {' | '.join(map(str, row))} |" for row in unit_rows(run)]
    heads = "| unit | F1 | 95 % over subjects | always present | F1 both | clips | predicted |"
    return (
        "\n".join(["| mean over units | F1 | F1 both |", "|---|---|---|", *means]),
        "\n".join([heads, "|---|---|---|---|---|---|---|", *units]),
    )


def _audit(run_dir: Path) -> tuple[int, str]:
    """The status of `hsta-fast audit` of a run's predictions, and its verdict without the names of people."""
    from .protocol.findings import collect_findings
    from .protocol.overlap import CLEAN

    folds = run_dir / "folds.csv"
    found = collect_findings(
        run_dir / "predictions.csv",
        run_dir / "clips.csv",
        folds if folds.is_file() else None,  # older runs have none
        absent="zero",
        columns={},
        classes=(),
    )
    overlap = found.overlap
    assert overlap is not None  # the table of clips was given
    verdicts = list(found.leaky)
    if overlap.subjects:
        share = f"{overlap.shared_clips} of {overlap.num_predictions} test clips"
        verdicts.append(f"{share} are of subjects whose other clips were training data.")
    elif found.split_subjects and not found.folds_known:
        split = counted(len(found.split_subjects), "subject", "are")
        verdicts.append(f"{split} tested in more than one fold, so also trained on.")
    if verdicts:
        return found.status, f"`hsta-fast audit` finds a leak: {' '.join(verdicts)}"
    if found.status != CLEAN:
        return (
            found.status,
            "`hsta-fast audit` cannot tell whether subjects are in training and test at once.",
        )
    basis = "by the run's folds.csv" if folds.is_file() else "if each fold trained on what it does not test"
    return found.status, f"`hsta-fast audit` finds no subject in training and test of the same fold, {basis}."
