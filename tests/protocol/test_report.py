"""The report shows what the predictions say, in one file that needs nothing else."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread

from hsta_fast.protocol import bootstrap_interval, majority_baseline, per_fold, score, table, write_report

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Collects the text, every attribute, and the tags that were opened and not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_and_table_show_the_numbers(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    note = "Rendered data: these scores say nothing about people."
    run = make_run(notes=[note])
    page, text = Page(write_report(run)).text, table(run)
    pooled = score(predictions["label"], predictions["predicted"], 3)
    counts = json.loads((run / "config.json").read_text())["train_counts"]
    baseline = majority_baseline(predictions, counts, 3)
    _, mean = per_fold(predictions, 3)
    for shown in (page, text):
        assert "60 clips, 8 subjects, 4 of 4 folds" in shown and note in shown
        for scores in (pooled, baseline):
            assert all(f"{value:.3f}" in shown for value in (scores.uf1, scores.uar, scores.acc))
        for i, name in enumerate(("negative", "positive", "surprise")):
            row = (name, f"{pooled.f1[i]:.3f}", f"{pooled.recall[i]:.3f}", str(pooled.support[i]))
            assert " ".join(row) in " ".join(shown.split())
    assert " ".join(["(not the score)", *(f"{mean[key]:.3f}" for key in ("uf1", "uar", "acc"))]) in page
    assert "model.width [96, 192]" in page and "seed 3" in page
    assert "the last one, fixed in advance" in page
    for subject, part in predictions.groupby("subject"):
        right = int((part["label"] == part["predicted"]).sum())
        acc = f"{right / len(part):.3f}"
        assert f"casme3/{subject} {part['fold'].iloc[0]} {len(part)} {right} {acc}" in page
    summary = json.loads((run / "summary.json").read_text())
    assert summary["pooled"] == {"uf1": pooled.uf1, "uar": pooled.uar, "acc": pooled.acc}
    assert summary["majority_baseline"]["uf1"] == baseline.uf1
    assert summary["confusion"] == pooled.confusion.tolist()
    assert summary["per_fold_mean"] == mean


FIGURES = ("curves.png", "curves.svg", "confusion.png", "confusion.svg")
LEAK = "--select best-test-epoch: the epoch was chosen by its score on the test clips."


def test_a_leaky_run_says_so_everywhere(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    run = make_run(predictions.assign(epoch=7), leaky=[LEAK], select="best-test-epoch")
    page, text = Page(write_report(run)).text, table(run)
    for shown in (page, text):
        assert f"LEAKY: {LEAK}" in shown and "model (leaky)" in shown
    assert "rendered (leaky)" in page and "which makes the scores leaky. 1: 7, 2: 7" in page
    assert json.loads((run / "summary.json").read_text())["leaky"] == [LEAK]
    pictures = {name: (run / name).read_bytes() for name in FIGURES}
    assert all(b"LEAKY" in picture for name, picture in pictures.items() if name.endswith("svg"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "leaky": [], "select": "last"}))
    page = Page(write_report(run)).text
    assert "LEAKY" not in page + table(run) and "(leaky)" not in page + table(run)
    assert all((run / name).read_bytes() != picture for name, picture in pictures.items())


def test_the_epochs_of_inner_folds_are_shown(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    run = make_run(predictions.assign(epoch=predictions["fold"].astype(int) * 10), select="inner")
    assert (
        "inner folds of its training subjects; no test clip was looked at. 1: 10, 2: 20"
        in Page(write_report(run)).text
    )


def test_each_data_set_has_its_scores_and_its_matrix(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    predictions.loc[predictions["subject"] == "spNO.2", "dataset"] = "samm"
    run = make_run(predictions)
    page = Page(write_report(run))
    for name, part in predictions.groupby("dataset"):
        own = score(part["label"], part["predicted"], 3, absent="skip")
        cells = [f"{value:.3f}" for value in (own.uf1, own.uar, own.acc)]
        people = str(part["subject"].nunique())
        assert " ".join([str(name), people, str(len(part)), *cells]) in page.text
        assert " ".join([str(name), *cells]) in " ".join(table(run).split())
    words = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert sum(word.startswith("Confusion matrix") for word in words) == 3
    both = (run / "confusion-datasets.svg").read_text()
    assert all(f">{name}<" in both for name in ("casme3", "samm", "rendered"))
    assert (run / "confusion-datasets.png").exists()
    assert "Confusion matrix of samm: rows the truth, columns the prediction" in words


def test_the_interval_stands_beside_the_score(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    run = make_run()
    page, text = Page(write_report(run)).text, table(run)
    interval = bootstrap_interval(predictions, 3)
    assert interval is not None
    for low, high in interval.values():
        assert page.count(f"{low:.3f}-{high:.3f}") == 2 and f"{low:.3f}-{high:.3f}" in text


def test_report_is_one_file_and_well_formed(make_run: MakeRun) -> None:
    run = make_run()
    page = Page(write_report(run))
    assert page.open == []
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert len(sources) == 2
    for source, name in zip(sources, ("confusion.png", "curves.png"), strict=True):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert data == (run / name).read_bytes()
        assert imread(io.BytesIO(data), format="png").ndim == 3
    html = (run / "report.html").read_text()
    assert "<script" not in html and "url(" not in html and "http" not in html.replace("http-equiv", "")
    assert not re.search(r"\$[a-z]|{{|{%|{#", html), "a part of the template was not rendered"


def test_only_the_named_files_are_left(make_run: MakeRun) -> None:
    run = make_run()
    before = {path.name for path in run.iterdir()}
    write_report(run)
    write_report(run)
    new = {path.name for path in run.iterdir()} - before
    assert new == {"report.html", "summary.json", "scores.tex", *FIGURES}


def test_everything_from_outside_is_escaped(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    evil = "<img src=x onerror='1'>&"
    table_ = predictions.rename(columns={"p_negative": f"p_{evil}"}).assign(dataset=evil)
    table_["fold"] = evil + table_["fold"]
    run = make_run(table_, notes=[evil], **{evil: {"nested": evil}})
    fault = {"dataset": "d", "subject": "s", "clip": "c", "onset": 1, "what": evil, "action": "clip left out"}
    pd.DataFrame([fault]).to_csv(run / "faults.csv", index=False)
    page = Page(write_report(run))
    assert len([tag for tag, name, _ in page.attributes if tag == "img" and name == "src"]) == 2
    assert "onerror" not in {name for _, name, _ in page.attributes}
    # Note, setting and its value, fault, dataset, class, and each of 4 folds and 8 subjects with its fold.
    assert page.text.count(evil) == 1 + 2 + 1 + 1 + 1 + 4 + 2 * 8
    assert "Faults of the data (1)" in page.text and "clip left out" in page.text


def test_names_cannot_hold_a_script(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    script = "<script>alert(1)</script>"
    table_ = predictions.rename(columns={"p_negative": f"p_{script}"})
    table_["subject"] = table_["subject"].replace("spNO.1", script)
    report = write_report(make_run(table_))
    assert "<script" not in report.read_text()
    assert Page(report).text.count(script) == 1 + 1, "the class, and the subject's row"


def test_absent_and_empty_faults_are_none(make_run: MakeRun) -> None:
    run = make_run()
    assert "Faults of the data (0) None." in Page(write_report(run)).text
    (run / "faults.csv").write_text("")
    assert "Faults of the data (0) None." in Page(write_report(run)).text
    (run / "faults.csv").write_text("dataset,subject\n")
    with pytest.raises(ValueError, match=r"faults.csv: .*missing: clip, onset, what, action"):
        write_report(run)


def test_partial_run_scores_what_is_there(make_run: MakeRun, predictions: pd.DataFrame) -> None:
    done = predictions[predictions["fold"].isin(["1", "3"])]
    run = make_run(done)
    page, text = Page(write_report(run)).text, table(run)
    assert f"{len(done)} clips, 4 subjects, 2 of 4 folds" in page
    assert "Unfinished: 2 of 4 folds" in page and "Unfinished: 2 of 4 folds" in text
    assert f"{score(done['label'], done['predicted'], 3, absent='zero').uf1:.3f}" in page


def test_subject_of_two_folds_and_absent_class_are_announced(
    make_run: MakeRun, predictions: pd.DataFrame
) -> None:
    table_ = predictions[predictions["label"] != 2].copy()
    subject = table_["subject"].mode()[0]
    table_.loc[table_.index[table_["subject"] == subject][0], "fold"] = "one more"
    page = Page(write_report(make_run(table_, num_folds=5))).text
    assert f"also trained on: casme3/{subject}." in page
    assert "No test clip of surprise: counted as 0 in UF1 and UAR." in page


def test_resumed_epoch_counts_once(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    unbroken = (run / "curves.png").read_bytes()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    stale = json.dumps(json.loads(lines[3]) | {"train_loss": 99.0})
    metrics.write_text("\n".join([*lines[:3], stale, *lines[3:]]) + "\n")
    write_report(run)
    assert (run / "curves.png").read_bytes() == unbroken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: expected a JSON object, got: Expecting"),
        ("config.json", "[]", "config.json: expected a JSON object, got list"),
        ("config.json", "{}", "config.json: num_folds expected a positive integer, got None"),
        (
            "config.json",
            '{"num_folds": 4, "train_counts": {}, "notes": "a"}',
            "config.json: notes expected a list of strings",
        ),
        (
            "config.json",
            '{"num_folds": 4, "train_counts": [1]}',
            "config.json: train_counts expected an object",
        ),
        (
            "config.json",
            '{"num_folds": 4, "train_counts": {"1": [1, 2, 3]}}',
            "3 integers for fold '2', got None",
        ),
        (
            "config.json",
            '{"num_folds": 4, "train_counts": {}, "provenance": ["x"]}',
            "config.json: provenance expected a list of objects, got",
        ),
        (
            "config.json",
            '{"num_folds": 4, "train_counts": {}, "leaky": true}',
            "config.json: leaky expected a list of strings, got True",
        ),
        ("metrics.jsonl", "", "metrics.jsonl: expected one line per epoch, got none"),
        ("metrics.jsonl", '{"fold": "1"}\n', "metrics.jsonl: line 1: missing: epoch, train_loss"),
        ("metrics.jsonl", '{"fold": "1", "ep', "metrics.jsonl: line 1: expected a JSON object, got: "),
        ("predictions.csv", "dataset,subject\n", "predictions.csv: .*missing: clip, onset, fold"),
    ],
)
def test_unreadable_run_is_refused_and_nothing_written(
    make_run: MakeRun, name: str, content: str, message: str
) -> None:
    run = make_run()
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert not (run / "report.html").exists() and not (run / "summary.json").exists()


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run with .*; missing: config.json, metrics.jsonl"):
        table(tmp_path)


def test_how_the_run_was_made(make_run: MakeRun) -> None:
    """A start, and one that differs in its command alone; none in a run of an older version."""
    first = {"started": "2026-01-02", "command": "hsta-fast train <b>", "ended": None, "threads": 7}
    second = {**first, "started": "2026-01-03", "command": "hsta-fast train --resume", "ended": "finished"}
    run = make_run(provenance=[first, second])
    trained = {"epochs": 20, "seconds": 12.34, "clips_per_second": 9.0}
    page = Page(write_report(run, trained))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["provenance"] == [first, second] and summary["trained"] == trained
    text = " ".join(page.text.split())
    section = text[text.index("How it was made") : text.index("Settings")]
    assert "20 epochs in 12.3 s, 9.0 clips/s" in section and "hsta-fast train <b>" in section
    assert section.count("ended not yet, or killed") == 1 and section.count("ended finished") == 1
    assert section.count("threads") == 1 and "--resume" in section
    assert "provenance" not in text
    config = json.loads((run / "config.json").read_text())
    del config["provenance"]
    (run / "config.json").write_text(json.dumps(config))
    assert "How it was made" not in Page(write_report(run)).text
    summary = json.loads((run / "summary.json").read_text())
    assert summary["provenance"] == [] and summary["trained"] is None
