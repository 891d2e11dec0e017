"""The page of profiles: one safe file of bounded size that a person can browse."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.report.conftest import HOSTILE
from tests.report.large import InventedRun
from tests.report.test_browser import BROWSER, dom, root
from tests.report.test_page import Page
from tests.support.saved import write_corpus

from moescope.axes import ExpertRef
from moescope.corpus import CorpusSpec
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel
from moescope.profiles.facts import Profile
from moescope.profiles.profile import ProfileOptions, profile_all
from moescope.report import profile_data
from moescope.report.profile_data import LEVELS, PAGE_BYTES, profiles_data, unpack
from moescope.report.profile_page import build_profile_page, render_profile_page
from moescope.run.options import TraceOptions
from moescope.trace import trace

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
def profiles(run: AnalyzedRun, tiny_loaded: LoadedModel) -> list[Profile]:
    return profile_all(run, ProfileOptions(tiny_loaded, pipeline=None))


def hostile(profile: Profile) -> Profile:
    """The same with every text of the corpus trying to break out of the page."""
    made: Any = profile
    tokens = replace(made.tokens_in, rows=[replace(t, token=HOSTILE) for t in made.tokens_in.rows])
    pushes = replace(
        made.pushes,
        promoted=[replace(t, token=HOSTILE + "\ud83d") for t in made.pushes.promoted],
    )
    contexts = replace(
        made.contexts,
        rows=[
            {**r, "before": HOSTILE, "token": HOSTILE, "after": HOSTILE, "doc": HOSTILE}
            for r in made.contexts.rows
        ],
    )
    return replace(
        profile,
        summary=f"{profile.expert} serves {HOSTILE}",
        tokens_in=tokens,
        pushes=pushes,
        contexts=contexts,
    )


def large(profiles: list[Profile], layers: int, experts: int) -> tuple[AnalyzedRun, list[Profile]]:
    """A run of another size, with the profiles of the small one over and over."""
    invented: Any = InventedRun(layers=layers, experts=experts, top_k=8, domains=3)
    invented.domains = ["domain0", "domain1", "domain2"]
    invented.documents = {"domain": SimpleNamespace(to_pylist=list)}
    made = []
    for i in range(layers * experts):
        ref = ExpertRef(1 + i // experts, i % experts)
        made.append(replace(profiles[i % len(profiles)], expert=ref))
    return invented, made


class TestFile:
    def test_nothing_is_loaded_and_only_its_own_scripts_may_run(
        self, run: AnalyzedRun, profiles: list[Profile]
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
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
    ) -> None:
        first = build_profile_page(run, profiles, tmp_path / "1.html").read_bytes()
        assert build_profile_page(run, profiles, tmp_path / "2.html").read_bytes() == first

    def test_it_lies_in_the_run_and_names_no_folder(
        self, run: AnalyzedRun, profiles: list[Profile]
    ) -> None:
        index = build_profile_page(run, profiles)
        assert index == run.path / "profiles" / "index.html"
        assert build_profile_page(run, profiles[9:10]) == run.path / "profiles" / "L1E1.html"
        text = index.read_text(encoding="utf-8")
        assert str(run.path.parent) not in text
        assert str(Path(run.manifest.model["name"]).parent) not in text

    def test_some_of_the_experts_are_no_page(
        self, run: AnalyzedRun, profiles: list[Profile]
    ) -> None:
        with pytest.raises(ValueError, match="one expert or all 32"):
            render_profile_page(run, profiles[:2])

    def test_hostile_text_stays_data(self, run: AnalyzedRun, profiles: list[Profile]) -> None:
        text = render_profile_page(run, [hostile(p) for p in profiles])
        page = Page(text)
        assert "<img" not in text
        assert "\u2028" not in text
        data = unpack(json.loads(page.data)["packed"])
        assert any(HOSTILE in t for t in data["texts"].values())
        assert HOSTILE in data["profiles"][0]["s"]


class TestSize:
    def test_a_small_model_is_shown_whole(self, run: AnalyzedRun, profiles: list[Profile]) -> None:
        data = profiles_data(run, profiles)
        assert data["cut"] is None
        made: Any = profiles[4]
        packed = unpack(data["packed"])["profiles"][4]
        assert len(packed["k"]) == len(made.contexts.rows)
        assert len(packed["t"]["rows"]) == len(made.tokens_in.rows)
        assert len(packed["g"]["up"]) == len(made.pushes.promoted)

    @pytest.mark.parametrize(("layers", "experts"), [(16, 64)])
    def test_a_large_model_fits_and_says_what_was_cut(
        self, layers: int, experts: int, profiles: list[Profile]
    ) -> None:
        invented, many = large(profiles, layers, experts)
        data = profiles_data(invented, many)
        assert len(json.dumps(data)) <= PAGE_BYTES + 100_000
        rows = unpack(data["packed"])["profiles"]
        assert len(rows) == layers * experts
        assert all(p["s"] for p in rows)
        caps = LEVELS[0]
        if data["cut"] is not None:
            assert "do not fit whole" in data["cut"]
            caps = next(c for c in LEVELS if f"at most {c.domains} domain" in data["cut"])
        assert max(len(p["t"]["rows"]) for p in rows) <= caps.tokens
        assert max(len(p["k"]) for p in rows) == caps.contexts

    def test_what_does_not_fit_is_cut_for_all_alike_and_said(
        self, run: AnalyzedRun, profiles: list[Profile], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = len(profiles_data(run, profiles)["packed"]["bytes"])
        monkeypatch.setattr(profile_data, "PAGE_BYTES", whole // 3)
        data = profiles_data(run, profiles)
        assert len(data["packed"]["bytes"]) <= whole // 3
        assert "The JSON of each expert beside this page has all" in data["cut"]
        caps = next(c for c in LEVELS if f"at most {c.domains} domain" in data["cut"])
        for packed in unpack(data["packed"])["profiles"]:
            assert len(packed["k"]) <= caps.contexts
            assert len(packed["g"]["up"]) <= caps.pushes

    def test_of_many_domains_those_that_stand_out_are_kept(self, profiles: list[Profile]) -> None:
        made: Any = profiles[0]
        used = [
            replace(
                made.domains[0], domain=f"d{i}", lift=1.0 + (i == 7) * 3, q=0.5 - 0.49 * (i == 7)
            )
            for i in range(60)
        ]
        invented, many = large(profiles, 1, 1)
        invented.domains = [d.domain for d in used]  # type: ignore[misc]
        data = profiles_data(invented, [replace(many[0], domains=used)])
        first = unpack(data["packed"])["profiles"][0]["d"]
        assert len(first["rows"]) == LEVELS[0].domains
        assert first["all"] == 60
        assert 7 in [row[0] for row in first["rows"]]
        assert first["best"][0] == 7


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
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
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
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
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
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
    ) -> None:
        page = self.page(render_profile_page(run, profiles), tmp_path)
        text = dom(_Linked(page, "#L3E6"), tmp_path)  # type: ignore[arg-type]
        assert re.search(r'<h3 id="panel-name">L3E6', text)

    def test_a_single_profile_is_a_page(
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
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

    def test_hostile_text_is_shown_as_text(
        self, run: AnalyzedRun, profiles: list[Profile], tmp_path: Path
    ) -> None:
        made = [hostile(p) for p in profiles]
        text = dom(self.page(render_profile_page(run, made), tmp_path), tmp_path)
        assert "data-errors" not in root(text)
        assert "<title>broken" not in text
        body = re.sub(r'"[^"]*"', '""', text.split('id="data"')[0].replace("&quot;", ""))
        assert "<img" not in body
        assert "&lt;img" in body

    @pytest.mark.slow
    def test_forty_eight_layers_of_128_experts_open(
        self, profiles: list[Profile], tmp_path: Path
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
