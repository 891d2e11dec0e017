"""What every reader yields, and the words of its messages.

A reader turns a file into records and problems and decides nothing: whether a problem ends the
reading or is skipped and counted is for ``documents`` to say. Faults of a whole file (it is not
what its name says, it is cut short) are raised as ``CorpusError`` at once: leaving out a file that
was asked for is never a choice to make silently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moescope.errors import CorpusError
from moescope.words import one_line

MEND = "mend it, or use `on_error=skip` to leave it out"
"""Advice on an entry that cannot be used."""


class Fields(NamedTuple):
    """The names under which a record holds its text, domain and id."""

    text: str
    domain: str
    id: str


class SourceFile(NamedTuple):
    """One file of a corpus.

    Attributes:
        path: where it is.
        name: its name relative to the corpus, with forward slashes; ids start with it.
        label: how messages call it.
        domain: the domain that its place in a folder gives it; None for a single file.
    """

    path: Path
    name: str
    label: str
    domain: str | None


class Record(NamedTuple):
    """One entry of a file, not yet checked.

    Attributes:
        place: the id that its position gives it, such as ``web.jsonl:12``.
        source: how messages call it.
        values: what it holds under its field names.
        fields: every name that it has; longer than ``values`` where a reader left columns out.
    """

    place: str
    source: str
    values: Mapping[str, Any]
    fields: Collection[str]


class Problem(NamedTuple):
    """One entry that cannot be read.

    Attributes:
        reason: a few words, the same for all of a kind: skipped records are counted by it.
        source: where.
        detail: what exactly was found.
        advice: what to do about it.
    """

    reason: str
    source: str
    detail: str
    advice: str = ""

    def message(self) -> str:
        """Say it in one line: where, what, what to do."""
        parts = [f"{self.source}: {self.reason}"]
        parts += [f" ({self.detail})"] if self.detail else []
        parts += [f"; {self.advice}"] if self.advice else []
        return one_line("".join(parts))


def corpus_error(message: str) -> CorpusError:
    """Make the error of a message that quotes what files hold: names with line breaks and all."""
    return CorpusError(one_line(message))
