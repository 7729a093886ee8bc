"""Layouts of SMIC-HS and 4DME, both of Oulu."""

from __future__ import annotations

from ...data.readers.four_dme import FLAGS
from ...data.readers.smic import clip_id, subject_id
from .layout import Layout, RenderedClip, recording_number, units_with_prefix

_SMIC_CODES = {"negative": "ne", "positive": "po", "surprise": "sur"}
_SMIC_WORDS = dict.fromkeys(("disgust", "fear", "anger", "sad"), "negative")
_SMIC_WORDS |= {"happy": "positive", "surprise": "surprise"}
_SMIC_FIRST = 17_580_000  # the camera's counter runs through all recordings


_SMIC_HEADER = (
    "Subject", "Filename", "OnsetF", "OffsetF", "TotalMF1", "Onset2F", "Offset2F", "TotalMF2",
    "FirstF", "LastF", "TotalVL", "Emotion",
)  # fmt: skip


def _smic_name(clip: RenderedClip) -> str:
    return f"s{clip.subject}_{_SMIC_CODES[_SMIC_WORDS[clip.emotion]]}_{clip.same:02d}"


_FLAGS = dict.fromkeys(("disgust", "fear", "anger", "sad"), "Negative")
_FLAGS |= {"happy": "Positive", "surprise": "Surprise", "others": "Others"}


def _four_dme_name(clip: RenderedClip) -> tuple[str, str]:
    return f"S{clip.subject:02d}", f"S{clip.subject:02d}_{recording_number(clip):02d}_{clip.place:02d}"


LAYOUTS = {
    "smic": Layout(
        words=_SMIC_WORDS,
        frame=lambda clip, number: (
            f"SMIC_HS_E/s{clip.subject}/{_smic_name(clip)}/image{_SMIC_FIRST + number}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _smic_name(clip),
            "OnsetF": _SMIC_FIRST + clip.onset,
            "OffsetF": _SMIC_FIRST + clip.offset,
            "TotalMF1": clip.offset - clip.onset + 1,
            "FirstF": _SMIC_FIRST + min(clip.frames),
            "LastF": _SMIC_FIRST + max(clip.frames),
            "TotalVL": len(clip.frames),
            "Emotion": word,
        },
        columns={
            "onset": "OnsetF",
            "offset": "OffsetF",
            "second onset": "Onset2F",
            "second offset": "Offset2F",
            "emotion": "Emotion",
        },
        known_as=lambda clip: (subject_id(str(clip.subject)), clip_id(_smic_name(clip))),
        header=_SMIC_HEADER,
        annotation="SMIC-HS-E_annotation.xlsx",
        sheet="HS",
        more_sheets=lambda rows: {"VIS": [[*_SMIC_HEADER]], "NIR": [[*_SMIC_HEADER]]},
    ),
    "4dme": Layout(
        words=_FLAGS,
        frame=lambda clip, number: f"gray_micro/{'/'.join(_four_dme_name(clip))}/{number}.jpg",
        cells=lambda clip, word: {
            "sub_ID": _four_dme_name(clip)[0],
            "fold_name": _four_dme_name(clip)[1],
            "Emotion": word,
            "Onset": clip.onset,
            "Apex": clip.apex,
            "Offset": clip.offset,
            "AUs": units_with_prefix(clip),
            "eye blink": clip.place % 2,
            **{flag: int(flag == word) for flag in FLAGS},
        },
        columns={
            "onset": "Onset",
            "apex": "Apex",
            "offset": "Offset",
            "flag": "Positive",
            "other flag": "Negative",
        },
        known_as=_four_dme_name,
        header=(
            "sub_ID", "fold_name", "fold", "Emotion", "Onset", "Apex", "Offset", "AUs", "eye blink",
            *FLAGS,
        ),
        annotation="4DME_Labelling_Micro_release v1.xlsx",
        sheet="Sheet1",
        grey=True,
    ),
}  # fmt: skip
