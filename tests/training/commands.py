"""`hsta-fast` in a process of its own, of one thread: what may be killed, or fail."""

import os
import socket

from tests.forked import Forked

IMPORTED = ("hsta_fast.cli", "hsta_fast.training.runner")  # what the command finds imported
# The smallest model, and its training in seconds: flags of `train` and of `prepare`.
# float32, because "auto" depends on the machine.
SMALL = (
    "--model=hsta_tiny",
    "--num-layers=1",
    "--n-video=1",
    "--image-size=32",
    "--num-frames=2",
    "--dtype=float32",
)
QUICK = (
    *(*SMALL, "--epochs=1", "--warmup-epochs=1", "--protocol=kfold", "--folds=2", "--batch-size=6"),
    "--labels=emotion3",
)


def start(
    *words: object,
    before: str = "",
    preload: str = "",
    imported: tuple[str, ...] = IMPORTED,
    **environment: object,
) -> Forked:
    """`hsta-fast words`, after the code `before`; `preload` and `imported` as for `Forked`."""
    code = f"{before}\nfrom hsta_fast.cli import main; main()"
    own = {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    # Not matplotlib, which reads its environment on import.
    return Forked(code, words, environment=os.environ | own, imported=imported, preload=preload)


def output(*words: object) -> str:
    """What `hsta-fast words` prints; it must end well."""
    process = start(*words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def without_agent(
    size: int, *words: object, before: str = "", imported: tuple[str, ...] = IMPORTED
) -> list[Forked]:
    """So many workers, each with the environment that torchrun's agent would give it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    team = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [start(*words, before=before, **team, RANK=str(rank), imported=imported) for rank in range(size)]
