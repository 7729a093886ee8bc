"""The benchmark of labelled subjects: what data it takes."""

from pathlib import Path

import pytest

from benchmarks.label_efficiency import measure


def test_the_number_of_subjects_is_checked_before_anything_is_trained(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^--data expected 60 subjects, got 4$"):
        measure(faces, tmp_path)
