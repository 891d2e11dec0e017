"""How many of the kernels that torch compiles for shapes a process keeps. Imports no torch."""

from __future__ import annotations

import os

_KERNELS = 8


def keep_few_kernels() -> None:
    """Let torch keep few of the kernels that it compiles for shapes, unless the user chose.

    Products in half precision compile one for each number of rows, and each expert of each batch
    has its own: a thousand of them, which torch keeps by default, are most of a gigabyte, and are
    hardly ever met again. Both caches are sized once, by the first such product of a process;
    behind it this has no effect.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(_KERNELS))
