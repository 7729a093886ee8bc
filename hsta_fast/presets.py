"""The named models, freshly initialised or from files of pretrained weights."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .model import HSTA, HSTAConfig
from .pretrained import LayerChoice, PretrainedStart, notes_of

# widths and heads of the special and the video branch; (n_s, n_v) x K = (1, 2) x 4, the paper's choice.
_PRESETS: Mapping[str, dict[str, Any]] = {
    "hsta_tiny": {"widths": (96, 192), "num_heads": (3, 3)},
    "hsta_small": {"widths": (192, 384), "num_heads": (6, 6)},
    "hsta_base": {"widths": (384, 768), "num_heads": (12, 12)},
}


def list_models() -> list[str]:
    """The names for `create_model`."""
    return list(_PRESETS)


def model_config(name: str, **overrides: Any) -> HSTAConfig:
    """The configuration of a named model, with fields of `HSTAConfig` overridden.

    Raises:
        ValueError: an unknown name or field, or a value that does not fit.
    """
    if name not in _PRESETS:
        raise ValueError(f"name expected one of {', '.join(list_models())}, got {name!r}")
    known = [f.name for f in fields(HSTAConfig)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"overrides expected fields of {known}, got {unknown}")
    return HSTAConfig(**{**_PRESETS[name], **overrides})


def create_model(
    name: str,
    *,
    init: Path | str | None = None,
    init_special: Path | str | None = None,
    init_layers: LayerChoice = "even",
    **overrides: Any,
) -> HSTA:
    """A named model, freshly initialised: "hsta_tiny", "hsta_small" or "hsta_base" (the paper's).

    With `init` its first weights are those of a file, as docs/pretrained.md says: then norm_eps,
    first_position and num_heads become those of the source, `print(model.init_report)` shows what became of
    every key, and the model's notes name the file and its licence.

    Args:
        name: see `list_models()`.
        init: a file of pretrained weights for the video branch; one of `save_model` is taken whole.
        init_special: a file of pretrained weights for the special branch.
        init_layers: which layers of a file are taken: "even" (evenly spaced, the last among them), "first" or
            "last".
        **overrides: fields of `HSTAConfig`, such as num_classes=3 or num_layers=2.

    Raises:
        ValueError: an unknown name or field, or a value that does not fit; a file of no known source, that
            lacks a weight or has an unknown one, or whose shapes do not fit the model.
    """
    config = model_config(name, **overrides)
    if init is None and init_special is None:
        return HSTA(config)
    start = PretrainedStart(init, init_special, init_layers)
    model = HSTA(start.adapt(config, given=overrides))
    report = start.load_into(model)
    model.init_report, model.notes = report, notes_of(start.record(model.config, report))
    return model
