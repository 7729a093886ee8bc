"""Imports flow one way: cli -> training -> model, data, protocol; model -> layers -> ops -> reference."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hsta_fast"

# Module -> the modules that it may import. A module here is a file, or a folder that this table names.
ARROWS: dict[str, str] = {
    "files": "",
    "locks": "files",
    "clips": "",
    "console": "",
    "spelling": "",
    "flags": "",
    "threads": "",
    # The model, from the ground up.
    "reference": "",
    "kernels": "",
    "toolchain": "threads",
    "extension": "files toolchain",
    "cpu_speed": "extension files",
    "ops": "cpu_speed reference kernels extension",
    "replaced": "",
    "recompute": "ops",
    "layers": "ops recompute replaced",
    "adapters": "files ops replaced",
    "crossmodal": "layers ops replaced",
    "inputs": "",
    "frame_checks": "inputs ops",
    "hub_methods": "",
    "model": "crossmodal frame_checks hub_methods inputs layers ops",
    "memory": "crossmodal model ops presets recompute",
    "csta_maps": "crossmodal model",
    "published": "model",
    "graphs": "ops",
    "int8": "extension layers model ops replaced",
    "wrappers": "model",
    "environment": "ops cpu_speed",
    "checkpoint": "files inputs int8 layers model wrappers",
    "pretrained": "pretrained.branch pretrained.read pretrained.report pretrained.start",
    "pretrained.patches": "",
    "pretrained.report": "",
    "pretrained.sources": "model",
    "pretrained.encoder": "checkpoint model pretrained.sources",
    "pretrained.read": "checkpoint files model pretrained.encoder pretrained.sources wrappers",
    "pretrained.branch": "model pretrained.encoder pretrained.patches pretrained.report",
    "pretrained.start": "checkpoint model pretrained.branch pretrained.encoder pretrained.read "
    "pretrained.report",
    "presets": "model pretrained",
    "export": "checkpoint files inputs model",
    "model_card": "clips inputs model protocol",
    "hub": "checkpoint files inputs model model_card training.run_models",
    # Faces.
    "faces.searcher": "threads",
    "faces.detect": "files faces.searcher",
    "faces.align": "faces.detect",
    "faces.stabilise": "faces.align",
    "faces.magnify": "",
    "faces.view": "faces.align faces.magnify faces.stabilise",
    "faces": "faces.align faces.detect faces.magnify faces.view",
    "rollout": "layers model",
    "pictures": "",
    # Data.
    "data.action_units": "",
    "data.sampling": "",
    "data.clips": "clips",
    "data.remarks": "",
    "data.duplicates": "clips data.clips",
    "data.frames": "",
    "data.frames.containers": "",
    "data.frames.video": "files data.frames.containers",
    "data.frames.chunks": "",
    "data.frames.cache": "files threads data.frames.chunks",
    "data.frames.decode": "faces files threads data.frames.chunks data.frames.video",
    "data.frames.stream": "clips files threads data.frames.decode data.frames.video",
    "data.frames.views": "clips faces data.clips data.remarks data.frames.cache data.frames.chunks "
    "data.frames.decode",
    "data.frames.store": "clips faces data.clips data.duplicates data.sampling data.frames.cache "
    "data.frames.chunks data.frames.decode data.frames.views",
    "data.frames.flow": "clips data.clips data.sampling data.frames.cache data.frames.chunks "
    "data.frames.store",
    "data.frames.apex": "clips faces data.clips data.frames.cache data.frames.chunks data.frames.decode "
    "data.frames.flow data.frames.views",
    "data.frames.load": "faces data.clips data.sampling data.frames.apex data.frames.cache data.frames.flow "
    "data.frames.store data.frames.views",
    "data.readers": "",
    "data.readers.tree": "files data.frames.decode",
    "data.readers.sheets": "files data.clips",
    "data.readers.annotation": "files data.clips data.readers.sheets data.readers.tree",
    "data.readers.folders": "files clips data.readers.tree",
    "data.readers.videos": "files data.frames.video data.readers.folders",
    "data.readers.base": "files clips data.clips data.action_units data.remarks data.readers.annotation "
    "data.readers.folders data.readers.sheets data.readers.tree",
    **{
        f"data.readers.{name}": "files clips data.clips data.frames.video data.readers.annotation "
        "data.readers.base data.readers.folders data.readers.sheets data.readers.tree data.readers.videos"
        for name in (
            *("casme2", "samm", "smic", "casme3", "custom"),
            *("mmew", "dfme", "casme", "four_dme", "casme_squared", "samm_long"),
        )
    },
    "data.readers.registry": "clips data.clips data.readers",
    "data.labels": "",
    "data.labels.sets": "clips data.clips data.action_units",
    "data.labels.units": "data.clips data.action_units",
    "data.labels.megc2019": "data.labels.sets data.readers",
    "data.labels.files": "files data.clips data.labels.megc2019 data.labels.sets data.readers.annotation "
    "data.readers.sheets",
    "data.loading": "threads data.frames",
    "data.neutral": "clips data.clips data.labels data.recordings",
    "data.recordings": "clips data.clips data.frames.video data.labels data.readers",
    "data.doctor": "clips faces files threads data.clips data.remarks data.frames data.labels data.readers",
    "data.dataset": "clips faces data.clips data.frames data.labels data.loading data.sampling",
    "data": "data.action_units data.clips data.dataset data.frames data.labels data.loading data.neutral "
    "data.readers data.sampling",
    # Spotting.
    "spotting.settings": "faces",
    "spotting.regions": "faces",
    "spotting.movement": "data.frames faces spotting.regions spotting.settings",
    "spotting.steps": "spotting.movement",
    "spotting.intervals": "spotting.movement spotting.regions spotting.settings spotting.steps",
    "spotting.spotter": "data.frames data.remarks faces spotting.intervals spotting.movement "
    "spotting.settings",
    "spotting.refine": "spotting.intervals",
    "spotting.sources": "clips data.frames data.readers data.recordings",
    "spotting.truth": "clips data.labels data.recordings protocol spotting.sources",
    "spotting.report": "clips files data.frames protocol.plots spotting.sources spotting.spotter",
    "spotting.command": "clips files data.frames protocol.plots spotting.report spotting.settings "
    "spotting.refine spotting.sources spotting.spotter",
    "spotting": "spotting.intervals spotting.settings spotting.spotter",
    # Rendered faces.
    "synth.face": "",
    "synth.painter": "synth.face",
    "synth.layouts": "files data.clips data.readers",
    "synth.faults": "files data.clips data.readers synth.layouts",
    "synth.settings": "synth.faults synth.layouts",
    "synth.plan": "synth.face synth.settings",
    "synth.long_plan": "synth.face synth.plan synth.settings",
    "synth.deform": "synth.face",
    "synth.scene": "synth.deform synth.face synth.painter synth.plan",
    "synth.processes": "threads",
    "synth.recordings": "files data.frames.video synth.face synth.layouts synth.long_plan synth.plan "
    "synth.scene synth.settings",
    "synth.render": "files data.frames.video synth.face synth.faults synth.layouts synth.painter synth.plan "
    "synth.processes synth.recordings synth.scene synth.settings",
    "synth": "synth.render synth.settings",
    # Evaluation: imports only clips and files of ours.
    "protocol.plots": "",
    "protocol.page": "",
    "protocol.folds": "clips",
    "protocol.metrics": "clips",
    "protocol.predictions": "clips",
    "protocol.tables": "files",
    "protocol.columns": "protocol.tables",
    "protocol.foreign": "clips protocol.columns protocol.predictions protocol.tables",
    "protocol.label_check": "protocol.predictions",
    "protocol.fold_files": "clips protocol.columns protocol.folds protocol.predictions",
    "protocol.run_scores": "clips protocol.metrics protocol.predictions",
    "protocol.unit_scores": "clips protocol.metrics",
    "protocol.unit_report": "clips protocol.gallery protocol.latex protocol.page protocol.predictions "
    "protocol.run_scores protocol.unit_scores",
    "protocol.gallery": "clips files protocol.predictions protocol.run_scores protocol.unit_scores",
    "protocol.latex": "",
    "protocol.report": "clips files protocol.gallery protocol.latex protocol.metrics protocol.page "
    "protocol.plots protocol.run_scores protocol.unit_report",
    "protocol.overlap": "clips protocol.columns protocol.fold_files protocol.label_check "
    "protocol.predictions",
    "protocol.findings": "clips protocol.columns protocol.foreign protocol.metrics protocol.overlap "
    "protocol.predictions protocol.run_scores protocol.unit_scores",
    "protocol.audit": "clips protocol.columns protocol.findings protocol.foreign protocol.metrics "
    "protocol.overlap",
    "protocol.interval_pairs": "",
    "protocol.spotting": "clips protocol.interval_pairs",
    "protocol.spotting_audit": "clips protocol.columns protocol.spotting",
    "protocol.compare": "clips protocol.columns protocol.findings protocol.foreign protocol.metrics "
    "protocol.overlap protocol.predictions protocol.run_scores",
    "protocol.compare_tables": "clips protocol.compare protocol.findings protocol.latex",
    "protocol.seeds": "files protocol.latex protocol.report",
    "protocol": "protocol.audit protocol.columns protocol.compare protocol.compare_tables "
    "protocol.fold_files protocol.folds protocol.gallery protocol.latex protocol.metrics "
    "protocol.interval_pairs protocol.predictions protocol.report protocol.seeds protocol.spotting "
    "protocol.spotting_audit "
    "protocol.unit_scores",
    # Training.
    "training": "",
    "training.workers": "training.stopping",
    "training.paper_tables": "",
    "training.settings": "faces flags model data pretrained recompute",
    "training.config": "faces model data presets spelling training.settings",
    "training.config_file": "files spelling",
    "training.setting_groups": "training.config training.settings",
    "training.optim": "model training.config",
    "training.compiled": "model",
    "training.step": "model training.config training.optim training.step_graph",
    "training.step_graph": "",
    "training.seen": "clips inputs",
    "training.initial": "model pretrained training.config training.run_checks training.seen",
    "training.labelled": "data files spelling training.config",
    "training.splits": "clips data protocol training.config",
    "training.run_checks": "files locks clips spelling",
    "training.run_log": "",
    "training.scalars": "",
    "training.provenance": "environment model",
    "training.stopping": "interrupt",
    "training.epoch_part": "training.distributed training.stopping",
    "training.run_folder": "files locks checkpoint protocol training.run_checks",
    "training.distributed": "layers model wrappers training.run_folder training.workers",
    "training.setup": "clips environment faces files inputs data protocol spelling training.config "
    "training.splits cpu_speed training.initial training.labelled training.optim training.provenance "
    "training.run_checks",
    "training.progress": "training.run_folder training.run_log training.scalars",
    "training.loop": "model data protocol training.compiled training.config training.optim "
    "training.progress training.run_folder training.setup training.step training.step_graph "
    "training.workers recompute wrappers training.distributed training.epoch_part training.stopping",
    "training.gallery": "checkpoint csta_maps files pictures model data protocol training.loop "
    "training.run_folder training.setup locks",
    "training.dry_run": "clips data environment protocol training.loop training.optim training.run_checks "
    "training.run_folder training.setup training.splits memory",
    "training.run_models": "checkpoint export inputs protocol training.run_checks training.run_folder",
    "training.evaluate": "clips checkpoint int8 protocol training.config training.gallery training.loop "
    "training.run_checks training.run_folder training.setup",
    "training.runner": "clips files checkpoint protocol training.config training.dry_run "
    "training.evaluate training.gallery training.loop training.progress training.provenance "
    "training.run_checks training.run_folder training.run_log training.scalars training.setup "
    "training.splits training.step training.workers training.distributed training.fold training.stopping",
    "training.fold": "checkpoint files protocol training.config training.distributed training.evaluate "
    "training.gallery training.loop training.progress training.run_folder training.scalars training.setup "
    "training.splits",
    "training.ablate": "files protocol spelling training.config training.optim training.paper_tables "
    "training.run_checks training.runner training.workers",
    "profiling": "files crossmodal data environment layers memory model ops presets protocol published "
    "recompute spelling toolchain training.optim training.progress training.settings training.setup "
    "training.step training.step_graph",
    "pretraining.settings": "data model spelling training.config training.settings pretraining.objective",
    "pretraining.objective": "",
    "pretraining.autoencoder": "layers model pretraining.objective",
    "pretraining.folder": "files training.run_checks training.run_folder training.run_log",
    "pretraining.data": "clips data spelling training.labelled training.setup pretraining.settings",
    "pretraining.loop": "data model training.distributed training.epoch_part training.loop training.optim "
    "training.progress training.stopping pretraining.autoencoder pretraining.folder pretraining.objective "
    "pretraining.settings",
    "pretraining.pictures": "model protocol training.loop pretraining.loop pretraining.objective",
    "pretraining.run": "checkpoint clips data files inputs protocol training.stopping training.progress "
    "training.initial training.provenance training.run_checks training.run_log training.setup "
    "pretraining.data pretraining.folder pretraining.loop pretraining.pictures pretraining.settings",
    "pretraining": "",
    "predicting": "clips checkpoint csta_maps data faces files flags hub inputs model pictures protocol "
    "rollout spotting threads training.run_checks training.run_models training.setup",
    "serving": "",
    "serving.jobs": "data.frames.video",
    "serving.app": "predicting protocol.page serving.jobs",
    # The top.
    "help_text": "",
    "interrupt": "",
    "usage": "flags spelling",
    "commands": "environment extension faces files data data.doctor predicting pretraining "
    "profiling protocol serving spotting.command spotting.settings spotting.truth synth synth.render "
    "training.ablate training.config training.evaluate training.run_models training.runner "
    "training.setting_groups training.setup training.stopping training.workers usage",
    "cli": "commands console extension files help_text interrupt spelling training.config "
    "training.config_file training.optim training.setting_groups training.stopping usage",
    "__main__": "cli",
    "__init__": "adapters interrupt reference ops crossmodal layers inputs int8 model csta_maps checkpoint "
    "environment graphs presets recompute export hub predicting",
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def room_of(parts: tuple[str, ...]) -> str:
    """The longest prefix of a dotted name that is in the table; "__init__" for the package itself."""
    named = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in named if name in ARROWS), ".".join(parts))


def imported_rooms(path: Path) -> set[str]:
    """The modules of hsta_fast in the table that a file imports, with relative imports resolved."""
    here = ("hsta_fast", *path.relative_to(PACKAGE).with_suffix("").parts)
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            names += [".".join([*module, alias.name]) for alias in node.names]
    return {room_of(tuple(name.split(".")[1:])) for name in names if name.startswith("hsta_fast.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_allowed(path: Path) -> None:
    room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    allowed = ARROWS[room].split()
    rooms = imported_rooms(path) - {room}
    # A folder in the table stands for its files, too.
    assert [name for name in rooms if not any(f"{name}.".startswith(f"{to}.") for to in allowed)] == []


def test_the_allowed_imports_have_no_cycle() -> None:
    graph = {room: arrows.split() for room, arrows in ARROWS.items()}
    graph["data.readers.registry"].remove("data.readers")  # its own folder: the other files, which it lists
    for folder in ("data.frames", "data.readers", "data.labels"):
        graph[folder] += [room for room in ARROWS if room.startswith(f"{folder}.")]
    assert {arrow for arrows in graph.values() for arrow in arrows} <= graph.keys()
    TopologicalSorter(graph).prepare()


def test_the_table_names_only_existing_modules() -> None:
    for room in ARROWS:
        path = PACKAGE.joinpath(*room.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), room


@pytest.mark.parametrize(("part", "forbidden"), [("protocol", "torch"), ("kernels", "hsta_fast")])
def test_parts_that_stand_alone(part: str, forbidden: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        assert forbidden not in {name.split(".")[0] for name in names}, path


def test_import_does_no_work() -> None:
    """No compiler, no Triton, no GPU, no output, and no packages that only training needs."""
    code = (
        "import sys, hsta_fast, torch; "
        "heavy = {'triton', 'cv2', 'pandas', 'matplotlib', 'sklearn', 'tyro', 'PIL', 'jinja2', "
        "'huggingface_hub', 'onnx', 'onnxscript', 'onnxruntime'}; "
        "heavy &= set(sys.modules); "
        "assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_needs_no_package_of_the_command_line_or_of_excel_files(tmp_path: Path) -> None:
    """An Excel file without openpyxl says which package is missing, and is not called broken."""
    code = (
        "import sys, zipfile; from pathlib import Path\n"
        "sys.modules |= dict.fromkeys(('tyro', 'openpyxl'))\n"
        "import hsta_fast.data, hsta_fast.training.runner\n"
        "from hsta_fast.data.readers.annotation import read_sheets\n"
        "zipfile.ZipFile('a.xlsx', 'w').close()\n"
        "try: read_sheets(Path('a.xlsx'))\n"
        "except ImportError as error: print('openpyxl' in str(error))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
