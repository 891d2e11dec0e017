"""How files of a held folder come and go: as a whole, noted, and never through a link."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from moescope.errors import BadInputError, RunError
from moescope.files.claims import HeldFolder, claim, find_held
from moescope.files.ledger import LEDGER, Ledger, sha256_of
from moescope.files.paths import noted, partial_of, usable_path

_SIGNED_WITHIN = 4096


def _holder(path: Path) -> tuple[HeldFolder, Path]:
    """What `find_held` finds, where the folder must be held."""
    held, place = find_held(path)
    if held is None:
        raise AssertionError(f"nobody claimed the folder of {path}")
    return held, place


def own(path: Path, *, flush: bool = True) -> Path:
    """Note that a file is about to be written; refuse one that is somebody else's.

    Raises:
        RunError: it is there and moescope did not write it, or a link is on the way.
        WriteError: the ledger cannot be written.
    """
    held, place = _holder(path)
    name = held.name_of(place)
    refuse_links(held, place)
    if not held.ledger.knows(name):
        if os.path.lexists(place):
            raise RunError(
                f"{place} was not written by moescope and would be replaced; move it away, or "
                "give another folder"
            )
        with noted(place):
            held.note(name, flush=flush)
    return place


def owned(folder: Path) -> list[str]:
    """Names of the files in a held folder that moescope wrote, ascending."""
    held, place = _holder(folder / LEDGER)
    inside = "" if place.parent == held.path else held.name_of(place.parent) + "/"
    names = (n for n in held.ledger.sums if n.startswith(inside) and not n.endswith("/"))
    return sorted(n.removeprefix(inside) for n in names)


def refuse_links(held: HeldFolder, place: Path) -> None:
    """Refuse a place that a link inside the folder leads to."""
    for there in (place, *place.parents):
        if there == held.path:
            return
        if there.is_symlink():
            raise RunError(
                f"{there} is a link, and moescope writes and removes nothing through links; put "
                "the folder itself there, or give another one"
            )


@contextlib.contextmanager
def replacing(path: Path, signature: bytes | None = None, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes the file, whole or not at all.

    Args:
        path: in a folder that is held; or, with a signature, any other, if nothing is there or a
            file with this signature.
        signature: bytes that stand near the beginning of every such file of moescope's.
        flush: to the disk, so that a power cut leaves it whole too.

    Raises:
        RunError: somebody else's file is there.
        WriteError: disk full or no permission.
    """
    held, place = find_held(path)
    temporary = partial_of(place)
    if held is not None:
        own(path.with_name(temporary.name), flush=False)
    elif signature is None:
        raise RunError(f"the folder of {path} was moved or replaced while it was being written")
    else:
        require_replaceable(path, signature)
    try:
        if held is not None:
            own(path, flush=flush)
        with noted(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # it may be a link
            yield temporary
            if flush:
                _to_disk(temporary)
            if held is not None:
                held.note(held.name_of(place), sha256_of(temporary), flush=flush)
            temporary.replace(place)
            if held is not None:
                held.ledger.settle(held.name_of(place))
            if flush:
                _to_disk(place.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            if held is not None:
                held.note_gone(held.name_of(temporary))
                if not os.path.lexists(place):  # a name that came to nothing is not ours
                    held.note_gone(held.name_of(place))


def checksum_of(path: Path) -> str:
    """The checksum of a file of a held folder, as it was noted when it was written."""
    held, place = _holder(path)
    return held.ledger.sums[held.name_of(place)][-1]


def require_replaceable(path: str | Path, signature: bytes | None) -> None:
    """A file outside of results may be replaced when it is visibly one of moescope's.

    Raises:
        BadInputError: something else is there.
    """
    target = usable_path(path)
    if os.path.lexists(partial_of(target)):
        raise BadInputError(f"{partial_of(target)} is in the way; remove it or give another path")
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
    held, place = _holder(path)
    name, old = held.name_of(place), place.with_name(place.name + ".old")
    refuse_links(held, place)
    _refuse_others(held, place)
    with noted(path):
        with scratch_folder(partial_of(place)) as fresh:
            yield fresh
            names = {
                f"{name}/{file.relative_to(fresh).as_posix()}": file
                for file in sorted(fresh.rglob("*"))
                if file.is_file()
            }
            for one, file in names.items():
                _to_disk(file)
                held.note(one, sha256_of(file))
            _exchange(place, fresh, old)
            for one in names:
                held.ledger.settle(one)
        _to_disk(place.parent)
        drop_scratch(old)
        for one in {f"{name}/{gone}" for gone in owned(place)} - names.keys():
            held.note_gone(one)


def _exchange(place: Path, fresh: Path, old: Path) -> None:
    """Put one folder in the place of another, which is kept as ``old``.

    Where ``place`` is not there, a process may have died in here, and ``old`` is the whole one.
    """
    there = place.exists()
    if there:
        shutil.rmtree(keep_scratch(old), ignore_errors=True)
        place.rename(old)
    try:
        fresh.rename(place)
    except BaseException:
        if there:
            old.rename(place)
        raise


def _to_disk(path: Path) -> None:
    """Flush a file or folder, so that a power cut leaves it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # not every system opens folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_others(held: HeldFolder, place: Path) -> None:
    """A folder is replaced only when every file in it is ours."""
    found = place.rglob("*") if place.is_dir() else iter([place] if place.exists() else [])
    for path in found:
        if (path.is_symlink() or not path.is_dir()) and not held.ledger.knows(held.name_of(path)):
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
    with noted(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        yield path
    finally:
        drop_scratch(path)


def keep_scratch(path: Path) -> Path:
    """Note a folder as wholly ours and leave what an earlier process of ours left in it.

    Its name is one that `SCRATCH` matches.

    Raises:
        RunError: a folder of that name is there and is not ours.
        WriteError: the ledger cannot be written.
    """
    held, place = _holder(path)
    name = held.name_of(place) + "/"
    refuse_links(held, place)
    if name not in held.ledger.sums:
        if os.path.lexists(place):
            raise RunError(
                f"{place} was not written by moescope and would be emptied; move it away, or give "
                "another folder"
            )
        with noted(place):
            held.note(name)
    return place


def drop_scratch(path: Path) -> None:
    """Remove a folder that `keep_scratch` noted."""
    held, place = _holder(path)
    name = held.name_of(place) + "/"
    with contextlib.suppress(RunError):
        refuse_links(held, place)
        if name not in held.ledger.sums:
            return
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            with contextlib.suppress(OSError):
                held.note_gone(name)


def remove(path: Path) -> None:
    """Remove a file of a held folder, if it is noted; and its folder, when that was the last.

    Raises:
        RunError: a link is on the way.
    """
    held, place = _holder(path)
    name = held.name_of(place)
    refuse_links(held, place)
    if name not in held.ledger.sums:
        return
    place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        held.note_gone(name)
    if place.parent != held.path:
        with contextlib.suppress(OSError):
            place.parent.rmdir()


@contextlib.contextmanager
def nothing_of_bad_input(
    folder: Path, *, unless: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """What the block writes to a held folder is removed again when it ends in bad input.

    Args:
        folder: that is held.
        unless: was something kept by then that is worth going on with?
    """
    held, _ = _holder(folder / LEDGER)
    before = set(held.ledger.sums)
    try:
        yield
    except BadInputError:
        if not unless():
            _remove_all(held, set(held.ledger.sums) - before)
        raise


def _remove_all(held: HeldFolder, names: Iterable[str]) -> None:
    for name in sorted(names, reverse=True):
        if name.endswith("/"):
            drop_scratch(held.path / name)
        else:
            remove(held.path / name)


def remove_result(folder: Path) -> None:
    """Remove what the ledger of a result names, and the folder if nothing else is in it.

    Raises:
        BusyError: another process is writing it.
    """
    kind = Ledger(folder).kind
    if kind is None:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return
    with claim(folder, kind):
        held, _ = _holder(folder / LEDGER)
        _remove_all(held, list(held.ledger.sums))
        held.ledger.path.unlink(missing_ok=True)
        held.ledger.appended = 0
    with contextlib.suppress(OSError):
        folder.rmdir()
