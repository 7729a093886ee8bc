"""What `hsta-fast profile` is asked for, and what it refuses before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..files import check_writable
from ..model import BRANCHES, HSTAConfig, list_models, model_config
from ..spelling import did_you_mean
from ..toolchain import find_tools
from ..training.config import Dtype

Peer = Literal["eager", "compiled", "published", "published-sdpa"]
OURS = "eager"
_CPU_SIZES, _CUDA_SIZES = ((1, 2), (6, 16)), ((1, 8, 32), (6, 16, 32))  # batch sizes, frames


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A profile: the model, the shapes, and what it is compared with.

    Attributes:
        model: the name of a model, as for `create_model`.
        batch_sizes: clips in a batch; None: 1 and 2 on the CPU, 1, 8 and 32 on CUDA.
        frames: T, video frames of a clip; None: 6 and 16 on the CPU, 6, 16 and 32 on CUDA.
        image_size: height and width of the frames in pixels.
        dtype: of the matrix products; "auto" as in training.
        device: "auto", "cpu", "cuda" or "cuda:0".
        out: the folder of the results.
        against: what is timed besides this package's model as it is, which is "eager".
        seconds: about how long the timed rounds may take together. Each shape has two at least.
        quick: the smallest batch and the fewest frames only, two rounds, and no search for the largest batch.
    """

    model: str = "hsta_base"
    batch_sizes: tuple[int, ...] | None = None
    frames: tuple[int, ...] | None = None
    image_size: int = 224
    dtype: Dtype = "auto"
    device: str = "auto"
    out: Path = Path("profile")
    against: tuple[Peer, ...] = ()
    seconds: float = 60.0
    quick: bool = False

    def check(self) -> None:
        """Check all that needs no device.

        Raises:
            ValueError: an unknown model or peer, a size that no clip can have, or no compiler for "compiled".
        """
        if self.model not in list_models():
            meant = did_you_mean(self.model, list_models())
            raise ValueError(f"--model expected one of {', '.join(list_models())}, got {self.model!r}{meant}")
        config = self.architecture()
        for batch in self.batch_sizes or ():
            if batch < 1:
                raise ValueError(f"--batch-sizes expected integers >= 1, got {batch}")
        depth = config.tubelet_depth
        for count in self.frames or ():
            if count < depth or count % depth:
                raise ValueError(
                    f"--frames expected multiples of {depth}, the frames of a tubelet, got {count}"
                )
        least = max(config.patch_sizes)
        if self.image_size < least:
            raise ValueError(f"--image-size expected at least {least} pixels, a patch, got {self.image_size}")
        if self.seconds <= 0:
            raise ValueError(f"--seconds expected a number > 0, got {self.seconds:g}")

    def check_machine(self, device_type: str) -> None:
        """Check that the results can be written, and that what is compared can run.

        Raises:
            ValueError: no compiler for "compiled".
            OSError: the folder cannot be created or written.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OSError(f"--out expected a folder, got {self.out}: it is a file")
        check_writable(self.out, "--out", self.out)
        if "compiled" in self.against and device_type == "cpu" and find_tools().compiler is None:
            raise ValueError(
                "--against compiled expected a C++ compiler for torch.compile (CXX, or c++ or g++ on PATH), "
                "got none"
            )

    def architecture(self) -> HSTAConfig:
        """The configuration of the model; of 7 classes."""
        config = model_config(self.model)
        assert config.branches == BRANCHES
        return config

    def shapes(self, device_type: str) -> list[tuple[int, int]]:
        """(batch, frames) of each shape, the frames of one batch size after the other."""
        usual = _CUDA_SIZES if device_type == "cuda" else _CPU_SIZES
        batches, frames = (
            sorted(set(given or default))
            for given, default in zip((self.batch_sizes, self.frames), usual, strict=True)
        )
        if self.quick:
            batches, frames = batches[:1], frames[:1]
        return [(batch, count) for count in frames for batch in batches]


def integers(text: str | None, flag: str) -> tuple[int, ...] | None:
    """The numbers in a flag's value, which commas separate; None stays None.

    Raises:
        ValueError: something else is in it.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} expected integers with commas between them, got {text!r}") from error


def peers(text: str | None) -> tuple[Peer, ...]:
    """The names in --against, which commas separate.

    Raises:
        ValueError: an unknown name.
    """
    known: Sequence[Peer] = get_args(Peer)
    names = [part.strip() for part in text.split(",")] if text else []
    for name in names:
        if name not in known:
            raise ValueError(
                f"--against expected some of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}"
            )
    return tuple(name for name in known if name in names)
