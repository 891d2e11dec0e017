"""One process at a time for one folder.

Two that write one run would remove each other's files. The lock is the system's, which drops it
when its holder dies; the file says who holds it. It knows nothing of runs or workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from moescope.errors import LaunchError, WriteError

__all__ = ["alone", "holder"]

_PAUSE_SECONDS = 0.2


@contextlib.contextmanager
def alone(folder: Path, lock: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a folder while the block runs, and remove it afterwards.

    Folders that are made for the lock are removed again if nothing else came into them. Where files
    cannot be locked nothing is checked.

    Args:
        folder: what is written; named in the message only.
        lock: the file to lock.
        seconds: how long to wait for another holder, which may be dying.

    Raises:
        LaunchError: another process still has it.
        WriteError: the lock cannot be written.
    """
    made = [path for path in lock.parents if not path.exists()]
    descriptor = _wait_for(lock, folder, seconds)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)
        for path in made:
            with contextlib.suppress(OSError):  # something is in it
                path.rmdir()


def holder(lock: Path) -> str | None:
    """Who holds a lock, or died with it: process and machine; None when that cannot be read."""
    try:
        told = json.loads(lock.read_bytes())
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _wait_for(lock: Path, folder: Path, seconds: float) -> int:
    give_up = time.monotonic() + seconds
    while True:
        try:
            descriptor = _take(lock)
        except FileNotFoundError:  # its folder was removed by a holder that has ended
            descriptor = None
        except OSError as error:
            raise WriteError(
                f"cannot write {lock}: {error.strerror}; mend that and give the same command with "
                "--resume"
            ) from error
        if descriptor is not None:
            return descriptor
        if time.monotonic() > give_up:
            raise LaunchError(
                f"{folder} is being written by another process ({holder(lock) or 'unknown'}); wait "
                "for it or end it, then go on with --resume"
            )
        time.sleep(_PAUSE_SECONDS)


def _take(lock: Path) -> int | None:
    """The open file, locked and signed, or None when another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    # a holder that ended removed the file that was opened here: lock the one that others see
    if not _locked(descriptor) or not _is_at(descriptor, lock):
        os.close(descriptor)
        return None
    sign = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, sign, 0)
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
