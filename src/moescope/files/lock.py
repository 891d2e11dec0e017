"""One process at a time for one folder.

The lock is the system's, which drops it when its holder dies, so a stale file locks nothing; the
file says who holds it. It knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path

from moescope.errors import BusyError, RunError

_PAUSE_SECONDS = 0.05
_MISSES = 20
_SIGN = b'{"pid":'


def acquire(lock: Path, folder: Path, seconds: float) -> int:
    """Lock a file, and sign it. Where files cannot be locked nothing is checked.

    Args:
        lock: the file; its folder is made when it is not there.
        folder: what is locked; named in the message only.
        seconds: how long to wait for another holder, which may be dying.

    Returns:
        For `release`.

    Raises:
        BusyError: another process still has it.
        OSError: it cannot be written.
    """
    give_up = time.monotonic() + seconds
    missed = 0
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _take(lock)
            if descriptor is not None:
                return descriptor
        except FileNotFoundError:  # a holder that has just ended removes the folder it made
            missed += 1
            if missed > _MISSES:
                raise
        if time.monotonic() >= give_up:
            raise BusyError(
                f"{folder} is being written by {holder(lock) or 'another process'}; wait until it "
                "has ended, or give another folder"
            )
        time.sleep(min(_PAUSE_SECONDS, max(0.0, give_up - time.monotonic())))


def release(descriptor: int, lock: Path) -> None:
    """Give a lock back and remove its file."""
    with contextlib.suppress(OSError):
        if _is_at(descriptor, lock):
            lock.unlink()
    os.close(descriptor)


def holder(lock: Path) -> str | None:
    """Who holds a lock, or died with it: process and machine; None when that cannot be read."""
    try:
        told = json.loads(lock.read_bytes())
        return f"process {int(told['pid'])} on {str(told['host'])[:80]}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take(lock: Path) -> int | None:
    """The open file, locked and signed, or None when another process has it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    # a holder that ended removed the file that was opened here: lock the one that others see
    if not _locked(descriptor) or not _is_at(descriptor, lock):
        os.close(descriptor)
        return None
    if os.pread(descriptor, 7, 0) not in (b"", _SIGN):
        os.close(descriptor)
        raise RunError(f"{lock} was not written by moescope; move it away, or give another folder")
    if os.fstat(descriptor).st_nlink > 1:  # it lies in a copy of the folder too
        lock.unlink()
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
    except OSError as error:
        # anything else: a file system without locks
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
