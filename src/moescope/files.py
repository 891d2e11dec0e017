"""The folders that moescope writes to, and the only way into them.

`claim` makes sure of three things before a byte is written: the folder is new, empty, or a result
of the same kind that moescope wrote; no other process writes it; it does not lie in what is read.
While it is held, `replacing`, `replacing_folder`, `own` and `remove` are how files come and go.
Each name is noted in the folder's ledger, ``moescope.sha256``, before the file is there, and its
checksum when it is. What is not in the ledger is somebody else's: it is never replaced, and never
removed. Nothing goes through a link. So a process that dies anywhere leaves whole files, and a
user's own file in a result outlives all that moescope does to it.

The ledger is what ``sha256sum -c`` takes. This module knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from moescope.errors import BadInputError, RunError, WriteError
from moescope.lock import acquire, release

__all__ = [
    "LEDGER",
    "LOCK",
    "claim",
    "drop_scratch",
    "is_intact",
    "is_plain_name",
    "keep_scratch",
    "own",
    "owned",
    "remove",
    "remove_result",
    "replacing",
    "replacing_folder",
    "require_intact",
    "require_replaceable",
    "scratch_folder",
    "sha256_of",
    "usable_path",
    "write_bytes",
    "write_error",
]

LEDGER = "moescope.sha256"
"""What moescope wrote in a folder: a line for each file, and what kind of result it is."""

LOCK = ".moescope.lock"

_HEAD = re.compile(r"# moescope result: ([a-z]+)")
_LINE = re.compile(r"([0-9a-f]{64}|#|# gone)  (.+)")
_UNKNOWN, _GONE = "#", "# gone"
_NAME = re.compile(r"[^\x00-\x1f\x7f\\:*?\"<>|]+")
_WAIT_SECONDS = 2.0
"""For a holder that is just ending."""

_SIGNED_WITHIN = 4096


def is_plain_name(name: str) -> bool:
    """Is this the name of a file inside a folder: relative, without ``..``, links left aside?

    Example:
        >>> [is_plain_name(n) for n in ("shards/00000.parquet", "../a", "/a", "a//b", "")]
        [True, False, False, False, False]
    """
    parts = name.split("/")
    return all(p not in ("", ".", "..") and _NAME.fullmatch(p) for p in parts) and len(name) < 1000


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class _Ledger:
    """What one folder's ledger says. A name has the newest checksum, and the one before.

    Both are right until the file was seen whole: a process may die between noting and renaming.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self.kind: str | None = None
        self.sums: dict[str, list[str]] = {}
        self.appended = 0
        self.torn = False
        if not self.path.is_file() or self.path.is_symlink():
            return
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged() from error
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from error
        lines = text.split("\n")[:-1]  # a killed process may leave half a line
        self.torn = bool(text) and not text.endswith("\n")
        if not lines:
            return
        head = _HEAD.fullmatch(lines[0])
        if head is None:
            raise self._damaged()
        self.kind = head[1]
        for line in lines[1:]:
            match = _LINE.fullmatch(line)
            if match is None or not is_plain_name(match[2].removesuffix("/")):
                raise self._damaged()
            self._take(match[1], match[2])

    def _damaged(self) -> RunError:
        return RunError(
            f"{self.path} is damaged, so it cannot be told which files here are moescope's; write "
            "to a new folder"
        )

    def _take(self, checksum: str, name: str) -> None:
        if checksum == _GONE:
            self.sums.pop(name, None)
        elif checksum == _UNKNOWN:
            self.sums.setdefault(name, [])
        else:
            self.sums[name] = [*self.sums.get(name, [])[-1:], checksum]

    def add(self, checksum: str, name: str, kind: str) -> None:
        """Note a file, on disk."""
        if self.kind is None or self.torn:
            self.kind = kind
            self.compact()
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(f"{checksum}  {name}\n")
        self._take(checksum, name)
        self.appended += 1
        if self.appended > 1000 + 4 * len(self.sums):
            self.compact()

    def compact(self, *, last: bool = False) -> None:
        """Write it anew, a line or two for each file; ``last``: every file is as noted last."""
        if last:
            self.sums = {name: sums[-1:] for name, sums in self.sums.items()}
        lines = [f"# moescope result: {self.kind}"]
        for name, sums in sorted(self.sums.items()):
            lines += [f"{one}  {name}" for one in sums or [_UNKNOWN]]
        temporary = self.path.with_name(LEDGER + ".partial")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(self.path)
        self.appended, self.torn = 0, False


class _Folder:
    """A folder that this process holds."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.ledger = _Ledger(path)
        self.thread = threading.get_ident()

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def note(self, name: str, checksum: str = _UNKNOWN) -> None:
        self.ledger.add(checksum, name, self.kind)

    def note_gone(self, name: str) -> None:
        self.ledger.add(_GONE, name, self.kind)

    def knows(self, name: str) -> bool:
        """Was it noted, by itself or with a folder that is wholly ours?"""
        above = [f"{p.as_posix()}/" for p in PurePosixPath(name).parents]
        return any(n in self.ledger.sums for n in (name, f"{name}/", *above))


_held: dict[Path, _Folder] = {}
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
    _refuse_inside(target, place, reads)
    mine = _held.get(place)
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
        held = _held[place] = _Folder(place, kind)
        if held.ledger.kind is None and adopt is not None and _contents(place):
            for name in adopt(place):
                held.note(name)
        yield target
    finally:
        _let_go(place)
        release(descriptor, lock)
        _remove_empty(made)


def _let_go(place: Path) -> None:
    held = _held.pop(place, None)
    if held is not None and held.ledger.appended:
        with contextlib.suppress(OSError):  # a full disk: it is only longer than it need be
            held.ledger.compact(last=True)


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
    return sorted(path.name for path in place.iterdir() if path.name != LOCK)


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
    theirs = _Ledger(target).kind
    if theirs is None and found == [LEDGER]:  # a process died before it wrote anything
        return
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


def _find(path: Path) -> tuple[_Folder | None, Path]:
    """The holder of a path, and the path with the links above its folder resolved."""
    plain = Path(path).absolute()
    for above in plain.parents:
        held = _held.get(above.resolve())
        if held is not None:
            return held, held.path / plain.relative_to(above)
    return None, plain


def own(path: Path) -> Path:
    """Note that a file is about to be written; refuse one that is somebody else's.

    Raises:
        RunError: it is there and moescope did not write it, or a link is on the way.
        WriteError: the ledger cannot be written.
    """
    held, place = _find(path)
    if held is None:
        raise AssertionError(f"nobody claimed the folder of {path}")
    name = held.name_of(place)
    _refuse_links(held, place)
    if not held.knows(name):
        for there in (place, _partial(place)):
            if os.path.lexists(there):
                raise RunError(
                    f"{there} was not written by moescope and would be replaced; move it away, or "
                    "give another folder"
                )
        with _noted(place):
            held.note(name)
    return place


def owned(folder: Path) -> list[str]:
    """Names of the files in a held folder that moescope wrote, ascending."""
    held, place = _find(folder / LEDGER)
    assert held is not None
    inside = "" if place.parent == held.path else held.name_of(place.parent) + "/"
    names = (n for n in held.ledger.sums if n.startswith(inside) and not n.endswith("/"))
    return sorted(n.removeprefix(inside) for n in names)


def _refuse_links(held: _Folder, place: Path) -> None:
    for there in (place, *place.parents):
        if there == held.path:
            return
        if there.is_symlink():
            raise RunError(
                f"{there} is a link, and moescope writes and removes nothing through links; put "
                "the folder itself there, or give another one"
            )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def _noted(path: Path) -> Iterator[None]:
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
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return WriteError(f"cannot write {path}: {reason}; what was finished before is whole")


@contextlib.contextmanager
def replacing(path: Path, signature: bytes | None = None, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes the file, whole or not at all.

    Args:
        path: in a folder that is held; or any other, if nothing is there, or a file with this
            signature.
        signature: bytes that stand near the beginning of every such file of moescope's.
        flush: to the disk, so that a power cut leaves it whole too.

    Raises:
        RunError: somebody else's file is there.
        WriteError: disk full or no permission.
    """
    held, place = _find(path)
    if held is not None:
        own(path)
    else:
        require_replaceable(path, signature)
    temporary = _partial(place)
    try:
        with _noted(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # it may be a link
            yield temporary
            if flush:
                with temporary.open("rb") as handle:
                    os.fsync(handle.fileno())
            if held is not None:
                held.note(held.name_of(place), sha256_of(temporary))
            temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def require_replaceable(path: str | Path, signature: bytes | None) -> None:
    """A file outside of results may be replaced when it is visibly one of moescope's.

    Raises:
        BadInputError: something else is there.
    """
    target = usable_path(path)
    if os.path.lexists(_partial(target)):
        raise BadInputError(f"{_partial(target)} is in the way; remove it or give another path")
    if not os.path.lexists(target):
        return
    if target.is_file() and not target.is_symlink() and signature is not None:
        with target.open("rb") as handle:
            if signature in handle.read(_SIGNED_WITHIN):
                return
    raise BadInputError(
        f"{path} is there already and is not a file of this kind that moescope wrote; give another "
        "path, or move it away"
    )


def write_bytes(
    path: Path, content: bytes, signature: bytes | None = None, *, flush: bool = True
) -> str:
    """Write a file as a whole; returns its sha256. See `replacing`.

    Raises:
        RunError: somebody else's file is there.
        WriteError: disk full or no permission.
    """
    with replacing(path, signature, flush=flush) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well, it takes the place of ``path``.

    At every moment ``path`` or ``path.old`` is whole, and the new files are noted one by one.

    Raises:
        RunError: the old folder holds a file that moescope did not write.
        WriteError: disk full or no permission.
    """
    held, place = _find(path)
    if held is None:
        raise AssertionError(f"nobody claimed the folder of {path}")
    name, old = held.name_of(place), place.with_name(place.name + ".old")
    _refuse_links(held, place)
    _refuse_others(held, place)
    with _noted(path):
        with scratch_folder(_partial(place)) as fresh:
            yield fresh
            files = sorted(p for p in fresh.rglob("*") if p.is_file())
            for file in files:
                held.note(f"{name}/{file.relative_to(fresh).as_posix()}", sha256_of(file))
            if place.exists():
                with scratch_folder(old):
                    old.rmdir()
                    place.rename(old)
                    fresh.rename(place)
            else:  # a process may have died between the two renames above: old is the whole one
                fresh.rename(place)
                drop_scratch(old)
        kept = {file.relative_to(fresh).as_posix() for file in files}
        for gone in set(owned(place)) - kept:
            held.note_gone(f"{name}/{gone}")


def _refuse_others(held: _Folder, place: Path) -> None:
    """A folder is replaced only when every file in it is ours."""
    found = place.rglob("*") if place.is_dir() else iter([place] if place.exists() else [])
    for path in found:
        if (path.is_symlink() or not path.is_dir()) and not held.knows(held.name_of(path)):
            raise RunError(
                f"{path} was not written by moescope, and {place} would be replaced; move it away"
            )


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder of a result that is wholly ours, emptied now and removed at the end.

    What a process that died left in it is removed too, unless it was there before.

    Raises:
        RunError: a folder of that name is there and is not ours.
        WriteError: disk full or no permission.
    """
    path = keep_scratch(path)
    with _noted(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        yield path
    finally:
        drop_scratch(path)


def keep_scratch(path: Path) -> Path:
    """Note a folder as wholly ours and leave what an earlier process of ours left in it.

    Raises:
        RunError: a folder of that name is there and is not ours.
        WriteError: the ledger cannot be written.
    """
    held, place = _find(path)
    assert held is not None
    name = held.name_of(place) + "/"
    _refuse_links(held, place)
    if name not in held.ledger.sums:
        if os.path.lexists(place):
            raise RunError(
                f"{place} was not written by moescope and would be emptied; move it away, or give "
                "another folder"
            )
        with _noted(place):
            held.note(name)
    return place


def drop_scratch(path: Path) -> None:
    """Remove a folder that `keep_scratch` noted."""
    held, place = _find(path)
    assert held is not None
    name = held.name_of(place) + "/"
    if name in held.ledger.sums and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            with contextlib.suppress(OSError):
                held.note_gone(name)


def remove(path: Path) -> None:
    """Remove a file of a held folder, if it is noted; and its folder, when that was the last.

    Raises:
        RunError: a link is on the way.
    """
    held, place = _find(path)
    assert held is not None
    name = held.name_of(place)
    _refuse_links(held, place)
    if name not in held.ledger.sums:
        return
    place.unlink(missing_ok=True)
    _partial(place).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        held.note_gone(name)
    if place.parent != held.path:
        with contextlib.suppress(OSError):
            place.parent.rmdir()


def remove_result(folder: Path) -> None:
    """Remove what the ledger of a result names, and the folder if nothing else is in it.

    Raises:
        BusyError: another process is writing it.
    """
    kind = _Ledger(folder).kind
    if kind is None:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return
    with claim(folder, kind):
        held, _ = _find(folder / LEDGER)
        assert held is not None
        for name in sorted(held.ledger.sums, reverse=True):
            if name.endswith("/"):
                drop_scratch(folder / name)
            else:
                remove(folder / name)
        held.ledger.path.unlink(missing_ok=True)
        held.ledger.appended = 0
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_intact(folder: Path, name: str, at: Path | None = None) -> bool | None:
    """Is a file of a result as it was written? None when the ledger does not know it.

    Args:
        folder: of the result.
        name: of the file in it.
        at: where the file is now, if it was moved aside.

    Raises:
        RunError: the ledger is damaged.
    """
    sums = _Ledger(folder).sums.get(name)
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
