"""Imports flow one way: cli -> train -> model, data, protocol; model -> layers -> ops -> reference."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hsta_fast"

# Part -> the parts of the package that it may import.
ARROWS = {
    "files": set(),
    "reference": set(),
    "kernels": set(),
    "toolchain": set(),
    "extension": {"toolchain"},
    "ops": {"reference", "kernels", "extension"},
    "layers": {"ops"},
    "model": {"layers"},
    "ablations": set(),
    "environment": {"ops"},
    "checkpoint": {"files", "model"},
    "data": {"files"},
    "protocol": {"files"},
    "config": {"model", "data"},
    "optim": {"model", "config"},
    "experiment": {"config", "data", "environment", "protocol"},
    "team": set(),
    "run": {"files", "checkpoint", "protocol"},
    "train": {
        "model",
        "checkpoint",
        "config",
        "data",
        "environment",
        "optim",
        "experiment",
        "files",
        "run",
        "team",
        "protocol",
    },
    "ablate": {"ablations", "config", "files", "protocol", "team", "run", "train"},
    "cli": {
        "ablate",
        "ablations",
        "config",
        "data",
        "environment",
        "experiment",
        "extension",
        "protocol",
        "team",
        "train",
    },
    "__main__": {"cli"},
    "__init__": {"reference", "layers", "ops", "model", "checkpoint", "environment"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def imported_parts(path: Path) -> set[str]:
    """The parts of hsta_fast that a file imports, relative imports resolved."""
    here = ("hsta_fast", *path.relative_to(PACKAGE).with_suffix("").parts)
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            names += [".".join([*module, alias.name]) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("hsta_fast.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert imported_parts(path) - {part} <= ARROWS[part]


@pytest.mark.parametrize(("part", "forbidden"), [("protocol", "torch"), ("kernels", "hsta_fast")])
def test_parts_that_stand_alone(part: str, forbidden: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        assert forbidden not in {name.split(".")[0] for name in names}, path


def test_import_does_no_work() -> None:
    """No compiler, no Triton, no GPU, no output, and none of the training side's packages."""
    code = (
        "import sys, hsta_fast, torch; "
        "heavy = {'triton', 'cv2', 'pandas', 'matplotlib', 'sklearn', 'tyro'} & set(sys.modules); "
        "assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_needs_no_package_of_the_command_line_or_of_excel_files(tmp_path: Path) -> None:
    """An Excel file without openpyxl says which package is missing, and is not called broken."""
    code = (
        "import sys, zipfile; from pathlib import Path\n"
        "sys.modules |= dict.fromkeys(('tyro', 'openpyxl'))\n"
        "import hsta_fast.train, hsta_fast.data\n"
        "from hsta_fast.data.annotation import read_sheets\n"
        "zipfile.ZipFile('a.xlsx', 'w').close()\n"
        "try: read_sheets(Path('a.xlsx'))\n"
        "except ImportError as error: print('openpyxl' in str(error))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
