"""The README's code runs, and links in the docs lead somewhere."""

import re
import textwrap
from pathlib import Path

import pytest

from hsta_fast.adapters import accelerating

ROOT = Path(__file__).parent.parent


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number"), [("README.md", 1), ("docs/drop-in.md", 0), ("docs/drop-in.md", 1)]
)
def test_the_report_on_a_model_is_as_shown(
    page: str, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(accelerating, "_own_finders", [])
    exec(compile(examples(page)[number], page, "exec"), {})
    shown = textwrap.indent(capsys.readouterr().out, "    ")
    assert f"\n\n{shown}" in (ROOT / page).read_text()


def test_the_python_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = examples("README.md")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([2, 7])" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").exists()


SOURCES = (".py", ".cpp", ".cu", ".h", ".cuh")
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_the_architecture_names_every_file() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    ops = [path.stem for path in (ROOT / "hsta_fast/reference").glob("*.py")]  # named as one file per op
    folders = ("hsta_fast", "kernels", "csrc", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in SOURCES]
    missing = [path.name for path in files if f"`{path.name}`" not in page and path.stem not in ops]
    assert [name for name in missing if not name.startswith(("__", "bench_"))] == []


def test_no_file_has_the_marks_of_a_merge() -> None:
    folders = ("benchmarks", "csrc", "docs", "hsta_fast", "kernels", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_bytes() for path in [*paths, ROOT / "README.md", ROOT / "Makefile"]}
    marked = [str(path) for path, text in texts.items() if re.search(rb"^(<{7}|>{7}) ", text, re.MULTILINE)]
    assert len(texts) > 300 and marked == []
