"""The models of a run's finished folds, and one of them as a file for other programs."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ..checkpoint import load_model
from ..export import OUTPUTS, example_frames, export_onnx, export_pt2
from ..inputs import PEOPLE
from ..protocol import read_predictions
from .run_checks import read_run_config
from .run_folder import fold_folder

SUFFIXES = (".onnx", ".pt2")
MODEL = "model.safetensors"


def finished_models(run: Path) -> dict[str, Path]:
    """The model files of a run's finished folds, by the names of the folds, in their order.

    Raises:
        ValueError: `run` is not a run, no fold of it is finished, or a finished one has lost its model.
    """
    count = read_run_config(run).get("num_folds")
    if not isinstance(count, int):
        raise ValueError(f"{run} is not a run: its config.json says no number of folds")
    found = {}
    for folder in (fold_folder(run, number) for number in range(count)):
        if (folder / "predictions.csv").is_file():  # written last
            fold = str(read_predictions(folder / "predictions.csv")["fold"].iloc[0])
            found[fold] = folder / MODEL
            if not found[fold].is_file():
                raise ValueError(f"{folder} expected {MODEL} of its finished fold {fold}, got no such file")
    if not found:
        raise ValueError(f"{run} has no finished fold yet")
    return found


def check_out(out: Path | None) -> None:
    """Raise ValueError unless `out`, if given, names a file of a known format."""
    if out is not None and out.suffix not in SUFFIXES:
        raise ValueError(f"--out expected a name that ends in {' or '.join(SUFFIXES)}, got {out}")


def export(run: Path, fold: str | None = None, out: Path | None = None) -> str:
    """Write the model of a fold as ONNX or as a program of torch.export, after comparing it with the model.

    Args:
        run: the run's folder.
        fold: the fold's name; by default the first finished one.
        out: the file, .onnx or .pt2; by default <name of the run>-<number of the fold>.onnx in this folder.

    Returns:
        What the file takes and returns, what must be known of the model, and the largest difference.

    Raises:
        ValueError: `run` is not a run, has no finished fold of this name, or the file would not compute what
            the model computes.
        ImportError: ONNX is asked for, and onnx or onnxscript is not installed.
        OSError: the file cannot be written.
    """
    models = finished_models(run)
    fold = next(iter(models)) if fold is None else fold
    if fold not in models:
        raise ValueError(f"--fold expected a finished fold of {run}: {', '.join(models)}, got {fold}")
    out = Path(f"{run.resolve().name}-{models[fold].parent.name}.onnx") if out is None else out
    model = load_model(models[fold])
    difference = (export_onnx if out.suffix == ".onnx" else export_pt2)(model, out)
    assert model.inputs is not None  # without, there is no export
    frames = example_frames(model, model.inputs, batch=1)
    takes = ", ".join(
        f"{name} {str(x.dtype).removeprefix('torch.')} (batch, {', '.join(map(str, x.shape[1:]))})"
        for name, x in frames.items()
    )
    if difference is None:
        compared = "not compared with the model: pip install onnxruntime"
    else:
        where = f"onnxruntime {version('onnxruntime')}" if out.suffix == ".onnx" else "torch.export"
        compared = f"on random frames, logits in {where} differ from the model's by at most {difference:.1e}"
    lines = [
        f"{out}: fold {fold} of {run}",
        f"inputs: {takes}",
        f"outputs: {', '.join(OUTPUTS)}, float32 (batch, {len(model.inputs.classes)}): "
        + ", ".join(model.inputs.classes),
        *(f"{name}: {text}" for name, text in _notes(model.notes)),
        compared,
    ]
    return "\n".join(lines)


def _notes(notes: Mapping[str, str]) -> list[tuple[str, str]]:
    """The notes by name, which a file keeps in no order; that of a leak comes first, lists of people not."""
    leaky = [("LEAKY", notes["leaky"])] if "leaky" in notes else []
    return [*leaky, *((name, notes[name]) for name in sorted(notes) if name not in ("leaky", *PEOPLE))]
