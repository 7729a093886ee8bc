"""Layouts of CASME, CASME II, CAS(ME)^2 and CAS(ME)3 part A."""

from __future__ import annotations

from typing import Any

from ...data.clips import ENDS_AT_APEX
from .layout import EXPRESSIONS, Layout, RenderedClip, Rows, recording_number, units


def _casme2_name(clip: RenderedClip) -> str:
    return f"EP{recording_number(clip):02d}_{clip.place:02d}f"


# Videos of CAS(ME)^2: the code in a folder's name, and the name in the annotation.
_VIDEOS = {
    "disgust1": "0101",
    "disgust2": "0102",
    "anger1": "0401",
    "anger2": "0402",
    "happy1": "0502",
    "happy2": "0503",
    "happy3": "0505",
    "happy4": "0507",
    "happy5": "0508",
}
_FIRST_SUBJECT = 14  # the folder of participant 1 is s15


def _video(clip: RenderedClip) -> tuple[str, str]:
    """The name and the code of the video that a recording belongs to; made up beyond the ninth."""
    number = recording_number(clip)
    return ([*_VIDEOS.items()] + [(f"other{i}", f"{1000 + i}") for i in range(number)])[number - 1]


def _squared_subject(clip: RenderedClip) -> str:
    return f"s{clip.subject + _FIRST_SUBJECT}"


def _squared_recording(clip: RenderedClip) -> str:
    name, code = _video(clip)
    return f"{clip.subject + _FIRST_SUBJECT}_{code}{name.rstrip('0123456789')}video"


def _squared_names(rows: Rows) -> dict[str, list[list[Any]]]:
    """The second and third sheet: subject of each participant, code of each video."""
    participants = dict.fromkeys(row["Participant"] for row in rows)
    videos = dict.fromkeys((row["video"], row["code"]) for row in rows)
    folders = [
        [str(number + _FIRST_SUBJECT), f"s{number + _FIRST_SUBJECT}", number] for number in participants
    ]
    return {"naming rule1": folders, "naming rule2": [[code, name] for name, code in videos]}


def _casme_name(clip: RenderedClip) -> str:
    return f"EP{recording_number(clip):02d}_{clip.place}"


LAYOUTS = {
    "casme3": Layout(
        words={word: word for word in EXPRESSIONS},
        frame=lambda clip, number: f"spNO.{clip.subject}/{clip.recording}/color/{number}.jpg",
        cells=lambda clip, word: {
            "Subject": f"spNO.{clip.subject}",
            "Filename": clip.recording,
            "Onset": clip.onset,
            "Apex": clip.apex,
            "Offset": clip.offset,
            "AU": units(clip),
            "Objective class": EXPRESSIONS[clip.emotion][1],
            "emotion": word,
        },
        columns={
            "onset": "Onset",
            "apex": "Apex",
            "offset": "Offset",
            "objective": "Objective class",
            "emotion": "emotion",
        },
        known_as=lambda clip: (f"spNO.{clip.subject}", clip.recording),
        header=("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"),
        annotation="annotation.csv",
    ),
    "casme2": Layout(
        words={
            "others": "others",
            "disgust": "disgust",
            "surprise": "surprise",
            "fear": "fear",
            "sad": "sadness",
            "happy": "happiness",
        },
        frame=lambda clip, number: f"sub{clip.subject:02d}/{_casme2_name(clip)}/img{number}.jpg",
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _casme2_name(clip),
            "OnsetFrame": clip.onset,
            "ApexFrame": clip.apex,
            "OffsetFrame": clip.offset,
            "Action Units": units(clip),
            "Estimated Emotion": word,
        },
        columns={
            "onset": "OnsetFrame",
            "apex": "ApexFrame",
            "offset": "OffsetFrame",
            "emotion": "Estimated Emotion",
        },
        known_as=lambda clip: (f"sub{clip.subject:02d}", _casme2_name(clip)),
        header=(
            "Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units",
            "Estimated Emotion",
        ),
        annotation="CASME2-coding-20140508.xlsx",
        sheet="Sheet1",
    ),
    "casme": Layout(
        words={
            "disgust": "disgust",
            "surprise": "surprise",
            "fear": "fear",
            "sad": "sadness",
            "happy": "happiness",
        },
        frame=lambda clip, number: (
            f"sub{clip.subject:02d}/{_casme_name(clip)}/"
            f"{_casme_name(clip)}-{number:0{1 + 2 * (clip.place % 2)}d}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _casme_name(clip),
            "OnsetF": clip.onset,
            "ApexF1": clip.apex,
            "ApexF2": None if clip.place % 2 else clip.apex + 1,
            "OffsetF": clip.offset,
            "AU": units(clip),
            "Emotion": word,
        },
        columns={
            "onset": "OnsetF", "apex": "ApexF1", "second apex": "ApexF2", "offset": "OffsetF",
            "emotion": "Emotion",
        },
        known_as=lambda clip: (f"sub{clip.subject:02d}", _casme_name(clip)),
        header=(
            "Subject", "Filename", None, "OnsetF", "ApexF1", "ApexF2", "OffsetF", None, "AU", "Emotion",
        ),
        annotation="casme.xlsx",
        sheet="Sheet1",
    ),
    "casme_squared": Layout(
        words={
            "others": "others",
            "disgust": "negative",
            "fear": "negative",
            "anger": "negative",
            "sad": "negative",
            "surprise": "surprise",
            "happy": "positive",
        },
        frame=lambda clip, number: (
            f"rawpic/{_squared_subject(clip)}/{_squared_recording(clip)}/img{number:03d}.jpg"
        ),
        cells=lambda clip, word: {
            "Participant": clip.subject,
            "Expression": f"{_video(clip)[0]}_{clip.place}",
            "Onset": clip.onset,
            "Apex": clip.apex,
            "Offset": clip.offset,
            "Action Units": "NULL" if clip.emotion == "others" else units(clip),
            "Emotion": word,
            "Expression type": "micro-expression",
            "Self-reported emotion": clip.emotion,
            "video": _video(clip)[0],
            "code": _video(clip)[1],
        },
        columns={"onset": "Onset", "apex": "Apex", "offset": "Offset", "emotion": "Emotion"},
        known_as=lambda clip: (_squared_subject(clip), _squared_recording(clip)),
        header=(
            "Participant", "Expression", "Onset", "Apex", "Offset", "Action Units", "Emotion",
            "Expression type", "Self-reported emotion",
        ),
        annotation="CAS(ME)^2code_final(Updated).xlsx",
        sheet="CASFEcode_final",
        headerless=True,
        more_sheets=_squared_names,
        offset_zero=ENDS_AT_APEX,
    ),
}  # fmt: skip
