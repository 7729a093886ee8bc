"""The pictures show the data they are given, decode, and leave matplotlib's global state alone."""

import io
import warnings
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread

from hsta_fast.protocol.plots import confusion_matrices, confusion_matrix, learning_curves, png, png_and_svg


def _metrics(folds: int, epochs: int) -> pd.DataFrame:
    """Fold f has f added to each of its losses."""
    rows = [(str(f), e, f + 1 / e, f + 2 / e, 0.8, 0.6) for f in range(folds) for e in range(1, epochs + 1)]
    return pd.DataFrame(rows, columns=["fold", "epoch", "train_loss", "test_loss", "train_acc", "test_acc"])


def _bold(figure: Figure) -> dict[str, np.ndarray]:
    """The mean loss curves by their words in the legend."""
    lines = figure.axes[0].lines
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in lines if line.get_linewidth() > 2}


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_learning_curves_have_a_line_a_fold_and_their_mean() -> None:
    figure = learning_curves(_metrics(4, 10))
    epochs = np.arange(1, 11)
    for axes in figure.axes:
        assert len(axes.lines) == 2 * (4 + 1)
    mean = _bold(figure)
    np.testing.assert_allclose(mean["train, mean of 4 folds"], 1.5 + 1 / epochs)
    np.testing.assert_allclose(mean["test, mean of 4 folds"], 1.5 + 2 / epochs)


def test_unfinished_fold_stays_out_of_the_mean() -> None:
    metrics = _metrics(3, 10)
    begun = metrics[(metrics["fold"] != "2") | (metrics["epoch"] <= 2)]
    figure = learning_curves(begun)
    np.testing.assert_allclose(_bold(figure)["train, mean of 2 of 3 folds"], 0.5 + 1 / np.arange(1, 11))
    assert len(figure.axes[0].lines) == 2 * (3 + 1)


def test_folds_that_chose_an_earlier_epoch_are_visible_and_not_in_the_mean() -> None:
    """Two folds of one epoch, as --select inner leaves them: dots; the thick line is that of the third."""
    metrics = _metrics(3, 2)
    figure = learning_curves(metrics[(metrics["fold"] == "1") | (metrics["epoch"] == 1)])
    assert _bold(figure)["train, mean of 1 of 3 folds"].tolist() == [2.0, 1.5]
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() < 2]
    assert [line.get_marker() for line in thin] == ["o", "", "o"] * 2


def test_a_single_epoch_is_visible() -> None:
    lines = learning_curves(_metrics(1, 1)).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o", "o"]


def test_confusion_matrix_shows_counts_and_shares_of_rows() -> None:
    figure = confusion_matrix(np.array([[3, 1], [0, 0]]), ["$a$", "b"])
    # A row without clips has no shares.
    assert _texts(figure) == ["3", "75%", "1", "25%", "0", "0"]
    shades = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shades, np.array([[0.75, 0.25], [0.0, 0.0]]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["$a$\n4 clips", "b\n0 clips"]
    with pytest.raises(ValueError, match=r"confusion expected shape \(3, 3\), got \(2, 2\)"):
        confusion_matrix(np.eye(2, dtype=int), ["a", "b", "c"])


@pytest.mark.parametrize(
    "figure",
    [learning_curves(_metrics(2, 5)), confusion_matrix(np.eye(7, dtype=int), ["a long class name"] * 7)],
)
def test_pictures_decode_and_are_not_blank(figure: Figure) -> None:
    image = imread(io.BytesIO(png(figure)), format="png")
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.05
    assert (image[[0, -1]] == 1).all(), "the margin is white"


def test_a_users_settings_change_no_figure() -> None:
    """LaTeX, which may not be installed, fonts and colours of a matplotlibrc."""
    figure = np.array([[3, 1], [1, 2]]), ["a_b", "$b"]
    plain = png(confusion_matrix(*figure)), png(learning_curves(_metrics(2, 5)))
    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such", "axes.facecolor": "black"}):
        assert (png(confusion_matrix(*figure)), png(learning_curves(_metrics(2, 5)))) == plain


def test_letters_that_the_font_lacks_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png(confusion_matrix(np.eye(3, dtype=int), ["\u4e2d", "\U0001f600", "\xe9"]))


def test_matplotlib_is_left_as_it_was() -> None:
    """A figure known to pyplot would live as long as the process; a changed setting would reach others."""
    figures, settings = pyplot.get_fignums(), dict(matplotlib.rcParams)
    png(learning_curves(_metrics(2, 5)))
    png(confusion_matrix(np.eye(3, dtype=int), ["a", "b", "c"]))
    assert pyplot.get_fignums() == figures and dict(matplotlib.rcParams) == settings


def _words(picture: bytes) -> str:
    """The text of an SVG file, which must be XML."""
    return " ".join(" ".join(ElementTree.fromstring(picture).itertext()).split())


def test_svg_holds_its_words_as_text_and_is_the_same_each_time() -> None:
    def figure() -> Figure:
        return confusion_matrix(np.array([[3, 1], [0, 2]]), ["$a & <b>", "sad"], title="run <1> & $x$")

    picture = png_and_svg(figure())["svg"]
    assert picture == png_and_svg(figure())["svg"]
    assert b"<dc:date>" not in picture
    words = _words(picture)
    assert all(word in words for word in ("run <1> & $x$", "$a & <b>", "sad", "75%", "predicted", "truth"))
    assert "test, mean of 2 folds" in _words(png_and_svg(learning_curves(_metrics(2, 5)))["svg"])


def test_the_title_names_the_run_on_every_figure() -> None:
    matrix = np.eye(3, dtype=int)
    for leaky in (False, True):
        shown: dict[str, Any] = {"title": "a_$run$", "leaky": leaky}
        for figure in (
            learning_curves(_metrics(1, 2), **shown),
            confusion_matrix(matrix, ["a", "b", "c"], **shown),
            confusion_matrices({"casme2": matrix, "samm": matrix}, ["a", "b", "c"], **shown),
        ):
            assert figure.get_suptitle() == "LEAKY: not a score to go by\n" * leaky + "a_$run$"


def test_a_long_title_stays_on_the_figure() -> None:
    figure = confusion_matrix(np.eye(2, dtype=int), ["a", "b"], title="W" * 40)
    image = imread(io.BytesIO(png(figure)), format="png")
    assert (image[:, [0, -1]] == 1).all(), "no letter reaches the edge"


def test_matrices_of_datasets_stand_side_by_side() -> None:
    one, two = np.array([[3, 1], [0, 2]]), np.array([[0, 4], [5, 6]])
    figure = confusion_matrices({"casme2": one, "samm": two}, ["a", "b"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["casme2", "samm"]
    counts = [[text.get_text() for text in axes.texts][::2] for axes in figure.axes]
    assert counts == [["3", "1", "0", "2"], ["0", "4", "5", "6"]]
