"""Whether predictions and the table of all clips give a clip the same label."""

from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from .predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class LabelCheck:
    """What `compare_labels` found; the attributes are explained in `overlap.Overlap`."""

    relabelled: list[str] = field(default_factory=list)
    other_classes: list[str] = field(default_factory=list)
    shift: int = 0
    skipped: Literal["repeated names", "other spelling"] | None = None


def compare_labels(predictions: Predictions, rows: pd.DataFrame, table: pd.DataFrame) -> LabelCheck:
    """Compare the labels of predicted clips with those of the table, if that has a column label.

    A label that is no class of the predictions differs. Nothing is compared if no label is a class. Numbers
    of the table may count from 0 where the predictions count from 1, or the other way: if only shifted by one
    all of them are classes, and more of them agree, they are shifted.

    rows: the predictions with the columns key (see `clips.clip_key`) and written; table: all clips with key.
    """
    column = next((name for name in table if str(name).casefold() == "label"), None)
    if column is None:
        return LabelCheck()
    if table["key"].duplicated().any():
        return LabelCheck(skipped="repeated names")
    theirs = rows["key"].map(table.set_index("key")[column].str.strip().str.removesuffix(".0"))
    compared = theirs.notna() & (theirs != "")
    theirs, ours = theirs[compared], rows["label"][compared]
    if theirs.empty:
        return LabelCheck()
    shift, codes = 0, _codes(theirs, predictions, 0)
    if (codes < 0).any():
        for other in (1, -1):
            shifted = _codes(theirs, predictions, other)
            if (shifted >= 0).all() and (shifted == ours).sum() > (codes == ours).sum():
                shift, codes = other, shifted
    if (codes < 0).all():
        return LabelCheck(skipped="other spelling")
    differs = codes != ours
    return LabelCheck(
        relabelled=rows["written"][differs[differs].index].tolist(),
        other_classes=sorted(set(theirs[codes < 0])),
        shift=shift,
    )


def _codes(labels: pd.Series, predictions: Predictions, shift: int) -> pd.Series:
    """The position of each label among the classes, with `shift` added to numbers; -1 is no class."""
    numbers = predictions.numbers or []
    places = {str(number - shift): place for place, number in enumerate(numbers)}
    names = {
        word.casefold(): place
        for place, word in enumerate(predictions.classes)
        if not (numbers and word.isdecimal())
    }
    return labels.map(places).fillna(labels.str.casefold().map(names)).fillna(-1).astype("int64")
