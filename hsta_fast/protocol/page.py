"""Renders report.html from the template report.html.j2 beside this file."""

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # class, subject and file names come from outside
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["base64"] = lambda data: b64encode(data).decode("ascii")


def render(**values: Any) -> str:
    """The page of a run; `values` are the variables of the template, every text escaped, pictures PNG bytes.

    Raises:
        jinja2.UndefinedError: a variable of the template is missing.
    """
    return _TEMPLATES.get_template("report.html.j2").render(values)


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ("outer.inner", value) lines."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines += flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append((f"{prefix}{key}", text))
    return lines
