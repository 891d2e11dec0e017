"""The page of a contrast: it says what was found, holds no request, and draws in a browser."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.conftest import HOSTILE
from tests.report.test_browser import BROWSER, USE, dom, root
from tests.report.test_page import Page

from moescope.intervene.contrast.compare import contrast
from moescope.intervene.contrast.result import contrast_result
from moescope.models import LoadedModel
from moescope.report.contrast_page import contrast_page
from moescope.result import Note, Result, read_result

WORDS = [
    "plan",
    "support",
    "court",
    "review",
    "tea",
    "green",
    "old",
    "river",
    "list",
    "daily",
    "living",
    "may",
]


def texts(words: list[str], seed: int, number: int = 24) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=12)) for _ in range(number)]


@pytest.fixture(scope="module")
def results(tiny_loaded: LoadedModel) -> dict[str, Result]:
    told = contrast_result(contrast(tiny_loaded, texts(WORDS[:5], 0), texts(WORDS[7:], 1)), 1.5)
    same = texts(WORDS, 2, 6)
    about = {**told.about, "model": {**told.about["model"], "name": HOSTILE}}
    hostile = Result(
        told.kind, told.identity, told.tables, (HOSTILE,), (Note("warn", HOSTILE),), about
    )
    nothing = contrast_result(contrast(tiny_loaded, same, same, paired=True))
    return {"told": told, "hostile": hostile, "nothing": nothing}


def test_the_page_says_what_was_found_without_scripts(results: dict[str, Result]) -> None:
    body = contrast_page(results["told"]).split('id="data"')[0]
    first = results["told"].tables["candidates"].to_pylist()[0]
    assert first["confirmed"]
    assert f"{100 * first['delta']:+.1f}".replace("-", "−") in body
    assert "boost" in body
    assert "suppress" in body
    assert "--plan plan.json" in body
    assert "=+1.5" in body
    assert "What it does not prove" in body


def test_a_setting_in_a_sentence_is_code_and_the_rest_stays_text(
    results: dict[str, Result],
) -> None:
    notes = (Note("warn", "give more `tokens` to <b>"),)
    body = contrast_page(replace(results["told"], notes=notes)).split('id="data"')[0]
    assert "give more <code>tokens</code> to &lt;b&gt;" in body


def test_where_nothing_differs_nothing_is_proposed(results: dict[str, Result]) -> None:
    body = contrast_page(results["nothing"]).split('id="data"')[0]
    assert "nothing to steer by" in body
    assert "No expert differs at all." in body
    assert "plan.json" not in body


def test_what_is_kept_gives_the_same_page(results: dict[str, Result], tmp_path: Path) -> None:
    page = contrast_page(results["told"])
    assert contrast_page(read_result(results["told"].save(tmp_path / "o"), "contrast")) == page


@pytest.mark.parametrize("kind", ["told", "hostile", "nothing"])
def test_it_needs_nothing_else_and_names_stay_text(kind: str, results: dict[str, Result]) -> None:
    page = Page(contrast_page(results[kind]))
    assert page.loads == ["data:,"]
    assert page.policy.startswith("default-src 'none'")
    assert "img" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("kind", ["told", "nothing"])
def test_it_is_drawn_and_survives_use(
    kind: str, results: dict[str, Result], tmp_path: Path
) -> None:
    text = contrast_page(results[kind])
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = tmp_path / "used.html"
    page.write_text(text.replace("</body>", f"<script>{USE.read_text()}</script></body>"))
    shown = dom(page, tmp_path)
    if kind == "told":  # every column was pressed, so the last one decides
        assert '<th scope="col" aria-sort="ascending"><button type="button">to do' in shown
    assert 'data-used="yes"' in root(shown)
    assert "data-errors" not in root(shown)
    start = shown.index('id="plot-differences"')
    drawn = shown[start : shown.index('id="table-differences"')]
    assert len(re.findall(r"<circle\b", drawn)) >= 32
