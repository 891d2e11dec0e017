"""The report of a run: a plain dict, one self-contained HTML page, and figures for a paper."""

from moescope.report.data import report_data
from moescope.report.report_page import build_report

__all__ = ["build_report", "report_data"]
