"""How clips and persons are identified, when two spellings are the same name, and natural order.

A clip is identified by (dataset, subject, clip, onset), never by a row number: annotation files hold several
clips of one recording, and rows move when a file is filtered. A person is identified by "dataset/subject": if
two datasets have a subject "s01", these are two people.
"""

import re
import unicodedata

import pandas as pd

KEY = ("dataset", "subject", "clip", "onset")
NOTHING = "nothing"  # the class of stretches without an expression, which are never tested


def identity(dataset: str, subject: str, clip: str, onset: int | None) -> str:
    """The one-line name of a clip in messages, which also seeds its random frames at test time."""
    return f"{dataset} {subject}/{clip} onset {'?' if onset is None else onset}"


def spelling_key(name: str) -> str:
    """The key of a name, equal for all its spellings: the one rule, for people, clips and folders.

    Ignores case, whitespace, leading zeros, a trailing ".0" (not "_0"), digit script, invisible characters,
    and which of . _ - separates; a name with a separator differs from one without.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    visible = [
        letter
        for letter in plain
        if unicodedata.category(letter) != "Cf" and not "\ufe00" <= letter <= "\ufe0f"
    ]
    plain = "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else letter for letter in visible)
    plain = re.sub(r"(?<=[0-9])\.0+(?=/|$)", "", "".join(plain.split()))
    plain = re.sub(r"[._-]+", ".", plain)
    return re.sub(r"[0-9]+", lambda number: number[0].lstrip("0") or "0", plain)


def person_key(subject_id: str) -> str:
    """The key of a person, equal for all spellings of the id "dataset/subject" (see `subject_ids`)."""
    return spelling_key(subject_id)


def words_key(name: str) -> str:
    """The key of a name of several words, equal for all spellings of each word; "1 1" is not "11"."""
    return " ".join(map(spelling_key, name.split()))


def clip_key(dataset: str, subject: str, clip: str, onset: str) -> str:
    """The key of a clip, equal for all spellings of person, name and onset (`person_key`, `words_key`)."""
    return f"{person_key(f'{dataset}/{subject}')} {words_key(clip)} | {words_key(onset)}"


def subject_ids(clips: pd.DataFrame) -> pd.Series:
    """The id of each row's person, "dataset/subject", from the columns dataset and subject."""
    return clips["dataset"] + "/" + clips["subject"]


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that reads digits as numbers: spNO.2 comes before spNO.10. Equal only for equal texts."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], text


_SINGULAR = {"are": "is", "were": "was", "have": "has"}


def of_recording(name: str, error: ValueError) -> str:
    """What was wrong, with the name of the recording where the error does not begin with it, or its end."""
    last = re.escape(name.rpartition("/")[2])
    begins = re.match(rf"({re.escape(name)}|{last}(\.\w+)?): ", str(error))
    return str(error) if begins else f"{name}: {error}"


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number with its noun, and a verb if given: "1 clip is", "2 clips are", from "clip" and "are"."""
    if number == 1:
        return f"1 {noun} {_SINGULAR.get(verb, f'{verb}s') if verb else ''}".rstrip()
    return f"{number} {noun}s {verb}".rstrip()
