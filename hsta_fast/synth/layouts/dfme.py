"""Layout of DFME's training part."""

from __future__ import annotations

from .layout import Layout, RenderedClip, units

_WORDS = {
    "disgust": "disgust",
    "surprise": "surprise",
    "fear": "fear",
    "anger": "anger",
    "sad": "sadness",
    "happy": "happiness",
}


def _name(clip: RenderedClip) -> str:
    """The clips of a subject are numbered through all recordings; an onset is there once in each."""
    return f"sub{clip.subject:04d}_{clip.number:02d}"


LAYOUTS = {
    "dfme": Layout(
        words=_WORDS,
        frame=lambda clip, number: f"DFME_train/{_name(clip)}/{number:05d}.png",
        cells=lambda clip, word: {
            "Subject": f"sub{clip.subject:04d}",
            "Filename": _name(clip),
            "OnsetFrame": clip.onset,
            "ApexFrame": clip.apex,
            "OffsetFrame": clip.offset,
            "Emotion": word,
            "EmotionId": list(_WORDS.values()).index(word),
            "Fps": (500, 300, 200)[clip.number % 3],
            "AU": units(clip) + ("", "+AD38", "+M58")[clip.number % 3],
        },
        columns={"onset": "OnsetFrame", "apex": "ApexFrame", "offset": "OffsetFrame"},
        known_as=lambda clip: (f"sub{clip.subject:04d}", _name(clip)),
        header=(
            "Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Emotion", "EmotionId", "Fps",
            "AU",
        ),
        annotation="training_full_with_AU.xlsx",
        sheet="Sheet1",
    ),
}  # fmt: skip
