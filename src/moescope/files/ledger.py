"""The ledger of a folder: which files in it moescope wrote, and what they held.

``moescope.sha256`` is what ``sha256sum -c`` takes: a line for each file, after a first one that
says what kind of result the folder is. A name is noted before its file is there, so what is not in
the ledger is somebody else's. It knows nothing of who may write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from moescope.errors import RunError

LEDGER = "moescope.sha256"
"""What moescope wrote in a folder: a line for each file, and what kind of result it is."""

PARTIAL = LEDGER + ".partial"

UNKNOWN, GONE = "#", "# gone"
"""In the place of a checksum: of a file that still grows, or of one that was removed."""

SCRATCH = re.compile(r"(^|/)(streaming|[^/]+[.](partial|old))/$")
"""Names of folders that may be wholly moescope's: what passes while it is at work."""

_HEAD = re.compile(r"# moescope result: ([a-z]+)")
_LINE = re.compile(r"([0-9a-f]{64}|#|# gone)  (.+)")
_NAME = re.compile(r"[^\x00-\x1f\x7f\\:*?\"<>|]+")


def is_plain_name(name: str) -> bool:
    """Is this the name of a file inside a folder: relative, without ``..``, links left aside?

    Example:
        >>> [is_plain_name(n) for n in ("shards/00000.parquet", "../a", "/a", "a//b", "")]
        [True, False, False, False, False]
    """
    parts = name.split("/")
    return all(p not in ("", ".", "..") and _NAME.fullmatch(p) for p in parts) and len(name) < 1000


def plain_name(name: str) -> str:
    """The name, if it `is_plain_name`.

    Raises:
        ValueError: it leads out of the folder, or could.
    """
    if not is_plain_name(name):
        raise ValueError(f"{name[:80]!r} is not the name of a file inside the folder")
    return name


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Ledger:
    """What one folder's ledger says.

    A name has every checksum that was noted since its file was last seen in its place: a process
    may end between noting and renaming, and then the file before is the one that is there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self.kind: str | None = None
        self.sums: dict[str, list[str]] = {}
        self.appended = 0
        self.torn = False
        if not os.path.lexists(self.path):
            return
        if self.path.is_symlink() or not self.path.is_file():
            raise self._damaged()
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged() from error
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from error
        lines = text.split("\n")[:-1]  # a killed process may leave half a line
        self.torn = bool(text) and not text.endswith("\n")
        head = _HEAD.fullmatch(lines[0]) if lines else None  # the first line comes with the file
        if head is None:
            raise self._damaged()
        self.kind = head[1]
        for line in lines[1:]:
            match = _LINE.fullmatch(line)
            if match is None or not is_plain_name(match[2].removesuffix("/")):
                raise self._damaged()
            if match[2].endswith("/") and not SCRATCH.search(match[2]):
                raise self._damaged()  # no folder of the user's is wholly ours
            self._take(match[1], match[2])

    def _damaged(self) -> RunError:
        return RunError(
            f"{self.path} is damaged, so it cannot be told which files here are moescope's; write "
            "to a new folder"
        )

    def _take(self, checksum: str, name: str) -> None:
        if checksum == GONE:
            self.sums.pop(name, None)
        elif checksum == UNKNOWN:
            self.sums.setdefault(name, [])
        else:
            before = [one for one in self.sums.get(name, []) if one != checksum]
            self.sums[name] = [*before, checksum]

    def add(self, checksum: str, name: str, kind: str, *, flush: bool) -> None:
        """Note a file, on disk."""
        if self.kind is None or self.torn:
            self.kind = kind
            self.compact()
        self.torn = True  # until the line is whole: half a line must not be written on
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(f"{checksum}  {name}\n")
            handle.flush()
            if flush:
                os.fsync(handle.fileno())
        self.torn = False
        self._take(checksum, name)
        self.appended += 1
        if self.appended > 1000 + 4 * len(self.sums):
            self.compact()

    def settle(self, name: str) -> None:
        """The file that was noted last is in its place now."""
        self.sums[name] = self.sums[name][-1:]

    def adopt(self, names: Iterable[str], kind: str) -> None:
        """Begin with these files."""
        self.kind, self.sums = kind, {name: [] for name in names}
        self.compact()

    def compact(self) -> None:
        """Write it anew, without what is no longer so."""
        lines = [f"# moescope result: {self.kind}"]
        for name, sums in sorted(self.sums.items()):
            lines += [f"{one}  {name}" for one in sums or [UNKNOWN]]
        temporary = self.path.with_name(PARTIAL)
        try:
            temporary.unlink(missing_ok=True)  # it may be a link
            with temporary.open("x", encoding="utf-8") as handle:
                handle.write("\n".join(lines) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self.appended, self.torn = 0, False

    def knows(self, name: str) -> bool:
        """Was it noted, by itself or with a folder that is wholly ours?"""
        above = [f"{p.as_posix()}/" for p in PurePosixPath(name).parents]
        return any(n in self.sums for n in (name, f"{name}/", *above))


def are_intact(folder: Path, names: Iterable[str]) -> bool:
    """Are these files of a result, all known to its ledger, as they were written?

    Raises:
        RunError: the ledger is damaged.
    """
    known = Ledger(folder).sums
    return all(
        known.get(name) and (folder / name).is_file() and sha256_of(folder / name) in known[name]
        for name in names
    )


def is_intact(folder: Path, name: str, at: Path | None = None) -> bool | None:
    """Is a file of a result as it was written? None when the ledger does not know it.

    Args:
        folder: of the result.
        name: of the file in it.
        at: where the file is now, if it was moved aside.

    Raises:
        RunError: the ledger is damaged.
    """
    sums = Ledger(folder).sums.get(name)
    if not sums:
        return None
    path = at or folder / name
    return path.is_file() and sha256_of(path) in sums


def require_intact(folder: Path, name: str, at: Path | None = None) -> Path:
    """The path of a file of a result, which is as it was written; see `is_intact`.

    Raises:
        RunError: it is missing, altered, or unknown to the ledger.
    """
    path = at or folder / name
    if not is_intact(folder, name, path):
        what = "was truncated or altered" if path.is_file() else "is missing"
        raise RunError(f"{path} {what}; restore it, or begin again in a new folder")
    return path
