"""How an interrupted verb goes on: said by the verbs that have --resume, and by no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moescope.errors import (
    InterruptedTrainingError,
    LaunchError,
    MoescopeError,
    WriteError,
)

INTERRUPTED = "interrupted"

RUN_MARKS = ("manifest.json", "parts")
"""What lies in the folder of a run as soon as it is begun."""

_GO_ON = "go on with the same command and --resume"
_LEAVE_SOMETHING = (WriteError, LaunchError, InterruptedTrainingError)


class Interrupted(MoescopeError):
    """Ctrl-C while a verb was at work that can be resumed."""


@contextmanager
def resumable(folder: str | Path | None, *marks: str, advice: str | None = None) -> Iterator[None]:
    """Add how to go on to an error that leaves something to go on from.

    Args:
        folder: where the verb writes; None keeps nothing.
        marks: names in it, of which one is there as soon as something was kept.
        advice: how to go on, if not with ``--resume``.

    Raises:
        Interrupted: instead of KeyboardInterrupt, where something was kept.
    """
    advice = advice or _GO_ON
    try:
        yield
    except _LEAVE_SOMETHING as error:
        if _begun(folder, marks) and "--resume" not in str(error):
            raise type(error)(f"{error}; {advice}") from error
        raise
    except KeyboardInterrupt as error:
        if _begun(folder, marks):
            raise Interrupted(f"{INTERRUPTED}; what was finished stays, {advice}") from error
        raise


def _begun(folder: str | Path | None, marks: tuple[str, ...]) -> bool:
    if folder is None:
        return False
    try:
        return any((Path(folder) / mark).exists() for mark in marks)
    except OSError:
        return False
