"""The command line: what a user types, and the one-line error for bad input."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import hsta_fast
from hsta_fast import cli
from hsta_fast.data import LABEL_SETS

COMMANDS = (
    *("synth", "doctor", "prepare", "pretrain", "train", "evaluate", "spot", "predict", "export", "audit"),
    *("compare", "ablate", "serve", "info", "profile", "build", "completion"),
)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run hsta-fast in this process."""
    monkeypatch.setattr(sys, "argv", ["hsta-fast", *words])
    cli.main()


def refusal(monkeypatch: pytest.MonkeyPatch, *words: str, status: int = 1) -> str:
    """The error message of a command, which must be exactly one line, and end with `status`."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    # Python itself prints a text and ends with 1.
    message = stop.value.code if isinstance(stop.value.code, str) else said.getvalue().removesuffix("\n")
    assert status == (1 if isinstance(stop.value.code, str) else stop.value.code), message
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_help_and_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",), ("-h",)):
        run(monkeypatch, *words)
        out = capsys.readouterr().out
        assert "--version" in out and "examples:" in out
        listed = [
            line.split()[0] for line in out.splitlines() if line.startswith("  ") and "hsta-fast" not in line
        ]
        assert sorted(listed) == sorted(COMMANDS), "a line each"
        assert all(f"\n{group}:\n" in out for group in ("data", "training", "results", "videos", "machine"))
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"hsta-fast {hsta_fast.__version__}\n"
    run(monkeypatch, "info")
    text = capsys.readouterr().out
    assert all(word in text for word in ("python", "torch", "cpu", "space_time_attention", "tubelet_embed"))
    run(monkeypatch, "info", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts == hsta_fast.info()
    for choices in facts["ops"].values():
        assert all(choice["reason"] in text for choice in choices.values())


def test_the_recipe_sets_the_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, rate in (("paper", "5e-05"), ("published", "6.25e-05")):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "train", "--recipe", recipe, "--help")
        assert stop.value.code == 0
        assert rate in capsys.readouterr().out


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("hsta-fast")
    words = (
        [str(command)]
        if command.exists()
        else [sys.executable, "-c", "from hsta_fast.cli import main; main()"]
    )
    done = subprocess.run([*words, "frain"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"error: command expected one of {', '.join(COMMANDS)}, got 'frain'; did you mean train?"
    assert done.stderr.strip() == expected


@pytest.fixture
def copy(faces: Path, tmp_path: Path) -> Path:
    """A dataset whose annotation and frames a test may damage; the frames are links to the shared ones."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for subject in faces.glob("spNO.*"):
        (folder / subject.name).mkdir()
        for recording in subject.iterdir():
            color = folder / subject.name / recording.name / "color"
            color.mkdir(parents=True)
            for frame in (recording / "color").iterdir():
                (color / frame.name).hardlink_to(frame)
    pd.read_csv(faces / "annotation.csv").to_csv(folder / "annotation.csv", index=False)
    return folder


def train(monkeypatch: pytest.MonkeyPatch, data: Path, *more: str, status: int = 1) -> str:
    words = [
        "--data",
        str(data),
        "--runs",
        str(data.parent / "runs"),
        "--model",
        "hsta_tiny",
        "--image-size",
        "48",
    ]
    words += ["--epochs", "1", "--warmup-epochs", "0", "--labels", "emotion3"]
    return refusal(monkeypatch, "train", *words, *more, status=status)


def spoil(data: Path, **changes: object) -> None:
    """Change cells of the first row; None drops the column."""
    table = pd.read_csv(data / "annotation.csv", dtype=str)
    for column, value in changes.items():
        if value is None:
            table = table.drop(columns=column)
        else:
            table.loc[0, column] = str(value)
    table.to_csv(data / "annotation.csv", index=False)


def test_bad_data_is_named(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    assert "nowhere" in train(monkeypatch, copy.parent / "nowhere")
    spoil(copy, emotion="boredom")
    message = train(monkeypatch, copy)
    assert "boredom" in message and "disgust" in message and "spNO.1" in message
    spoil(copy, Onset=None)
    message = train(monkeypatch, copy)
    assert "annotation.csv" in message and "Onset" in message
    (copy / "annotation.csv").unlink()
    assert str(copy) in train(monkeypatch, copy)
    assert not (copy.parent / "runs").exists()


@pytest.mark.parametrize("fault", ["one frame", "missing", "truncated", "empty"])
def test_strict_names_the_first_fault(monkeypatch: pytest.MonkeyPatch, copy: Path, fault: str) -> None:
    row = pd.read_csv(copy / "annotation.csv").iloc[0]
    frame = copy / row["Subject"] / row["Filename"] / "color" / f"{row['Onset']}.jpg"
    data = frame.read_bytes()
    frame.unlink()
    if fault == "one frame":
        frame.write_bytes(data)
        spoil(copy, Offset=row["Onset"], Apex=row["Onset"])
    elif fault != "missing":
        frame.write_bytes(data[: 100 if fault == "truncated" else 0])
    message = train(monkeypatch, copy, "--strict")
    assert f"spNO.1/{row['Filename']} onset {row['Onset']}" in message
    assert fault == "one frame" or f"{row['Onset']}.jpg" in message


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--num-frames", "5"), 2, "multiple of the tubelet depth 2, got 5"),
        (("--image-size", "10"), 2, "at least one patch of 16"),
        (
            ("--protocol", "kfold", "--folds", "9"),
            1,
            "--folds expected 2 to 4, the number of subjects, got 9",
        ),
        (
            ("--protocol", "published-folds", "--folds", "25"),
            1,
            "--folds expected 2 to 24, the number of clips, got 25",
        ),
        (("--num-layers", "0"), 2, "--num-layers expected a whole number >= 1, got 0"),
        (("--lr", "inf"), 2, "--lr expected a finite number, got inf"),
        (("--clip-grad", "nan"), 2, "--clip-grad expected a finite number, got nan"),
        (("--only", "nobody"), 1, "--only expected folds of"),
        (("--device", "tpu"), 2, "--device"),
        (("--name", "a/b"), 2, "--name expected one folder name"),
        (
            ("--dataset", "samm"),
            1,
            "expected also the columns Onset Frame, Apex Frame, Offset Frame, Action Units, Estimated",
        ),
        (
            ("--labels", "emotion5"),
            2,
            f"--labels expected one of auto, {', '.join(LABEL_SETS)}, or a .json",
        ),
        (("--labels", "no-such.json"), 1, "no-such.json: expected a label file, got: no such file"),
        (("--labels", "megc2019"), 1, "emotion expected a word of label set 'megc2019'"),
        (("--more-data", "/nowhere"), 1, "/nowhere: expected the folder of a dataset, got no such folder"),
        (("--more-data", "/nowhere", "--dataset", "casme3"), 1, "recognised by themselves"),
    ],
)
def test_bad_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, copy: Path, flags: tuple[str, ...], status: int, words: str
) -> None:
    assert words in train(monkeypatch, copy, *flags, status=status)


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, "train", "--data", "x", "--model", "hsta_big", status=2)
    expected = "error: --model expected one of hsta_tiny, hsta_small, hsta_base, got 'hsta_big'"
    assert message.partition(";")[0] == expected


def test_a_folder_without_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, "train", "faces", "--epochs", "1", status=2)
    assert message == "error: train expected flags, got 'faces': --data gives the folder of the dataset"


def test_a_folder_that_cannot_be_created(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    """A file is where a folder above it would have to be."""
    below = copy / "annotation.csv" / "x"
    message = train(monkeypatch, copy, "--runs", str(below), "--cache", "none")
    assert f"--runs expected a folder that can be created and written, got {below}: " in message
    message = refusal(monkeypatch, "synth", "--out", str(below))
    assert f"--out expected a folder that can be created, got {below}: " in message


def test_evaluate_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "is not a run" in refusal(monkeypatch, "evaluate", str(tmp_path))


def test_audit_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [(f"s{i // 2}", "b", i, i % 2, i % 2, str(i // 2)) for i in range(8)]
    table = pd.DataFrame(rows, columns=["subject", "clip", "onset", "label", "predicted", "fold"])
    table.to_csv(tmp_path / "all.csv", index=False)
    words = ("audit", str(tmp_path / "all.csv"), "--clips", str(tmp_path / "all.csv"))
    run(monkeypatch, *words)
    assert "No subject is in training and test" in capsys.readouterr().out
    table.assign(fold=[str(i % 2) for i in range(8)]).to_csv(tmp_path / "by_clip.csv", index=False)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "audit", str(tmp_path / "by_clip.csv"), *words[2:])
    assert stop.value.code == 1
    assert "LEAK: 8 of 8 test clips (100%)" in capsys.readouterr().out
    for path, got in ((tmp_path / "nowhere.csv", "no such file"), (tmp_path, "a folder")):
        message = refusal(monkeypatch, "audit", str(path))
        assert message == f"error: {path}: expected a table (csv, tsv or other text, xlsx, npy), got {got}"


def test_audit_takes_the_columns_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "theirs.txt"
    path.write_text("who;emotion;gt;mine;yours\na;x;0;0;1\na;y;1;1;0\nb;x;0;1;0\n")
    flags = ("--label", "gt", "--predicted", "mine", "--subject", "WHO", "--classes", "no, yes")
    run(monkeypatch, "audit", str(path), *flags)
    text = capsys.readouterr().out
    assert "3 clips, 2 subjects, 2 classes" in text and "note: classes: 0 no, 1 yes" in text
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "audit", str(path), *flags, "--fold", "emotion")
    assert stop.value.code == 1 and "LEAK: 1 subject is tested in more" in capsys.readouterr().out
    for words, expected in (
        (
            ("--label", "zz"),
            f"{path}: --label expected one of the columns who, emotion, gt, mine, yours, got 'zz'",
        ),
        (
            ("--folds", str(path)),
            "--folds expected --clips, a table of the clips that its rows name, got none",
        ),
        (("--classes", "no,no"), "--classes expected two or more different names, got 'no,no'"),
        (("--classes", ""), "--classes expected two or more different names, got ''"),
    ):
        assert refusal(monkeypatch, "audit", str(path), *words, status=2) == f"error: {expected}"
    message = refusal(monkeypatch, "audit", str(path))
    assert "expected one column for label, got emotion and gt: --label says which" in message


def test_compare_says_and_writes_the_differences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, predicted in (("a.csv", "0101"), ("b.csv", "0110")):
        rows = [f"s{i // 2},c{i},{i % 2},{p}" for i, p in enumerate(predicted)]
        (tmp_path / name).write_text("\n".join(["subject,clip,label,predicted", *rows]))
    words = ("compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    run(monkeypatch, *words, "--latex", str(tmp_path / "t.tex"), "--classes", "no,yes")
    assert "b.csv - a.csv" in capsys.readouterr().out
    assert "b.csv $-$ a.csv" in (tmp_path / "t.tex").read_text()
    (tmp_path / "folder").mkdir()
    for path, got in (
        (tmp_path / "folder", "is a directory; what was there before is untouched"),
        (tmp_path / "a.csv" / "t.tex", "not a directory"),
        (Path("/proc/t.tex"), "no such file or directory"),  # no file can be created there
    ):
        message = refusal(monkeypatch, *words, "--latex", str(path))
        assert message == f"error: could not write {path}: {got}"
        assert "b.csv - a.csv" in capsys.readouterr().out, "the comparison is not lost"
    assert not any((tmp_path / "folder").iterdir())
    message = refusal(monkeypatch, *words, "--latex", words[1])
    assert message == f"error: --latex expected another file than one that is read, got {words[1]}"
    message = refusal(monkeypatch, *words[:2], status=2)
    assert message == f"error: compare expected two or more different runs, got {words[1]}"
    message = refusal(monkeypatch, *words, "--classes", "no,no", status=2)
    assert message == "error: --classes expected two or more different names, got 'no,no'"


def test_ablate_expects_a_table_and_its_rows(monkeypatch: pytest.MonkeyPatch, faces: Path) -> None:
    words = ("ablate", "--data", str(faces))
    message = refusal(monkeypatch, *words, status=2)
    assert "--table" in message and "--data" not in message and "hsta-fast ablate --help" in message
    message = refusal(monkeypatch, *words, "--table", "8", status=2)
    assert "--table expected one of 1, 2, 3, 4, 5, 6, 7, figure3, got '8'" in message
    message = refusal(monkeypatch, *words, "--table", "1", "--rows", "nope", "vido 0", status=2)
    assert "--rows expected rows of 'video 0', 'video 1', " in message
    assert "'special 12', got 'nope', 'vido 0'" in message


def test_synth_refuses_a_folder_that_is_not_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert str(tmp_path) in refusal(monkeypatch, "synth", "--out", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_prepare_fills_the_cache_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], faces: Path, tmp_path: Path
) -> None:
    words = ["--data", str(faces), "--model", "hsta_tiny", "--image-size", "48", "--labels", "emotion3"]
    words += ["--cache", str(tmp_path / "cache")]
    run(monkeypatch, "prepare", *words)
    first = capsys.readouterr()
    assert f"{tmp_path / 'cache'}: 24 clips, " in first.out and "checked" in first.out
    assert "make frames: 100%" in first.err
    run(monkeypatch, "prepare", *words)
    again = capsys.readouterr()
    assert again.out == first.out and "make frames" not in again.err
    assert "expected the folder to fill, got 'none'" in refusal(
        monkeypatch, "prepare", *words, "--cache", "none"
    )
    assert "--cache-gb expected a finite number > 0" in refusal(
        monkeypatch, "prepare", *words, "--cache-gb", "0", status=2
    )
    (tmp_path / "file").write_text("mine")
    message = refusal(monkeypatch, "prepare", *words, "--cache", str(tmp_path / "file"))
    assert "--cache expected a folder that can be created and written, got " in message
