"""The page in a real browser: it draws everything, survives use, and reports no error."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest
from tests.report.large import InventedRun

from moescope.metrics.runs import AnalyzedRun
from moescope.report.data import report_data
from moescope.report.report_page import build_report, render_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

FIGURES = (
    "bars", "maps", "difference", "special", "information", "bands", "balance", "decisive", "hist",
    "pairs", "repetition", "vocabulary",
)  # fmt: skip

USE = Path(__file__).with_name("use.js")
AXES = Path(__file__).with_name("axes.js")


def dom(page: Path, folder: Path, width: int = 1100) -> str:
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--dump-dom",
        "--virtual-time-budget=10000",  # of the page's own time: it may unpack before it draws
    ]  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *flags, page.as_uri()], capture_output=True, timeout=180, check=True
    )
    return done.stdout.decode("utf-8", "replace")


def used(run: AnalyzedRun, folder: Path) -> str:
    """The page after ``use.js``."""
    return scripted(run, folder, USE.read_text())


def scripted(
    run: AnalyzedRun, folder: Path, script: str, width: int = 1100, beside: str = ""
) -> str:
    """The page after a script; the policy gives way, as it rightly refuses a foreign one."""
    text = render_report(report_data(run)).replace("</nav>", f"{beside}</nav>", 1)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = folder / "used.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return dom(page, folder, width)


def root(text: str) -> str:
    found = re.search(r"<html[^>]*>", text)
    assert found
    return found[0]


def marks(text: str, figure: str) -> int:
    """Drawn shapes in a figure: of an SVG, or cells of a map."""
    start = text.index(f'id="plot-{figure}"')
    part = text[start : text.index(f'id="table-{figure}"')]
    groups = re.findall(r'(?s)<g aria-label="(?:bar|rect|dot)"[^>]*>(.*?)</g>', part)
    shapes = len(re.findall(r"<(?:rect|path|circle)\b", "".join(groups)))
    return shapes + sum(map(int, re.findall(r'data-marks="(\d+)"', part))) + part.count("<tr")


def test_everything_is_drawn_without_an_error(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    text = dom(build_report(tiny_run, tmp_path / "page.html"), tmp_path)
    assert 'data-ready="yes"' in root(text)
    assert "data-errors" not in root(text)
    for figure in FIGURES:
        assert marks(text, figure) > 3, figure
    assert text.count('class="tok"') > 20
    assert "could not be drawn" not in text.split('id="data"')[0]


@pytest.mark.parametrize("kind", ["one_domain_run", "unlabelled_run", "bare_run"])
def test_a_run_that_lacks_something_is_drawn_too(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = used(request.getfixturevalue(kind), tmp_path)
    assert 'data-used="yes"' in root(text)
    assert "data-errors" not in root(text)


def test_every_control_can_be_used(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    text = used(tiny_run, tmp_path)
    assert 'data-used="yes"' in root(text)
    assert "data-errors" not in root(text)
    assert 'data-theme="dark"' in root(text)


def test_tables_sort_names_by_their_numbers_and_say_so(
    tiny_run: AnalyzedRun, tmp_path: Path
) -> None:
    script = """
      const told = document.documentElement.dataset;
      const ticks = [1, 1.0005, 1.001];
      told.ticks = ticks.map(M.ticks()).join(" ");
      told.percents = [0, 0.005, 0.01].map(M.ticks(" %", 100)).join(" ");
      const rows = ["L10E2", "L2E10", "L2E3", null].map((name) => ({ name }));
      const made = M.table([{ key: "name", label: "expert", name: true }], rows);
      document.getElementById("main").append(made);
      const cells = () => [...made.querySelectorAll("tbody td")];
      const order = () => cells().map((d) => d.textContent).join(" ");
      const head = made.querySelector("th");
      head.querySelector("button").click();
      told.up = order() + " " + head.getAttribute("aria-sort");
      head.querySelector("button").click();
      told.down = order() + " " + head.getAttribute("aria-sort");"""
    text = render_report(report_data(tiny_run))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = tmp_path / "used.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    found = root(dom(page, tmp_path))
    assert "data-errors" not in found
    assert 'data-up="L2E3 L2E10 L10E2 – ascending"' in found
    assert 'data-down="L10E2 L2E10 L2E3 – descending"' in found
    assert 'data-ticks="1.0000 1.0005 1.0010"' in found
    assert 'data-percents="0.0 % 0.5 % 1.0 %"' in found


def test_what_is_wider_than_its_place_shows_that_there_is_more(
    tiny_run: AnalyzedRun, tmp_path: Path
) -> None:
    script = """
      const wide = (tag, px) => M.h("div", { class: tag, style: { width: "100px" } }, M.h("div", { style: { width: px } }, "x"));
      const [long, short] = [wide("scroll", "500px"), wide("scroll", "50px")];
      document.getElementById("main").append(long, short);
      setTimeout(() => {
        const told = document.documentElement.dataset;
        told.long = long.dataset.more;
        told.short = short.dataset.more;
        told.mask = String(getComputedStyle(long).maskImage.includes("gradient"));
        long.scrollLeft = 100;
        long.dispatchEvent(new Event("scroll"));
        told.middle = long.dataset.more;
      }, 300);"""  # noqa: E501
    text = render_report(report_data(tiny_run))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = tmp_path / "used.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    found = root(dom(page, tmp_path))
    assert 'data-long="right"' in found
    assert 'data-short=""' in found
    assert 'data-mask="true"' in found
    assert 'data-middle="left right"' in found


def test_a_token_tells_its_experts_to_the_keyboard(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    found = root(used(tiny_run, tmp_path))
    assert "first choice by layer" in found
    assert 'data-moved="true"' in found


def test_hostile_names_are_shown_as_text(hostile_run: AnalyzedRun, tmp_path: Path) -> None:
    text = used(hostile_run, tmp_path)
    assert 'data-used="yes"' in root(text)
    assert "data-errors" not in root(text)
    assert "<title>broken" not in text
    # in attributes the browser writes the names out; between tags it must have escaped them
    assert "<img" not in re.sub(r'"[^"]*"', '""', text.replace("&quot;", ""))


def test_sixty_layers_of_256_experts_still_open(tmp_path: Path) -> None:
    run = InventedRun(layers=60, experts=256, top_k=8, domains=10)
    page = tmp_path / "large.html"
    page.write_text(render_report(report_data(cast(AnalyzedRun, run))), encoding="utf-8")
    text = dom(page, tmp_path)
    assert 'data-ready="yes"' in root(text)
    assert "data-errors" not in root(text)
    assert marks(text, "maps") >= 60 * 256


@pytest.mark.parametrize("width", [500, 1100])  # a narrower window is not given
def test_no_words_of_an_axis_touch_or_repeat(
    tiny_run: AnalyzedRun, tmp_path: Path, width: int
) -> None:
    text = scripted(tiny_run, tmp_path, USE.read_text() + AXES.read_text(), width)
    assert 'data-faults=""' in root(text)
    assert int(re.findall(r'data-axes="(\d+)"', root(text))[0]) > 10


def test_a_cell_leads_to_its_profile_and_the_commands_that_ask_more(
    tiny_run: AnalyzedRun, tmp_path: Path
) -> None:
    script = 'location.hash = document.querySelector("#plot-bars a").getAttribute("href");'
    text = scripted(tiny_run, tmp_path, script)
    card = text.split('id="expert-card"')[1].split("</aside>")[0]
    assert "hidden" not in card.split(">")[0]
    card = re.sub("</?span>", "", card)  # each word of a command has its own
    link = '<a data-page="profiles" href="profiles/index.html">Profiles</a>'
    assert 'href="profiles/index.html#L0E0"' in scripted(tiny_run, tmp_path, script, beside=link)
    assert "moescope ablate --run run --experts L0E0 -o run/without-L0E0" in card
    assert "--set L0E0=zero" in card
    assert "moescope profile run --all" in card  # no profiles beside this page
    for place in ("bars", "cells", "special", "flow", "tokens"):
        part = text.split(f'id="plot-{place}"')[1].split('class="notes"')[0]
        assert re.search(r'href="#L\d+E\d+"', part), place


def test_forty_domains_can_be_told_apart(tmp_path: Path) -> None:
    run = cast(AnalyzedRun, InventedRun(layers=2, experts=8, top_k=2, domains=40))
    script = """
        const told = document.documentElement.dataset;
        told.signs = new Set(d3.range(40).map((i) => M.domainMark(i).outerHTML)).size;
        told.chips = document.querySelectorAll("#controls-bars .chip").length;
        const add = document.querySelector("#controls-bars select[aria-label^=Add]");
        add.selectedIndex = 36;
        add.dispatchEvent(new Event("change"));
        told.shown = M.state.barDomains.length;
    """
    found = root(scripted(run, tmp_path, script))
    assert 'data-signs="40"' in found
    assert 'data-chips="4"' in found
    assert 'data-shown="5"' in found
    assert "data-errors" not in found


def test_each_domain_shows_its_own_cells(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    last = tiny_run.domains[-1]
    text = scripted(tiny_run, tmp_path, f'M.set({{ specialDomain: "{last}" }});')
    assert f"{last}: " in text.split('id="title-special"')[1].split("</figcaption>")[0]
    rows = text.split('id="plot-cells"')[1].split('class="notes"')[0]
    shown = report_data(tiny_run)["views"]["prefill"]["special"]["top"]["domain"]
    assert rows.count("<tr") - 1 == shown.count(last) < len(shown)
