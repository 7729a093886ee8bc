"""What `hsta-fast profile` is asked for, and what it refuses before anything runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..files import check_writable
from ..model import HSTAConfig
from ..presets import list_models, model_config
from ..recompute import Memory
from ..spelling import did_you_mean
from ..toolchain import find_tools
from ..training.settings import Dtype

Peer = Literal["eager", "compiled", "published", "published-sdpa"]
OURS: Peer = "eager"
_USUAL = {"cpu": ((1, 2), (6, 16)), "cuda": ((1, 8, 32), (6, 16, 32))}  # batch sizes, frames


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A profile: the model, the shapes, and what it is compared with."""

    model: str = "hsta_base"
    """hsta_tiny, hsta_small or hsta_base."""
    batch_sizes: str = "auto"
    """Clips in a batch, such as 1,2,4; auto: 1,2 on the CPU and 1,8,32 on CUDA."""
    frames: str = "auto"
    """T, video frames of a clip, such as 6,16; auto: 6,16 on the CPU and 6,16,32 on CUDA."""
    image_size: int = 224
    """Height and width of the frames in pixels."""
    dtype: Dtype = "auto"
    """Of the matrix products; auto: as in training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    out: Path = Path("profile")
    """Folder of the results."""
    memory: Memory = "fast"
    """What the model keeps for the backward, as in training."""
    against: str = "eager"
    """What to time too, such as compiled,published: eager (this package, which is always timed), compiled (by
    torch.compile), published (the published model), published-sdpa (with torch's fused attention)."""
    seconds: float = 60.0
    """About how long the timed rounds may take together; each shape has two at least."""
    quick: bool = False
    """The smallest batch and the fewest frames only, and no search for the largest batch."""

    def check(self) -> None:
        """Check all that needs no device.

        Raises:
            ValueError: an unknown model or peer, or a size that no clip can have.
        """
        if self.model not in list_models():
            meant = did_you_mean(self.model, list_models())
            raise ValueError(f"--model expected one of {', '.join(list_models())}, got {self.model!r}{meant}")
        config = self.architecture()
        self.peers()
        for batch in _integers(self.batch_sizes, "--batch-sizes"):
            if batch < 1:
                raise ValueError(f"--batch-sizes expected integers >= 1, got {batch}")
        depth = config.tubelet_depth
        for count in _integers(self.frames, "--frames"):
            if count < depth or count % depth:
                raise ValueError(f"--frames expected multiples of {depth}, the tubelet's frames, got {count}")
        least = max(config.patch_sizes)
        if self.image_size < least:
            raise ValueError(f"--image-size expected at least {least} pixels, a patch, got {self.image_size}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"--seconds expected a finite number > 0, got {self.seconds:g}")

    def check_machine(self, device_type: str) -> None:
        """Check that the results can be written, and that what is compared can run.

        Raises:
            ValueError: no compiler for "compiled".
            OSError: the folder cannot be created or written.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OSError(f"--out expected a folder, got {self.out}: it is a file")
        check_writable(self.out, "--out", self.out)
        if "compiled" in self.peers() and device_type == "cpu" and find_tools().compiler is None:
            raise ValueError(
                "--against compiled expected a C++ compiler for torch.compile (CXX, or c++ or g++ on PATH), "
                "got none"
            )

    def architecture(self) -> HSTAConfig:
        """The configuration of the model, of 7 classes."""
        return model_config(self.model)

    def peers(self) -> tuple[Peer, ...]:
        """What is timed, this package first.

        Raises:
            ValueError: an unknown name.
        """
        known: tuple[Peer, ...] = get_args(Peer)
        names = [part.strip() for part in self.against.split(",")]
        for name in names:
            if name not in known:
                meant = did_you_mean(name, known)
                raise ValueError(f"--against expected some of {', '.join(known)}, got {name!r}{meant}")
        return tuple(name for name in known if name == OURS or name in names)

    def shapes(self, device_type: str) -> list[tuple[int, int]]:
        """(batch, frames) of each shape, all batch sizes of one number of frames after the other."""
        given = (_integers(self.batch_sizes, "--batch-sizes"), _integers(self.frames, "--frames"))
        batches, frames = (sorted(set(g or u)) for g, u in zip(given, _USUAL[device_type], strict=True))
        if self.quick:
            batches, frames = batches[:1], frames[:1]
        return [(batch, count) for count in frames for batch in batches]


def _integers(text: str, flag: str) -> tuple[int, ...]:
    """The numbers in a flag's value, which commas separate; none for "auto".

    Raises:
        ValueError: something else is in it.
    """
    if text == "auto":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} expected integers with commas between them, got {text!r}") from error
