"""Packages that the stages of `make gpu` can do without, and the commands that fetch and install them."""

import importlib.util
import sys
from collections.abc import Iterable

# Module -> package. Without them the tests of training and of batches loaded ahead are skipped.
DATA = {
    "cv2": "opencv-python-headless",
    "pandas": "pandas",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}


def missing(packages: Iterable[str]) -> list[str]:
    """The modules that are not installed here."""
    return [module for module in packages if importlib.util.find_spec(module) is None]


def download(python: str) -> str:
    """The pip command that fetches every package for x86-64 Linux and a Python such as "3.12"."""
    tags = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
    platforms = " ".join(f"--platform {tag}_x86_64" for tag in tags)
    names = " ".join(DATA.values())
    return (
        f"{sys.executable} -m pip download --only-binary=:all: --implementation cp --python-version {python} "
        f"{platforms} --dest wheels {names}"
    )


def install() -> str:
    """The pip command that installs them from the folder `wheels`."""
    return f"{sys.executable} -m pip install --no-index --find-links wheels {' '.join(DATA.values())}"
