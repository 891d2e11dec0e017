"""Bad input for every verb, as a table: what is typed, and what the one line must say.

A theme is a module with ``CASES``; a new verb joins by at least three cases in any of them. Each
case runs in a folder of its own (``prepare`` fills it) beside a shared place that nobody may
change. Words in capitals stand for what lies in that place: see `tests.cli.bad.place.WORDS`.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "case", "each"]


def _nothing(_here: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One bad input.

    ``words``: the command line without ``moescope``; its first word is the verb. ``says``: every
    fragment that the line must hold. ``prepare``: fills the folder that the command runs in.
    """

    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    prepare: Callable[[Path], None] = _nothing
    code: int = 2

    @property
    def verb(self) -> str:
        return self.words[0]


def case(
    name: str,
    words: str | Sequence[str],
    *says: str,
    prepare: Callable[[Path], None] = _nothing,
    code: int = 2,
) -> Case:
    """A case; ``words`` as a shell would split them, or a list where it could not."""
    split = tuple(shlex.split(words)) if isinstance(words, str) else tuple(words)
    return Case(name, split, says, prepare, code)


def each(
    commands: Sequence[str],
    name: str,
    more: str,
    *says: str,
    prepare: Callable[[Path], None] = _nothing,
    code: int = 2,
) -> list[Case]:
    """The same fault in several commands: ``more`` is added to each of them."""
    return [case(name, f"{words} {more}", *says, prepare=prepare, code=code) for words in commands]
