"""How an interrupted verb goes on: said by the verbs that have --resume, and by no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moescope.errors import (
    BadInputError,
    InterruptedTrainingError,
    LaunchError,
    MoescopeError,
    ResumeError,
    WriteError,
)
from moescope.given import parse_yaml, read_text
from moescope.words import brief

INTERRUPTED = "interrupted"

INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells count it."""

RUN_MARKS = ("manifest.json", "parts")
"""What lies in the folder of a run as soon as it is begun."""

_DECIDE_NOTHING = ("out", "format", "rows", "device")
_MOST_BYTES = 1 << 17

_GO_ON = "go on with the same command and --resume"
_LEAVE_SOMETHING = (WriteError, LaunchError, InterruptedTrainingError)


class Interrupted(MoescopeError):
    """Ctrl-C while a verb was at work that keeps what it finished."""

    exit_code = INTERRUPTED_CODE


@contextmanager
def resumable(folder: str | Path | None, *marks: str, advice: str | None = None) -> Iterator[None]:
    """Add how to go on to an error that leaves something to go on from.

    Args:
        folder: where the verb writes; None keeps nothing.
        marks: names in it, of which one is there as soon as something was kept.
        advice: how to go on, if not with ``--resume``.

    Raises:
        Interrupted: instead of KeyboardInterrupt, where something is kept.
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
        if folder is not None and marks:
            raise Interrupted(f"{INTERRUPTED} before anything was kept") from error
        raise


def _begun(folder: str | Path | None, marks: tuple[str, ...]) -> bool:
    if folder is None:
        return False
    try:
        return any((Path(folder) / mark).exists() for mark in marks)
    except OSError:
        return False


def changes(settings: Any, folder: Path) -> list[str]:
    """Which settings are others than those that work in a folder was begun with."""
    try:
        begun = parse_yaml(read_text(folder / "config.yaml", _MOST_BYTES))
    except BadInputError:
        return []
    now = settings.model_dump(mode="json", by_alias=True)
    was = begun if isinstance(begun, dict) else {}
    told = [(n, was[n], now[n]) for n in now if n in was and was[n] != now[n]]
    return [
        f"`{n}` {brief(old)} → {brief(new)}" for n, old, new in told if n not in _DECIDE_NOTHING
    ]


_DECIDE_NOTHING = ("out", "format", "rows", "device")


@contextmanager
def naming_settings(settings: Any) -> Iterator[None]:
    """Add to an error of resuming which settings have changed since."""
    try:
        yield
    except ResumeError as error:
        folder = settings.folder()
        changed = [] if folder is None else changes(settings, folder)
        if not changed:
            raise
        raise ResumeError(f"{error}. Changed since: {', '.join(changed)}") from error
