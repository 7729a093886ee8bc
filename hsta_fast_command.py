"""What `hsta-fast` starts: `hsta_fast.cli`, with an end in one line if Ctrl-C comes while it is imported.

It stands outside the package because importing any part of the package imports torch, which takes seconds.
"""

import os
import signal


def main() -> None:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not in the background, where Ctrl-C is ignored
        signal.signal(signal.SIGINT, _end)
    from hsta_fast import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
