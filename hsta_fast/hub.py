"""Models in folders as the hub of Hugging Face keeps them, and on the hub, by huggingface_hub's mixin.

A folder has model.safetensors, the file of `save_model`; config.json, {"architecture": fields of HSTAConfig,
"inputs": fields of ModelInputs or null, "notes": text by name}; and README.md, the model card. Nothing is
pickled. huggingface_hub is imported when a function here is called.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from .checkpoint import config_from, load_described, load_model, plain_copy, save_model
from .files import check_writable, make_folder, write_text
from .inputs import ModelInputs
from .model import HSTA

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FIELDS = ("architecture", "inputs", "notes")

Model = nn.Module | Callable[..., Any]


@cache
def _shared_model() -> Any:
    """The class that the mixin saves, sends and reads: an HSTA with its card."""
    try:
        from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError(
            "models in folders and on the hub expected the package huggingface_hub, got none: "
            "pip install 'hsta_fast[hub]'"
        ) from error

    class SharedModel(ModelHubMixin):
        def __init__(self, model: HSTA, card: str) -> None:
            self.model, self.card = model, card

        def _save_pretrained(self, save_directory: Path) -> None:
            save_model(self.model, save_directory / WEIGHTS)
            write_text(save_directory / CONFIG, _config_text(self.model))

        def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
            return ModelCard(self.card, ignore_metadata_errors=True)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, config: Any = None, **options: Any) -> "SharedModel":
            folder = Path(model_id)
            if not folder.is_dir():
                path = Path(hf_hub_download(model_id, WEIGHTS, **options))
                return cls(_described(model_id, path, config), "")
            return cls(_described(model_id, folder / WEIGHTS, config), "")

    return SharedModel


def save_pretrained(model: Model, folder: Path | str, *, run: Path | str | None = None) -> None:
    """Write model.safetensors, config.json and README.md into a folder.

    Args:
        model: an HSTA, which may be wrapped as for `save_model`.
        folder: it is created where it does not exist. The three files of an earlier call are replaced; files
            of these names that are of something else, such as a run's, are not.
        run: the folder of the run that trained the model: the card then has its training data, protocol,
            scores and the audit's verdict. Without it the card says that it has none.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: the model cannot be saved (`save_model`); or it is not that of a finished fold of `run`,
            whose scores would not be its own; or `folder` has files of something else. Nothing was written.
        OSError: the folder or a file cannot be written.
    """
    folder = _as_path(folder, "folder", "a folder")
    _check_replaceable(folder)
    shared = _with_card(model, run)
    check_writable(folder, "folder", folder)
    make_folder(folder, "folder", folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
        shared.save_pretrained(Path(made))
        # The card goes first and comes last: it never stands beside another model's weights.
        (folder / CARD).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG, CARD):
            os.replace(Path(made) / name, folder / name)


def push_to_hub(
    model: Model,
    repo: str,
    *,
    run: Path | str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Model of hsta_fast",
) -> str:
    """Send the files of `save_pretrained` to a repository on the hub, in one commit.

    Args:
        model: an HSTA, which may be wrapped as for `save_model`.
        repo: "name" or "owner/name"; it is created where it does not exist.
        run: as in `save_pretrained`.
        private: whether a new repository is private; None: what the owner's account says.
        token: of the hub; by default that of `hf auth login`.
        revision: the branch; by default the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: as in `save_pretrained`, or no repository can have this name; nothing was sent.
        OSError: the hub refused it, or cannot be reached.
    """
    shared = _with_card(model, run)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The errors of a hub that cannot be reached have the same first base, and are no OSError.
    any_http_error: Any = HfHubHTTPError.__bases__[0]
    expected = "repo expected name or owner/name of a repository on the hub"
    if not isinstance(repo, str):
        raise ValueError(f"{expected}, got {repo!r}")
    try:
        sent: str = shared.push_to_hub(
            repo, private=private, token=token, branch=revision, commit_message=message
        )
    except HFValidationError as error:
        raise ValueError(f"{expected}, got {repo!r}: {_one_line(error)}") from error
    except any_http_error as error:
        raise OSError(f"{expected} that takes the model, got {repo!r}: {_one_line(error)}") from error
    return sent


def from_pretrained(
    folder_or_repo: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> HSTA:
    """Read a model from a folder of `save_pretrained`, or from the hub; in eval mode, on the CPU.

    Weights without a configuration of their own, such as those of another program, are read by config.json.

    Args:
        folder_or_repo: a folder; if there is none of this name, a repository "owner/name" on the hub.
        revision: branch, tag or commit of the repository.
        cache_dir: where downloaded files are kept.
        token: of the hub.
        force_download: download again what is kept.
        local_files_only: download nothing.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: there is no such folder or repository; its files are damaged or another model's; or the
            configuration does not match the weights.
    """
    shared = _shared_model()
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    expected = f"a folder, or a repository on the hub with {WEIGHTS}"
    if _as_path(folder_or_repo, "folder_or_repo", expected).is_dir():
        _read_config(Path(folder_or_repo))
    try:
        found = shared.from_pretrained(
            str(folder_or_repo),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        raise ValueError(
            f"folder_or_repo expected {expected}, got {str(folder_or_repo)!r}: {_one_line(error)}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder_or_repo}: {CONFIG} expected a JSON object, got: {error}") from error
    model: HSTA = found.model
    return model


def _as_path(value: Any, name: str, expected: str) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} expected {expected}, got {value!r}")
    return Path(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_replaceable(folder: Path) -> None:
    """Raise ValueError if a folder has files of our names which `save_pretrained` did not write."""
    there = [name for name in (WEIGHTS, CONFIG, CARD) if os.path.lexists(folder / name)]
    try:
        ours = set(json.loads((folder / CONFIG).read_text(encoding="utf-8"))) == set(_FIELDS)
    except (OSError, ValueError, TypeError, RecursionError):
        ours = False
    if there and not ours:
        raise ValueError(
            f"folder expected a new folder, or one that save_pretrained wrote, got {folder}, whose "
            f"{' and '.join(there)} would be lost: name another folder"
        )


def _with_card(model: Model, run: Path | str | None) -> Any:
    shared, plain = _shared_model(), plain_copy(model)
    from .model_card import model_card

    fold = None if run is None else _fold_of(plain, Path(run))
    return shared(plain, model_card(plain, None if run is None else Path(run), fold))


def _fold_of(model: HSTA, run: Path) -> str:
    """The name of the fold of a run whose model this is; ValueError if it is of none."""
    from .training.run_models import finished_models

    state = model.state_dict()
    models = finished_models(run)
    for fold, path in models.items():
        # One entry first: a run of many subjects has as many files.
        with safe_open(path, framework="pt") as file:
            same = "head.weight" in file.keys() and torch.equal(  # noqa: SIM118 (no dictionary)
                file.get_tensor("head.weight"), state["head.weight"]
            )
        if same and _equal(load_model(path), model):
            return fold
    raise ValueError(
        f"run expected the run that trained this model, got {run}: none of its {len(models)} finished folds "
        "has these weights, so its scores are not those of this model"
    )


def _equal(one: HSTA, other: HSTA) -> bool:
    states = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(x, states[1][key]) for key, x in states[0].items())


def _config_text(model: HSTA) -> str:
    inputs = None if model.inputs is None else json.loads(model.inputs.to_json())
    values = (asdict(model.config), inputs, dict(sorted(model.notes.items())))
    return json.dumps(dict(zip(_FIELDS, values, strict=True)), indent=2, ensure_ascii=False) + "\n"


def _read_config(folder: Path) -> None:
    """Raise ValueError unless a folder has a config.json with a JSON object, and a file of weights."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} expected {CONFIG} and {WEIGHTS} of an HSTA, got no {' and no '.join(missing)}"
        )
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} expected a JSON object, got: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{folder / CONFIG} expected a JSON object, got {type(found).__name__}")


def _described(source: str, weights: Path, written: Any) -> HSTA:
    """The model of a file of weights and the content of config.json; `source` names both in messages."""
    expected = f"{source}: {CONFIG} expected the fields {', '.join(_FIELDS)} of an HSTA"
    if not isinstance(written, dict) or set(written) != set(_FIELDS):
        got = ", ".join(list(written)[:8]) if isinstance(written, dict) else "no such file"
        raise ValueError(f"{expected}, got {got or 'none'}")
    notes = written["notes"]
    try:
        config = config_from(written["architecture"])
        inputs = written["inputs"] and ModelInputs.from_json(json.dumps(written["inputs"]))
        if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
            raise ValueError(f"notes expected text by name, got {notes!r}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{expected}, got a faulty one: {error}") from error
    return load_described(weights, config, inputs, notes)
