"""Which misclassified clips a report shows, and how it shows them."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsta_fast.protocol import Picture, worst_errors, write_gallery, write_report
from hsta_fast.protocol.gallery import read_gallery
from tests.protocol.conftest import CLASSES
from tests.protocol.test_report import Page

MakeRun = Callable[..., Path]
COLUMNS = [f"p_{name}" for name in CLASSES]


def with_shares(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """With probabilities between 0.4 and 1 of the predicted class; some are equal."""
    rng = np.random.default_rng(seed)
    top = rng.choice(np.linspace(0.4, 1, 12), size=len(predictions))
    shares = np.repeat((1 - top)[:, None] / 2, 3, axis=1)
    shares[np.arange(len(top)), predictions["predicted"]] = top
    return predictions.assign(**dict(zip(COLUMNS, shares.T, strict=True)))


def leave_pictures(run: Path, predictions: pd.DataFrame, count: int, title: str = "apex") -> None:
    """What training leaves in the folder of each fold; the bytes of a picture name its clip."""
    for number, (_, part) in enumerate(predictions.groupby("fold")):
        errors = worst_errors(part, count)
        pictures = [[Picture(title, f"clip {onset}".encode())] for onset in errors["onset"]]
        write_gallery(run / "folds" / f"{number + 1:02d}", count, errors, pictures)


@pytest.mark.parametrize("count", [1, 5, 12, 24, 100])
def test_the_most_confident_errors_come_first(predictions: pd.DataFrame, count: int) -> None:
    table = with_shares(predictions).sample(frac=1, random_state=0)
    wrong = table[table["label"] != table["predicted"]]
    share = [row[COLUMNS[row["predicted"]]] for _, row in wrong.iterrows()]
    # spNO.10 comes after spNO.2; the clips of a subject differ in their onset.
    number = wrong["subject"].str[5:].astype(int)
    order = np.lexsort((wrong["onset"], number, -np.array(share)))
    chosen, pairs = list[tuple[int, float]](), Counter[tuple[int, int]]()
    for i in order:
        pair = wrong["label"].iloc[i], wrong["predicted"].iloc[i]
        pairs[pair] += 1
        if pairs[pair] <= 4 and len(chosen) < count:
            chosen.append((wrong.index[i], share[i]))
    errors = worst_errors(table, count)
    assert list(errors["probability"].items()) == chosen
    assert 0 < len(errors) <= count


def test_each_fold_shows_what_the_run_shows_of_it(predictions: pd.DataFrame) -> None:
    for seed in range(8):
        table, count = with_shares(predictions, seed), 1 + seed
        of_folds = [set(worst_errors(part, count).index) for _, part in table.groupby("fold")]
        assert set(worst_errors(table, count).index) <= set[int]().union(*of_folds)


def test_the_report_shows_them_and_says_how_many_are_left_out(
    make_run: MakeRun, predictions: pd.DataFrame
) -> None:
    table = with_shares(predictions)
    run = make_run(table)
    leave_pictures(run, table, 6)
    page = Page(write_report(run))
    errors = worst_errors(table, 6)
    wrong = int((table["label"] != table["predicted"]).sum())
    assert f"6 of {wrong} misclassified clips" in page.text and f"{wrong - 6} are left out" in page.text
    assert "licence of a licensed dataset forbids sharing them, and so this page" in page.text
    rows = errors[["subject", "onset", "fold", "probability"]].to_numpy().tolist()
    for subject, onset, fold, probability in rows:
        who = f"casme3/{subject}, clip b, onset {onset}, fold {fold}"
        assert f"with {100 * probability:.0f} % {who}" in page.text
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    shown = [alt for alt in alts if alt.startswith("casme3 ")]
    assert shown == [f"casme3 {subject} b {onset}: apex" for subject, onset, *_ in rows]
    assert page.open == []


def test_without_pictures_there_is_no_section(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    """In runs that are older, or of --gallery 0, or without an error."""
    run = make_run()
    assert "Misclassified" not in Page(write_report(run)).text
    leave_pictures(run, predictions[predictions["label"] == predictions["predicted"]], 6)
    assert len(list(run.glob("folds/*/gallery.json"))) == 4
    assert read_gallery(run, predictions, list(CLASSES)) is None


def test_some_folds_may_have_no_pictures(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    """Those that were tested before there were any, or with --gallery 0."""
    run = make_run()
    leave_pictures(run, predictions, 24)
    (run / "folds" / "02" / "gallery.json").unlink()
    shown = worst_errors(predictions, 24)
    shown = shown[shown["fold"] != "2"]
    gallery = read_gallery(run, predictions, list(CLASSES))
    assert gallery is not None
    assert [clip.key[3] for clip in gallery.clips] == [str(onset) for onset in shown["onset"]] != []


def test_titles_and_keys_are_escaped(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    evil = "<b onclick='1'>&\""
    table = predictions.assign(subject=evil)
    run = make_run(table)
    leave_pictures(run, table, 2, title=evil)
    page = Page(write_report(run))
    assert "onclick" not in {name for _, name, _ in page.attributes}
    assert [v for tag, name, v in page.attributes if tag == "img" and name == "alt" and evil in v] != []


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"count": 3, "clips": [{}]}', '{"count": 3, "clips": 1}']
)
def test_a_damaged_file_is_named(make_run: MakeRun, content: str) -> None:
    run = make_run()
    path = run / "folds" / "01" / "gallery.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match="folds/01/gallery.json: expected ") as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_the_file_is_plain_json(tmp_path: Path, predictions: pd.DataFrame) -> None:
    errors = worst_errors(predictions, 1)
    write_gallery(tmp_path, 1, errors, [[Picture("onset", b"\xff\xd8")]])
    saved = json.loads((tmp_path / "gallery.json").read_text())
    key = {"dataset": "casme3", "clip": "b"} | {c: str(errors[c].iloc[0]) for c in ("subject", "onset")}
    assert saved == {"count": 1, "clips": [{**key, "pictures": [{"title": "onset", "jpeg": "/9g="}]}]}
