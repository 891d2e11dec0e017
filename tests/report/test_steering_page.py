"""The page of a steering: it says what happened, holds no request, and draws in a browser."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from markupsafe import escape
from tests.report.conftest import HOSTILE
from tests.report.test_browser import BROWSER, USE, dom, root

from moescope.intervene import SteeringResult, SweepResult, bias, force, mask, steer, sweep
from moescope.intervene.steering.results import steering_result
from moescope.models import LoadedModel
from moescope.report.steering_page import steering_data, steering_page
from moescope.result import Result, read_result

PROMPT = "the plan covers support for daily living and the court may review"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


@pytest.fixture(scope="module")
def steered(tiny_loaded: LoadedModel) -> SteeringResult:
    return steer(
        tiny_loaded, PROMPT, [bias("L1E2", 6.0), mask("L2E4")], words=["plan", "starlight"],
        generate=8, controls=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(tiny_loaded: LoadedModel) -> SweepResult:
    return sweep(
        tiny_loaded, PROMPT, lambda s: bias("L1E2", s), [-6, 0, 6], words=["plan"], generate=4
    )


@pytest.fixture(scope="module")
def bare(tiny_loaded: LoadedModel) -> SteeringResult:
    """No words, no controls, no text, and an edit that does nothing."""
    return steer(tiny_loaded, PROMPT, bias("L1E2", 0.0), targets=[2], generate=0, controls=0)


def test_the_page_says_what_was_done_without_scripts(
    steered: SteeringResult, swept: SweepResult
) -> None:
    page = steering_page(steering_result(steered, swept))
    body = page.split('id="data"')[0]
    marked = ("`controls`", "<code>controls</code>")
    sentences = [str(escape(s)).replace(*marked) for s in steered.summary()]
    for said in (*steered.edits, *sentences, "everywhere, generated tokens included"):
        assert said in body
    for figure in ("routing", "next", "words", "controls", "text", "sweep", "strengths"):
        assert f'id="plot-{figure}"' in body
    assert "What it does not prove" in body


def test_silence_is_an_alert(bare: SteeringResult) -> None:
    body = steering_page(steering_result(bare)).split('id="data"')[0]
    assert 'class="alert bad" role="alert"><b>No effect.</b>' in body
    assert bare.effect.notes[0] in body
    for figure in ("words", "controls", "text", "sweep"):
        assert f'id="plot-{figure}"' not in body
    assert "at token 2" in body


def test_the_figures_are_those_of_the_result(steered: SteeringResult, swept: SweepResult) -> None:
    data = steering_data(steering_result(steered, swept))
    assert data["kl"] == pytest.approx(steered.kl, rel=1e-5)
    shifts = [t["shift"]["prob_after"] for t in data["tokens"]]
    assert shifts == pytest.approx([t.shift.prob_after for t in steered.tokens], rel=1e-5)
    assert [p["strength"] for p in data["sweep"]["points"]] == [-6.0, 0.0, 6.0]
    json.dumps(data, allow_nan=False)


def test_what_is_kept_gives_the_same_page(
    steered: SteeringResult, swept: SweepResult, tmp_path: Path
) -> None:
    made = steering_result(steered, swept)
    made.save(tmp_path / "a")
    again = read_result(tmp_path / "a", "steering")
    assert steering_page(again) == steering_page(made)
    assert again.about["kl"] == steered.kl
    assert again.about["sweep"]["points"][2]["kl"] == swept.points[2].kl
    assert again.tables["tokens"].equals(steered.to_arrow())
    assert again.tables["sweep"].num_rows == 3


def written(result: Result, folder: Path) -> Path:
    folder.mkdir()
    page = folder / "steering.html"
    page.write_text(steering_page(result), encoding="utf-8")
    return page


def test_the_page_names_no_folder_of_the_machine(steered: SteeringResult) -> None:
    page = steering_page(steering_result(replace(steered, model="/somewhere/private/my-model")))
    assert "my-model" in page
    assert "private" not in page


def test_the_page_asks_for_nothing(steered: SteeringResult) -> None:
    page = unescape(steering_page(steering_result(steered)))
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


def hostile(result: SteeringResult) -> SteeringResult:
    prompt = replace(result.prompt, pieces=(HOSTILE,) * len(result.prompt))
    tokens = tuple(t._replace(text=HOSTILE) for t in result.tokens)
    words = tuple(
        w._replace(word=w.word._replace(word=HOSTILE, text=HOSTILE)) for w in result.words
    )
    assert result.after is not None
    after = result.after._replace(pieces=(HOSTILE,) * len(result.after.pieces))
    return replace(result, prompt=prompt, tokens=tokens, words=words, after=after, model=HOSTILE)


def used(page: str, folder: Path) -> str:
    """The page after every control was pressed; the policy gives way to the foreign script."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    path = folder / "used.html"
    path.write_text(
        text.replace("</body>", f"<script>{USE.read_text()}</script></body>"), encoding="utf-8"
    )
    return dom(path, folder)


@needs_browser
def test_everything_is_drawn_without_an_error(
    steered: SteeringResult, swept: SweepResult, tmp_path: Path
) -> None:
    text = dom(written(steering_result(steered, swept), tmp_path / "out"), tmp_path)
    assert 'data-ready="yes"' in root(text)
    assert "data-errors" not in root(text)
    drawn = text.split('id="data"')[0]
    assert "could not be drawn" not in drawn
    for figure in ("routing", "next", "controls", "sweep"):
        part = drawn[drawn.index(f'id="plot-{figure}"') : drawn.index(f'id="table-{figure}"')]
        assert len(re.findall(r"<(?:circle|path|rect)\b", part)) > 3, figure
    assert drawn.count('class="t"') == len(steered.prompt)
    assert steered.before is not None
    if steered.first_difference is not None:
        assert drawn.count('class="w first"') >= 2
    assert "as unedited" in drawn


@needs_browser
@pytest.mark.parametrize("kind", ["full", "bare", "hostile"])
def test_every_control_can_be_used(
    kind: str, steered: SteeringResult, bare: SteeringResult, swept: SweepResult, tmp_path: Path
) -> None:
    page = {
        "full": lambda: steering_page(steering_result(steered, swept)),
        "bare": lambda: steering_page(steering_result(bare)),
        "hostile": lambda: steering_page(steering_result(hostile(steered), swept)),
    }[kind]()
    text = used(page, tmp_path)
    assert 'data-used="yes"' in root(text)
    assert "data-errors" not in root(text)
    assert 'data-theme="dark"' in root(text)
    assert "<title>broken" not in text
    assert "<img" not in re.sub(r'"[^"]*"', '""', text.replace("&quot;", ""))


@needs_browser
def test_a_target_is_marked(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    found = steer(tiny_loaded, PROMPT, force("L1E2"), targets=[3, -1], generate=3, controls=2)
    text = dom(written(steering_result(found), tmp_path / "out"), tmp_path)
    assert "data-errors" not in root(text)
    assert text.split('id="data"')[0].count('class="t hit"') == 2
