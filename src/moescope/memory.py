"""What the process and the machine have in memory; this module knows no model and no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from moescope.errors import BadInputError, ModelError, lacks_memory

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SIZE = re.compile(
    r"^\s*([0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)\s*((?:[KMGT]I?)?)B?\s*$", re.IGNORECASE
)


def keep_memory() -> None:
    """Let glibc reuse large blocks; fresh pages at every step cost up to a third of the time.

    Does nothing with another C library. Lasts for the process.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block in a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
    except (OSError, AttributeError):
        return


def give_memory_back() -> None:
    """Give the system all blocks that are free now, which `keep_memory` holds on to.

    What is freed in pieces of many sizes is hardly used again by what follows, and counts.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def within_memory(tokens: int, setting: str = "batch_tokens") -> Iterator[None]:
    """Say in one line that a batch does not fit into memory.

    Args:
        tokens: of the batch that the block works on.
        setting: which setting makes batches smaller.

    Raises:
        ModelError: the block lacked memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise ModelError(
            f"not enough memory for a batch of {tokens:,} tokens; give a smaller {setting}"
        ) from error


def parse_memory(text: str) -> int:
    """Bytes of ``4GB``, ``3.5G``, ``2GiB`` or ``800MB``.

    Raises:
        BadInputError: another form.
    """
    match = _SIZE.match(text)
    if match is None:
        raise BadInputError(
            f"`memory` {text!r} is not a size; expected the form 4GB, 800MB or 2GiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def readable(count: float) -> str:
    """``3.25 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_memory() -> int:
    """Bytes of the machine that can still be taken.

    What the system can give, caches included, or less where the process is in a control group with
    a limit (a container, a job of a scheduler).
    """
    meminfo = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if _is(meminfo) else None
    free = int(match[1]) * 1024 if match else machine_memory() // 2
    return min([free, *_left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def machine_memory() -> int:
    """Bytes of the machine's memory; 8 GB where it does not say."""
    if not hasattr(os, "sysconf"):
        return 8_000_000_000
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_groups(own: Path, root: Path) -> list[int]:
    """What the limits of the process's control group, and of those around it, leave."""
    if not _is(own):
        return []
    left = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = (
            ("memory.max", "memory.current", "inactive_file")
            if not controllers
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        top = root / controllers
        inner = top / place.lstrip("/")
        for group in (inner, *inner.parents):
            left += _left_in(group, *names)
            if group == top:
                break
    return left


def _left_in(group: Path, limit: str, usage: str, cached: str) -> list[int]:
    files = [group / limit, group / usage]
    if not all(_is(file) for file in files):
        return []
    most, used = (file.read_text(encoding="utf-8").strip() for file in files)
    if not most.isdigit():  # "max"
        return []
    stat = group / "memory.stat"
    match = re.search(rf"^{cached} (\d+)$", stat.read_text(), re.MULTILINE) if _is(stat) else None
    return [max(0, int(most) - int(used) + (int(match[1]) if match else 0))]


def _is(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)


def held_memory() -> int:
    """Bytes that this process holds now."""
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    return 600_000_000
