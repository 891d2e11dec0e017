"""Words and numbers for people, written one way everywhere: messages, sentences, tables, pages.

It knows nothing of models, and what it quotes is always short: a value from a file or a library
may be of any length.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def one_line(text: str, limit: int = 2000) -> str:
    """Make a text fit one line of a terminal: nothing unprintable, not endless."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return line if len(text) <= limit else f"{line[:limit]}…"


def printable(text: str) -> str:
    r"""A token's text with nothing in it that shows as an empty box or as nothing; line ends stay.

    What no font has a sign for becomes an escape, bytes that are no whole character are named, and
    an accent without a letter gets a circle to stand on.

    Example:
        >>> printable(" a\x00\ue000"), printable("\ufffd\ufffd")
        (' a\\x00\\ue000', '‹bytes›')
    """
    seen = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    before = " "
    parts = []
    for c in seen:
        alone = unicodedata.category(c).startswith("M") and before.isspace()
        parts.append(f"◌{c}" if alone else c)
        before = c
    return re.sub("\ufffd+", "‹bytes›", "".join(parts))


def said_by(error: BaseException, limit: int = 160) -> str:
    """What an error says, on one line; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


def brief(value: Any, limit: int = 80) -> str:
    """A value as Python writes it; what is long is not quoted in full.

    Example:
        >>> brief("all"), brief(list(range(100)), 12)
        ("'all'", '[0, 1, 2, 3…')
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # 5,000 digits, a deep nest
        return "a value that is too long to show"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def listing(names: Iterable[Any], limit: int = 12) -> str:
    """Join names for a message, the first few of many.

    Example:
        >>> listing(["law", "code", "news"], 2)
        'law, code and 1 more'
    """
    shown = [one_line(str(name), 60) for name in names]
    more = f" and {len(shown) - limit:,} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more if shown else "none"


def near_names(name: str, candidates: Iterable[Any]) -> str:
    """Suggest what was probably meant, or list what there is.

    Example:
        >>> near_names("txet", ["text", "id"])
        'did you mean text?'
        >>> near_names("body", ["text", "id"])
        'there is: text, id'
    """
    known = [one_line(str(candidate), 60) for candidate in candidates]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there is: {listing(known)}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "layer"), counted(12_000, "document")
        ('1 layer', '12,000 documents')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """A share from 0 to 1 in percent: one decimal, two significant digits when small.

    Example:
        >>> percent(0.1234), percent(0.0042), percent(0.00042), percent(0.0)
        ('12.3 %', '0.42 %', '0.042 %', '0.0 %')
    """
    if not math.isfinite(share):
        return "unknown"
    value = 100 * share
    if abs(value) >= 1 or value == 0:
        return f"{value:.1f} %"
    return f"{value:.2g} %" if abs(value) >= 1e-4 else "< 0.0001 %"


def about_time(seconds: float) -> str:
    """A time as it is said beforehand, to one or two digits.

    Example:
        >>> about_time(20), about_time(250), about_time(9_000), about_time(500_000)
        ('less than a minute', 'about 4 minutes', 'about 2.5 hours', 'about 6 days')
    """
    if seconds < 60:
        return "less than a minute"
    unit, name = next(
        (unit, name)
        for limit, unit, name in (
            (5400, 60, "minute"),
            (172_800, 3600, "hour"),
            (math.inf, 86_400, "day"),
        )
        if seconds < limit
    )
    number = seconds / unit
    shown = f"{number:.0f}" if number >= 4 or name == "minute" else f"{number:.1f}"
    return f"about {shown} {name}" + ("" if shown == "1" else "s")


def size(count: float) -> str:
    """Bytes in units that people read.

    Example:
        >>> size(3.25e9), size(8e8)
        ('3.25 GB', '800 MB')
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def ranges(numbers: Iterable[int]) -> str:
    """``(0, 1, 2, 5)`` → ``0-2, 5``."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
