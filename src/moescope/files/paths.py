"""Paths that can be written to, and errors of writing, each as one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from moescope.errors import BadInputError, WriteError
from moescope.words import said_by


def usable_path(path: str | Path) -> Path:
    """A path that something can be written to.

    Raises:
        BadInputError: it is empty, too long, not UTF-8, a link to nowhere, or below a file.
    """
    text = os.fspath(path)
    if not text.strip():
        raise BadInputError("the path to write to is empty (an unset variable?); give a path")
    try:
        text.encode("utf-8")
        if "\0" in text:
            raise ValueError("it holds a null character")
        target = Path(text)
        target.exists()
        if target.is_symlink() and not target.exists():
            raise BadInputError(f"{text} is a link that leads nowhere; give another path")
        above = next(p for p in (target, *target.absolute().parents) if p.exists())
    except UnicodeEncodeError as error:
        raise BadInputError("the path to write to is not UTF-8; give another path") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"{text[:80]!r} cannot be written to ({why}); give another path") from (
            error
        )
    if above != target and not above.is_dir():
        raise BadInputError(f"{text} cannot be made, because {above} is a file; give another path")
    return target


def partial_of(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def noted(path: Path) -> Iterator[None]:
    """Errors of the system while something is written are one line on this path.

    Raises:
        WriteError: disk full, no permission, and so on.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
    except Exception as error:  # libraries in Rust have errors of their own
        if _OS_ERROR.search(str(error)):
            raise write_error(path, error) from error
        raise


_OS_ERROR = re.compile(r"os error (\d+)")


def write_error(path: Path, error: Exception) -> WriteError:
    """One line on what could not be written and why."""
    found = _OS_ERROR.search(str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    if number in reasons:
        reason = reasons[number]
    else:
        reason = getattr(error, "strerror", None) or said_by(error, 200)
    return WriteError(f"cannot write {path}: {reason}; what was finished before is whole")
