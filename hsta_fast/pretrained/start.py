"""The start of an HSTA from files of pretrained weights."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from ..checkpoint import some
from ..model import BRANCHES, HSTA, HSTAConfig
from .branch import LayerChoice, Weights, branch_weights, layers_of_branch
from .encoder import Encoder
from .read import PretrainedFile, read_file
from .report import InitReport, Row

BRANCH_OF = {"init": 1, "init_special": 0}  # the branch that each file is for
OF_THE_SOURCE = ("norm_eps", "first_position", "num_heads")  # fields of HSTAConfig that it decides


class PretrainedStart:
    """Reads the files that an HSTA starts from, and puts its first weights together.

    The last norm, CLS and CSTA are taken where the file has them, the head never: it is of other classes.

    Args:
        init: for the video branch; a file of `save_model` also for the special branch and for CSTA.
        init_special: for the special branch.
        layers: which layers of a file are taken, see `choose_layers`.

    Raises:
        ValueError: no file is given, an unknown `layers`, or a file whose weights are not known in full.
    """

    def __init__(
        self,
        init: Path | str | None = None,
        init_special: Path | str | None = None,
        layers: LayerChoice = "even",
    ) -> None:
        if layers not in get_args(LayerChoice):
            known = ", ".join(get_args(LayerChoice))
            raise ValueError(f"init_layers expected one of {known}, got {layers!r}")
        given = {"init": init, "init_special": init_special}
        self.files = {
            name: read_file(Path(path), BRANCH_OF[name]) for name, path in given.items() if path is not None
        }
        if not self.files:
            raise ValueError("init expected a file of pretrained weights, got none")
        self.layers: LayerChoice = layers

    def adapt(self, config: HSTAConfig, given: Collection[str] = ()) -> HSTAConfig:
        """`config` with the norms' eps, the patches' first position and the heads of the sources.

        given: names of fields of `config` that must stay as they are.

        Raises:
            ValueError: a field that must stay differs from the source's, which would change its function; or
                the model lacks the branch of a file.
        """
        changes = {name: list(getattr(config, name)) for name in OF_THE_SOURCE}
        for d, (file, encoder) in self._encoders(config).items():
            for name, values in changes.items():
                value = getattr(encoder, name)
                if value is None or value == values[d]:
                    continue
                if name in given:
                    raise ValueError(
                        f"{name} expected {value} for the {BRANCHES[d]} branch, that of {file.path} "
                        f"({file.source}), got {values[d]}: without {name} it is set"
                    )
                values[d] = value
        pairs: dict[str, Any] = {name: tuple(values) for name, values in changes.items()}
        return replace(config, **pairs)

    def prepare(self, config: HSTAConfig) -> tuple[Weights, InitReport]:
        """The first weights of a model of `config`, by its keys, and what became of every key.

        config: as `adapt` returned it.

        Raises:
            ValueError: a file has another width, fewer layers than the model, or tensors of other shapes.
        """
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in HSTA(config).state_dict().items()}
        used = {d: file for d, (file, _) in self._encoders(config).items()}
        weights: Weights = {}
        rows: list[Row] = []
        for name, file in self.files.items():
            parts = [_others(file, config, [d for d in used if used[d] is file], name)]
            for d, encoder in file.encoders.items():
                if used.get(d) is file:
                    with file.named():
                        parts.append(branch_weights(encoder, config, d, self.layers, name))
                else:
                    why = f"of the {BRANCHES[d]} branch, which {name} does not start here"
                    parts.append(({}, [Row(name, "dropped", key, why=why) for key in encoder.all_keys()]))
            for new, of_part in parts:
                _check_shapes(file, new, shapes)
                weights |= new
                rows += of_part
        rows += [Row("", "left at its initialisation", model_key=key) for key in shapes if key not in weights]
        report = InitReport(heading=(), rows=tuple(rows))
        return weights, replace(report, heading=tuple(in_words(self.record(config, report))))

    def load_into(self, model: HSTA) -> InitReport:
        """Give `model`, whose configuration `adapt` returned, its first weights, in its own dtype.

        Raises:
            ValueError: as `prepare`.
        """
        weights, report = self.prepare(model.config)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for key, value in weights.items():
                parameters[key].copy_(value)
        return report

    def record(self, config: HSTAConfig, report: InitReport) -> dict[str, Any]:
        """What config.json says of the start: for "init" and "init_special" the file and what was taken."""
        found: dict[str, Any] = {}
        used = self._encoders(config)
        for name, file in self.files.items():
            branches = {
                BRANCHES[d]: {
                    "layers": layers_of_branch(encoder, config, d, self.layers),
                    "of": encoder.depth,
                    **{field: getattr(config, field)[d] for field in OF_THE_SOURCE},
                }
                for d, (of_branch, encoder) in sorted(used.items())
                if of_branch is file
            }
            found[name] = {
                "file": file.path.name,
                "sha256": file.sha256,
                "source": file.source,
                "licence": file.licence,
                "branches": branches,
                "notes": dict(file.notes),
            }
        return found | {"tensors": report.counts(), "left": report.left()}

    def _encoders(self, config: HSTAConfig) -> dict[int, tuple[PretrainedFile, Encoder]]:
        """The file and the encoder that each branch of the model starts from."""
        found: dict[int, tuple[PretrainedFile, Encoder]] = {}
        for name, file in self.files.items():
            branches = {BRANCH_OF[name]}
            if name == "init" and file.config is not None and "init_special" not in self.files:
                branches = {0, 1}
            taken = [d for d in branches if d in file.encoders and d in config.branch_ids]
            if not taken:
                inside, wanted = (" and ".join(BRANCHES[d] for d in ids) for ids in (file.encoders, branches))
                raise ValueError(
                    f"{file.path} expected a {wanted} branch in the model and in the file, got "
                    f"{' and '.join(config.branches)} in the model, {inside} in the file"
                )
            found |= {d: (file, file.encoders[d]) for d in taken}
        return found


def in_words(record: Mapping[str, Any]) -> list[str]:
    """A line for each file of a `record`, and one on the rest of the model."""
    lines = []
    for name in BRANCH_OF:
        if (file := record.get(name)) is None:
            continue
        taken = "; ".join(
            f"{branch} branch from layers {', '.join(map(str, of['layers'])) or 'none'} of its {of['of']}, "
            f"norm eps {of['norm_eps']:g}, first patch at position {of['first_position']}, "
            f"{of['num_heads']} heads"
            for branch, of in file["branches"].items()
        )
        lines.append(
            f"{name}: {file['file']}, {file['source']}; {taken}; licence: {file['licence']}; SHA-256 "
            f"{file['sha256']}"
        )
    counts = ", ".join(f"{count} {fate}" for fate, count in record["tensors"].items())
    return [*lines, f"tensors: {counts}; without a file's weights: {some(record['left'])}"]


def notes_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a model's file says of its start: notes "init", "init_special" and "init_licence".

    The same notes of a file of ours that it started from are passed on.
    """
    files = {name: record[name] for name in BRANCH_OF if name in record}
    notes = dict(zip(files, in_words(record), strict=False))  # the last line is on the rest of the model
    licences = []
    for name, file in files.items():
        before = [file["notes"][note] for note in BRANCH_OF if note in file["notes"]]
        notes[name] = "; it started itself from ".join([notes[name], *before])
        if "init_licence" in file["notes"]:
            licences.append(file["notes"]["init_licence"])
        licences.append(f"{file['file']} ({file['source']}): {file['licence']}")
    return notes | {"init_licence": "; ".join(dict.fromkeys(licences))}


def _others(
    file: PretrainedFile, config: HSTAConfig, used: list[int], setting: str
) -> tuple[Weights, list[Row]]:
    """CSTA of an HSTA, taken where both branches are, and its head, which is dropped."""
    weights: Weights = {}
    rows: list[Row] = []
    with_csta = config.csta and sorted(used) == [0, 1]
    same = file.config is not None and file.config.num_layers == config.num_layers
    for key, value in file.others.items():
        if key.startswith("head."):
            rows.append(Row(setting, "dropped", key, why="its classes are those of its training"))
        elif with_csta and same:
            weights[key] = value
            rows.append(Row(setting, "loaded", key, key))
        else:
            why = (
                "the file has another number of HSTA layers" if with_csta else "the model takes no CSTA of it"
            )
            rows.append(Row(setting, "dropped", key, why=why))
    return weights, rows


def _check_shapes(file: PretrainedFile, new: Weights, shapes: Mapping[str, torch.Size]) -> None:
    wrong = [
        f"{key} {tuple(value.shape)} instead of {tuple(shapes[key])}"
        for key, value in new.items()
        if value.shape != shapes[key]
    ]
    if wrong:
        raise ValueError(f"{file.path} expected the shapes of the model, got {some(wrong, 4)}")
