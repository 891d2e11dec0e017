"""What a model needs in memory, resident or streamed, reckoned before anything is loaded.

Figures are upper estimates from shapes: weights in the dtype of the computation, one batch of
activations of transformers' own forward, logits of a few rows. Nothing is measured here but what
the process holds already.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moescope.errors import BadInputError, ModelError
from moescope.models.anatomy import Anatomy

__all__ = [
    "HEAD_CELLS",
    "StreamedNeed",
    "available_memory",
    "give_memory_back",
    "keep_memory",
    "machine_memory",
    "parse_memory",
    "plan_streaming",
    "readable",
    "resident_need",
]

HEAD_CELLS = 1 << 24
"""Logits (rows × vocabulary) that the streamed engine makes at a time."""

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SIZE = re.compile(
    r"^\s*([0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)\s*((?:[KMGT]I?)?)B?\s*$", re.IGNORECASE
)
_BATCHES = (8192, 4096, 2048, 1024, 512)
_OVERHEAD = 200_000_000
"""Allocator slack, tokenizer, file buffers."""
_SUMS = 100_000_000
"""Sums and sample of a run, at least; what the promise leaves is theirs too."""


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


def parse_memory(text: str) -> int:
    """Bytes of ``4GB``, ``3.5G``, ``2GiB`` or ``800MB``.

    Raises:
        BadInputError: another form.
    """
    match = _SIZE.match(text)
    if match is None:
        raise BadInputError(f"--memory {text!r} is no size; expected the form 4GB, 800MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def readable(count: float) -> str:
    """``3.25 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_memory(device: torch.device | None = None) -> int:
    """Bytes that can still be taken: of the accelerator if there is one, else of the machine.

    Of the machine: what the system can give, caches included, or less where the process is in a
    control group with a limit (a container, a job of a scheduler).
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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


def resident_need(anatomy: Anatomy, dtype: torch.dtype) -> int:
    """Bytes for all weights and one modest batch."""
    return held_memory() + anatomy.total_params * dtype.itemsize + _OVERHEAD + _SUMS + 10**9


@dataclass(frozen=True)
class StreamedNeed:
    """What streaming takes, in bytes; ``batch_tokens`` is the batch that it is reckoned for.

    ``spare``: what the promise leaves beyond it.
    """

    held: int
    outside: int
    layer: int
    batch_tokens: int
    batch: int
    spare: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.held + self.outside + self.layer + self.batch + _OVERHEAD + _SUMS

    @property
    def sums(self) -> int:
        """What sums and sample of a run may take."""
        return _SUMS + self.spare

    def __str__(self) -> str:
        return (
            f"{readable(self.total)}: {readable(self.held + _OVERHEAD)} for the process, "
            f"{readable(self.outside)} outside the layers, {readable(self.layer)} for a layer, "
            f"{readable(self.batch)} for a batch of {self.batch_tokens:,} tokens, "
            f"{readable(_SUMS)} for sums"
        )


def plan_streaming(
    anatomy: Anatomy,
    outside: int,
    layer: int,
    dtype: torch.dtype,
    memory: int,
    batch_tokens: int | None = None,
    *,
    window: int = 512,
    sorts: bool = False,
) -> StreamedNeed:
    """The largest batch with which streaming keeps within a promise.

    Args:
        anatomy: of the model.
        outside: bytes of the weights outside the decoder layers.
        layer: bytes of the largest layer while it is read and held.
        dtype: of the computation.
        memory: the promise, in bytes.
        batch_tokens: a batch that was asked for; otherwise the largest that fits is taken.
        window: tokens of the longest window, which goes through the model as a whole.
        sorts: the experts run one after the other (`moescope.models.experts`), so that the rows of
            one of them are in memory instead of all assignments.

    Raises:
        ModelError: it does not fit; says what the smallest batch needs.
    """
    sizes = [max(s, window) for s in (_BATCHES if batch_tokens is None else (batch_tokens,))]
    per_token = _activation_bytes(anatomy, dtype, sorts)
    held = held_memory()
    for size in sizes:
        need = StreamedNeed(held, outside, layer, size, size * per_token + 8 * HEAD_CELLS)
        if need.total <= memory:
            return replace(need, spare=memory - need.total)
    raise ModelError(
        f"--memory {readable(memory)} is too little to stream this {anatomy.model_type} model: it "
        f"needs {need}"
    )


def _activation_bytes(anatomy: Anatomy, dtype: torch.dtype, sorts: bool) -> int:
    """Per token: the residual and attention, and the gathered rows of the chosen experts.

    Sorted experts hold the rows of one expert, which every token may have chosen.
    """
    widest = 0
    for layer in anatomy.layers:
        inner = layer.expert_hidden_size or 4 * layer.hidden_size
        times = 1 if sorts else layer.top_k
        experts = times * (3 * layer.hidden_size + 4 * inner) + 6 * layer.top_k
        shared = 4 * layer.shared_params // max(1, 3 * layer.hidden_size)
        widest = max(widest, 14 * layer.hidden_size + experts + shared + 6 * layer.num_experts)
    return widest * dtype.itemsize
