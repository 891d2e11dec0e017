"""`moescope ablate`: files, page and words; bad input in one line."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
import typer
import yaml
from tests.report.conftest import HOSTILE
from tests.report.test_browser import BROWSER, USE, dom, root
from tests.report.test_page import Page
from tests.support.brute_damage import loaded_of, some_windows
from tests.support.saved import write_corpus
from typer.testing import CliRunner, Result

from moescope.cli import ablate_cmd
from moescope.cli.verb import VERBS, flagged, resolve
from moescope.errors import BadInputError, MoescopeError
from moescope.intervene import measure_damage, sweep_experts
from moescope.intervene.ablation import ablation_result
from moescope.intervene.damage.measure import make_plan
from moescope.metrics.runs import AnalyzedRun
from moescope.models import LoadedModel
from moescope.report.ablation_page import ablation_page
from moescope.result import read_result

SOURCE = {"corpus": "/home/someone/texts", "run": None, "tokens_per_domain": 2000}

Moescope = Callable[..., Result]


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Moescope:
    """The verb on the tiny model; errors of the library are left to the test."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    app.command("ablate")(VERBS["ablate"].command)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Result:
        given = ["ablate", str(tiny_folder), *map(str, words)]
        return CliRunner().invoke(app, given, catch_exceptions=False)

    return call


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("texts") / "texts.jsonl", documents_per_domain=5)


def command_on(page: str) -> str:
    """The command that makes the page again."""
    found = re.search(r'<pre class="command"[^>]*><code>(.*?)</code>', page)
    assert found
    return unescape(found[1])


class TestFiles:
    def test_a_plan_from_a_file(
        self, ablate: Moescope, texts: Path, tiny_loaded: LoadedModel, tmp_path: Path
    ) -> None:
        make_plan(tiny_loaded, "L3E1,L1E0", "by hand").write(tmp_path / "plan.json")
        out = tmp_path / "out"
        done = ablate(
            "--plan", tmp_path / "plan.json", "--corpus", texts, "--target", "domain1",
            "--controls", "6", "--match", "size", "--window", "40", "-o", out,
        )  # fmt: skip
        assert done.exit_code == 0
        assert "cross-entropy on domain1 changes by" in done.stdout.splitlines()[0]
        assert "domain2" in done.stdout
        found = read_result(out, "ablation")
        assert found.about["trials"] == "plan"
        assert [e["expert"] for e in found.about["experts"]] == ["L1E0", "L3E1"]
        assert found.about["experts"][0]["reason"] == "by hand"
        assert len(found.about["controls"]["plans"]) == 6
        table = found.tables["damage"].to_pandas()
        assert set(table.scope) == {"all", "on-target", "off-target", "domain"}
        assert table.trial.nunique() == 7
        shown = (out / "ablation.html").read_text()
        assert ablation_page(found, command_on(shown)) == shown
        assert yaml.safe_load((out / "config.yaml").read_text())["target"] == ["domain1"]
        assert "could not be drawn" not in (out / "ablation.html").read_text().split("<script")[0]

    def test_a_sweep_over_the_text_of_a_run(
        self, ablate: Moescope, tiny_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        done = ablate("--each", "--layers", "3", "--run", tiny_run.path, "-o", tmp_path / "out")
        assert done.exit_code == 0
        assert "In layer 3" in done.stdout
        assert "rank correlation" in done.stdout
        names = {p.name for p in (tmp_path / "out").iterdir()}
        assert names == {
            "ablation.html", "config.yaml", "correlations.parquet", "each.parquet",
            "measured.jsonl", "moescope.sha256", "result.json",
        }  # fmt: skip
        found = read_result(tmp_path / "out", "ablation")
        assert found.tables["each"].num_rows > 8
        assert found.about["saving"]["layer_share"] == 0
        shown = (tmp_path / "out" / "ablation.html").read_text()
        assert ablation_page(found, command_on(shown)) == shown

    def test_a_run_names_its_model(self, tiny_run: AnalyzedRun) -> None:
        own = str(tiny_run.manifest.model["name"])
        given = {"run": str(tiny_run.path), "each": True}
        assert resolve(ablate_cmd.AblateArgs, given, None).model == own
        assert resolve(ablate_cmd.AblateArgs, {**given, "model": "other"}, None).model == "other"
        with pytest.raises(BadInputError, match="model is missing"):
            resolve(ablate_cmd.AblateArgs, {"corpus": "texts", "each": True, "out": "o"}, None)

    def test_csv_and_json_are_the_whole_table_and_nothing_else(
        self, ablate: Moescope, texts: Path, tmp_path: Path
    ) -> None:
        words = ("--experts", "L3E1", "--corpus", texts, "--controls", "2", "-o", tmp_path / "out")
        done = ablate(*words, "--format", "csv")
        lines = done.stdout.strip().splitlines()
        assert lines[0].startswith("trial,scope,domain,documents,tokens")
        assert len(lines) == 1 + 3 * 4  # plan and two controls; all and three domains
        again = ablate(*words, "--format", "json", "--resume")
        rows = [json.loads(line) for line in again.stdout.strip().splitlines()]
        assert len(rows) == 12
        assert rows[0]["trial"] == "plan"

    def test_settings_from_a_file_and_flags_win(
        self, ablate: Moescope, texts: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "settings.yaml"
        file.write_text(f"corpus: {texts}\nexperts: L3E1\ncontrols: 2\nedit: mask\n")
        out = tmp_path / "out"
        assert ablate("--config", file, "--edit", "scale=0.5", "-o", out).exit_code == 0
        kept = yaml.safe_load((out / "config.yaml").read_text())
        assert (kept["edit"], kept["controls"]) == ("scale=0.5", 2)


BAD = {
    "no experts": (("--corpus", "t", "-o", "o"), "one of --plan FILE, --experts L5E9 or --each"),
    "two ways": (("--experts", "L1E0", "--each", "--corpus", "t", "-o", "o"), "got --experts and"),
    "layers alone": (("--experts", "L1E0", "--layers", "3", "--corpus", "t"), "belongs to --each"),
    "no text": (("--experts", "L1E0", "-o", "o"), "--corpus PATH, or --run RUN"),
    "no folder": (("--experts", "L1E0", "--corpus", "t"), "-o FOLDER"),
    "text flags of a run": (("--each", "--run", "r", "--text-unit", "line"), "--text-unit says"),
    "no such corpus": (("--experts", "L1E0", "--corpus", "none.jsonl", "-o", "o"), "none.jsonl"),
    "no such run": (("--experts", "L1E0", "--run", "none", "-o", "o"), "is not a run"),
    "no such plan": (("--plan", "none.json", "--corpus", "TEXTS", "-o", "o"), "cannot be read"),
    "no such expert": (("--experts", "L9E0", "--corpus", "TEXTS", "-o", "o"), "does not exist"),
    "no such domain": (
        ("--experts", "L1E0", "--corpus", "TEXTS", "--target", "domain", "-o", "o"), "did you mean",
    ),
    "unknown match": (("--each", "--match", "size", "--experts", "x"), "got --experts and --each"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, ablate: Moescope, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, said = BAD[case]
    with pytest.raises(MoescopeError) as caught:
        ablate(*(texts if w == "TEXTS" else w for w in words))
    assert said in flagged(str(caught.value))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o" / "result.json").exists()


def test_an_unknown_setting_is_named_with_its_neighbour(ablate: Moescope, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("contrls: 3")
    with pytest.raises(MoescopeError, match="did you mean controls"):
        ablate("--config", tmp_path / "c.yaml", "--each", "--corpus", "t", "-o", "o")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """One page of each kind, with names that try to break out of it."""
    loaded, windows = loaded_of("olmoe"), some_windows((20, 20, 13, 9, 20, 5, 8, 8, 8, 8))
    hostile = [w._replace(domain=f"{HOSTILE}{w.domain}") for w in windows]
    plan = make_plan(loaded, "L1E0,L3E1", HOSTILE)
    made = {
        "plan": measure_damage(loaded, hostile, plan, targets=[f"{HOSTILE}dom1"]),
        "each": sweep_experts(loaded, hostile, [1, 3]),
        "alone": measure_damage(loaded, [windows[0]], "L1E0", controls=0),
    }
    return {name: ablation_page(ablation_result(r, SOURCE)) for name, r in made.items()}


class TestPage:
    @pytest.mark.parametrize("kind", ["plan", "each", "alone"])
    def test_it_needs_nothing_else_and_names_stay_text(
        self, kind: str, pages: dict[str, str]
    ) -> None:
        page = Page(pages[kind])
        assert page.loads == ["data:,"]
        assert page.policy.startswith("default-src 'none'")
        assert "img" not in page.tags
        assert len(page.ids) == len(set(page.ids))
        assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)
        assert "someone" not in pages[kind]

    @pytest.mark.skipif(BROWSER is None, reason="no chromium here")
    @pytest.mark.parametrize(
        ("kind", "figures"),
        [
            ("plan", ("damage", "loads")),
            ("each", ("ranking", "domains", "rho", "scatter")),
            ("alone", ("damage",)),
        ],
    )
    def test_it_is_drawn_and_survives_use(
        self, kind: str, figures: tuple[str, ...], pages: dict[str, str], tmp_path: Path
    ) -> None:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[kind])
        page = tmp_path / "used.html"
        script = f"<script>{USE.read_text()}</script></body>"
        page.write_text(text.replace("</body>", script), encoding="utf-8")
        shown = dom(page, tmp_path)
        assert 'data-used="yes"' in root(shown)
        assert "data-errors" not in root(shown)
        assert "<title>broken" not in shown
        for figure in figures:
            start = shown.index(f'id="plot-{figure}"')
            drawn = shown[start : shown.index(f'id="table-{figure}"')]
            assert re.search(r'<g aria-label="(?:dot|cell)"[^>]*><(?:circle|path|rect)', drawn)
