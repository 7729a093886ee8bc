"""What a model file says about its training, and files that are damaged."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

import hsta_fast
from hsta_fast import ModelInputs

from .test_wrappers import INPUTS, integers, tiny


def test_a_file_tells_what_its_model_was_trained_on(tmp_path: Path) -> None:
    model = tiny()
    hsta_fast.save_model(
        model, tmp_path / "a.safetensors", inputs=INPUTS, notes={"leaky": "by clip", "x": "1"}
    )
    assert model.inputs is None and not model.notes
    back = hsta_fast.load_model(tmp_path / "a.safetensors")
    assert back.inputs == INPUTS and back.notes == {"leaky": "by clip", "x": "1"}
    # Saved again, it keeps both; a new note of the same name replaces the old one.
    hsta_fast.save_model(torch.compile(back), tmp_path / "b.safetensors", notes={"x": "2"})
    again = hsta_fast.load_model(tmp_path / "b.safetensors")
    assert again.inputs == INPUTS and again.notes == {"leaky": "by clip", "x": "2"}
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["hsta_fast_inputs"])["classes"] == [
            "negative",
            "positive",
            "surprise",
        ]


def test_copies_keep_the_inputs() -> None:
    model = tiny()
    model.inputs = INPUTS
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.float64)):
        assert twin.inputs == INPUTS
    compiled: Any = torch.compile(model)
    assert compiled.inputs == INPUTS
    assert AveragedModel(model).module.inputs == INPUTS
    assert not [key for key in model.state_dict() if "inputs" in key]
    assert hash(INPUTS) == hash(pickle.loads(pickle.dumps(INPUTS)))


def test_versions_are_those_at_hand() -> None:
    versions = ModelInputs(classes=("a",), image_size=1, num_frames=1).versions
    assert versions == {"hsta_fast": hsta_fast.__version__, "torch": torch.__version__}


def test_inputs_of_an_older_file_are_of_emotions() -> None:
    values = {name: value for name, value in WRITTEN.items() if name != "task"}
    assert ModelInputs.from_json(json.dumps(values)) == ModelInputs.from_json(json.dumps(WRITTEN))
    of_units = ModelInputs.from_json(json.dumps({**WRITTEN, "task": "units"}))
    assert of_units.task == "units" and ModelInputs.from_json(of_units.to_json()) == of_units


def test_a_file_from_before_is_read(tmp_path: Path) -> None:
    """Files had a configuration and notes only."""
    model = tiny()
    hsta_fast.save_model(model, tmp_path / "a.safetensors", notes={"leaky": "by clip"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"hsta_fast_config", "leaky"}
    back = hsta_fast.load_model(tmp_path / "a.safetensors")
    assert back.inputs is None and back.notes == {"leaky": "by clip"}


def test_a_file_from_before_the_recipes_is_read() -> None:
    recipe = replace(INPUTS, crop_face=0.1, stabilise=True, magnify=4.0, framing=(0.5, 0.5, 0.6, 0.8))
    assert ModelInputs.from_json(recipe.to_json()) == recipe
    older = {
        name: value
        for name, value in json.loads(recipe.to_json()).items()
        if name not in ("crop_face", "stabilise", "magnify", "framing")
    }
    assert ModelInputs.from_json(json.dumps(older)) == INPUTS


WRITTEN = json.loads(INPUTS.to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected to say what the model was trained on: Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "fields expected .*, got list"),
        (json.dumps({"classes": ["a"]}), r"fields expected .*, got \['classes'\]"),
        (json.dumps({**WRITTEN, "more": 1}), "fields expected .* 'more'"),
        (json.dumps({**WRITTEN, "classes": "abc"}), "classes expected a tuple of different names, got 'abc'"),
        (json.dumps({**WRITTEN, "classes": ["a", "a", "b"]}), "classes expected a tuple of different names"),
        (
            json.dumps({**WRITTEN, "classes": ["a", "b"]}),
            "inputs expected the model's 3 classes, got 2: a, b",
        ),
        (json.dumps({**WRITTEN, "image_size": True}), "image_size expected a positive integer, got True"),
        (json.dumps({**WRITTEN, "num_frames": 0}), "num_frames expected a positive integer, got 0"),
        (json.dumps({**WRITTEN, "offset_cap": -1}), "offset_cap expected a positive integer or None, got -1"),
        (json.dumps({**WRITTEN, "special": ["apex"]}), "special expected a pair of names"),
        (json.dumps({**WRITTEN, "flow": 3}), "flow expected a name or None, got 3"),
        (
            json.dumps({**WRITTEN, "sampling": None}),
            r"sampling expected one of \('uniform', 'random'\), got None",
        ),
        (json.dumps({**WRITTEN, "sampling": "zzz"}), "sampling expected one of .*, got 'zzz'"),
        (json.dumps({**WRITTEN, "apex": ""}), r"apex expected one of \('annotated', .*\), got ''"),
        (json.dumps({**WRITTEN, "onset_only": 1}), "onset_only expected True or False, got 1"),
        (json.dumps({**WRITTEN, "crop_face": -1}), "crop_face expected a number of at least 0, or None"),
        (json.dumps({**WRITTEN, "stabilise": 0}), "stabilise expected True or False, got 0"),
        (json.dumps({**WRITTEN, "magnify": None}), "magnify expected a number of at least 0, got None"),
        (json.dumps({**WRITTEN, "framing": [0.5, 0.5]}), "framing expected four numbers of at least 0, or"),
        (json.dumps({**WRITTEN, "versions": [1]}), "versions expected a dictionary"),
    ],
)
def test_a_damaged_entry_is_named(text: str, message: str, tmp_path: Path) -> None:
    metadata = {"hsta_fast_config": json.dumps(vars(tiny().config)), "hsta_fast_inputs": text}
    save_file(tiny().state_dict(), tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"a.safetensors.* {message}") as error:
        hsta_fast.load_model(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_a_file_of_integers_is_named(tmp_path: Path) -> None:
    metadata = {"hsta_fast_config": json.dumps(vars(tiny().config))}
    save_file(integers(tiny()).state_dict(), tmp_path / "a.safetensors", metadata)
    with pytest.raises(
        ValueError, match=r"a.safetensors expected floating .* head.bias \(torch.int8, Tensor\)$"
    ):
        hsta_fast.load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "text", ["[]", "{", "3", "[" * 100_000, '{"widths": 1}', '{"depth": 1}', '{"mlp_ratio": NaN}']
)
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path) -> None:
    save_file(tiny().state_dict(), tmp_path / "a.safetensors", {"hsta_fast_config": text})
    with pytest.raises(ValueError, match=r"a.safetensors expected the configuration of an HSTA") as error:
        hsta_fast.load_model(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
