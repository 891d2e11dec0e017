"""The one place where text leaves for a terminal: what would steer the terminal is made visible.

Names of domains, documents and tokens come from files that others made. An escape sequence in
them could rename the window, hide lines or pretend to be an error; so nothing is printed but
through `output`, `errors` and `write`. Markup is off: ``[/x]`` in a path is a path.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.text import Span, Text

from moescope.progress import OnProgress, Progress, Reckoning

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, except for newline and tab
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # turn the direction of what follows
    "\ud800-\udfff]"  # halves of a pair, which no encoding can write
)

_LONGEST_WORD, _LONGEST_LINE = 200, 2000


def clean(text: str) -> str:
    r"""The text with every character that a terminal would obey written as an escape.

    Example:
        >>> clean("a\x1b]0;title\x07")
        'a\\x1b]0;title\\x07'
    """
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def safe(text: str | Text, style: str = "") -> Text:
    """The same as `clean`, of a text with styles; what is to be laid out is made so before."""
    if isinstance(text, str):
        return Text(clean(text), style)
    escaped = [clean(character) for character in text.plain]
    at = [0, *accumulate(map(len, escaped))]
    made = text.blank_copy("".join(escaped))
    made.spans = [Span(at[span.start], at[span.end], span.style) for span in text.spans]
    return made


def bounded(line: str) -> str:
    """A line that quotes what was given, without most of it where that is very long."""
    words = re.sub(
        rf"\S{{{_LONGEST_WORD + 1},}}", lambda m: _without_middle(m[0], _LONGEST_WORD), line
    )
    return _without_middle(words, _LONGEST_LINE)


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]}…{text[-most // 4 + 1 :]}"


class CleanConsole(Console):
    """A console that writes no character of the text which would steer the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Escapes are longer than what they stand for: they are made before lines are."""
        shown = (safe(one) if isinstance(one, str | Text) else one for one in objects)
        super().print(*shown, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Rich's own codes come as control segments and styles, not as text."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment(clean(segment.text), segment.style)


errors = CleanConsole(stderr=True)
"""Progress and warnings."""

output = CleanConsole()
"""Data."""


_WORTH_SAYING = 20.0
_SURE_AFTER = 3.0
"""Seconds of work that is worth a word beforehand, and of the pace that it is reckoned from."""

_FIRST_LINE = 30.0
_LINES_APART = 1.25
"""A log gets a line when the time so far is this many times that of the line before."""


@contextmanager
def progress(words: str = "starting") -> Iterator[OnProgress]:
    """One bar for the whole work on stderr, which leaves nothing behind.

    Stage, share of the work, what is done of the stage and how fast, time left. What takes long is
    said once in a line that stays, as soon as the pace is known. Where stderr is no terminal there
    is no bar, but a line after half a minute, and then ever more rarely.

    Yields what is told how far it is.
    """
    words_of = partial(TextColumn, markup=False)  # names may look like Rich's markup
    columns = (
        words_of("{task.description}"),
        BarColumn(bar_width=24),
        words_of("{task.fields[figures]}"),
    )
    with Bar(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        yield _Shown(bar, words)


class _Shown:
    """Puts what is told into a bar, or into lines where there is none."""

    def __init__(self, bar: Bar, words: str) -> None:
        self._bar, self._reckoning = bar, Reckoning()
        self._task = bar.add_task(words, total=None, figures="")
        self._began = time.monotonic()
        self._next_line, self._said = _FIRST_LINE, False

    def __call__(self, at: Progress) -> None:
        if at.note:
            errors.print(at.note, soft_wrap=True)
        now = time.monotonic() - self._began
        known = self._reckoning
        known.tell(at, now)
        figures = ", ".join(self._figures(at))
        total = 1.0 if known.share else None
        self._bar.update(
            self._task, description=at.stage, total=total, completed=known.share, figures=figures
        )
        long = known.left + now >= _WORTH_SAYING
        if not self._said and long and known.measured >= _SURE_AFTER:
            self._said = True
            self._line(f"{at.work or at.stage}: about {_duration(known.left)} to go")
        elif not errors.is_terminal and now >= self._next_line:
            self._next_line = now * _LINES_APART
            self._line(f"{at.stage}, {figures}" if figures else at.stage)

    def _figures(self, at: Progress) -> Iterator[str]:
        known = self._reckoning
        if known.share:
            yield f"{known.share:.0%}"
        if at.unit:
            rate = "" if known.rate != known.rate else f" at {_short(known.rate)}/s"
            yield f"{_short(at.done)} {at.unit}{rate}"
        if known.left == known.left:
            yield f"{_duration(known.left)} left"

    def _line(self, text: str) -> None:
        errors.print(text, soft_wrap=True, style="dim")


def _duration(seconds: float) -> str:
    """``40 s``, ``4 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(count: float) -> str:
    """``12,345``; ``3.2 G`` from a hundred million on."""
    if count < 1e8:
        return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"
    return f"{count / 1e9:,.1f} G" if count < 1e12 else f"{count / 1e12:,.1f} T"


def write(text: str) -> None:
    """Write data to stdout: to a terminal clean, to a file or another program exactly."""
    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)


def tolerate() -> None:
    """Let both streams write what their encoding lacks, in another way, instead of failing."""
    sys.stdout = sys.stdout or io.StringIO()  # None where who started the command closed it
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace" if stream.isatty() else "backslashreplace")
