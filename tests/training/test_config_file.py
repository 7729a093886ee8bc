"""--config FILE: settings from a saved config.json, YAML or JSON, under the flags and above the recipe."""

import json
from pathlib import Path

import pytest

from hsta_fast.training.config import TrainConfig, recipe_config, to_json
from tests.test_cli import refusal, run
from tests.test_usage import arguments, bound
from tests.training.commands import QUICK


def config_of(name: str, *words: object) -> TrainConfig:
    return bound(name, *words).joined()


EVERY = {
    "recipe": "published",
    "data": "faces",
    "more-data": ["a", "b"],
    "batch_size": 6,
    "lr": 1,
    "clip-grad": None,
    "flow": "dis",
    "branches": ["video"],
    "special": ["onset", "middle"],
    "strict": True,
    "cache": "none",
    "name": "mine",
}


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_settings_in_a_file_are_flags(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"settings{suffix}"
    file.write_text(json.dumps(EVERY))
    flags: list[object] = ["--recipe", "published", "--data", "faces", "--more-data", "a", "b"]
    flags += ["--batch-size", 6, "--lr", 1, "--clip-grad", "None", "--flow", "dis", "--branches", "video"]
    flags += ["--special", "onset", "middle", "--strict", "--cache", "none", "--name", "mine"]
    for name in ("train", "prepare"):
        found = config_of(name, "--config", file)
        assert found == config_of(name, *flags)
        assert repr(to_json(found)) == repr(to_json(config_of(name, *flags))), "1.0 is not 1"


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "recipe: published\ndata: faces\nepochs: 7\nlr: 5e-4  # 1\nonly: [a, b]\nname: 2026-01-31"
    )
    assert config_of("train", "--config", file) == recipe_config(
        "published", data=Path("faces"), epochs=7, lr=5e-4, only=("a", "b"), name="2026-01-31"
    )
    words = (f"--config={file}", "--recipe", "paper", "--epochs", 8, "--only", "c", "--data", "other")
    expected = recipe_config("paper", data=Path("other"), epochs=8, lr=5e-4, only=("c",), name="2026-01-31")
    assert config_of("train", *words) == config_of("train", *words[1:], words[0]) == expected


def test_ablate_takes_its_table_and_rows_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text('table: "1"\nrows: [video 0]\ndata: x\n')
    words = arguments("ablate", "--config", str(file))
    assert (words["table"], words["rows"]) == ("1", ("video 0",))
    assert (words["settings"].run.name, words["settings"].protocol.protocol) == ("ablation-1", "kfold")
    file.write_text("name: mine\nprotocol: loso\ndata: x\n")
    config = config_of("ablate", "--config", file, "--table", 1)
    assert (config.name, config.protocol) == ("mine", "loso")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- epochs\n", "expected a mapping of settings to values, got a list of 1"),
        ("", "expected a mapping of settings to values, got nothing"),
        ("epochs\n", "expected a mapping of settings to values, got the text 'epochs'"),
        ("epoch: 3", "expected names of settings, got 'epoch'; did you mean epochs?"),
        ("classes: [a]", "expected names of settings, got 'classes'"),
        ("table: 1", "expected names of settings, got 'table'"),
        ("config: x", "expected names of settings, got 'config'"),
        ("1: 3", "expected names of settings, got '1'"),
        ("? [a, b]\n: 3", "expected names of settings, got ['a', 'b']"),
        ('epochs: "3"', "epochs expected a whole number, got the text '3'"),
        ("epochs: 3.5", "epochs expected a whole number, got 3.5"),
        ("epochs: true", "epochs expected a whole number, got true"),
        ("epochs: [3]", "epochs expected a whole number, got a list of 1"),
        ("epochs: 1:30", "epochs expected a whole number, got the text '1:30'"),
        ("epochs: 010", "epochs expected a whole number, got the text '010'"),
        ("lr: 1:30.5", "lr expected a number, got the text '1:30.5'"),
        ("epochs:", "epochs expected a whole number, got nothing"),
        ("batch-size: {a: 1}", "batch-size expected a whole number, got a mapping"),
        ("lr: fast", "lr expected a number, got the text 'fast'"),
        ("lr: false", "lr expected a number, got false"),
        ("name: 2024", "name expected text, got 2024"),
        ("data: 3", "data expected a path, got 3"),
        ("strict: 1", "strict expected true or false, got 1"),
        ("only: a", "only expected a list, got the text 'a'"),
        ("only: [1]", "only expected text, got 1"),
        ("data:", "data expected a path, got nothing"),
        ("data: ''", "data expected a path, got the text ''"),
        ("special: [onset]", "special expected a list of 2, got a list of 1"),
        ("special: [onset, apx]", "special expected one of onset, apex, "),
        ("special: [onset, apx]", "got 'apx'; did you mean apex?"),
        ("protocol: lsoo", "got 'lsoo'; did you mean loso?"),
        ("protocol: [loso]", "protocol expected one of loso, "),
        ("num_layers: two", "num_layers expected a whole number, got the text 'two'"),
        ("recipe: mine", "recipe expected one of paper, published, got 'mine'"),
        ("epochs: 3\nepochs: 4", "expected epochs once, got it twice"),
        ("batch-size: 3\nbatch_size: 4", "expected batch_size once, got it twice"),
        ("epochs: [", "while parsing"),
        ("epochs: !!python/object:os.system x", "could not determine a constructor"),
        ("\0", "unacceptable character"),
        ("epochs: 0", "--epochs expected a whole number >= 1, got 0"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    message = refusal(monkeypatch, "train", "--data", "x", "--config", str(file), status=2)
    assert expected in message and message.startswith(f"error: {file}: "), message


def test_a_wrong_json_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    for text, expected in {
        '{"epochs": 3, "epochs": 4}': "expected epochs once, got it twice",
        '{"epochs": 3': "Expecting ',' delimiter",
        "[]": "expected a mapping",
    }.items():
        file.write_text(text)
        message = refusal(monkeypatch, "train", "--data", "x", "--config", str(file), status=2)
        assert message.startswith(f"error: {file}: ") and expected in message
    for path, expected in ((tmp_path, "directory"), (tmp_path / "no", "no such file")):
        message = refusal(monkeypatch, "train", "--config", str(path), status=2)
        assert f"{path}: expected a file of settings, got: " in message and expected in message
    assert "--config expected 1 value, got none" in refusal(
        monkeypatch, "train", "--data", "x", "--config", status=2
    )


def test_a_flag_that_is_wrong_is_not_said_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 0\ndata: x")
    message = refusal(monkeypatch, "train", "--config", str(file), "--epochs", "-1", status=2)
    assert message == "error: --epochs expected a whole number >= 1, got -1"


def test_a_run_from_a_file_is_the_run_of_the_flags(
    monkeypatch: pytest.MonkeyPatch, faces: Path, tmp_path: Path
) -> None:
    """The run's config.json is the same, and is itself such a file."""
    runs = tmp_path / "runs"
    flags = ("--data", str(faces), "--runs", str(runs), *QUICK)
    run(monkeypatch, "train", *flags, "--name", "flags")
    saved = runs / "flags" / "config.json"
    run(monkeypatch, "train", "--config", str(saved), "--name", "file")
    before, after = (json.loads(path.read_text()) for path in (saved, runs / "file" / "config.json"))
    own = {"name": "", "provenance": {}}  # its provenance has the time and the words of the command
    assert before | own == after | own
    predictions = [(runs / name / "predictions.csv").read_bytes() for name in ("flags", "file")]
    assert predictions[0] == predictions[1]
    message = refusal(monkeypatch, "train", "--config", str(saved))
    assert f"{runs / 'flags'} exists: give --resume" in message
    run(monkeypatch, "train", "--config", str(saved), "--resume")
