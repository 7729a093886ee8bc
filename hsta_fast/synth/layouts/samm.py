"""Layouts of SAMM and SAMM Long Videos."""

from __future__ import annotations

from ...data.clips import ENDS_AT_APEX
from .layout import EXPRESSIONS, Layout, RenderedClip, recording_number, units_with_prefix

_CLASSES = ("I", "II", "III", "IV", "V", "VI", "VII")


def _samm_name(clip: RenderedClip) -> str:
    return f"{clip.subject:03d}_{recording_number(clip)}_{clip.place}"


def _recording(clip: RenderedClip) -> str:
    return f"{clip.subject:03d}_{recording_number(clip)}"


LAYOUTS = {
    "samm": Layout(
        words={
            "others": "Other",
            "disgust": "Disgust",
            "surprise": "Surprise",
            "fear": "Fear",
            "anger": "Anger",
            "sad": "Sadness",
            "happy": "Happiness",
        },
        frame=lambda clip, number: (
            f"{clip.subject:03d}/{_samm_name(clip)}/{clip.subject:03d}_{number:0{4 + clip.place % 2}d}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": f"{clip.subject:03d}",
            "Filename": _samm_name(clip),
            "Inducement Code": 1,
            "Onset Frame": clip.onset,
            "Apex Frame": clip.apex,
            "Offset Frame": clip.offset,
            "Duration": clip.offset - clip.onset + 1,
            "Micro": "Micro - 1/2",
            "Action Units": units_with_prefix(clip),
            "Estimated Emotion": word,
            "Objective Classes": _CLASSES.index(EXPRESSIONS[clip.emotion][1]) + 1,
        },
        columns={
            "onset": "Onset Frame",
            "apex": "Apex Frame",
            "offset": "Offset Frame",
            "objective": "Objective Classes",
            "emotion": "Estimated Emotion",
        },
        known_as=lambda clip: (f"{clip.subject:03d}", _samm_name(clip)),
        header=(
            "Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration",
            "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes",
        ),
        annotation="SAMM_Micro_FACS_Codes_v2.xlsx",
        sheet="MICRO ONLY",
        above=13,
        grey=True,
    ),
    "samm_long": Layout(
        words={word: word for word in EXPRESSIONS},
        frame=lambda clip, number: (
            f"SAMM_longvideos/{_recording(clip)}/{_recording(clip)}_{number:0{4 + clip.subject % 2}d}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _samm_name(clip),
            "Inducement Code": 1,
            "Onset": clip.onset,
            "Apex": clip.apex,
            "Offset": clip.offset,
            "Duration": clip.offset - clip.onset + 1,
            "Type": "Micro - 1/2",
            "Action Units": units_with_prefix(clip),
        },
        columns={"onset": "Onset", "apex": "Apex", "offset": "Offset"},
        known_as=lambda clip: (f"{clip.subject:03d}", _samm_name(clip)),
        header=(
            "Subject", "Filename", "Inducement Code", "Onset", "Apex", "Offset", "Duration", "Type",
            "Action Units", "Notes",
        ),
        annotation="SAMM_LongVideos_V3_Release.xlsx",
        sheet="FACS_Movement_Only",
        above=9,
        grey=True,
        offset_zero=ENDS_AT_APEX,
    ),
}  # fmt: skip
