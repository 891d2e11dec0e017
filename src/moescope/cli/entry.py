"""The `moescope` command from its first instant to its last: Ctrl-C is one line all the while.

Loading the modules takes a moment, and so does the end of the process, where threads are joined;
an interrupt there would print a traceback that says nothing. This module imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def run() -> None:
    """Entry point of the ``moescope`` command."""
    signal.signal(signal.SIGINT, _leave)
    from moescope.cli.main import run as start

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        start()
    except KeyboardInterrupt:
        _leave()
    finally:
        signal.signal(signal.SIGINT, _leave_quietly)


def _leave(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def _leave_quietly(_number: int, _frame: FrameType | None) -> None:
    """All has been said."""
    os._exit(130)
