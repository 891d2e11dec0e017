"""Whose a folder is: the one way for a process to hold a folder that it writes to."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from moescope.errors import BadInputError, RunError
from moescope.files.ledger import GONE, LEDGER, PARTIAL, UNKNOWN, Ledger
from moescope.files.lock import acquire, release
from moescope.files.paths import noted, usable_path, write_error

LOCK = ".moescope.lock"

_WAIT_SECONDS = 2.0
"""For a holder that is just ending."""

_OF_FILES = {".json", ".html", ".csv", ".parquet", ".yaml"}
"""A new folder that is called like one of these was meant to be a file."""


class HeldFolder:
    """A folder that this process holds."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.ledger = Ledger(path)
        self.thread = threading.get_ident()
        self._identity = path.stat()

    def is_there(self) -> bool:
        """Is it still the folder that was claimed, and not another one of its name?"""
        try:
            return os.path.samestat(self._identity, self.path.stat())
        except OSError:
            return False

    def name_of(self, path: Path) -> str:
        """The name of a file in it, as the ledger has it."""
        return path.relative_to(self.path).as_posix()

    def note(self, name: str, checksum: str = UNKNOWN, *, flush: bool = True) -> None:
        """Note a file before it is there, or its checksum when it is about to be.

        Raises:
            RunError: somebody put another folder in its place.
        """
        if not self.is_there():
            raise RunError(f"{self.path} was moved or replaced while it was being written")
        self.ledger.add(checksum, name, self.kind, flush=flush)

    def note_gone(self, name: str) -> None:
        """Note that a file was removed."""
        if not self.is_there():
            return
        self.ledger.add(GONE, name, self.kind, flush=False)


HELD: dict[Path, HeldFolder] = {}
"""By resolved path."""


@contextlib.contextmanager
def claim(
    folder: str | Path,
    kind: str,
    *,
    reads: Sequence[str | Path] = (),
    wait: float = _WAIT_SECONDS,
    adopt: Callable[[Path], Iterable[str]] | None = None,
) -> Iterator[Path]:
    """Hold a folder of results while the block runs.

    A claim that writes nothing leaves nothing. A thread may claim again what it holds.

    Args:
        folder: to write to.
        kind: of result, a word such as ``run``.
        reads: what the work reads; a folder inside one of these is refused.
        wait: seconds to wait for another process that holds it.
        adopt: names what moescope wrote in a folder without ledger; raises `RunError` if nothing.

    Yields:
        The folder as a path.

    Raises:
        BadInputError: a path that cannot be a folder, or that lies inside what is read.
        RunError: the folder holds something else.
        BusyError: another process is writing it.
        WriteError: it cannot be written.
    """
    target = usable_path(folder)
    place = target.resolve()
    if target.suffix.lower() in _OF_FILES and not target.exists():
        raise BadInputError(
            f"{target} is called like a file, but what is written ({kind}) is a folder; give "
            f"another name, such as {target.with_suffix('')}"
        )
    _refuse_inside(target, place, reads)
    mine = HELD.get(place)
    if mine is not None and mine.thread == threading.get_ident():
        if mine.kind != kind:
            raise RunError(_holds(target, mine.kind, kind))
        yield target
        return
    _require_ours(target, kind, adopt)
    lock = place / LOCK
    made = [path for path in (place, *place.parents) if not path.exists()]
    try:
        descriptor = acquire(lock, target, wait)
    except OSError as error:
        _remove_empty(made)
        raise write_error(target, error) from error
    try:
        _require_ours(target, kind, adopt)  # another process may have been quicker
        held = HELD[place] = HeldFolder(place, kind)
        if held.ledger.kind is None and adopt is not None and _contents(place):
            with noted(target):
                held.ledger.adopt(adopt(place), kind)
        yield target
    finally:
        _let_go(place)
        release(descriptor, lock)
        _remove_empty(made)


def _let_go(place: Path) -> None:
    held = HELD.pop(place, None)
    if held is not None and held.ledger.appended and held.is_there():
        with contextlib.suppress(OSError):  # a full disk: it is only longer than it need be
            if held.ledger.sums or _contents(place) != [LEDGER]:
                held.ledger.compact()
            else:  # what was begun is all gone again, and nothing was there before
                held.ledger.path.unlink()


def _refuse_inside(target: Path, place: Path, reads: Sequence[str | Path]) -> None:
    for source in reads:
        with contextlib.suppress(OSError, ValueError):
            read = Path(source)
            if str(source) and read.is_dir() and place.is_relative_to(read.resolve()):
                raise BadInputError(
                    f"{target} lies inside {source}, which is read: the next reading would take "
                    "the results for text; give a folder outside it"
                )


def _contents(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name not in (LOCK, PARTIAL))


def _require_ours(target: Path, kind: str, adopt: Callable[[Path], Iterable[str]] | None) -> None:
    """Refuse anything but a new folder, an empty one, or a result of this kind."""
    if target.exists() and not target.is_dir():
        raise RunError(f"{target} is a file; give a folder")
    try:
        found = _contents(target) if target.exists() else []
    except OSError as error:
        raise RunError(f"{target} cannot be read: {error.strerror}; give another folder") from error
    if not found:
        return
    theirs = Ledger(target).kind
    if theirs is None and adopt is not None:
        try:
            adopt(target)
        except RunError:
            pass
        else:
            return
    if theirs is None:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise RunError(
            f"{target} holds what moescope did not write ({shown}); give a new or empty folder"
        )
    if theirs != kind:
        raise RunError(_holds(target, theirs, kind))


def _holds(target: Path, theirs: str, kind: str) -> str:
    return f"{target} holds a result of another kind ({theirs}, not {kind}); give another folder"


def _remove_empty(made: Iterable[Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):  # something is in it
            path.rmdir()


def find_held(path: Path) -> tuple[HeldFolder | None, Path]:
    """The holder of a path, and the path with the links above its folder resolved."""
    plain = Path(path).absolute()
    for above in plain.parents:
        held = HELD.get(above.resolve())
        if held is not None:
            return held, held.path / plain.relative_to(above)
    return None, plain
