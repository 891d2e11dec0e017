"""The page of profiles: one safe file of bounded size that a person can browse."""

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.report.conftest import HOSTILE
from tests.report.large import InventedRun
from tests.report.test_browser import BROWSER, dom, root
from tests.report.test_page import Page
from tests.support.saved import write_corpus

from moescope.corpus import CorpusSpec
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel
from moescope.profiles.facts import Profiles
from moescope.profiles.profile import ProfileOptions, profile_all
from moescope.report import profile_data
from moescope.report.profile_data import LEVELS, PAGE_BYTES, profiles_data, unpack
from moescope.report.profile_page import build_profile_page, render_profile_page
from moescope.run.options import TraceOptions
from moescope.trace import trace
from moescope.words import printable

in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")
USE = Path(__file__).with_name("use_profiles.js")


@pytest.fixture(scope="module")
def run(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    corpus = write_corpus(
        tmp_path_factory.mktemp("pages") / "texts.jsonl", documents_per_domain=20, words=40
    )
    folder = tmp_path_factory.mktemp("pages") / "run"
    trace(tiny_loaded, CorpusSpec(path=str(corpus)), folder, TraceOptions(context=64))
    return open_run(folder)


@pytest.fixture(scope="module")
def profiles(run: AnalyzedRun, tiny_loaded: LoadedModel) -> Profiles:
    return profile_all(run, ProfileOptions(pipeline=None), model=tiny_loaded)


def altered(profiles: Profiles, name: str, /, **columns: Any) -> Profiles:
    """The same with other columns of one table; a value stands in every row."""
    table = profiles.tables[name]
    for column, values in columns.items():
        at = table.schema.get_field_index(column)
        listed = values if isinstance(values, list) else [values] * table.num_rows
        table = table.set_column(at, column, pa.array(listed, table.schema.field(at).type))
    return Profiles(profiles.tables | {name: table}, profiles.source, profiles.constants)


def hostile(profiles: Profiles) -> Profiles:
    """The same with every text of the corpus trying to break out of the page."""
    made = altered(profiles, "experts", summary=HOSTILE, role_words=HOSTILE, role_about=HOSTILE)
    made = altered(made, "tokens", token=HOSTILE)
    made = altered(made, "pushes", token=HOSTILE)
    return altered(made, "contexts", before=HOSTILE, token=HOSTILE, after=HOSTILE, doc=HOSTILE)


def large(profiles: Profiles, layers: int, experts: int) -> tuple[AnalyzedRun, Profiles]:
    """A run of another size, with the profiles of the small one over and over."""
    invented: Any = InventedRun(layers=layers, experts=experts, top_k=8, domains=3)
    invented.domains = ["domain0", "domain1", "domain2"]
    invented.documents = {"domain": SimpleNamespace(to_pylist=list)}
    total = layers * experts
    rows = profiles.some(i % len(profiles) for i in range(total))
    tables = {}
    for name, table in rows.tables.items():
        own = np.diff(profiles.starts[name])[np.arange(total) % len(profiles)]
        cell = np.repeat(np.arange(total), own)
        tables[name] = table.set_column(0, "layer", pa.array(1 + cell // experts)).set_column(
            1, "expert", pa.array(cell % experts)
        )
    names = [f"L{1 + i // experts}E{i % experts}" for i in range(total)]
    made = Profiles(tables, profiles.source, profiles.constants)
    return invented, altered(made, "experts", name=names)


def rows_of(table: dict[str, Any], expert: int) -> range:
    return range(table["starts"][expert], table["starts"][expert + 1])


class TestFile:
    def test_nothing_is_loaded_and_only_its_own_scripts_may_run(
        self, run: AnalyzedRun, profiles: Profiles
    ) -> None:
        text = render_profile_page(run, profiles)
        page = Page(text)
        assert page.loads == ["data:,"]
        assert not {"iframe", "object", "embed", "img", "video", "audio"} & set(page.tags)
        assert page.policy.startswith("default-src 'none'")
        scripts = page.policy.split("script-src")[1].split(";")[0]
        assert "unsafe" not in scripts
        assert len(re.findall("sha256-", scripts)) == len(re.findall("<script>", text))
        assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))

    def test_the_same_profiles_give_the_same_bytes(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        first = build_profile_page(run, profiles, tmp_path / "1.html").read_bytes()
        assert build_profile_page(run, profiles, tmp_path / "2.html").read_bytes() == first

    def test_it_lies_in_the_run_and_names_no_folder(
        self, run: AnalyzedRun, profiles: Profiles
    ) -> None:
        index = build_profile_page(run, profiles)
        assert index == run.path / "profiles" / "index.html"
        assert build_profile_page(run, profiles[9:10]) == run.path / "profiles" / "L1E1.html"
        text = index.read_text(encoding="utf-8")
        assert str(run.path.parent) not in text
        assert str(Path(run.manifest.model["name"]).parent) not in text

    def test_some_of_the_experts_are_no_page(self, run: AnalyzedRun, profiles: Profiles) -> None:
        with pytest.raises(ValueError, match="one expert or all 32"):
            render_profile_page(run, profiles[:2])

    def test_hostile_text_stays_data(self, run: AnalyzedRun, profiles: Profiles) -> None:
        text = render_profile_page(run, hostile(profiles))
        page = Page(text)
        assert "<img" not in text
        assert "\u2028" not in text.split('id="data"')[1]
        tables = unpack(json.loads(page.data)["packed"])["tables"]
        shown = printable(HOSTILE)
        assert tables["experts"]["summary"][0] == shown == tables["tokens"]["token"][0]


class TestSize:
    def test_a_small_model_is_shown_whole(self, run: AnalyzedRun, profiles: Profiles) -> None:
        data = profiles_data(run, profiles)
        assert data["cut"] is None
        tables, made = unpack(data["packed"])["tables"], profiles[4]
        assert len(rows_of(tables["contexts"], 4)) == len(made.contexts.rows)
        assert len(rows_of(tables["tokens"], 4)) == len(made.tokens_in.rows)
        pushed = [tables["pushes"]["side"][i] for i in rows_of(tables["pushes"], 4)]
        assert pushed.count("promoted") == len(made.pushes.promoted)

    def test_columns_go_to_the_page_by_name_with_the_figures_of_the_json(
        self, run: AnalyzedRun, profiles: Profiles
    ) -> None:
        tables = unpack(profiles_data(run, profiles)["packed"])["tables"]
        for i, p in enumerate(profiles):
            row = {name: values[i] for name, values in tables["experts"].items()}
            assert row["rate_low"] == float(f"{p.load.rate_low:.4g}")
            assert row["contribution_share"] == float(f"{p.contribution.share:.4g}")
            for r, d in zip(rows_of(tables["domains"], i), p.domains, strict=True):
                for name in ("domain", "rate", "low", "high", "others", "lift", "q"):
                    shown, whole = tables["domains"][name][r], d[name]
                    assert shown == (whole if isinstance(whole, str) else float(f"{whole:.4g}"))

    @pytest.mark.parametrize(("layers", "experts"), [(16, 64)])
    def test_a_large_model_fits_and_says_what_was_cut(
        self, layers: int, experts: int, profiles: Profiles
    ) -> None:
        invented, many = large(profiles, layers, experts)
        data = profiles_data(invented, many)
        assert len(json.dumps(data)) <= PAGE_BYTES + 100_000
        tables = unpack(data["packed"])["tables"]
        assert len(tables["experts"]["name"]) == layers * experts
        assert all(tables["experts"]["summary"])
        caps = LEVELS[0]
        if data["cut"] is not None:
            assert "do not fit whole" in data["cut"]
            caps = next(c for c in LEVELS if f"at most {c.domains} domain" in data["cut"])
        assert max(np.diff(tables["tokens"]["starts"])) <= caps.tokens
        assert max(np.diff(tables["contexts"]["starts"])) == caps.contexts

    def test_what_does_not_fit_is_cut_for_all_alike_and_said(
        self, run: AnalyzedRun, profiles: Profiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = len(profiles_data(run, profiles)["packed"]["bytes"])
        monkeypatch.setattr(profile_data, "PAGE_BYTES", whole // 3)
        data = profiles_data(run, profiles)
        assert len(data["packed"]["bytes"]) <= whole // 3
        assert "The JSON of each expert beside this page has all" in data["cut"]
        caps = next(c for c in LEVELS if f"at most {c.domains} domain" in data["cut"])
        tables = unpack(data["packed"])["tables"]
        assert max(np.diff(tables["contexts"]["starts"])) <= caps.contexts
        assert max(np.diff(tables["pushes"]["starts"])) <= 2 * caps.pushes

    def test_of_many_domains_those_that_stand_out_are_kept(self, profiles: Profiles) -> None:
        invented, one = large(profiles, 1, 1)
        row = one.tables["domains"].slice(0, 1)
        one.tables["domains"] = pa.concat_tables([row] * 60)
        names = [f"d{i}" for i in range(60)]
        lift = [1.0 + (i == 7) * 3 for i in range(60)]
        q = [0.5 - 0.49 * (i == 7) for i in range(60)]
        invented.domains = names  # type: ignore[misc]
        data = profiles_data(invented, altered(one, "domains", domain=names, lift=lift, q=q))
        tables = unpack(data["packed"])["tables"]
        assert len(tables["domains"]["domain"]) == LEVELS[0].domains
        assert data["compared"] == 60
        assert "d7" in tables["domains"]["domain"]
        assert tables["experts"]["top_lift"] == [4.0]


@in_browser
class TestBrowser:
    def page(self, text: str, folder: Path, *, use: bool = False) -> Path:
        if use:  # the policy gives way, as it rightly refuses a foreign script
            text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            text = text.replace("</body>", f"<script>{USE.read_text()}</script></body>")
        path = folder / "index.html"
        path.write_bytes(text.encode("utf-8", "replace"))
        return path

    def test_everything_is_drawn_without_an_error(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        text = dom(self.page(render_profile_page(run, profiles), tmp_path), tmp_path)
        assert 'data-ready="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert 'data-marks="32"' in text
        body = text.split('id="data"')[0]
        assert len(re.findall(r'<a href="#L\dE\d" title=', body)) == 32
        for part in (
            "Domains",
            "Tokens in",
            "Where it contributes most",
            "Partners",
            "Weights",
            "Pushes towards and away from",
            "Most similar experts",
            "How sure this is",
        ):
            assert f"<h4>{part}</h4>" in body  # fmt: skip
        assert body.count("<mark>") >= 3

    def test_it_can_be_used_by_click_search_keys_and_link(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        text = dom(self.page(render_profile_page(run, profiles), tmp_path, use=True), tmp_path)
        told = root(text)
        assert "data-errors" not in told
        assert 'data-used="yes"' in told
        assert 'data-linked="L2E3"' in told
        assert 'data-arrowed="L2E4"' in told
        assert 'data-down="L3E4"' in told
        assert 'data-walked="L3E5"' in told
        assert 'data-searched="1 of 32 experts"' in told
        assert 'data-clicked="L1E0"' in told
        assert 'data-nothing="0 of 32 experts"' in told

    def test_an_address_that_names_an_expert_opens_it(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        page = self.page(render_profile_page(run, profiles), tmp_path)
        text = dom(_Linked(page, "#L3E6"), tmp_path)  # type: ignore[arg-type]
        assert re.search(r'<h3 id="panel-name">L3E6', text)

    def test_an_address_scrolls_to_its_expert_and_the_map_stays(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        told = """
          setTimeout(() => {
            const box = (id) => document.getElementById(id).getBoundingClientRect();
            const told = document.documentElement.dataset;
            told.hidden = String(box("plot-map").bottom < box("above").bottom);
            told.below = String(Math.abs(box("plot-panel").top - box("above").bottom) < 40);
            window.scrollBy({ top: 600, behavior: "instant" });
            window.dispatchEvent(new Event("scroll"));  // a page that is not drawn may send none
            setTimeout(() => {
              told.shown = String(document.getElementById("above").classList.contains("shown"));
              told.small = document.querySelector("#plot-above canvas").dataset.marks;
              told.list = String(box("plot-list").top >= box("above").bottom - 1);
            }, 200);
          }, 200);"""
        page = self.page(render_profile_page(run, profiles), tmp_path)
        text = page.read_text()
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        page.write_text(text.replace("</body>", f"<script>{told}</script></body>"))
        found = root(dom(_Linked(page, "#L3E6"), tmp_path))  # type: ignore[arg-type]
        assert 'data-below="true"' in found
        assert 'data-shown="true"' in found
        assert 'data-small="32"' in found
        assert 'data-list="true"' in found

    def test_a_single_profile_is_a_page(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        text = dom(self.page(render_profile_page(run, profiles[13:14]), tmp_path), tmp_path)
        assert "data-errors" not in root(text)
        assert re.search(r'<h3 id="panel-name">L1E5', text)
        assert 'id="plot-map"' not in text

    def test_without_the_model_it_is_drawn_too(self, run: AnalyzedRun, tmp_path: Path) -> None:
        made = profile_all(run, ProfileOptions(use_model=False, pipeline=None))
        text = dom(self.page(render_profile_page(run, made), tmp_path), tmp_path)
        assert "data-errors" not in root(text)
        assert "Made without the model" in text
        assert "Absent: made without the model." in text

    def test_every_figure_stands_where_its_words_say(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        """Low before high, the lift beside the rate of the others, text before and after."""
        one = profiles[13:14]
        one = altered(one, "experts", rate=0.155, rate_low=0.111, rate_high=0.222, gate_mass=0.5)
        one = altered(one, "experts", rate_chance=0.25, gate_low=0.333, gate_high=0.777)
        one = altered(one, "experts", contribution_low=2.22, contribution_high=4.44)
        one = altered(one, "domains", rate=0.34, low=0.31, high=0.37, others=0.044, lift=7.73)
        one = altered(one, "domains", lift_low=6.61, lift_high=8.85, by_token=0.088)
        one = altered(one, "contexts", before="what came before ", token="it", after=" what came")
        one = altered(one, "partners", lift=2.5, given=0.123, count=456)
        one = altered(one, "tokens", share=0.654, lift=3.21, count=1234, documents=56)
        one = altered(one, "similar", cosine=0.45, half_a=0.41, half_b=0.49)
        one = altered(one, "pushes", own=0.7, others=0.1, beyond=0.6, half_a=0.55, half_b=0.65)
        text = dom(self.page(render_profile_page(run, one), tmp_path), tmp_path)
        assert "data-errors" not in root(text)
        shown = html.unescape(re.sub(r"<[^>]*>", "", text.split('id="data"')[0]))
        assert "15.5 %of tokens choose it11.1–22.2 %, chance 25.0 %" in shown
        assert "0.500gate mass per token0.333–0.777" in shown
        assert "(REAP)2.22–4.44" in shown
        assert "34.0 % of its tokens (95 %: 31.0–37.0 %); red: chance 25.0 %; others 4.4 %" in text
        assert "34.0 %7.73× [6.61, 8.85]" in shown
        assert "what came before it what came" in shown
        assert "<p>what came before <mark>it</mark> what came</p>" in text
        assert "65.4 %3.21×1,23456" in shown
        assert "456 tokens together; 12.3 % of its tokens" in text
        assert "2.50×12.3 %" in shown
        assert "0.450.41 · 0.49" in shown
        assert "own 0.700, the layer's others 0.100; halves 0.550 and 0.650" in text
        bars = re.findall(r'class="whisker" x1="([\d.]+)" y1="9" x2="([\d.]+)"', text)
        assert bars
        assert all(float(low) < float(high) for low, high in bars)

    def test_hostile_text_is_shown_as_text(
        self, run: AnalyzedRun, profiles: Profiles, tmp_path: Path
    ) -> None:
        made = hostile(profiles)
        text = dom(self.page(render_profile_page(run, made), tmp_path), tmp_path)
        assert "data-errors" not in root(text)
        assert "<title>broken" not in text
        body = re.sub(r'"[^"]*"', '""', text.split('id="data"')[0].replace("&quot;", ""))
        assert "<img" not in body
        assert "&lt;img" in body

    @pytest.mark.slow
    def test_forty_eight_layers_of_128_experts_open(
        self, profiles: Profiles, tmp_path: Path
    ) -> None:
        invented, many = large(profiles, 48, 128)
        text = dom(self.page(render_profile_page(invented, many), tmp_path), tmp_path)
        assert 'data-ready="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert 'data-marks="6144"' in text


class _Linked:
    """A page with a place in it."""

    def __init__(self, page: Path, anchor: str) -> None:
        self._page, self._anchor = page, anchor

    def as_uri(self) -> str:
        return self._page.as_uri() + self._anchor
