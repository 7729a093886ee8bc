"""The model for inference as one file that needs no hsta_fast: ONNX, or a program of torch.export (.pt2).

Both take the frames of a batch of any size and return logits and probabilities. Both are compared with the
model before they are put in place.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import plain_copy
from .files import write_bytes
from .inputs import ModelInputs
from .model import HSTA, SPECIAL_FRAMES

# The newest that torch's exporter names; its Attention keeps a USTA's attention in one node.
OPSET = 23
OUTPUTS = ("logits", "probabilities")
# Of the logits, relative to the largest one (to 1, if all are smaller): float32 sums in another order.
_TOLERANCE = 1e-4


class _Inference(nn.Module):
    """Frames to (logits, probabilities), float32 (B, num_classes)."""

    def __init__(self, model: HSTA) -> None:
        super().__init__()
        self.model = model
        self.of_units = model.inputs is not None and model.inputs.task == "units"

    def forward(self, video: Tensor | None = None, special: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.model(video, special)
        return logits, logits.sigmoid() if self.of_units else logits.softmax(1)


def example_frames(model: HSTA, inputs: ModelInputs, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Random frames of a batch, as a model that was trained on `inputs` takes them.

    Returns:
        "video" (B, 3, T, H, W) and "special" (B, 3, 2, H, W), as far as the model has these branches; uint8,
        or float32 for optical flow.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = {"video": inputs.num_frames, "special": SPECIAL_FRAMES}
    frames: dict[str, Tensor] = {}
    for name in ("video", "special"):
        if name in model.config.branches:
            shape = (batch, 3, counts[name], inputs.image_size, inputs.image_size)
            if name == "special" and inputs.flow is not None:
                frames[name] = torch.randn(shape, generator=generator)
            else:
                frames[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames


def export_onnx(
    model: nn.Module | Callable[..., Any], path: Path | str, *, inputs: ModelInputs | None = None
) -> float | None:
    """Write the model for inference as an ONNX file of opset 23, in float32.

    Its inputs are "video" uint8 (B, 3, T, H, W) and "special" uint8 (B, 3, 2, H, W), or float32 for optical
    flow; a model of one branch has one of them. B is any number; T, H and W are those of `inputs`. Its
    outputs are "logits" and "probabilities", float32 (B, num_classes). Its metadata have three entries in
    JSON: "classes", in the order of the outputs, "inputs" (`ModelInputs`), and "notes".

    Where onnxruntime is installed, the file is run on random frames and compared with the model first.

    Args:
        model: an HSTA, which may be wrapped as for `save_model`.
        path: the file, which ends in .onnx.
        inputs: what the model was trained on; by default `model.inputs`.

    Returns:
        The largest difference of a logit from the model's; None without onnxruntime.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: `path`, `model` or `inputs` do not fit, or the file computes other logits; nothing was
            written.
        OSError: the file cannot be written; an existing file is unchanged.
    """
    path = _checked_path(path, ".onnx")
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ImportError(
            "export to ONNX expected the packages onnx and onnxscript, got none: "
            "pip install 'hsta_fast[export]'"
        )
    plain, inputs = _prepared(model, inputs)
    with _quiet():
        made = torch.onnx.export(
            _program(plain, inputs),
            (),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    assert made is not None
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        assert value.shape is not None
        value.shape[0] = "batch"
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of our source, with the paths of this machine
    made.model.metadata_props.update(_metadata(plain, inputs))
    data = made.model_proto.SerializeToString()
    difference = None
    if find_spec("onnxruntime") is not None:
        difference = _check(path, plain, inputs, _onnxruntime(data), f"onnxruntime {version('onnxruntime')}")
    write_bytes(path, data)
    return difference


def export_pt2(
    model: nn.Module | Callable[..., Any], path: Path | str, *, inputs: ModelInputs | None = None
) -> float:
    """Write the model for inference as a program of torch.export, which `torch.export.load` reads.

    It needs torch alone. Inputs, outputs and errors are those of `export_onnx`; the metadata are the extra
    files "classes", "inputs" and "notes" of the program.

    Args:
        model: an HSTA, which may be wrapped as for `save_model`.
        path: the file, which ends in .pt2.
        inputs: what the model was trained on; by default `model.inputs`.

    Returns:
        The largest difference of a logit from the model's.

    Raises:
        ValueError: `path`, `model` or `inputs` do not fit, or the file computes other logits; nothing was
            written.
        OSError: the file cannot be written; an existing file is unchanged.
    """
    path = _checked_path(path, ".pt2")
    plain, inputs = _prepared(model, inputs)
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_program(plain, inputs), file, extra_files=_metadata(plain, inputs))
        file.seek(0)
        program = torch.export.load(file).module()
    difference = _check(path, plain, inputs, lambda frames: program(**frames)[0], "torch.export")
    write_bytes(path, file.getvalue())
    return difference


def _checked_path(path: Path | str, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"path expected a name that ends in {suffix}, got {path}")
    return path


def _prepared(model: nn.Module | Callable[..., Any], inputs: ModelInputs | None) -> tuple[HSTA, ModelInputs]:
    """A float32 copy of the model without gradients, and what it was trained on."""
    plain = plain_copy(model).float().requires_grad_(False)
    inputs = plain.inputs if inputs is None else inputs
    if inputs is None:
        raise ValueError(
            "inputs expected a ModelInputs with the size and number of the frames, got none: this model does "
            "not say what it was trained on"
        )
    if len(inputs.classes) != plain.config.num_classes:
        got = f"{len(inputs.classes)}: {', '.join(inputs.classes)}"
        raise ValueError(f"inputs expected the model's {plain.config.num_classes} classes, got {got}")
    plain.inputs = inputs
    return plain, inputs


def _metadata(model: HSTA, inputs: ModelInputs) -> dict[str, str]:
    return {
        "classes": json.dumps(list(inputs.classes)),
        "inputs": inputs.to_json(),
        "notes": json.dumps(dict(sorted(model.notes.items()))),
    }


def _program(model: HSTA, inputs: ModelInputs) -> torch.export.ExportedProgram:
    """The program for any batch, without the paths of this machine."""
    frames = example_frames(model, inputs, batch=2)
    batch = {name: {0: torch.export.Dim("batch")} for name in frames}
    program = torch.export.export(_Inference(model), (), frames, dynamic_shapes=batch)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _quiet() -> Any:
    """Without what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnxruntime(data: bytes) -> Callable[[Mapping[str, Tensor]], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda frames: torch.from_numpy(
        session.run(["logits"], {name: x.numpy() for name, x in frames.items()})[0]
    )


def _check(
    path: Path,
    model: HSTA,
    inputs: ModelInputs,
    run: Callable[[Mapping[str, Tensor]], Tensor],
    runner: str,
) -> float:
    """The largest difference of a logit, in batches of one and of three; ValueError if it is no rounding."""
    largest = 0.0
    for batch in (1, 3):
        frames = example_frames(model, inputs, batch, seed=batch)
        with torch.inference_mode():
            expected, came = model(**frames), run(frames)
        difference = (came - expected).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f"{path} expected the logits of the model, got others in {runner}, by up to "
                f"{difference:.1e}: nothing was written"
            )
        largest = max(largest, difference)
    return largest
