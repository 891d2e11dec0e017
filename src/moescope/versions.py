"""The versions of transformers that moescope is tested with. Imports none of it.

Which modules hold a router, what it returns and how a cache is handed over changes between them.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

OLDEST, NEWEST = (5, 23), (5, 24)


def untested(installed: str | None = None) -> str | None:
    """One line that says so where transformers is older or newer than what is tested; else None.

    Args:
        installed: its version; that of this environment by default.

    Example:
        >>> untested("5.24.1") is None
        True
    """
    try:
        installed = installed or version("transformers")
    except PackageNotFoundError:
        return None  # whoever needs it says so
    found = re.match(r"(\d+)\.(\d+)", installed)
    here = (int(found[1]), int(found[2])) if found else NEWEST
    if OLDEST <= here <= NEWEST:
        return None
    side, nearest = ("older", OLDEST) if here < OLDEST else ("newer", NEWEST)
    low, high, sure = ("{}.{}".format(*pair) for pair in (OLDEST, NEWEST, nearest))
    return (
        f"transformers {installed} is {side} than what moescope is tested with ({low} to {high}); "
        f'if in doubt, compare with pip install "transformers=={sure}.*"'
    )
