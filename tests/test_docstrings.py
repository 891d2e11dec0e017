"""Every example in a docstring of the package gives what it says."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def examples() -> Iterator[tuple[str, str, str]]:
    """Module, name and docstring of everything with an example.

    They are read from the source: doctest's own finder passes over what a decorator wrapped.
    """
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>>" not in (text := path.read_text("utf-8")):
            continue
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, DOCUMENTED) and ">>>" in (docs := ast.get_docstring(node) or ""):
                yield module.removesuffix(".__init__"), getattr(node, "name", "module"), docs


EXAMPLES = list(examples())


@pytest.mark.parametrize(
    ("module", "name", "docs"), EXAMPLES, ids=[f"{m}.{n}" for m, n, _ in EXAMPLES]
)
def test_the_example_gives_what_it_says(module: str, name: str, docs: str) -> None:
    names = vars(importlib.import_module(module)).copy()
    test = doctest.DocTestParser().get_doctest(docs, names, f"{module}.{name}", None, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


def test_no_example_is_left_out() -> None:
    """All prompts of the source are in docstrings that are run."""
    prompts = sum(path.read_text("utf-8").count(">>> ") for path in SOURCE.rglob("*.py"))
    assert prompts == sum(docs.count(">>> ") for _, _, docs in EXAMPLES) > 80
