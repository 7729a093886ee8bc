"""A command and its surroundings: consoles that cannot be written, and a notebook's environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.training.commands import QUICK, SMALL, start

NAMES = ("Zoë", "中文", "emoji\U0001f600", "plain")


@pytest.fixture(scope="module")
def letters(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and a label set whose names have letters of many scripts, in a folder named in Latin-1."""
    root = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("letters")) + b"/caf\xe9"))
    root.mkdir()
    table = pd.read_csv(faces / "annotation.csv")
    names = dict(zip(table["Subject"].unique(), NAMES, strict=True))
    for subject, name in names.items():
        shutil.copytree(faces / subject, root / name)
    subject = table["Subject"].map(names)
    own = {"dataset": "dé中", "subject": subject, "clip": table["Filename"], "emotion": table["emotion"]}
    own |= {"path": subject + "/" + table["Filename"] + "/color"}
    own |= {word: table[word.title()] for word in ("onset", "apex", "offset")}
    pd.DataFrame(own).to_csv(root / "clips.csv", index=False)
    labels = root.parent / "labels.csv"
    words = sorted(set(table["emotion"]))
    classes = ("nég", "中", "\U0001f600") * len(words)
    labels.write_text(
        "word,class\n" + "".join(f"{w},{c}\n" for w, c in zip(words, classes, strict=False)), "utf-8"
    )
    return root, labels


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_letters_that_the_console_lacks_stop_no_command(
    letters: tuple[Path, Path], tmp_path: Path, encoding: str
) -> None:
    data, labels = letters
    run, run_flags = (
        tmp_path / "n",
        ("--runs", tmp_path, "--labels", labels, "--protocol", "loso", "--epochs", 1),
    )
    train = ("train", "--data", data, *QUICK, *run_flags, "--name", "n", "--only", f"dé中/{NAMES[1]}")
    commands: list[tuple[object, ...]] = [train]
    if encoding == "ascii":
        commands += [
            ("doctor", data),
            ("prepare", *train[1:-2]),
            (*train, "--resume"),
            ("evaluate", run),
            ("audit", run / "predictions.csv", "--clips", run / "clips.csv"),
            ("ablate", "--table", "2", "--rows", "a1", *train[1:-4], "--name", "table"),
        ]
    code = "import sys; sys.stdout, sys.stderr = "
    code += f"(open(d, 'w', encoding={encoding!r}, closefd=False) for d in (1, 2))"
    for words in commands:
        process = start(*map(os.fsdecode, map(str, words)), before=code)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert words[0] != "train" or "\\u4e2d" in out or encoding == "utf-8"
    assert "中" in (run / "report.html").read_text("utf-8")
    assert set(pd.read_csv(run / "predictions.csv")["subject"]) == {NAMES[1]}


def test_file_names_are_utf_8_in_any_locale(letters: tuple[Path, Path]) -> None:
    """In a locale of ASCII, Python would find no folder named with other letters, and leave its clips out."""
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "hsta_fast", "doctor", str(letters[0])]
    done = subprocess.run(command, capture_output=True, env=ascii_only)
    assert b"no fault in any row" in done.stdout, done.stderr
    assert done.returncode == 0 and b"caf\\udce9" in done.stdout


@pytest.mark.parametrize(
    ("lost", "status", "said"),
    [
        (
            "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
            1,
            "error: could not write the output: no space left",
        ),
        ("read, write = os.pipe(); os.close(read); os.dup2(write, 1); os.dup2(write, 2)", 1, ""),
        ("os.close(1); os.close(2); sys.stdout = sys.stderr = None", 0, ""),
    ],
)
def test_a_console_that_cannot_be_written_stops_no_training(
    faces: Path, tmp_path: Path, lost: str, status: int, said: str
) -> None:
    flags = ("--data", faces, "--runs", tmp_path, *QUICK, "--name", "r")
    process = start("train", *flags, before=f"import os, sys; {lost}")
    _, err = process.communicate()
    assert (process.returncode, (tmp_path / "r" / "report.html").exists()) == (status, True), err
    assert said in err and "Traceback" not in err and "Exception ignored" not in err
    for path in tmp_path.rglob("*.csv"):
        assert "python" not in path.read_text(), "a file got what was printed"


@pytest.mark.parametrize("words", [("train", "--help"), ("--version",)])
def test_help_that_cannot_be_written_is_an_error(words: tuple[str, ...]) -> None:
    process = start(*words, before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    _, err = process.communicate()
    assert process.returncode == 1 and "could not write the output: no space left" in err


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    code = "import os; from hsta_fast import console; console.protect(); os.set_blocking(1, False)"
    process = start("--version", before=f"{code}; print('x' * 1_000_000)")
    out, err = process.communicate()
    assert process.returncode == 0 and len(out) > 1_000_000, err


def test_the_backend_of_a_notebook_stops_no_command(faces: Path, tmp_path: Path) -> None:
    backend = "module://matplotlib_inline.backend_inline"
    flags = ("--data", faces, "--runs", tmp_path, *QUICK, "--name", "r")
    process = start("train", *flags, MPLBACKEND=backend, MPLCONFIGDIR="/proc/nowhere")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert (tmp_path / "r" / "curves.png").stat().st_size > 1000


def test_commands_that_draw_nothing_do_not_import_matplotlib(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("label,predicted\n0,0\n1,1\n")
    prepare = ("prepare", "--data", faces, *SMALL, "--labels", "emotion3", "--cache", tmp_path / "cache")
    code = "import atexit, sys; atexit.register(lambda: print('matplotlib' in sys.modules))"
    for words in (("info",), ("doctor", faces), ("audit", tmp_path / "p.csv"), prepare, ("train", "--help")):
        process = start(*words, before=code, MPLBACKEND="no such")
        out, err = process.communicate()
        assert process.returncode == 0 and out.endswith("False\n"), err


def test_a_damaged_matplotlibrc_is_said_before_any_frame_is_decoded(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "rc").write_bytes(b"# caf\xe9\n")
    flags = ("--data", faces, "--runs", tmp_path / "runs", *QUICK)
    process = start("train", *flags, MATPLOTLIBRC=tmp_path / "rc")
    _, err = process.communicate()
    assert "error: matplotlib, which draws the report, cannot be imported: 'utf-8' codec can't decode" in err
    assert process.returncode == 1 and not (tmp_path / "runs").exists()
