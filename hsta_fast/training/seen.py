"""Whom the weights that a run starts from have seen, and whether they are people whom the run tests.

A model file of ours names them in its notes, as a JSON list of subjects, "dataset/name".
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..clips import natural_key, person_key
from ..inputs import PRETRAINED_SUBJECTS, TRAINED_SUBJECTS

# The note of a model whose own start names nobody: the file's name.
UNKNOWN = "start_not_checked"
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The people that a model has seen, as far as its notes tell; those of its own starts among them.

    Attributes:
        pretrained: in a pretraining without labels; None: the notes do not say.
        trained: in a training with labels; None: the notes do not say.
        unknown: the files that it started from and that name nobody; empty if there are none.
    """

    pretrained: frozenset[str] | None
    trained: frozenset[str] | None
    unknown: str

    @classmethod
    def of(cls, notes: Mapping[str, str]) -> "Seen":
        """Read the notes of a model."""
        return cls(
            pretrained=_subjects(notes, PRETRAINED_SUBJECTS),
            trained=_subjects(notes, TRAINED_SUBJECTS),
            unknown=notes.get(UNKNOWN, ""),
        )

    @property
    def is_known(self) -> bool:
        """Whether the notes name anybody. A model that was only pretrained has seen nobody's labels."""
        return self.pretrained is not None or self.trained is not None

    def remark(self, tested: Collection[str], *, named: bool) -> str:
        """What a reader of scores of the subjects `tested` must know; named: with the names of some."""
        if not self.is_known:
            return "and whether its training saw people who are tested here is not checked"
        parts = []
        if self.pretrained is not None:
            parts.append(_saw("pretraining saw", ", without labels,", self.pretrained, tested, named))
        if self.trained is not None:
            parts.append(_saw("training saw", ", with labels,", self.trained, tested, named))
        if self.unknown:
            parts.append(f"and whether {self.unknown}, where it started, saw such people is not checked")
        known = (self.pretrained or frozenset()) | (self.trained or frozenset())
        if elsewhere := len(_in_other_datasets(known, tested)):
            names = "1 name occurs" if elsewhere == 1 else f"{elsewhere} names occur"
            parts.append(f"{names} in both, in other data sets")
        return ", ".join(parts)

    def leak(self, tested: Collection[str]) -> str:
        """Why scores of the subjects `tested` are leaky; empty if no label of theirs was seen."""
        both = _in_both(self.trained or (), tested)
        return f"it was trained with the labels of {_share(both, tested)}." if both else ""


def notes_on_people(starts: Mapping[str, Seen], trained: Iterable[str]) -> dict[str, str]:
    """Whom a model has seen, as its file's notes.

    starts: whom the models of ours have seen that it started from, by the names of their files.
    trained: the subjects that it was trained on.
    """
    found = {TRAINED_SUBJECTS: frozenset(trained).union(*(s.trained or () for s in starts.values()))}
    if any(s.pretrained is not None for s in starts.values()):
        found[PRETRAINED_SUBJECTS] = frozenset().union(*(s.pretrained or () for s in starts.values()))
    unknown = [*(s.unknown for s in starts.values()), *(name for name, s in starts.items() if not s.is_known)]
    lists = {
        name: json.dumps(sorted(subjects, key=natural_key), ensure_ascii=False)
        for name, subjects in found.items()
    }
    files = ", ".join(dict.fromkeys(filter(None, unknown)))
    return lists | ({UNKNOWN: files} if files else {})


def _subjects(notes: Mapping[str, str], name: str) -> frozenset[str] | None:
    try:
        return frozenset(str(subject) for subject in json.loads(notes[name]))
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _in_both(seen: Iterable[str], tested: Collection[str]) -> list[str]:
    """Those of `tested` who were seen, whatever the spelling of their names."""
    keys = {person_key(subject) for subject in seen}
    return sorted({subject for subject in tested if person_key(subject) in keys}, key=natural_key)


def _in_other_datasets(seen: Iterable[str], tested: Collection[str]) -> set[str]:
    """The keys of names in `tested` that were seen too, but as those of subjects of other data sets."""
    seen = list(seen)
    others = set(tested) - set(_in_both(seen, tested))
    return {_name_key(subject) for subject in others} & {_name_key(subject) for subject in seen}


def _name_key(subject: str) -> str:
    return person_key(subject.partition("/")[2])


def _saw(what: str, how: str, seen: Iterable[str], tested: Collection[str], named: bool) -> str:
    both = _in_both(seen, tested)
    if not both:
        return f"whose {what} nobody of this name who is tested here"
    names = f" ({', '.join(both[:_MOST_NAMED])}{', ...' * (len(both) > _MOST_NAMED)})" if named else ""
    return (
        f"whose {what}{how} {_share(both, tested)}{names}: on them the scores are not those of unknown people"
    )


def _share(both: Collection[str], tested: Collection[str]) -> str:
    return f"{len(both)} of the {len(set(tested))} people who are tested here"
