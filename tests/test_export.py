"""ONNX files and programs of torch.export: what they take, return and say, and that nothing else is left."""

import json
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from hsta_fast import HSTA, ModelInputs, export_onnx, export_pt2
from hsta_fast.export import example_frames

from .forked import Forked

CLASSES = ("negative", "positive", "surprise")
INPUTS = ModelInputs(classes=CLASSES, image_size=33, num_frames=4)
FLOW = ModelInputs(classes=CLASSES, image_size=33, num_frames=4, flow="farneback")
NOTES = {"caveats": "Rendered faces.", "leaky": "Folds by clip."}


def tiny(seed: int = 0, **overrides: Any) -> HSTA:
    """A model of the smallest useful size whose logits differ from clip to clip."""
    torch.manual_seed(seed)
    sizes = {"num_classes": 3, "num_layers": 1, "n_video": 1}
    small: dict[str, Any] = {"widths": (12, 16), "num_heads": (3, 4), **sizes}
    model = hsta_fast.create_model("hsta_tiny", **{**small, **overrides})
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    model.inputs, model.notes = INPUTS, NOTES
    return model.eval()


def expected(model: HSTA, frames: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        logits = model(**frames)
    return logits, logits.softmax(1)


def assert_as_the_model(came: Any, model: HSTA, frames: Mapping[str, Tensor]) -> None:
    for a, b in zip(came, expected(model, frames), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-5, atol=1e-5)


def session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def numpy_of(frames: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: x.numpy() for name, x in frames.items()}


def test_an_onnx_file_computes_what_the_model_computes(tmp_path: Path) -> None:
    """Of a wrapped model in bfloat16 that takes optical flow; the file is in float32.

    It says what it takes, and nothing of this machine.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, path = tiny().bfloat16(), tmp_path / "new" / "model.onnx"
    difference = export_onnx(torch.compile(model, backend="eager"), path, inputs=FLOW)
    found = session(path)
    model = model.float()
    assert difference is not None and 0 <= difference < 1e-5
    for batch in (1, 5):
        frames = example_frames(model, FLOW, batch, seed=7)
        assert_as_the_model(found.run(None, numpy_of(frames)), model, frames)
    logits = torch.as_tensor(found.run(["logits"], numpy_of(frames))[0])
    assert (logits - logits[0]).abs().max() > 0.1, "clips differ, so equal logits mean something"
    takes = [(x.name, x.type, x.shape) for x in found.get_inputs()]
    assert takes == [
        ("video", "tensor(uint8)", ["batch", 3, 4, 33, 33]),
        ("special", "tensor(float)", ["batch", 3, 2, 33, 33]),
    ]
    returns = [(x.name, x.type, x.shape) for x in found.get_outputs()]
    assert returns == [(name, "tensor(float)", ["batch", 3]) for name in ("logits", "probabilities")]
    said = found.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(CLASSES) and json.loads(said["notes"]) == NOTES
    assert ModelInputs.from_json(said["inputs"]) == FLOW
    data = path.read_bytes()
    loaded = onnx.load_model_from_string(data)
    onnx.checker.check_model(loaded, full_check=True)
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 23)]
    assert {node.domain for node in loaded.graph.node} == {""}
    for place in (hsta_fast.__file__, torch.__file__):
        assert str(Path(place).parent.parent).encode() not in data
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_a_program_runs_without_hsta_fast(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "model.pt2"
    assert 0 <= export_pt2(torch.optim.swa_utils.AveragedModel(model), path) < 1e-5
    frames = example_frames(model, INPUTS, 5, seed=7)
    torch.save((frames, *expected(model, frames)), tmp_path / "expected.pt")
    code = (
        "import json, sys, torch\n"
        "sys.modules['hsta_fast'] = None\n"
        "said = {'classes': '', 'inputs': '', 'notes': ''}\n"
        "program = torch.export.load(sys.argv[1], extra_files=said).module()\n"
        "frames, *expected = torch.load(sys.argv[2])\n"
        "for a, b in zip(program(**frames), expected, strict=True):\n"
        "    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)\n"
        "print(json.dumps({name: json.loads(text) for name, text in said.items()}))"
    )
    process = Forked(code, (path, tmp_path / "expected.pt"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    said = json.loads(out)
    assert said["classes"] == list(CLASSES) and said["notes"] == NOTES
    assert ModelInputs.from_json(json.dumps(said["inputs"])) == INPUTS
    with zipfile.ZipFile(path) as archive:
        data = b"".join(map(archive.read, archive.namelist()))
    assert not [
        p for p in (hsta_fast.__file__, torch.__file__) if str(Path(p).parent.parent).encode() in data
    ]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    model, path = tiny(branches=("video",)), tmp_path / "model.pt2"
    path.write_text("of before")
    with torch.no_grad():
        model.head.bias[1] = torch.nan  # no number equals it
    with pytest.raises(
        ValueError, match=r"model.pt2 expected the logits of the model, got others in torch.ex"
    ):
        export_pt2(model, path)
    assert path.read_text() == "of before" and [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_what_cannot_be_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(model: Any, name: str = "m.pt2", **given: Any) -> str:
        with pytest.raises((ValueError, ImportError)) as caught:
            (export_onnx if name.endswith("onnx") else export_pt2)(model, tmp_path / name, **given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    other = ModelInputs(classes=("a", "b"), image_size=32, num_frames=2)
    assert re.match(r"inputs expected the model's 3 classes, got 2: a, b", refusal(tiny(), inputs=other))
    assert "path expected a name that ends in .pt2, got" in refusal(tiny(), "m.safetensors")
    silent, replaced = tiny(), tiny()
    silent.inputs = None
    assert refusal(silent).startswith("inputs expected a ModelInputs with the size and number of the frames")
    replaced.head = nn.Linear(28, 4)
    assert "expected the entries of the model" in refusal(replaced)
    int8 = hsta_fast.quantize_int8(tiny())
    assert "model expected float parameters, got int8" in refusal(int8)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(tiny(), "m.onnx").endswith("got none: pip install 'hsta_fast[export]'")
    assert list(tmp_path.iterdir()) == []
