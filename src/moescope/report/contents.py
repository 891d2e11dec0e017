"""The pages that lie in a run's folder, and how they lead to each other.

``RUN/index.html`` lists what is there, each with its first sentence, and every page has a line of
links in its head. Both are written again by each verb that writes into the folder, because a page
cannot look for others itself. A result that was written elsewhere is not listed and has no links.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from moescope.errors import BusyError, MoescopeError
from moescope.files import claim, owned
from moescope.report.about import label
from moescope.report.beside import measured_words
from moescope.report.commands import command
from moescope.report.page import SIGNATURE, fill_page, write_page
from moescope.result import ResultHead, results_in
from moescope.run.manifest import MANIFEST, Manifest, claim_run, read_manifest
from moescope.words import counted

CONTENTS = "index.html"
_LINKS = re.compile(rb'(<nav class="beside"[^>]*>).*?(</nav>)', re.DOTALL)
_MEASURED = re.compile(rb'(<div id="measured">).*?(</div>)', re.DOTALL)
_SENTENCE = re.compile(r'<meta name="description" content="([^"]*)">')
_HEAD = 8192
"""Bytes of a page in which its first sentence stands."""

_PROFILES = "profiles/index.html"
_NAMES = {"report.html": "Report", _PROFILES: "Profiles"}


class _Page(NamedTuple):
    """A page of the run: its name in the folder, how a reader calls it, its first sentence."""

    file: str
    name: str
    sentence: str


def renew_contents(folder: str | Path, tell: Callable[[str], object]) -> Path | None:
    """Write a run's page of contents again, and the links in the head of its pages.

    Args:
        folder: of a run, or of a result in it. Of any other nothing is written.
        tell: told why, where it could not be done; what was found is kept in any case.

    Returns:
        The path of the page.
    """
    run = next((f for f in (Path(folder), Path(folder).parent) if (f / MANIFEST).is_file()), None)
    if run is None:
        return None
    try:
        with claim_run(run):
            return _renew(run)
    except MoescopeError as error:
        tell(f"{run / CONTENTS} was not renewed: {error}")
        return None


def _renew(run: Path) -> Path:
    results = results_in(run)
    pages = _pages(run, results)
    measured = measured_words(run, read_manifest(run).model)
    written = write_page(run / CONTENTS, _contents_page(run, pages, results))
    for page in pages:
        name = page.file.partition("/")[0]
        links = _links(pages, page.file)
        if name not in results:
            _put(run, page.file, links, measured)
            continue
        try:
            with claim(run / name, results[name].kind) as held:
                _put(held, page.file.removeprefix(f"{name}/"), links)
        except BusyError:  # who writes there renews the links too
            continue
    return written


def _pages(run: Path, results: dict[str, ResultHead]) -> list[_Page]:
    """Report and profiles, then the pages of results, then those of single experts."""
    own = [n for n in owned(run) if n.endswith(".html") and n != CONTENTS]
    of_results = [f"{n}/{path.name}" for n in results for path in sorted((run / n).glob("*.html"))]
    first = [n for n in _NAMES if n in own]
    pages = []
    for name in (*first, *of_results, *(n for n in own if n not in first)):
        head = _head(run / name)
        if SIGNATURE in head:
            found = _SENTENCE.search(head.decode("utf-8", "replace"))
            sentence = html.unescape(found[1]) if found else ""
            pages.append(_Page(name, _called(name, results), sentence))
    return pages


def _called(file: str, results: dict[str, ResultHead]) -> str:
    folder, _, name = file.partition("/")
    if folder in results:
        kind = results[folder].kind
        return kind.capitalize() if folder == kind else f"{kind.capitalize()} ({folder})"
    return _NAMES.get(file) or (name or file).removesuffix(".html")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(_HEAD)
    except OSError:
        return b""


def _links(pages: list[_Page], here: str) -> Markup:
    """The line of links in the head of a page; where it is itself is no link."""
    start = Path(here).parent

    def link(file: str, name: str) -> Markup:
        if file == here:
            return Markup('<b aria-current="page">{}</b>').format(name)
        words = Markup('<a href="{}"{}>{}</a>')
        mark = Markup(' data-page="profiles"') if file == _PROFILES else ""
        return words.format(quote(Path(os.path.relpath(file, start)).as_posix()), mark, name)

    shown = [p for p in pages if p.file == here or not _is_single(p)]
    return Markup(" ").join([link(CONTENTS, "Contents"), *(link(p.file, p.name) for p in shown)])


def _is_single(page: _Page) -> bool:
    return page.file.startswith("profiles/") and page.file != _PROFILES


def _put(folder: Path, name: str, links: Markup, measured: str = "") -> None:
    """Exchange what a page says of others; one without a place for that, or not ours, stays."""
    path = folder / name
    if name not in owned(folder) or not path.is_file():
        return
    text = path.read_bytes()
    made = _LINKS.sub(lambda m: m[1] + links.encode() + m[2], text, count=1)
    made = _MEASURED.sub(lambda m: m[1] + measured.encode() + m[2], made, count=1)
    if made != text:
        write_page(path, made.decode("utf-8", "replace"))


def _contents_page(run: Path, pages: list[_Page], results: dict[str, ResultHead]) -> str:
    manifest = read_manifest(run)
    without = [
        _Page("", f"{head.kind.capitalize()} ({name})", head.answers[0] if head.answers else "")
        for name, head in results.items()
        if not any(p.file.startswith(f"{name}/") for p in pages)
    ]
    return fill_page(
        "contents.html.j2",
        (),
        {"phases": [], "layers": []},
        title=label(manifest.model.get("name")),
        subtitle=_subtitle(manifest),
        entries=[
            {"href": quote(p.file), **p._asdict()} for p in (*pages, *without) if not _is_single(p)
        ],
        singles=[{"href": quote(p.file), "name": p.name} for p in pages if _is_single(p)],
        asks=_asks(run, manifest, {h.kind for h in results.values()} | {p.file for p in pages}),
    )


def _subtitle(manifest: Manifest) -> str:
    tokens, corpus = manifest.progress.get("tokens", 0), label(manifest.corpus.get("path"))
    layers = manifest.coverage.get("routers_expected", 0)
    text = f"{counted(layers, 'MoE layer')} · {counted(tokens, 'token')}"
    return f"{text} of {counted(len(manifest.domains), 'domain')} from {corpus or 'the corpus'}"


def _asks(run: Path, manifest: Manifest, there: set[str]) -> list[tuple[str, str]]:
    """What the run has not been asked yet: the question, and the command."""
    name, layers = run.resolve().name, manifest.model["layers"]
    layer, plan = layers[len(layers) // 2], "plan.json"
    asks = {
        "report.html": ("Which experts serve which text?", command("report", name)),
        _PROFILES: ("What does each expert do?", command("profile", name, all=True)),
        "select": (
            "Which experts serve a domain, also in text that did not choose them?",
            command("select", name, domain=next(iter(manifest.domains), ""), budget="5%", out=plan),
        ),
        "plan": (
            "Does the model need those experts more than random ones?",
            command("ablate", run=name, plan=plan, out=f"{name}/without-plan"),
        ),
        "similarity": ("Which experts do the same?", command("similarity", name)),
        "ablation": (
            "Which experts of a layer matter?",
            command("ablate", run=name, each=True, layers=layer),
        ),
        "steering": (
            "What becomes of a text when an expert is turned up?",
            command("steer", run=name, prompt="…", set=f"L{layer}E0=+2.0"),
        ),
        "contrast": (
            "Which experts tell two sets of texts apart?",
            command("contrast", run=name, with_="A.jsonl", without="B.jsonl"),
        ),
    }
    if manifest.source:  # nothing can be measured where there was no model
        asks = {what: asks[what] for what in (*_NAMES, "select")}
    if len(manifest.domains) < 2:
        asks = {what: ask for what, ask in asks.items() if what not in ("select", "plan")}
    return [ask for what, ask in asks.items() if what not in there]
