"""What spotted intervals are scored by: the recordings of a folder, and the classes of a label set."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hsta_fast import cli
from hsta_fast.data import label_set
from hsta_fast.spotting.sources import sources
from hsta_fast.spotting.truth import annotated

from ..data import fake_datasets, further_datasets

HEADER = "subject,clip,path,onset,apex,offset,emotion"
WORDS = ("disgust", "happy", "surprise")
CLASSES = ("negative", "positive", "surprise")
Run = Callable[..., str]


def recordings_of(folder: Path, *rows: str, videos: tuple[str, ...] = ("p1_a", "p2_a")) -> Path:
    """A folder of videos of 30 frames with a plain table."""
    for name in videos:
        fake_datasets.video(folder / f"{name}.avi", 30)
    folder.mkdir(exist_ok=True)
    (folder / "clips.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


@pytest.fixture
def emotions(tmp_path: Path) -> Path:
    """Three annotated intervals, one of each word."""
    rows = [f"p1,c{n},p1_a.avi,{10 * n},,{10 * n + 4},{word}" for n, word in enumerate(WORDS)]
    return recordings_of(tmp_path / "recordings", *rows, videos=("p1_a",))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def audit(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["hsta-fast", "audit", *map(str, words)])
        cli.main()
        return capsys.readouterr().out

    return audit


def spotted(path: Path, *rows: tuple[object, ...]) -> Path:
    columns = ["video", "onset", "offset", "class"]
    pd.DataFrame(rows, columns=columns[: len(rows[0])]).to_csv(path, index=False)
    return path


def three(path: Path, classes: tuple[str, ...]) -> Path:
    """The annotated intervals of `emotions`, with these classes."""
    return spotted(path, *(("p1_a.avi", 10 * n, 10 * n + 4, name) for n, name in enumerate(classes)))


def test_classes_of_a_label_set_are_compared_with_those_of_the_words(
    emotions: Path, tmp_path: Path, run: Run
) -> None:
    """Of a folder, and of the same intervals as a table."""
    e3, table = three(tmp_path / "e3.csv", CLASSES), tmp_path / "truth.csv"
    annotated(emotions)[0].rows.to_csv(table, index=False)
    for truth in (emotions, table):
        found = json.loads(run(e3, "--spotting", truth, "--labels", "emotion3", "--json"))
        assert (found["tp"], found["uf1"], found["strs"]) == (3, 1.0, 1.0)
        assert found["class_f1"] == dict.fromkeys(CLASSES, 1.0) and found["remarks"] == []
        text = run(e3, "--spotting", truth, "--labels", "emotion3", "--classes", "negative,positive")
        assert "UF1 of the class on the true positives 1.0000 (negative 1.000, positive 1.000)" in text


def test_classes_that_are_not_annotated_are_said(emotions: Path, tmp_path: Path, run: Run) -> None:
    e3 = three(tmp_path / "e3.csv", CLASSES)
    said = (
        f"{e3}: class expected some of those of the annotation, got also negative, positive; where they are "
        "the classes of a label set, --labels names it"
    )
    assert f"note: {said}\n" in run(e3, "--spotting", emotions)
    found = json.loads(run(e3, "--spotting", emotions, "--json"))
    assert found["remarks"] == [said] and found["uf1"] == pytest.approx(1 / 3)
    assert json.loads(run(three(e3, WORDS), "--spotting", emotions, "--json"))["remarks"] == []


def test_no_class_in_common_is_an_error_that_names_the_flag(emotions: Path, tmp_path: Path, run: Run) -> None:
    other = three(tmp_path / "other.csv", ("negative", "positive", "negative"))
    with pytest.raises(SystemExit) as ended:
        run(other, "--spotting", emotions)
    said = "got negative, positive; where they are the classes of a label set, --labels names it"
    assert said in str(ended.value.code)


def test_a_spotted_class_outside_the_label_set_is_said(emotions: Path, tmp_path: Path, run: Run) -> None:
    e3 = three(tmp_path / "e3.csv", ("negative", "happy", "surprise"))
    found = json.loads(run(e3, "--spotting", emotions, "--labels", "emotion3", "--json"))
    assert found["remarks"] == [f"{e3}: class expected some of {', '.join(CLASSES)}, got also happy"]
    # One that is only not annotated here is a wrong answer, and no more.
    truth = three(tmp_path / "truth.csv", ("sad", "happy", "happy"))
    e3 = three(tmp_path / "e3.csv", ("negative", "positive", "surprise"))
    found = json.loads(run(e3, "--spotting", truth, "--labels", "emotion3", "--json"))
    assert found["remarks"] == [] and found["class_f1"] == {"negative": 1.0, "positive": pytest.approx(2 / 3)}


def test_a_word_without_a_class_counts_in_spotting_alone(tmp_path: Path, run: Run) -> None:
    truth = three(tmp_path / "truth.csv", ("Sadness ", "others", "smirk"))
    e3 = three(tmp_path / "e3.csv", ("negative", "negative", "positive"))
    found = json.loads(run(e3, "--spotting", truth, "--labels", "emotion3", "--json"))
    assert (found["tp"], found["fn"], found["class_f1"]) == (3, 0, {"negative": 1.0})
    assert found["remarks"] == [
        f"{truth}: emotion3 has no class for 2 annotated intervals, of which only the place is scored: "
        "others, smirk (unknown to it)"
    ]


def test_a_label_set_that_knows_no_word_is_refused(tmp_path: Path, run: Run) -> None:
    e3 = three(tmp_path / "e3.csv", CLASSES)
    table = three(tmp_path / "truth.csv", ("joy", "joy", "smirk"))
    for truth, got in ((table, "joy, smirk"), (spotted(tmp_path / "none.csv", ("p1_a", 0, 4)), "no word")):
        with pytest.raises(ValueError, match=rf"--labels expected a label set.*, got emotion3 and {got}$"):
            annotated(truth, label_set("emotion3"))
    with pytest.raises(SystemExit) as ended:
        run(e3, "--spotting", table, "--labels", "emotion33")
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        run(e3, "--labels", "emotion3")
    assert ended.value.code == 2


def test_objective_classes_of_a_dataset_without_words(tmp_path: Path) -> None:
    rows = [further_datasets.samm_long_row(**{"Action Units": "12"})]
    root = further_datasets.samm_long_copy(tmp_path, rows)
    table, _ = annotated(root, label_set("objective7"))
    assert table.rows["class"].tolist() == ["I"]
    with pytest.raises(ValueError, match="--labels expected a label set.*, got emotion3 and no word"):
        annotated(root, label_set("emotion3"))


def test_a_datasets_own_words_of_a_label_set(tmp_path: Path) -> None:
    rows = ["p1,c1,p1_a.avi,0,,4,happy,csv", "p1,c2,p1_a.avi,10,,14,happy,theirs"]
    recordings_of(tmp_path, videos=("p1_a",))
    (tmp_path / "clips.csv").write_text("\n".join([f"{HEADER},dataset", *rows]) + "\n")
    labels = tmp_path / "set.json"
    own = {"classes": ["a", "b"], "mapping": {"happy": "a"}, "datasets": {"theirs": {"happy": "b"}}}
    labels.write_text(json.dumps(own))
    table, _ = annotated(tmp_path, label_set(str(labels)))
    assert table.rows["class"].tolist() == ["a", "b"]


def test_the_recordings_of_a_folder_are_those_that_spot_sees(tmp_path: Path, run: Run) -> None:
    folder = recordings_of(tmp_path / "f", "p1,c1,p1_a.avi,0,,4,happy", videos=("p1_a", "extra", "quiet"))
    seen, *others = sources([folder])
    out = tmp_path / "out.csv"
    columns = ["subject", "video", "onset", "offset"]
    rows = [(seen.subject, seen.video, 0, 4), *((one.subject, one.video, 3, 9) for one in others[:1])]
    pd.DataFrame(rows, columns=columns).to_csv(out, index=False)
    found = json.loads(run(out, "--spotting", folder, "--json"))
    videos = [(video["video"], video["tp"], video["fp"], video["fn"]) for video in found["videos"]]
    assert videos == [("p1_a", 1, 0, 0), ("extra", 0, 1, 0), ("quiet", 0, 0, 0)]
    assert (found["tp"], found["fp"], found["fn"]) == (1, 1, 0)


def test_false_intervals_alone_are_counted(tmp_path: Path, run: Run) -> None:
    """A rendered folder with distractors alone has a table without a row."""
    folder = recordings_of(tmp_path / "f")
    out = spotted(tmp_path / "out.csv", ("p1_a", 3, 9, "happy"), ("p1_a", 13, 19, "happy"))
    found = json.loads(run(out, "--spotting", folder, "--json"))
    assert (found["tp"], found["fp"], found["fn"], found["strs"]) == (0, 2, 0, None)
    assert [video["fp"] for video in found["videos"]] == [2, 0]
    assert "no STRS: intervals of both tables need a class" in run(out, "--spotting", folder)
    named = json.loads(run(out, "--spotting", folder, "--labels", "emotion3", "--json"))
    assert named["fp"] == 2


def test_people_with_videos_of_one_name_beside_a_video_of_nobody(tmp_path: Path, run: Run) -> None:
    rows = [f"{who},c,{who}/1.avi,0,,4,happy" for who in ("p1", "p2")]
    folder = recordings_of(tmp_path / "f", *rows, videos=("p1/1", "p2/1", "extra"))
    out = tmp_path / "out.csv"
    out.write_text("subject,video,onset,offset\np2,1,0,4\n,extra,3,9\n")
    found = json.loads(run(out, "--spotting", folder, "--json"))
    videos = [(v["subject"], v["video"], v["tp"], v["fp"], v["fn"]) for v in found["videos"]]
    assert videos == [("p1", "1", 0, 0, 1), ("p2", "1", 1, 0, 0), ("", "extra", 0, 1, 0)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("p1,c1,p1_a.avi,0,,99,happy",), "expected at least one usable clip, got none"),
        (("p1,c1,gone.avi,0,,4,happy",), "expected at least one usable clip, got none"),
        (
            ("p1,c1,p1_a.avi,0,,4,happy", "p2,c1,p2_a.avi,0,,99,happy"),
            "expected rows that can all be read, as p2_a is in none of the others, got .*clips.csv row 3",
        ),
    ],
)
def test_a_broken_table_is_no_truth_without_expressions(
    tmp_path: Path, rows: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        annotated(recordings_of(tmp_path, *rows))
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    rows = ("p1,c1,p1_a.avi,0,,4,happy", "p1,c2,p1_a.avi,20,,99,happy")
    table, remarks = annotated(recordings_of(tmp_path, *rows, videos=("p1_a",)))
    assert len(table.rows) == 1 and len(remarks) == 1
    assert "annotated expressions are left out for 1 fault, which hsta-fast doctor lists" in remarks[0]


def test_a_folder_without_an_annotation_or_a_recording_is_an_error(tmp_path: Path) -> None:
    fake_datasets.video(tmp_path / "videos" / "a.avi", 5)
    with pytest.raises(ValueError, match="expected one of"):
        annotated(tmp_path / "videos")
    with pytest.raises(ValueError, match="expected recordings, got none"):
        annotated(recordings_of(tmp_path / "table", videos=()))


def test_blank_cells_of_pandas_are_blank_with_labels_too(tmp_path: Path, run: Run) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("video,onset,offset,class\nv,10,20,happy\nw,nan,nan,nan\n")
    own = spotted(tmp_path / "s.csv", ("v", 10, 20, "positive"), ("w", 1, 5, "positive"))
    found = json.loads(run(own, "--spotting", truth, "--labels", "emotion3", "--json"))
    assert (found["tp"], found["fp"], found["class_f1"]) == (1, 1, {"positive": 1.0})
    assert found["remarks"] == []
