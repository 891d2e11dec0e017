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
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.text import Span, Text

from moescope.progress import OnProgress, Progress

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


@contextmanager
def progress(words: str = "starting") -> Iterator[OnProgress]:
    """A bar on stderr that leaves nothing behind, and is not there where stderr is no terminal.

    Stage, share, what is done in its unit, rate, time left. Yields what is told how far it is.
    """
    words_of = partial(TextColumn, markup=False)  # names may look like Rich's markup
    columns = (
        words_of("{task.description}"),
        BarColumn(bar_width=24),
        words_of("{task.fields[share]}"),
        words_of("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        yield _Shown(bar, words)


class _Shown:
    """Puts what is told into a bar; the rate is that since the stage began."""

    def __init__(self, bar: Bar, words: str) -> None:
        self._bar = bar
        self._task = bar.add_task(words, total=None, share="", figures="")
        self._began, self._last = (0.0, 0.0), Progress(words)

    def __call__(self, at: Progress) -> None:
        if at.note:
            errors.print(at.note, soft_wrap=True)
        now = time.monotonic()
        if at.unit != self._last.unit or at.done < self._last.done:
            self._bar.reset(self._task)
            self._began = (now, at.done)
        self._last = at
        seconds, done = now - self._began[0], at.done - self._began[1]
        figures = f"{_short(at.done)} {at.unit}" if at.unit else ""
        if at.unit and seconds > 0.5:
            figures += f", {_short(done / seconds)}/s"
        share = f"{at.share:4.0%}" if at.total else ""
        self._bar.update(
            self._task, description=at.stage, total=at.total, completed=at.done,
            share=share, figures=figures,
        )  # fmt: skip


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
