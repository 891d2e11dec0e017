"""Figures for a paper."""

from pathlib import Path

import pytest

from moescope.errors import MissingExtraError
from moescope.metrics.runs import AnalyzedRun
from moescope.report import figures
from moescope.report.figures import write_figures


def test_each_figure_is_written_as_pdf_and_png(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    written = write_figures(tiny_run, tmp_path / "new" / "folder")
    assert {p.stem for p in written} == {
        "activation", "difference", "specialised", "information", "layers", "coactivation",
    }  # fmt: skip
    assert all(p.stat().st_size > 2000 for p in written)
    assert {p.suffix for p in written} == {".pdf", ".png"}


def test_fonts_are_embedded_as_truetype(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    write_figures(tiny_run, tmp_path)
    content = (tmp_path / "layers.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_what_the_run_lacks_is_left_out(bare_run: AnalyzedRun, tmp_path: Path) -> None:
    assert "information" not in {p.stem for p in write_figures(bare_run, tmp_path)}


def test_one_domain_has_no_difference(one_domain_run: AnalyzedRun, tmp_path: Path) -> None:
    assert "difference" not in {p.stem for p in write_figures(one_domain_run, tmp_path)}


def test_names_with_dollar_signs_are_text(hostile_run: AnalyzedRun, tmp_path: Path) -> None:
    assert figures._plain("$x$") == r"\$x\$"
    write_figures(hostile_run, tmp_path)


def test_without_matplotlib_the_missing_extra_is_named(
    tiny_run: AnalyzedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"moescope\[figures\]"):
        write_figures(tiny_run, tmp_path)
