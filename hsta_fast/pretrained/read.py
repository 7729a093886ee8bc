"""Reads a file of pretrained weights: which source it is of, and its encoder for each branch."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..checkpoint import is_saved_model, load_model, read_weights, state_dict_of
from ..files import open_plain
from ..model import HSTA, HSTAConfig
from ..wrappers import plain_keys
from .encoder import Encoder, check_values, read_branch, read_encoder
from .sources import OF_ITS_OWNER, recognise

OURS = "HSTA of hsta_fast"


@dataclass(frozen=True, kw_only=True)
class PretrainedFile:
    """A file and what is in it.

    Attributes:
        path: the file.
        sha256: of its bytes, in hexadecimal digits.
        source: the model that it is of.
        licence: a line on its weights.
        encoders: by branch (0 special, 1 video). A source other than HSTA has one, for the branch that asks.
        config: of an HSTA.
        others: the other tensors of an HSTA, by key: CSTA and the head.
        notes: of an HSTA, by name.
    """

    path: Path
    sha256: str
    source: str
    licence: str = OF_ITS_OWNER
    encoders: Mapping[int, Encoder]
    config: HSTAConfig | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Inside, an error says which file it is about."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


def read_file(path: Path, branch: int) -> PretrainedFile:
    """Read the file at `path`, weights only; branch: that which asks for it, 0 special or 1 video.

    Raises:
        ValueError: no plain file, no weights, no source or several are recognised, keys are missing or not
            known, or tensors are not finite.
    """
    try:
        with open_plain(path, "a file of weights") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if is_saved_model(path):
        return _of_ours(path, sha256, load_model(path))
    state = plain_keys(state_dict_of(str(path), read_weights(path)))
    source, prefix = recognise(str(path), state)
    encoder = read_encoder(str(path), state, source, prefix)
    return PretrainedFile(
        path=path, sha256=sha256, source=source.name, licence=source.licence, encoders={branch: encoder}
    )


def _of_ours(path: Path, sha256: str, model: HSTA) -> PretrainedFile:
    check_values(str(path), model.state_dict())
    encoders = {d: read_branch(model, d) for d in model.config.branch_ids}
    taken = {key for encoder in encoders.values() for keys in encoder.keys.values() for key in keys}
    return PretrainedFile(
        path=path,
        sha256=sha256,
        source=OURS,
        encoders=encoders,
        config=model.config,
        others={key: value for key, value in model.state_dict().items() if key not in taken},
        notes=model.notes,
    )
