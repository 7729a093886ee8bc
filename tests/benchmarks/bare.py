"""A Python environment with only torch, Triton, numpy, einops, safetensors and pytest."""

import importlib.metadata as metadata
import re
import sys
import venv
from pathlib import Path

PACKAGES = ("torch", "triton", "numpy", "einops", "safetensors", "pytest")


def _required(names: tuple[str, ...]) -> set[str]:
    """The packages and their requirements, without extras."""
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        found.add(name)
        ahead += [str(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need]  # type: ignore[index]
    return found


def make(folder: Path) -> Path:
    """Create it; returns its interpreter. The packages are links to the installed ones."""
    venv.create(folder, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for name in _required(PACKAGES):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if not (site / top).exists():
                (site / top).symlink_to(target)
    return folder / "bin" / "python"
