"""Counts in messages: ``1 domain``, not ``1 domains``.

What can be one of a kind is written by `moescope.words.counted`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import moescope

SOURCE = Path(moescope.__file__).parent

MANY = "documents domains texts shards files rows controls edits workers windows messages choices"
NOUN = re.compile(rf" (?:[a-z]+ |MoE )?(?:{'|'.join(MANY.split())}|layers|strengths|profiles)\b")
"""At most one word stands between the number and its noun."""

FUNCTION_WORDS = re.compile(
    r" (?:has|holds|are|is|no|of|the|by|its|their|these|often|over|in|on|at|with|too|to|for) "
)


def glued(tree: ast.AST) -> Iterator[ast.FormattedValue]:
    """Numbers that a plural is glued to; a constant in capitals is more than one."""
    for text in (n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)):
        before = None
        for part in text.values:
            if isinstance(part, ast.Constant) and before is not None:
                words = str(part.value)
                if NOUN.match(words) and not FUNCTION_WORDS.match(words):
                    yield before
            before = part if isinstance(part, ast.FormattedValue) else None


def may_be_one(value: ast.FormattedValue) -> bool:
    """Is it a whole number, by how it is written?"""
    form = ast.unparse(value.format_spec) if value.format_spec else "f''"
    names = {n.id for n in ast.walk(value.value) if isinstance(n, ast.Name)}
    return form in ("f''", "f','") and not any(name.isupper() for name in names)


NO_COUNTS = {"bands['band'][-1]"}
"""Words, not numbers."""


def test_no_count_has_a_plural_glued_on() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{value.lineno}: {ast.unparse(value.value)}"
        for path in sorted(SOURCE.rglob("*.py"))
        for value in glued(ast.parse(path.read_text(encoding="utf-8")))
        if may_be_one(value) and ast.unparse(value.value) not in NO_COUNTS
    ]
    assert found == [], "write them as words.counted(number, 'domain')"


def test_the_scan_finds_what_it_is_for() -> None:
    """As it stood, and as it stands; a float and a constant are no such counts."""
    said = """
f"{len(run.domains)} domains", f"{number(n):,} different controls", f"{n} MoE layers"
f"{counted(n, 'domain')}", f"{model} has layers", f"{ratio:.1f} edits", f"{2 * LEAST} texts"
"""
    found = [v for v in glued(ast.parse(said)) if may_be_one(v) and "counted" not in ast.unparse(v)]
    assert [v.lineno for v in found] == [2, 2, 2]
