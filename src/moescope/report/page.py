"""The report as one HTML file that needs nothing else: no network, no server, no other file.

Data goes in as JSON in a ``script`` element of a type that browsers do not run, with every
character escaped that could end that element; the page's own scripts put text into the page by
``textContent`` only. The content security policy allows the scripts written here, by hash, and
no request of any kind.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moescope.files import require_replaceable, usable_path, write_bytes
from moescope.metrics.runs import AnalyzedRun
from moescope.report.data import report_data

__all__ = [
    "build_report",
    "embed_json",
    "fill_page",
    "render_page",
    "write_page",
]

_SIGNATURE = b'<meta name="generator" content="moescope">'
_TEMPLATES = Path(__file__).parent / "templates"
_VENDOR = Path(__file__).parent / "vendor"
_LIBRARIES = ("d3.min.js", "plot.umd.min.js")
_SCRIPTS = (
    "core.js", "theme.js", "controls.js", "tables.js", "heatmap.js", "head.js", "bars.js",
    "maps.js", "special.js", "information.js", "lines.js", "pairs.js", "vocabulary.js",
    "examples.js", "foot.js", "main.js",
)  # fmt: skip
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def build_report(run: AnalyzedRun, path: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run: a finished run.
        path: where to; ``RUN/report.html`` by default.

    Returns:
        The path of the page. The same run gives the same bytes.

    Raises:
        RunError: the run is damaged, or its folder holds a report that moescope did not write.
        BadInputError: a file is at ``path`` that is no page of moescope's.
        WriteError: disk full or no permission.
    """
    if path is not None:
        require_replaceable(path, _SIGNATURE)  # before minutes of tables
        return write_page(path, render_page(report_data(run)))
    with run.writing() as folder:
        return write_page(folder / "report.html", render_page(report_data(run)))


def write_page(path: str | Path, page: str) -> Path:
    """Write a page so that a reader never meets half a file.

    Args:
        path: where to, in a folder that is held or anywhere; folders are made.
        page: the text of the page.

    Returns:
        The path. The same page gives the same bytes.

    Raises:
        BadInputError: a file is there that is no page of moescope's.
        WriteError: disk full or no permission.
    """
    target = usable_path(path)
    # half a surrogate pair in a name cannot be written as UTF-8
    write_bytes(target, page.encode("utf-8", "replace"), _SIGNATURE)
    return target


def render_page(data: dict[str, Any]) -> str:
    """The page that shows `report_data`'s dict."""
    words = {"about": data["about"], "absent": data["absent"]}
    return fill_page("report.html.j2", ("style.css",), _SCRIPTS, data, **words)


def fill_page(
    template: str,
    styles: tuple[str, ...],
    scripts: tuple[str, ...],
    data: Any,
    **words: Any,
) -> str:
    """A self-contained page: the libraries, these styles and scripts, and data they may draw.

    Args:
        template: file under ``templates/``.
        styles: files beside it, in order.
        scripts: files under ``templates/js/``, in order, after the libraries.
        data: what `embed_json` takes.
        words: what else the template names; escaped.
    """
    sources = [_script(_VENDOR / name) for name in _LIBRARIES]
    sources += [_script(_TEMPLATES / "js" / name) for name in scripts]
    texts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in styles]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        policy=_policy(sources),
        style=Markup("\n".join(texts)),
        scripts=[Markup(s) for s in sources],
        data=Markup(embed_json(data)),
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
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
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
