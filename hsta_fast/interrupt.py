"""What Ctrl-C and SIGUSR1 do to the command `hsta-fast`; the package imports this file first.

While torch is imported, which takes seconds, Ctrl-C ends the process at once, without a traceback. Afterwards
it raises KeyboardInterrupt. SIGUSR1 ends `train`, `ablate` and `pretrain` with one line, until they listen to
it (see `training.stopping`). In any other program nothing is changed: there, that program decides.
"""

import os
import signal
import sys
from typing import NoReturn

STOPPED = 75  # exit status after SIGUSR1: EX_TEMPFAIL of sysexits.h, "try again later"
_OR_JOIN = " or --join" * (sys.argv[1:2] != ["pretrain"])  # which has none
IF_BEGUN = f"--resume{_OR_JOIN} continues the run if it has begun"


def _is_command() -> bool:
    """Whether this process is `hsta-fast` or `python -m hsta_fast`."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if sys.argv[:1] == ["-m"] else []
    return os.path.basename("".join(sys.argv[:1])) == "hsta-fast" or module == ["hsta_fast"]


def end_in_words() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from now on, unless the command was started without Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_interrupted(advice: str = "") -> NoReturn:
    """Say that the command was interrupted, and end with exit status 130, as shells do after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next Ctrl-C ends the process without a traceback
    print(f"interrupted{'; ' if advice else ''}{advice}", file=sys.stderr)
    sys.exit(130)


def _stop(number: int, frame: object) -> NoReturn:
    os.write(2, f"stopped by SIGUSR1; {IF_BEGUN}\n".encode())
    os._exit(STOPPED)  # not an exception, which a half imported package may catch


if (
    _is_command()
    and sys.argv[1:2] in (["train"], ["ablate"], ["pretrain"])
    and hasattr(signal, "SIGUSR1")  # Windows has none
    and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
):
    signal.signal(signal.SIGUSR1, _stop)
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
