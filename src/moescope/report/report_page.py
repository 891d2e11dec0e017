"""The report of a run as one page; its dict is made in `moescope.report.data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from moescope.files import require_replaceable
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.specialization import RULE
from moescope.report.beside import measured_words
from moescope.report.data import report_data
from moescope.report.page import SIGNATURE, fill_page, write_page

_SCRIPTS = (
    "heatmap.js", "head.js", "expert.js", "bars.js", "maps.js", "special.js", "information.js",
    "lines.js", "pairs.js", "flow.js", "vocabulary.js", "examples.js", "foot.js",
)  # fmt: skip


def build_report(run: AnalyzedRun, path: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run: a finished run.
        path: where to; ``RUN/report.html`` by default.

    Returns:
        The path of the page. The same run gives the same bytes.

    Raises:
        RunError: the run is damaged, or its folder holds a report that moescope did not write.
        BadInputError: a file is at ``path`` that is not a page of moescope's.
        WriteError: disk full or no permission.
    """
    if path is not None:
        require_replaceable(path, SIGNATURE)  # before minutes of tables
        return write_page(path, render_report(report_data(run)))
    measured = measured_words(run.path, run.manifest.model)
    with run.writing() as folder:
        return write_page(folder / "report.html", render_report(report_data(run), measured))


def render_report(data: dict[str, Any], measured: Markup | str = "") -> str:
    """The page that shows `report_data`'s dict, and what was measured on the run beside it."""
    about, views = data["about"], data["views"]
    return fill_page(
        "report.html.j2",
        _SCRIPTS,
        data,
        title=about["model"]["name"],
        alerts=data["alerts"],
        sentences=next(iter(views.values()))["short"],
        about=about,
        absent=data["absent"],
        views=views,
        again=data["again"],
        measured=measured,
        rule=RULE,
    )
