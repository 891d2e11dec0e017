"""The page: one file, no network, nothing in the data can break out of it, same run same bytes."""

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
from markupsafe import escape
from tests.report.conftest import HOSTILE, MakeRun

from moescope.files import claim, write_bytes
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.metrics.specialization import RULE
from moescope.report import build_report
from moescope.report.commands import reproduce
from moescope.report.contents import renew_contents
from moescope.report.data import report_data
from moescope.report.page import LAST, SHARED, SIGNATURE, embed_json
from moescope.result import Result
from moescope.words import printable

REPORT = Path(__file__).parents[2] / "src" / "moescope" / "report"

SECTIONS = (
    "short", "run", "activation", "maps", "specialised", "information", "depth", "balance", "pairs",
    "paths", "vocabulary", "examples", "definitions", "methods", "reproduce",
)  # fmt: skip


class Page(HTMLParser):
    """Elements, ids and links of a page, as a browser would find them without running scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.policy = ""
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = found.get(name)
            if value is not None:
                (self.anchors if value.startswith("#") else self.loads).append(value)
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        self._in_data = found.get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def page_of(run: AnalyzedRun, folder: Path) -> tuple[str, Page]:
    text = build_report(run, folder / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


class TestSelfContained:
    def test_nothing_is_loaded_from_anywhere(self, tiny_run: AnalyzedRun, tmp_path: Path) -> None:
        _, page = page_of(tiny_run, tmp_path)
        assert page.loads == ["data:,"]  # the empty icon, so that browsers do not ask for one
        assert not {"iframe", "object", "embed", "img", "video", "audio"} & set(page.tags)

    def test_style_sheets_ask_for_nothing(self) -> None:
        style = (REPORT / "templates" / "style.css").read_text(encoding="utf-8")
        assert "url(" not in style
        assert "@import" not in style

    def test_the_policy_allows_only_the_scripts_in_the_page(
        self, tiny_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        text, page = page_of(tiny_run, tmp_path)
        assert page.policy.startswith("default-src 'none'")
        scripts = page.policy.split("script-src")[1].split(";")[0]
        assert "unsafe" not in scripts
        assert len(re.findall("sha256-", scripts)) == len(re.findall("<script>", text))

    def test_own_scripts_never_write_html(self) -> None:
        for path in (REPORT / "templates" / "js").glob("*.js"):
            code = path.read_text(encoding="utf-8")
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                         ".html(", "fetch(", "XMLHttpRequest", "import("):  # fmt: skip
                assert word not in code, f"{path.name} uses {word}"

    @pytest.mark.parametrize("page", sorted(p.stem for p in REPORT.glob("*_page.py")))
    def test_no_two_scripts_of_a_page_give_one_name_to_two_things(self, page: str) -> None:
        own = import_module(f"moescope.report.{page}")._SCRIPTS
        given: dict[str, list[str]] = {}
        for name in (*SHARED, *own, LAST):
            code = (REPORT / "templates" / "js" / name).read_text(encoding="utf-8")
            for found in set(re.findall(r"(?m)^\s*M\.(\w+) = ", code)):
                given.setdefault(found, []).append(name)
        meant = {"start", "figure"}  # a page may wait before it starts, or redraw more often
        assert {n: files for n, files in given.items() if len(files) > 1 and n not in meant} == {}

    def test_vendored_libraries_are_the_ones_that_are_noted(self) -> None:
        noted = (REPORT / "vendor" / "README.md").read_text(encoding="utf-8")
        for path in (REPORT / "vendor").glob("*.js"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in noted

    def test_every_section_is_there_and_every_anchor_leads_somewhere(
        self, tiny_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        _, page = page_of(tiny_run, tmp_path)
        assert set(SECTIONS) <= set(page.ids)
        assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))


class TestNothingBreaksOut:
    def test_json_holds_no_character_that_html_knows(self) -> None:
        text = embed_json({"text": HOSTILE})
        assert not set("<>&\u2028\u2029") & set(text)
        assert json.loads(text)["text"] == HOSTILE

    def test_half_a_surrogate_pair_can_be_written(self) -> None:
        written = embed_json({"token": "\ud83d"}).encode("utf-8")
        assert json.loads(written)["token"] == "\ud83d"

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            embed_json({"value": float("nan")})

    def test_hostile_names_stay_data(self, hostile_run: AnalyzedRun, tmp_path: Path) -> None:
        text, page = page_of(hostile_run, tmp_path)
        assert "<img" not in text
        assert "\u2028" not in text
        assert "img" not in page.tags
        data = json.loads(page.data)
        assert data["about"]["domains"][0]["name"].startswith("</script><img")
        assert any(printable(HOSTILE) in t for t in data["texts"].values())

    def test_a_hostile_model_name_is_escaped(
        self, make_run: object, tiny_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        run = open_run(tiny_run.path)
        run.manifest.model["name"] = "<img src=x>&"
        text, page = page_of(run, tmp_path)
        assert "img" not in page.tags
        assert "<title>&lt;img src=x&gt;&amp;" in text


class TestWriting:
    def test_the_page_is_in_the_run_folder(self, tiny_run: AnalyzedRun) -> None:
        assert build_report(tiny_run) == tiny_run.path / "report.html"

    def test_the_same_run_gives_the_same_bytes(self, tiny_run: AnalyzedRun, tmp_path: Path) -> None:
        first = build_report(open_run(tiny_run.path), tmp_path / "1.html").read_bytes()
        assert build_report(open_run(tiny_run.path), tmp_path / "2.html").read_bytes() == first

    def test_no_folder_of_this_machine_is_in_the_page(
        self, tiny_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        text, _ = page_of(tiny_run, tmp_path)
        assert str(tiny_run.path.parent) not in text
        assert str(Path(tiny_run.manifest.model["name"]).parent) not in text

    @pytest.mark.parametrize("kind", ["one_domain_run", "unlabelled_run", "bare_run"])
    def test_a_run_that_lacks_something_still_gives_a_page(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        _, page = page_of(request.getfixturevalue(kind), tmp_path)
        assert set(SECTIONS) <= set(page.ids)


def test_what_matters_is_there_without_scripts(tiny_run: AnalyzedRun, tmp_path: Path) -> None:
    text = build_report(tiny_run, tmp_path / "page.html").read_text("utf-8").split('id="data"')[0]
    assert escape(RULE) in text
    data = report_data(tiny_run)
    view = data["views"]["prefill"]
    assert all(str(escape(sentence)) in text for sentence in view["short"])
    assert escape(reproduce(tiny_run)) in text
    for name, more, less in zip(
        view["domains"], *(view["special"][w] for w in ("more", "less")), strict=True
    ):
        row = f'<td class="text">{name}</td><td class="num">{more}</td><td class="num">{less}</td>'
        assert row in text


def test_a_report_opens_with_what_taking_experts_away_showed(
    make_run: MakeRun, tiny_corpus: Path
) -> None:
    run = make_run(tiny_corpus)
    page = build_report(run)
    assert "Measured by" not in page.read_text("utf-8")
    model = {n: run.manifest.model[n] for n in ("config_sha256", "weights_sha256")}
    for n in range(5):
        with claim(run.path / f"out-{n}", "ablation") as folder:
            Result("ablation", model, {}, (f"They matter <no> more, {n}.",)).save(folder)
            write_bytes(folder / "ablation.html", SIGNATURE)
    renew_contents(run.path, print)  # of an old page
    renewed = page.read_text("utf-8")
    assert build_report(run).read_text("utf-8").count("Measured by") == renewed.count("Measured by")
    short = renewed.split('id="measured">')[1].split("</div>")[0]
    assert "Measured by taking experts away. They matter &lt;no&gt; more, 0." in short
    assert '<a href="out-0/ablation.html">' in short
    assert "out-3" not in short
    assert "2 more measurements" in short
