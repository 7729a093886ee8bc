"""Models in folders and on the hub: equal logits both ways, a true card, one line for what is wrong."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hsta_fast
from hsta_fast import HSTA, ModelInputs, cli, hub, load_model, save_model
from hsta_fast.protocol import table
from hsta_fast.training import runner
from hsta_fast.training.config import recipe_config

pytest.importorskip("huggingface_hub")

SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32, "num_frames": 2, "epochs": 1},
    **{"labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6, "warmup_epochs": 1},
    **{"dtype": "float32", "gallery": 0},
}
SEEN = {"pretrained_subjects": json.dumps([f"casme3/spNO.{number}" for number in (1, 2, 3)])}
NOTES = {"caveats": "Rendered faces.", "licence of the start": "CC BY-NC 4.0 (VideoMAE)"}


def tiny() -> HSTA:
    torch.manual_seed(0)
    small: dict[str, Any] = {"widths": (12, 16), "num_heads": (3, 4), "num_classes": 3}
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, n_video=1, **small)
    model.inputs = ModelInputs(classes=("a", "b", "c"), image_size=32, num_frames=4)
    model.notes = NOTES
    return model.eval()


def logits(model: HSTA) -> Tensor:
    torch.manual_seed(1)
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        return model(video, video[:, :, ::2])


def content(path: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Of a file of weights. Its bytes vary: safetensors writes the metadata in any order."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: x.flatten().tolist() for key, x in load_file(path).items()}


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that starts from a model of ours, and one of one branch whose epoch was chosen on the test clips.

    They are only to be read. The start has seen three of the four subjects, without labels.
    """
    folder = tmp_path_factory.mktemp("runs")
    start = hsta_fast.create_model("hsta_tiny", num_classes=3, num_layers=1, n_video=1)
    save_model(start, folder / "start.safetensors", notes=SEEN)
    changes: dict[str, dict[str, Any]] = {
        "clean": {"init": folder / "start.safetensors"},
        "leaky": {"select": "best-test-epoch", "branches": ("video",)},
    }
    return {
        name: runner.main(recipe_config("paper", **SMALL, **changed, data=faces, runs=folder, name=name))
        for name, changed in changes.items()
    }


def model_of(run: Path, fold: int = 2) -> HSTA:
    return load_model(run / "folds" / f"{fold:02d}" / "model.safetensors")


WRAPPERS: dict[str, Callable[[HSTA], Any]] = {
    "alone": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_there_and_back(wrapper: str, tmp_path: Path) -> None:
    model, folder = tiny(), tmp_path / "new" / "model"
    hub.save_pretrained(WRAPPERS[wrapper](model), folder)
    back = HSTA.from_pretrained(folder)
    assert torch.equal(logits(back), logits(model)) and not back.training
    assert (back.config, back.inputs, back.notes) == (model.config, model.inputs, NOTES)
    save_model(model, tmp_path / "alone.safetensors")
    assert content(folder / "model.safetensors") == content(tmp_path / "alone.safetensors")
    assert torch.equal(logits(load_model(folder / "model.safetensors")), logits(model))
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    written = json.loads((folder / "config.json").read_text())
    assert written["architecture"]["widths"] == [12, 16] and written["inputs"]["classes"] == ["a", "b", "c"]
    assert "CC BY-NC 4.0 (VideoMAE)" in card_of(folder) and "Rendered faces." in card_of(folder)[:300]


def test_weights_of_another_program_are_read_by_the_configuration(tmp_path: Path) -> None:
    model = tiny().double()
    model.save_pretrained(tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # without metadata
    back = HSTA.from_pretrained(str(tmp_path))
    assert back.inputs == model.inputs and back.notes == NOTES
    assert torch.equal(logits(back), logits(model)) and logits(back).dtype == torch.float64


def test_from_the_hub_by_what_was_downloaded_before(tmp_path: Path) -> None:
    model, commit = tiny(), "0123456789" * 4
    repo = tmp_path / "models--me--demo"
    model.save_pretrained(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    back = HSTA.from_pretrained("me/demo", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(logits(back), logits(model))
    with pytest.raises(
        ValueError, match=r"^folder_or_repo expected a folder, or a repository .*me/other"
    ) as e:
        HSTA.from_pretrained("me/other", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(e.value)
    with pytest.raises(
        ValueError, match=r"^folder_or_repo expected a folder, or a repository .*no such/dir/x"
    ):
        HSTA.from_pretrained("no such/dir/x", cache_dir=tmp_path, local_files_only=True)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def other_heads(config: Any) -> Any:
    """Weights have the same shapes with these."""
    config["architecture"]["num_heads"] = [4, 4]
    return config


def more_classes(config: Any) -> Any:
    config["architecture"]["num_classes"] = 4
    config["inputs"]["classes"].append("d")
    return config


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (
        lambda f: (f / "config.json").unlink(),
        "expected config.json and model.safetensors",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "of an HSTA, got no model.safetensors"),
    "another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}'),
        "expected the fields architecture, inputs, notes of an HSTA, got model_type, hidden_size",
    ),
    "another model's weights": (
        lambda f: shutil.copyfile(f.parent / "other.safetensors", f / "model.safetensors"),
        r"expected the entries of the model, got \d+ missing .*, 1 unknown \(embeddings.weight\)",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json expected a JSON object, got: "),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, got list"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors expected a",
    ),
    "other heads": (
        lambda f: edit(f / "config.json", other_heads),
        r"described beside it, got num_heads \(3, 4\) instead of \(4, 4\)",
    ),
    "more classes": (lambda f: edit(f / "config.json", more_classes), "got num_classes 3 instead of 4"),
    "an impossible setting": (
        lambda f: edit(f / "config.json", lambda c: c | {"architecture": {"widths": [0, 1]}}),
        "got a faulty one: widths expected a pair of positive integers",
    ),
    "an unknown setting": (
        lambda f: edit(f / "config.json", lambda c: c | {"architecture": {"depth": 3}}),
        "got a faulty one: .*depth",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_one_line(fault: str, tmp_path: Path) -> None:
    spoil, message = FAULTS[fault]
    folder = tmp_path / "model"
    tiny().save_pretrained(folder)
    save_file({"embeddings.weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        HSTA.from_pretrained(folder)
    assert "\n" not in str(caught.value) and "model" in str(caught.value)


def test_what_cannot_be_saved_leaves_the_folder_as_it_was(tmp_path: Path, runs: dict[str, Path]) -> None:
    tiny().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = tiny()
    other.head = nn.Linear(28, 4)
    with pytest.raises(ValueError, match="expected the entries of the model"):
        other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="none of its 2 finished folds has these weights"):
        tiny().save_pretrained(tmp_path, run=runs["clean"])
    almost = model_of(runs["clean"])
    with torch.no_grad():
        almost.blocks[0].csta.projs[0][2].bias[0] += 1e-3  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="so its scores are not those of this model"):
        almost.save_pretrained(tmp_path, run=runs["clean"])
    with pytest.raises(ValueError, match="is not a run"):
        almost.save_pretrained(tmp_path, run=tmp_path / "nothing")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_card_has_the_scores_of_the_run_and_no_others(tmp_path: Path, runs: dict[str, Path]) -> None:
    run = runs["clean"]
    model_of(run).save_pretrained(tmp_path, run=run)
    card, report = card_of(tmp_path), table(run)
    first = card.split("\n\n")[2]
    assert first.startswith("> **Read this first.** Rendered faces: these scores prove the machinery and say")
    rows = [line.rsplit(maxsplit=3) for line in report.splitlines()]
    names = ("model", "majority class", "negative", "positive", "surprise")
    found = [f"| {row[0]} | {' | '.join(row[1:])} |" for row in rows if row and row[0] in names]
    assert len(found) == len(names) and [row for row in found if row not in card] == []
    interval = next(line for line in report.splitlines() if line.startswith("95 %"))
    low, _, high = interval.split()[-3].partition("-")
    assert f"| 95 % over subjects | {low} to {high} |" in card
    assert "finds no subject in training and test of the same fold, by the run's folds.csv" in card
    seen = "saw, without labels, 3 of the 4 people who are tested here: on them the scores are not those of"
    assert seen in first
    people = pd.read_csv(run / "predictions.csv", dtype=str)["subject"].unique()
    assert len(people) == 4 and not [name for name in people if name in card]
    assert "eaky" not in card and str(run.parent) not in card
    # Without the run, the same model has no score: not even the card of before stays.
    HSTA.from_pretrained(tmp_path).save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert "UF1" not in card and "written without the run" in card and "Rendered faces" in card[:300]


def test_the_card_says_what_was_done_to_the_frames(tmp_path: Path) -> None:
    model = tiny()
    assert model.inputs is not None
    recipe: dict[str, Any] = {
        "crop_face": 0.1,
        "stabilise": True,
        "magnify": 4.0,
        "framing": (0.5, 0.52, 0.6, 0.75),
    }
    model.inputs = replace(model.inputs, **recipe)
    model.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    done = (
        "the face cut out with a margin of 0.1, the head's movement undone, movement since the onset enlarged"
    )
    assert f"- Before they were shown: {done} 4 times\n" in card
    assert "- The face in the frames, at the median: its middle at 0.50, 0.52 of the side, 0.60 wide" in card


def test_the_card_leaves_out_the_notes_that_list_subjects(tmp_path: Path) -> None:
    model = tiny()
    model.notes = NOTES | SEEN | {"trained_subjects": '["samm/007"]', "pretraining": "18 clips of 3 subjects"}
    model.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert not [word for word in ("spNO", "007", "_subjects") if word in card]
    assert "- pretraining: 18 clips of 3 subjects" in card
    assert HSTA.from_pretrained(tmp_path).notes == model.notes, "a start from it is still checked"


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, runs: dict[str, Path]) -> None:
    """A run, a fold of it, another program's model, and a README.md of something else."""
    fold, other, project = runs["leaky"] / "folds" / "01", tmp_path / "other", tmp_path / "project"
    for folder, name, text in ((other, "config.json", "{"), (project, "README.md", "# A project")):
        folder.mkdir()
        (folder / name).write_text(text)
    for folder, name in (
        (runs["leaky"], "config.json"),
        (fold, "model.safetensors"),
        (other, "config.json"),
        (project, "README.md"),
    ):
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(
            ValueError, match=rf"^folder expected .*, got {folder}, whose {name} would be l"
        ) as e:
            tiny().save_pretrained(folder)
        assert "\n" not in str(e.value)
        assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (Path("/proc"), tmp_path / "file", tmp_path / "file" / "x"):
        expected = rf"^folder expected a folder that can be created and written, got {folder}: [a-z ]+$"
        with pytest.raises(OSError, match=expected):
            tiny().save_pretrained(folder)


def test_what_is_no_folder_and_no_repository_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny()
    for name in (None, 3):
        with pytest.raises(ValueError, match=rf"^folder_or_repo expected a folder, or a rep.*, got {name}$"):
            HSTA.from_pretrained(name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"^folder expected a folder, got {name}$"):
            model.save_pretrained(name)
    expected = "^repo expected name or owner/name of a repository on the hub"
    for repo in ("a/b/c", "a--b", "", None, 3):
        with pytest.raises(ValueError, match=rf"{expected}, got {repo!r}(: .*)?$"):
            model.push_to_hub(repo)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(OSError, match=rf"{expected} that takes the model, got 'me/demo': .*refused$"):
        model.push_to_hub("me/demo", token="t")


def test_the_card_of_a_leaky_run_says_so_first(tmp_path: Path, runs: dict[str, Path]) -> None:
    """By its settings, or because the audit finds a person in training and test."""
    run = runs["leaky"]
    model_of(run, 1).save_pretrained(tmp_path, run=run)
    card = card_of(tmp_path)
    assert card.split("\n\n")[2].startswith("> **Leaky.** --select best-test-epoch: the epoch was chosen by")
    assert "| model (leaky) |" in card and "## Score (leaky)" in card
    assert "audit` finds a leak: --select best-test-epoch" in card
    moved = tmp_path / "moved"
    shutil.copytree(runs["clean"], moved)
    predictions = pd.read_csv(moved / "predictions.csv", dtype=str)
    [*_, other] = [fold for fold in predictions["fold"].unique() if fold != predictions["fold"].iloc[0]]
    predictions["fold"] = [other, *predictions["fold"].iloc[1:]]  # the first clip, in the other fold
    predictions.to_csv(moved / "predictions.csv", index=False)
    (moved / "folds.csv").unlink()
    model_of(moved).save_pretrained(tmp_path, run=moved)
    card = card_of(tmp_path)
    assert "> **Leaky.** `hsta-fast audit` finds a leak: " in card.split("\n\n")[2]
    assert "are of subjects whose other clips were training data." in card


def test_what_would_be_sent_to_the_hub(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the sending itself, which needs the hub."""
    sent: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> "Hub":
            sent["repo"], self.repo_id = (repo_id, options), repo_id
            return self

        def upload_folder(self, folder_path: Path, **options: Any) -> str:
            sent["files"] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            sent["options"] = options
            return "https://hub/me/demo/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    model = model_of(runs["clean"])
    address = model.push_to_hub("me/demo", run=runs["clean"], private=True, token="t", revision="draft")
    assert address == "https://hub/me/demo/commit/1"
    assert sent["repo"] == ("me/demo", {"private": True, "exist_ok": True}) and sent["token"] == "t"
    assert (sent["options"]["repo_id"], sent["options"]["revision"]) == ("me/demo", "draft")
    assert set(sent["files"]) == {"model.safetensors", "config.json", "README.md"}
    assert b"| 95 % over subjects |" in sent["files"]["README.md"]
    (tmp_path / "sent.safetensors").write_bytes(sent["files"]["model.safetensors"])
    file = runs["clean"] / "folds" / "02" / "model.safetensors"
    assert content(tmp_path / "sent.safetensors") == content(file)


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._shared_model.cache_clear()
    how = r"^models in folders and on the hub expected .* got none: pip install 'hsta_fast\[hub\]'$"
    calls: list[Callable[[], object]] = [
        lambda: tiny().save_pretrained(tmp_path / "new"),
        lambda: tiny().push_to_hub("me/demo"),
        lambda: HSTA.from_pretrained(tmp_path),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=how):
            call()
    assert list(tmp_path.iterdir()) == []


def test_hsta_fast_export_of_a_run(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def export(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hsta-fast", "export", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return f"{stop.code} {capsys.readouterr().err}".strip()
        return capsys.readouterr().out

    run = runs["leaky"]
    said = export(run, "--fold", "2", "--out", "sub/model.pt2").splitlines()
    assert said[0] == f"sub/model.pt2: fold 2 of {run}"
    assert said[1] == "inputs: video uint8 (batch, 3, 2, 32, 32)"
    assert said[2] == "outputs: logits, probabilities, float32 (batch, 3): negative, positive, surprise"
    assert said[3].startswith("LEAKY: --select best-test-epoch") and said[4].startswith("caveats: Rendered")
    assert said[5].startswith("on random frames, logits in torch.export differ from the model's by at most")
    extra = {"inputs": ""}
    torch.export.load(tmp_path / "sub/model.pt2", extra_files=extra)
    assert ModelInputs.from_json(extra["inputs"]) == model_of(run).inputs
    assert export(run, "--fold", "7") == f"error: --fold expected a finished fold of {run}: 1, 2, got 7"
    assert (
        export(run, "--out", "x.txt")
        == "2 error: --out expected a name that ends in .onnx or .pt2, got x.txt"
    )
    assert "is not a run" in export(tmp_path)
