"""Usage: wrong words are one line with the nearest right one, help has groups and examples that run."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hsta_fast import cli, usage
from hsta_fast.help_text import EXAMPLES, GROUPS
from hsta_fast.spelling import did_you_mean
from hsta_fast.training.config import TrainConfig, recipe_config, to_json
from hsta_fast.training.setting_groups import SettingGroups
from tests.test_cli import COMMANDS, refusal, run
from tests.training.commands import start

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --data x --epoch 3", "train expected one of its flags, got '--epoch'; did you mean --epochs"),
        ("train --data x -epochs 3", "train expected one of its flags, got '-epochs'; did you mean --epochs"),
        ("train --data x --xyzzy", "got '--xyzzy'; hsta-fast train --help lists them"),
        ("train --data x --no-strct", "got '--no-strct'; did you mean --no-strict?"),
        ("train --data x --epochs three", "--epochs expected a whole number, got 'three'"),
        ("train --data x --epochs=3.5", "--epochs expected a whole number, got '3.5'"),
        ("train --data x --lr fast", "--lr expected a number, got 'fast'"),
        ("train --data x --epochs", "--epochs expected 1 value, got none"),
        ("train --data x --crop-face wide", "--crop-face expected a number, got 'wide'"),
        ("train --data x --crop-face 3", "--crop-face expected 0 to 2, got 3.0"),
        ("train --data x --crop-face --epochs x", "--epochs expected a whole number, got 'x'"),
        ("train --data x --crop-face 0.1 0.2", "train expected flags, got '0.2'"),
        ("train --data x --face 2", "--face expected --crop-face beside it, got 2"),
        ("train --data x --special onset", "--special expected 2 values, got 1"),
        ("train --data x --num-layers two", "--num-layers expected a whole number, got 'two'"),
        (
            "train --data x --protocol lsoo",
            "--protocol expected one of loso, kfold, composite, cross-dataset, leave-one-dataset-out, "
            "published-folds, got 'lsoo'; did you mean loso?",
        ),
        ("train --data x --branches video sepcial", "got 'sepcial'; did you mean special?"),
        ("train --data x --recipe mine", "--recipe expected one of paper, published, got 'mine'"),
        (
            "train --data x --labels casme5",
            "--labels expected one of ",
        ),
        ("train --data x --labels emotion4", "got 'emotion4'; did you mean emotion7?"),
        ("train --data x --model hsta-tiny", "got 'hsta-tiny'; did you mean hsta_tiny"),
        ("train --data x --epochs 1", "--warmup-epochs expected at most --epochs 1, got 5"),
        ("train --epochs 3 4 --data x", "train expected flags, got '4'; hsta-fast train --help"),
        ("train --epochs 3", "train expected --data, got none; hsta-fast train --help"),
        ("train --resume --overwrite --data x", "--overwrite expected no --resume beside it, got both"),
        ("train --join --overwrite --data x", "--overwrite expected no --join beside it, got both"),
        ("prepare --data x --dry-run", "prepare expected no --dry-run"),
        ("synth", "synth expected --out, got none"),
        ("synth --out x --subjects 1", "--subjects expected at least 2, got 1"),
        ("evaluate", "error: evaluate expected PATH, got none; hsta-fast evaluate --help says what it is"),
        ("audit", "audit expected PATH, got none; hsta-fast audit --help says what it is"),
        ("audit --clips x --fold=1", "audit expected PATH, got none; hsta-fast audit --help"),
        ("completion", "completion expected one of bash, zsh, fish, got none; hsta-fast completion --help"),
        ("info extra", "info expected flags, got 'extra'; hsta-fast info --help lists them"),
        ("synth x --out y", "synth expected flags, got 'x'"),
        ("evaluate a b", "Unrecognized options: b"),
        ("audit x --absent zro", "--absent expected one of zero, skip, raise, got 'zro'; did you mean zero?"),
        ("completion bsh", "completion expected one of bash, zsh, fish, got 'bsh'; did you mean bash?"),
        ("ablate --data x --table figure4", "got 'figure4'; did you mean figure3?"),
        ("ablate --data x --table 1 --rows vdeo", "did you mean video"),
        ("info --jsno", "did you mean --json?"),
        ("Train", "got 'Train'; did you mean train?"),
        ("--versoin", "got '--versoin'; did you mean --version?"),
        ("xyz", "got 'xyz'; hsta-fast --help lists them"),
    ],
)
def test_wrong_words_are_one_line_and_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    assert expected in refusal(monkeypatch, *words.split(), status=2)


def test_what_the_data_refuse_is_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, faces: Path, tmp_path: Path
) -> None:
    words = ("train", "--data", str(faces), "--labels", "emotion3", "--runs", str(tmp_path))
    assert refusal(monkeypatch, *words, "--only", "spNO.11").endswith("did you mean casme3/spNO.1?")
    assert "got casme33; did you mean casme3?" in refusal(monkeypatch, *words, "--datasets", "casme33")
    (tmp_path / "hsta").mkdir()
    (tmp_path / "hsta" / "config.json").write_text("{}")
    message = refusal(monkeypatch, "evaluate", str(tmp_path / "hsat"))
    assert message.endswith("hsat is not a run: it has no config.json; did you mean hsta?")


def test_a_close_word_is_found_whatever_its_case() -> None:
    assert did_you_mean("TRAIN", COMMANDS) == "; did you mean train?"
    assert did_you_mean("x", COMMANDS) == ""


def bound(name: str, *words: object) -> SettingGroups:
    """The settings that a command of training is given."""
    texts = [str(word) for word in words]
    return arguments(name, *texts)["settings"]


def arguments(name: str, *words: str) -> dict[str, Any]:
    """The named arguments that a command is given."""
    run_it = usage.parse(name, cli._commands([name, *words])[name], words)
    return run_it.keywords if isinstance(run_it, partial) else {}


@pytest.mark.parametrize(
    ("words", "margin"),
    [
        ((), None),
        (("--crop-face",), 0.15),
        (("--crop-face", "0.25"), 0.25),
        (("--crop-face=0.25",), 0.25),
        (("--crop-face", "--flip"), 0.15),
        (("--crop-face", "None"), None),
    ],
)
def test_a_flag_may_stand_alone(words: tuple[str, ...], margin: float | None) -> None:
    for command in ("train", "prepare"):
        assert bound(command, "--data", "x", *words).input.crop_face == margin


def examples() -> list[str]:
    """Every command in the help, and in the code of the README and the docs."""
    found = [line for lines in EXAMPLES.values() for line in lines]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        lines = re.findall(r"^ {4}(?:\$ )?(hsta-fast .*)\n(?! {4}error)", page.read_text(), re.MULTILINE)
        found += [line for line in lines if "|" not in line and "..." not in line]
    return found


def test_every_example_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the data: flags, values and what a run expects of its settings."""
    saved = json.dumps(to_json(recipe_config("paper", data=Path("x"))))
    monkeypatch.chdir(tmp_path)
    assert len(examples()) > 20
    for line in examples():
        name, *words = shlex.split(line, comments=True)[1:]
        words = words[: words.index(">")] if ">" in words else words
        for word in words:
            if word.endswith("config.json") or word.endswith(".yaml"):
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                Path(word).write_text(saved)
        if "settings" in (given := arguments(name, *words)):
            given["settings"].checked()


def test_each_command_has_a_group_and_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, name, "--help")
        out = capsys.readouterr().out
        assert stop.value.code == 0
        assert out.endswith("examples:\n" + "".join(f"  {line}\n" for line in EXAMPLES[name]))
        if name == "train":
            # The docstring of --labels has a line break here, the help has not.
            assert "SAMM and SMIC-HS)" in " ".join(out.replace("│", " ").split())
            assert not re.search(r"^[│ ]+and[│ ]+$", out, re.MULTILINE)
            groups = re.findall(r"(\w+) options", out)
            assert groups == [field.name for field in fields(SettingGroups)]


def test_the_groups_hold_every_setting_once() -> None:
    config = recipe_config("published", data=Path("x"), only=("a",), dry_run=True)
    assert SettingGroups.of(config).joined() == config
    groups = [vars(group) for group in vars(SettingGroups.of(config)).values()]
    assert sorted(name for group in groups for name in group) == sorted(vars(config))
    assert len(vars(config)) == len(fields(TrainConfig))


@pytest.mark.parametrize("columns", ["1", "9", "39", "x"])
def test_help_in_a_narrow_terminal_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        run(monkeypatch, "doctor", "--help")
    assert "PATH" in capsys.readouterr().out and os.environ["COLUMNS"] == columns


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of `hsta-fast completion bash`."""
    path = tmp_path_factory.mktemp("completion") / "bash"
    process = start("completion", "bash")
    out, err = process.communicate()
    assert process.returncode == 0, err
    path.write_text(out)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("hsta-fast", "tra"), {"train"}),
        (("hsta-fast", ""), set(COMMANDS) | {"-h", "--help", "--version"}),
        (("hsta-fast", "--v"), {"--version"}),
        (("hsta-fast", "train", "--prot"), {"--protocol"}),
        (("hsta-fast", "completion", ""), {"-h", "--help", "bash", "zsh", "fish"}),
        (("hsta-fast", "train", "--epo"), {"--epochs"}),
        (("hsta-fast", "train", "--no-stri"), {"--no-strict"}),
        (("hsta-fast", "train", "--protocol", "c"), {"composite", "cross-dataset"}),
        (("hsta-fast", "ablate", "--tab"), {"--table"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(
    script: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    code = f"source {script}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; "
    code += "$(complete -p hsta-fast | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("words", ["evaluate ru", "doctor ru", "train --data ru", "audit x --clips ru"])
def test_bash_completes_paths(script: Path, tmp_path: Path, words: str) -> None:
    """By a terminal, as a user does: readline itself completes where the function finds nothing."""
    (tmp_path / "runs one").mkdir()
    terminal, inner = pty.openpty()
    keys = f'source {script}; hsta-fast() {{ echo "got<${{@: -1}}>"; }}\nhsta-fast {words}\t\nexit\n'
    with subprocess.Popen(
        ["bash", "--norc", "-i"], stdin=inner, stdout=subprocess.PIPE, stderr=inner, text=True, cwd=tmp_path
    ) as process:
        os.close(inner)
        os.write(terminal, keys.encode())
        out, _ = process.communicate(timeout=60)
        os.close(terminal)
    assert out == "got<runs one/>\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_flag_is_completed_to_flags_only(shell: str) -> None:
    """By the program inside the script: one line for each flag, none from the second line of a help."""
    commands = cli._commands()
    script = usage.completion(commands, shell)
    code = script[script.index("COMPLETION_SPEC = ") :].partition("\ndef main()")[0]
    if shell == "fish":  # in double quotes
        code = re.sub(r'\\([\\"$])', r"\1", code)
    program: dict[str, Any] = {}
    exec("from typing import Any, Dict, List, Tuple\n" + code, program)
    for name, command in commands.items():
        words = ["hsta-fast", name, "--"]
        lines = "\n".join(program["get_completions"](words, 2, program["COMPLETION_SPEC"])).split("\n")
        kinds = usage.flags_of(command)
        flags = {usage.as_flag(setting) for setting in kinds} | {"--help"}
        flags |= {usage.as_flag(f"no_{setting}") for setting, kind in kinds.items() if kind is bool}
        assert {line.partition("\t")[0] for line in lines} == flags


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    run(monkeypatch, "completion", shell)
    out = capsys.readouterr().out
    assert {"zsh": "compdef", "fish": "complete --no-files --command"}[shell] in out
    assert all(f"'{command}'" in out for command in COMMANDS)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=out, text=True).returncode == 0
