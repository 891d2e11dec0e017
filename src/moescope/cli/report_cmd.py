"""`moescope report`: write the report of a run again, and figures for a paper."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from moescope.cli.terminal import output
from moescope.cli.verb import Argument, Flag, Settings, note, verb


class ReportArgs(Settings):
    """Everything that `report` can be told."""

    run: Annotated[str, Argument("RUN")]
    """run folder"""
    out: Annotated[str | None, Flag("-o")] = None
    """another path of the page"""
    figures: str | None = None
    """folder for PDF and PNG figures"""


@verb()
def report(settings: ReportArgs) -> None:
    """Write RUN/report.html, one self-contained file; with --figures also PDF and PNG.

    Example: moescope report my-run --figures paper/figures
    """
    from moescope.files import claim
    from moescope.metrics.runs import open_run
    from moescope.report.contents import renew_contents
    from moescope.report.report_page import build_report

    opened, figures = open_run(settings.run), settings.figures
    with nullcontext() if figures is None else claim(figures, "figures"):
        written = [build_report(opened, settings.out)]
        if settings.out is None:
            renew_contents(opened.path, note)
        if figures is not None:
            from moescope.report.figures import write_figures

            written += write_figures(opened, figures)
            settings.write_to(Path(figures))
    for path in written:
        output.print(str(path), soft_wrap=True)
