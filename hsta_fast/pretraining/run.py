"""The command `pretrain` from start to files."""

import json
import time
from contextlib import closing, suppress
from dataclasses import asdict

import pandas as pd

from ..checkpoint import save_model
from ..clips import KEY
from ..data import ClipData, ClipTable
from ..files import check_writable, make_folder, write_bytes, write_text
from ..inputs import PRETRAINED_SUBJECTS
from ..protocol import import_matplotlib
from ..training import stopping
from ..training.initial import PRETRAINED_FRAMES, frames_note
from ..training.progress import RunProgress, duration
from ..training.provenance import Start
from ..training.run_checks import check_clips, read_starts
from ..training.run_log import RunLog, describe_error
from ..training.setup import is_rendered, pick_device, remarks_and_faults
from .data import clips_without_labels, load_clips, subjects_of
from .folder import OBJECTIVE, PretrainFolder, check_folder
from .loop import Pretraining, build, fit
from .settings import PretrainConfig

RENDERED = "Rendered faces, no recordings: this model has seen no person."


def pretrain(cfg: PretrainConfig) -> str:
    """Pretrain a model on the clips of `cfg`; returns what was done, in words.

    Raises:
        ValueError: invalid settings or data, or a folder that holds something else.
        OSError: a file cannot be written; what was there before is untouched.
        NonFiniteLossError: the loss became NaN or infinite.
        Stopped: SIGUSR1 came; all that is trained is saved.
    """
    cfg.check()
    path = cfg.runs / cfg.name
    settings = {"objective": OBJECTIVE, **cfg.to_json()}
    check_folder(path, settings, resume=cfg.resume, overwrite=cfg.overwrite)
    if cfg.resume and PretrainFolder(path).finished:
        return f"{path} is finished: {path / 'model.safetensors'}"
    if not cfg.resume:
        cfg.as_training().check_warm_up()
    check_writable(cfg.runs, "--runs", cfg.runs)
    check_writable(path, "--name", path)
    import_matplotlib()
    clock, log = time.monotonic(), RunLog()
    with log.recording():
        widest = max(cfg.architecture().widths)
        starts = read_starts(path) if cfg.resume and cfg.dtype == "auto" else []
        device, dtype, _ = pick_device(cfg.device, cfg.dtype, width=widest, starts=starts)
        data = load_clips(cfg, clips_without_labels(cfg))
        start = Start(clock=clock, device=device, dtype=dtype, architecture=cfg.architecture(), workers=1)
        make_folder(path, "--runs", cfg.runs)
        folder = PretrainFolder(path)
        with folder.try_acquire() as acquired:
            if not acquired:
                raise ValueError(f"{path} is in use: another process is training there")
            folder.start(settings, resume=cfg.resume, overwrite=cfg.overwrite)
            log.open(path)
            write_tables(folder, data.table)
            folder.write_start(start.entry(), new=True)
            log.event(f"{'resumed' if cfg.resume else 'started'}: {start.text()}")
            try:
                with stopping.deferred():
                    text = train(build(cfg, data, folder, device, dtype), log)
            except BaseException as error:
                with suppress(OSError):
                    folder.write_start(start.entry(describe_error(error)), new=False)
                raise
            folder.write_start(start.entry("finished"), new=False)
            log.event(f"ended: {text.splitlines()[0]}")
    return text


def write_tables(folder: PretrainFolder, clips: ClipTable) -> None:
    """Write clips.csv and faults.csv.

    Raises:
        ValueError: the pretraining was started on other clips.
    """
    if (before := folder.path / "clips.csv").exists():
        check_clips(before, clips.clips, unknown=["label"])
    faults = pd.DataFrame([asdict(fault) for fault in clips.faults], columns=[*KEY, "what", "action"])
    kept = clips.clips.drop(columns=["frames", "label"])
    for name, table in {"clips.csv": kept, "faults.csv": faults}.items():
        write_text(folder.path / name, table.to_csv(index=False))


def train(training: Pretraining, log: RunLog) -> str:
    """Train to the end; write the pictures, and last the model; returns what was done, in words."""
    from .pictures import loss_curve, reconstructions

    cfg, folder, data = training.cfg, training.folder, training.data
    what = f"{len(data)} clips of {len(subjects_of(data))} subjects"
    print(
        "\n".join([f"{folder.path}: {what}, no labels", *remarks_and_faults(data.table, ", in faults.csv")])
    )
    with closing(RunProgress(shown=True)) as run_progress:
        run_progress.start_run(folder, [0], cfg.epochs, log)
        with run_progress.training(0, "pretraining", cfg.epochs) as progress:
            model = fit(training, progress)
    metrics = [json.loads(line) for line in folder.metrics()]
    title = f"{cfg.name}: {what}"
    write_bytes(folder.path / "loss.png", loss_curve(metrics, title))
    write_bytes(folder.path / "reconstruction.png", reconstructions(training))
    seconds = sum(line["seconds"] for line in metrics)
    file = folder.path / "model.safetensors"
    save_model(model.cpu(), file, notes=notes(cfg, data))
    folder.state_file.unlink(missing_ok=True)
    return (
        f"{len(metrics)} epochs trained in {duration(seconds)}, loss {metrics[-1]['loss']:.4f}\nmodel: {file}"
    )


def notes(cfg: PretrainConfig, data: ClipData) -> dict[str, str]:
    """What the file of the model says about its pretraining.

    "pretrained_subjects" is a JSON list of the people that the model has seen, "dataset/subject";
    "pretrained_frames" the size of its frames and their number.
    """
    subjects = subjects_of(data)
    datasets = ", ".join(sorted(set(data.table.clips["dataset"])))
    branches = " and ".join(cfg.branches)
    said = (
        f"{OBJECTIVE} (target {cfg.target}, mask ratio {cfg.mask_ratio:g}, visible weight "
        f"{cfg.visible_weight:g}) of the {branches} branch, on {len(data)} clips without labels of "
        f"{len(subjects)} subjects ({datasets}), "
        f"{cfg.num_frames} frames of {cfg.image_size} pixels, {cfg.epochs} epochs, seed {cfg.seed}; "
        "CSTA and head are not trained"
    )
    found = {
        "pretraining": said,
        PRETRAINED_SUBJECTS: json.dumps(subjects, ensure_ascii=False),
        PRETRAINED_FRAMES: frames_note(cfg.image_size, cfg.num_frames),
    }
    return found | ({"caveats": RENDERED} if is_rendered(cfg.as_training()) else {})
