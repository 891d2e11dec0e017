"""The documentation says what the code does: examples run, links resolve, nothing is stale."""

import doctest
import re
import textwrap
from functools import cache
from pathlib import Path

import pytest
import typer
from tools import build_reference

from moescope.cli.main import app
from moescope.metrics.table import Table
from moescope.metrics.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
CONCEPTS = sorted((ROOT / "docs" / "concepts").glob("*.md"))
PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src" / "moescope").rglob("*.md")}
)
VERBS = build_reference.commands(typer.main.get_command(app))

_BLOCK = re.compile(r"^[ ]*```python\n(.*?)^[ ]*```", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^[ ]*```.*?^[ ]*```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MACHINE = re.compile(r"(?<![\w.~-])/(?:work|tmp|root|home|mnt|srv)(?:/|\b)|localhost|127\.0\.0\.1")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that headings give, as GitHub spells them."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t).lower() for t in titles]
    return {re.sub(r"[^\w\- ]", "", t).strip().replace(" ", "-") for t in plain}


@pytest.mark.parametrize("page", CONCEPTS, ids=name_of)
def test_the_examples_of_a_concept_give_what_the_page_says(page: Path) -> None:
    blocks = [textwrap.dedent(b) for b in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    source = "\n".join(b for b in blocks if ">>>" in b)
    assert source, f"{page.name} has no worked example"
    test = doctest.DocTestParser().get_doctest(source, {}, page.name, str(page), 0)
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("page", CONCEPTS, ids=name_of)
def test_a_concept_says_what_goes_wrong_and_what_it_does_not_prove(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "itfalls" in text
    assert "not prove" in text


@pytest.mark.parametrize("made", TABLES.values(), ids=lambda made: made.name)
def test_every_table_is_described_in_its_concept(made: Table) -> None:
    page = ROOT / "docs" / "concepts" / f"{made.concept}.md"
    assert f"tables.md#{made.name})" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_a_place_in_the_reference(verb: str) -> None:
    assert f"Example: moescope {verb}" in VERBS[verb].help
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert f"\n## {verb}\n" in page


def test_every_flag_has_a_help_text() -> None:
    silent = [
        f"{verb} {parameter.name}"
        for verb, command in VERBS.items()
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_no_path_of_a_machine(page: Path) -> None:
    found = _MACHINE.findall(page.read_text(encoding="utf-8"))
    assert found == []


def test_every_page_can_be_reached_from_the_contents() -> None:
    contents = ROOT / "docs" / "README.md"
    linked = {(contents.parent / link).resolve() for link in _LINK.findall(contents.read_text())}
    pages = set((ROOT / "docs").rglob("*.md")) - {contents}
    assert sorted(name_of(p) for p in pages - linked) == []


@pytest.mark.parametrize("page", build_reference.PAGES)
def test_the_reference_is_what_the_code_says(page: str) -> None:
    assert build_reference.stale([page]) == [], f"docs/reference/{page} is stale; run: make docs"
