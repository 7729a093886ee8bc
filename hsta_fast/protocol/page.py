"""Renders pages of HTML: report.html, and those of other templates in the same style."""

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_REPORT = Path(__file__).with_name("report.html.j2")


def render(template: Path = _REPORT, /, **values: Any) -> str:
    """A page, by default that of a run.

    Args:
        template: it may use style.j2 and parts.j2 beside this file.
        **values: the variables of the template, every text escaped, pictures PNG bytes.

    Raises:
        jinja2.UndefinedError: a variable of the template is missing.
    """
    templates = Environment(
        loader=FileSystemLoader([template.parent, _REPORT.parent]),
        autoescape=True,  # class, subject and file names come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["base64"] = lambda data: b64encode(data).decode("ascii")
    return templates.get_template(template.name).render(values)


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
