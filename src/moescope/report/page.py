"""What every page is made with: one HTML file that needs no network, server or other file.

A page is a Python file that makes its data, a body template that extends ``base.html.j2``, and
scripts of its own; head, policy, styles and the shared scripts come from here. What a reader must
see even without scripts (sentences, numbers, notes) is written as escaped text.

Data goes in as JSON in a ``script`` element of a type that browsers do not run, with every
character escaped that could end that element; the page's own scripts put text into the page by
``textContent`` only. The content security policy allows the scripts written here, by hash, and
no request of any kind.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from moescope.files import usable_path, write_bytes
from moescope.metrics.specialization import Q_LEVEL
from moescope.report.frames import legible

SIGNATURE = b'<meta name="generator" content="moescope">'
_TEMPLATES = Path(__file__).parent / "templates"
_VENDOR = Path(__file__).parent / "vendor"
_LIBRARIES = ("d3.min.js", "plot.umd.min.js")
SHARED = ("core.js", "theme.js", "controls.js", "tables.js", "commands.js", "scrolling.js")
LAST = "main.js"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_page(path: str | Path, page: str) -> Path:
    """Write a page so that a reader never meets half a file.

    Args:
        path: where to, in a folder that is held or anywhere; folders are made.
        page: the text of the page.

    Returns:
        The path. The same page gives the same bytes.

    Raises:
        BadInputError: a file is there that is not a page of moescope's.
        WriteError: disk full or no permission.
    """
    target = usable_path(path)
    # half a surrogate pair in a name cannot be written as UTF-8
    write_bytes(target, page.encode("utf-8", "replace"), SIGNATURE)
    return target


def fill_page(
    template: str,
    scripts: tuple[str, ...],
    data: Mapping[str, Any],
    *,
    title: str,
    subtitle: str = "",
    alerts: Sequence[Mapping[str, str]] = (),
    sentences: Sequence[str] = (),
    style: str = "",
    **words: Any,
) -> str:
    """A self-contained page: the libraries, shared styles and scripts, and data they may draw.

    Args:
        template: body under ``templates/``.
        scripts: the page's own files under ``templates/js/``, in order; none: it has no figures.
        data: by name, what `embed_json` takes; the level of tests goes with it.
        title: heading of the page.
        subtitle: a line under it.
        alerts: what a reader must know first: ``level`` (bad, warn, note), ``text``, and ``word``
            where another one than "Careful." and its like begins it.
        sentences: the page in short; the first also stands where a page of contents finds it.
        style: the page's own style sheet, if it has one.
        words: what else the template names; everything is escaped.
    """
    drawn = _LIBRARIES if scripts else ()  # a page without figures needs no library
    sources = [_script(_VENDOR / name) for name in drawn]
    sources += [_script(_TEMPLATES / "js" / name) for name in (*SHARED, *scripts, LAST)]
    styles = [(_TEMPLATES / n).read_text(encoding="utf-8") for n in ("style.css", style) if n]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["coded"] = _coded
    return environment.get_template(template).render(
        policy=_policy(sources),
        style=Markup("\n".join(styles)),
        scripts=[Markup(s) for s in sources],
        data=Markup(embed_json(legible({**data, "level": Q_LEVEL}))),
        title=title,
        subtitle=subtitle,
        alerts=alerts,
        sentences=sentences,
        **words,
    )


def embed_json(data: Any) -> str:
    """JSON that can stand inside a ``script`` element whatever texts it holds.

    Pure ASCII: ``<``, ``>``, ``&`` and everything beyond ASCII (so U+2028 and U+2029 too) are
    written as escapes.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, safe in _ESCAPES.items():
        text = text.replace(character, safe)
    return text


def _script(path: Path) -> str:
    """The text of a script, checked to be one that can stand in a page."""
    text = path.read_text(encoding="utf-8")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError(f"{path.name} cannot be written into a page: it contains </script or <!--")
    return text.strip() + "\n"


def _policy(scripts: list[str]) -> str:
    """Nothing from anywhere; scripts by hash. Styles are inline, as the figures bring their own."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _legible(value: Any) -> Any:
    """What a template writes; not what is HTML already."""
    return value if isinstance(value, Markup) else legible(value)


def _coded(text: str) -> Markup:
    """A sentence of the library, which names settings in backticks, as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
