"""Layout of MMEW."""

from __future__ import annotations

from .layout import Layout, RenderedClip, recording_number, units

_WORDS = {
    "others": "others",
    "disgust": "disgust",
    "surprise": "surprise",
    "fear": "fear",
    "anger": "anger",
    "sad": "sadness",
    "happy": "happiness",
}


def _name(clip: RenderedClip) -> str:
    return f"S{clip.subject:02d}-{recording_number(clip):02d}-{clip.place:03d}"


LAYOUTS = {
    "mmew": Layout(
        words=_WORDS,
        frame=lambda clip, number: (
            f"Micro_Expression/{_WORDS[clip.emotion]}/{_name(clip)}/{number}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": f"S{clip.subject:02d}" if clip.place % 2 else clip.subject,
            "Filename": _name(clip),
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
        known_as=lambda clip: (f"S{clip.subject:02d}", _name(clip)),
        header=(
            "Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units",
            "Estimated Emotion", "remarks",
        ),
        annotation="MMEW_Micro_Exp.xlsx",
        sheet="Sheet1",
    ),
}  # fmt: skip
