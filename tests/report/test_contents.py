"""A run's page of contents, the links between its pages, and the commands that they show."""

import re
import shlex
from html import unescape
from pathlib import Path

import pytest
from tests.report.test_browser import BROWSER, dom, root
from tests.support.saved import save_tiny, write_corpus

from moescope.cli.main import app
from moescope.errors import MoescopeError
from moescope.files import claim
from moescope.metrics.runs import open_run
from moescope.report.contents import CONTENTS, renew_contents
from moescope.report.page import SIGNATURE, write_page
from moescope.result import results_in

VERBS = (
    "analyze moe text.jsonl -o my-run --context 40",
    "profile my-run --all --pipeline none",
    "similarity my-run --total-tokens 60 --reference 1",
    "ablate --run my-run --experts L1E3 --controls 2 --tokens 60",
    "ablate --run my-run --each --layers 2 --tokens 60 -o my-run/layer-2",
    "steer --run my-run --prompt 'the plan' --set L1E2=+2 --generate 2 --controls 1",
    "contrast --run my-run --with text.jsonl --without other.jsonl",
)
PAGES = {
    "Report": "report.html",
    "Profiles": "profiles/index.html",
    "Ablation": "ablation/ablation.html",
    "Contrast": "contrast/contrast.html",
    "Ablation (layer-2)": "layer-2/ablation.html",
    "Similarity": "similarity/similarity.html",
    "Steering": "steering/steering.html",
}


def typed(words: str) -> None:
    app(shlex.split(words), standalone_mode=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my place")
    save_tiny("olmoe", folder / "moe")
    write_corpus(folder / "text.jsonl", domains=2)
    write_corpus(folder / "other.jsonl", domains=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in VERBS:
            typed(words)
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place / "my-run"


def links(page: Path, cls: str) -> dict[str, str]:
    part = re.search(rf'(?s)<(nav|dl) class="{cls}"[^>]*>(.*?)</\1>', page.read_text())
    assert part
    return {t: h for h, t in re.findall(r'<a href="([^"]*)"[^>]*>([^<]*)</a>', part[2])}


def test_it_lists_every_page_with_its_first_sentence(run: Path) -> None:
    assert links(run / CONTENTS, "contents") == {n: p.replace(" ", "%20") for n, p in PAGES.items()}
    text = unescape((run / CONTENTS).read_text())
    for head in results_in(run).values():
        assert head.answers[0].replace("`", "") in re.sub("</?code>", "", text)
    assert "32 experts in 4 layers, profiled on" in text
    asked = text.partition("What can be asked next")[2]
    assert "moescope select my-run" in asked
    assert "moescope similarity" not in asked


def test_every_page_leads_to_every_other_and_to_nothing_else(run: Path) -> None:
    for name, file in PAGES.items():
        page = run / file
        found = links(page, "beside")
        assert set(found) == {"Contents", *PAGES} - {name}
        for href in found.values():
            assert not href.startswith(("/", "file:", "http"))
            assert (page.parent / href).is_file(), href


def test_renewing_changes_nothing_where_nothing_changed(run: Path) -> None:
    before = {f: f.read_bytes() for f in run.rglob("*.html")}
    assert renew_contents(run / "ablation", pytest.fail) == run / CONTENTS
    assert {f: f.read_bytes() for f in run.rglob("*.html")} == before
    open_run(run)  # whole, by its ledger


def test_a_page_that_is_gone_is_linked_no_more(run: Path) -> None:
    page = run / PAGES["Steering"]
    kept = page.read_bytes()
    page.unlink()
    renew_contents(run, pytest.fail)
    assert "Steering" not in links(run / "report.html", "beside")
    assert "Steering (steering)" in (run / CONTENTS).read_text()  # the result is still there
    with claim(run / "steering", "steering"):
        write_page(page, kept.decode())
    renew_contents(run, pytest.fail)
    assert links(run / "report.html", "beside")["Steering"] == PAGES["Steering"]


def test_what_the_user_put_there_stays(run: Path, tmp_path: Path) -> None:
    mine = run / "mine.html"
    mine.write_bytes(SIGNATURE + b'<nav class="beside"></nav>my copy')
    renew_contents(run, pytest.fail)
    assert mine.read_bytes() == SIGNATURE + b'<nav class="beside"></nav>my copy'
    assert "mine" not in links(run / CONTENTS, "contents")
    mine.unlink()


def test_a_users_index_stays_and_the_result_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    typed("trace moe text.jsonl -o traced --context 40")
    index = place / "traced" / CONTENTS
    index.write_text("my own")
    typed("report traced")
    assert index.read_text() == "my own"
    assert (place / "traced" / "report.html").is_file()
    assert f"{CONTENTS} was not renewed:" in capsys.readouterr().err


def test_elsewhere_nothing_is_written_beside_a_result(run: Path, place: Path) -> None:
    typed("steer moe --prompt tea --set L1E2=mask --generate 0 --controls 0 -o apart")
    assert sorted(p.name for p in place.glob("*.html")) == []
    assert links(place / "apart" / "steering.html", "beside") == {}


def test_a_run_of_another_model_is_refused(run: Path, place: Path) -> None:
    save_tiny("olmoe", place / "other", seed=1)
    with pytest.raises(MoescopeError, match="is a run of another model"):
        typed("steer other --run my-run --prompt tea --set L1E2=mask -o my-run/wrong")
    assert not (run / "wrong").exists()


@pytest.mark.parametrize(
    "page", ["Profiles", "Ablation", "Ablation (layer-2)", "Contrast", "Similarity", "Steering"]
)
def test_the_command_on_a_page_makes_it_again(page: str, run: Path, tmp_path: Path) -> None:
    path = run / PAGES[page]
    part = path.read_text().split('<section id="reproduce"')[1]
    (command,) = re.findall(r'<pre class="command"[^>]*><code>(.*?)</code>', part)
    words = shlex.split(unescape(command))
    assert words[0] == "moescope"
    if page == "Profiles":
        first = path.read_bytes()
        typed(shlex.join(words[1:]))
        assert path.read_bytes() == first
        return
    words = [w for i, w in enumerate(words) if "-o" not in words[max(0, i - 1) : i + 1]]
    typed(shlex.join([*words[1:], "-o", str(tmp_path / "again")]))
    (again,) = results_in(tmp_path).values()
    there = results_in(run)[path.parent.name]
    assert again.identity == there.identity
    assert [again.files[n].sha256 for n in again.files] == [f.sha256 for f in there.files.values()]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("page", ["Ablation", "Ablation (layer-2)", "Contrast", "Similarity"])
def test_names_of_experts_lead_to_their_profiles(page: str, run: Path, tmp_path: Path) -> None:
    path = run / PAGES[page]
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    opened = "document.querySelectorAll('details').forEach((d) => (d.open = true));"
    used = run / path.parent.name / "used.html"
    used.write_text(text.replace("</body>", f"<script>{opened}</script></body>"))
    shown = dom(used, tmp_path)
    used.unlink()
    assert "data-errors" not in root(shown)
    assert re.search(r'<a class="expert" href="\.\./profiles/index\.html#L\dE\d"', shown)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_the_page_of_contents_needs_no_library(run: Path, tmp_path: Path) -> None:
    shown = dom(run / CONTENTS, tmp_path)
    assert 'data-ready="yes"' in root(shown)
    assert "data-errors" not in root(shown)
    assert (run / CONTENTS).stat().st_size < 60_000
