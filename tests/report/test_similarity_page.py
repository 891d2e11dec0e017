"""The page of a similarity: whole without a network, safe with any text, and it survives use."""

import copy
import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.report.conftest import HOSTILE
from tests.report.test_browser import BROWSER, USE, dom, marks, root
from tests.report.test_page import Page

from moescope.cli import main
from moescope.errors import MissingExtraError
from moescope.metrics.runs import AnalyzedRun
from moescope.models import LoadedModel
from moescope.report import figures
from moescope.report import similarity_data as page_data
from moescope.report.similarity_data import similarity_data
from moescope.report.similarity_figures import write_similarity_figures
from moescope.report.similarity_page import similarity_page, write_similarity_page
from moescope.similarity.compare import SimilarityOptions, compare_experts
from moescope.similarity.result import Similarity, open_similarity

FIGURES = ("depth", "pairs", "nearest", "agreement", "map")

in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


@pytest.fixture(scope="module")
def made(tiny_loaded: LoadedModel, tiny_run: AnalyzedRun) -> Similarity:
    options = SimilarityOptions(tokens=150, window_tokens=20, maps=("pca",), map_points=120)
    return compare_experts(tiny_loaded, tiny_run, options)


@pytest.fixture(scope="module")
def parameters_only(tiny_loaded: LoadedModel) -> Similarity:
    return compare_experts(tiny_loaded, None, SimilarityOptions(methods=("weights", "router")))


@pytest.fixture(scope="module")
def hostile(made: Similarity) -> Similarity:
    """Domains, tokens and a model whose names try to break out of the page."""
    about = copy.deepcopy(made.about)
    about["model"]["name"] = HOSTILE
    about["text"]["corpus"]["path"] = HOSTILE
    for domain in about["text"]["domains"]:
        domain["name"] = HOSTILE + domain["name"]
    about["layers"][0]["notes"] = [HOSTILE]
    about["layers"][0]["undefined"] = {"cka": {"3": HOSTILE}}
    columns = {n: made.maps[n] for n in made.maps.column_names}
    for name in ("domain", "token"):
        columns[name] = pa.array([HOSTILE + v for v in made.maps[name].to_pylist()])
    return Similarity(made.pairs, about, pa.table(columns))


def words(text: str) -> str:
    """What a reader reads without scripts."""
    body = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


class TestSelfContained:
    def test_nothing_is_loaded_and_scripts_are_allowed_by_hash_only(self, made: Similarity) -> None:
        text = similarity_page(made)
        page = Page(text)
        assert page.loads == ["data:,"]
        assert page.policy.startswith("default-src 'none'")
        scripts = page.policy.split("script-src")[1].split(";")[0]
        assert "unsafe" not in scripts
        assert len(re.findall("sha256-", scripts)) == len(re.findall("<script>", text))
        assert "url(" not in text.split("<style>")[1].split("</style>")[0]

    def test_every_figure_has_its_place_and_ids_are_unique(self, made: Similarity) -> None:
        page = Page(similarity_page(made))
        assert {f"plot-{name}" for name in FIGURES} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)

    def test_hostile_text_stays_text(self, hostile: Similarity) -> None:
        text = similarity_page(hostile)
        assert "<img" not in text
        assert "img" not in Page(text).tags
        assert words(text).count("</script><img src=x") == 2  # the note and the reason

    def test_the_same_result_gives_the_same_bytes_also_when_read_back(
        self, made: Similarity, tmp_path: Path
    ) -> None:
        first = write_similarity_page(made, tmp_path / "a.html").read_bytes()
        again = open_similarity(made.save(tmp_path / "out"))
        assert write_similarity_page(again, tmp_path / "b.html").read_bytes() == first

    def test_no_folder_of_this_machine_is_told(self, made: Similarity, tmp_path: Path) -> None:
        text = similarity_page(made)
        assert str(made.about["model"]["name"]) not in text
        assert str(made.about["text"]["run"]) not in text


@pytest.mark.parametrize(
    ("intervals", "above", "below"),
    [
        ([(0.30, 0.40), (0.30, 0.40), (0.01, 0.02)], 2, 1),
        ([(0.01, 0.02), (0.01, 0.02), (0.15, 0.40)], 0, 2),  # the last touches the reference
    ],
)
def test_the_sentence_says_which_layers_are_above_the_shuffled_experts_and_which_below(
    made: Similarity, intervals: list[tuple[float, float]], above: int, below: int
) -> None:
    """Shuffled experts have 0.10 to 0.20: a layer is above or below when its interval is."""
    about = copy.deepcopy(made.about)
    for row in about["summary"]:
        if row["method"] == "cosine":
            row |= {"reference": 0.15, "reference_low": 0.10, "reference_high": 0.20}
            row["mean_low"], row["mean_high"] = 0.12, 0.18
    rows = [r for r in about["summary"] if r["method"] == "cosine"]
    for row, (low, high) in zip(rows, intervals, strict=False):
        row["mean_low"], row["mean_high"] = low, high
    said = words(similarity_page(Similarity(made.pairs, about, made.maps)))
    assert (
        f"the mean is clearly above those in {above} of {len(rows)} layers and clearly below in "
        f"{below}."
    ) in said


class TestData:
    def test_values_are_those_of_the_table_in_thousandths(self, made: Similarity) -> None:
        data = json.loads(Page(similarity_page(made)).data)
        table = made.pairs.to_pandas()
        for method, layers in data["matrices"].items():
            for layer, cells in zip(data["layers"], layers, strict=True):
                own = table[(table.layer == layer["layer"]) & (table.method == method)]
                expected = own.sort_values(["expert_a", "expert_b"])
                assert cells["value"] == np.rint(1000 * expected.value).astype(int).tolist()

    def test_orders_hold_every_shown_expert_once(self, made: Similarity) -> None:
        data = similarity_data(made)
        for orders, shown in zip(data["orders"], data["shown"], strict=True):
            assert set(orders) == {"cosine", "cka", "weights", "router"}
            assert all(sorted(o) == list(range(len(shown))) for o in orders.values())

    def test_points_keep_their_places_and_one_scale_for_both_axes(self, made: Similarity) -> None:
        data = similarity_data(made)
        table = made.maps.to_pandas()
        for layer, drawn in zip(data["layers"], data["maps"], strict=True):
            assert drawn is not None
            own = table[table.layer == layer["layer"]]
            x, y = (np.array(drawn["kinds"]["pca"][axis]) for axis in "xy")
            assert max(np.abs(x).max(), np.abs(y).max()) == 10_000
            factor = np.ptp(x) / np.ptp(own.x)
            assert np.ptp(y) / np.ptp(own.y) == pytest.approx(factor, rel=0.002)
            assert [data["texts"][t] for t in drawn["token"]] == own.token.tolist()

    def test_a_large_model_loses_intervals_first_and_then_its_idle_experts(
        self, made: Similarity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_data, "PAIRS_WITH_INTERVALS", 100)
        assert "low" not in similarity_data(made)["matrices"]["cka"][0]
        assert len(similarity_data(made)["shown"][0]) == 8
        monkeypatch.setattr(page_data, "PAIRS_AT_MOST", 4 * 4 * 10)  # 10 pairs: 5 experts
        data = similarity_data(made)
        used = np.array(made.about["layers"][0]["given"])
        assert len(data["shown"][0]) == 5
        rest = np.setdiff1d(np.arange(8), data["shown"][0])
        assert used[data["shown"][0]].min() >= used[rest].max()
        assert len(data["matrices"]["cka"][0]["value"]) == 10
        assert "The page shows the 5 experts of each layer" in words(similarity_page(made))


class TestWords:
    def test_the_sentences_say_what_the_table_says(self, made: Similarity) -> None:
        text = words(similarity_page(made))
        rows = [r for r in made.about["summary"] if r["method"] == "cka"]
        best = max(rows, key=lambda r: r["max"])
        a, b = best["max_pair"]
        closest = f"L{best['layer']}E{a} and L{best['layer']}E{b} with {best['max']:.3f}"
        assert f"closest are {closest}" in text
        assert "Linear CKA of outputs: the mean over pairs is" in text
        assert "150 tokens of" in text

    def test_without_text_only_parameters_are_spoken_of(self, parameters_only: Similarity) -> None:
        text = words(similarity_page(parameters_only))
        assert "parameters only, no text" in text
        assert "Maps of what experts put out" not in text
        assert "Linear CKA of outputs:" not in text

    def test_what_is_missing_is_said_once_with_its_places(self, made: Similarity) -> None:
        about = copy.deepcopy(made.about)
        for row in about["layers"][:2]:
            row["undefined"] = {"cka": {"3": "its output is zero on every token"}}
        about["layers"][0]["not_computed"] = {"router": "it has no rows"}
        text = words(similarity_page(Similarity(made.pairs, about, made.maps)))
        assert "L0E3, L1E3: without linear CKA of outputs: its output is zero" in text
        assert "layer 0: no cosine of router rows: it has no rows" in text


class TestFigures:
    def test_each_layer_has_its_matrices_and_its_map(
        self, made: Similarity, tmp_path: Path
    ) -> None:
        small = {**made.about, "layers": made.about["layers"][:1]}
        written = write_similarity_figures(Similarity(made.pairs, small, made.maps), tmp_path / "f")
        names = {p.name for p in written}
        assert names == {f"{n}-L0.{s}" for n in ("similarity", "map-pca") for s in ("pdf", "png")}
        assert b"/Type3" not in (tmp_path / "f" / "similarity-L0.pdf").read_bytes()

    def test_hostile_names_are_drawn(self, hostile: Similarity, tmp_path: Path) -> None:
        about = {**hostile.about, "layers": hostile.about["layers"][:1]}
        assert write_similarity_figures(Similarity(hostile.pairs, about, hostile.maps), tmp_path)

    def test_without_matplotlib_the_missing_extra_is_named(
        self, made: Similarity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(figures, "find_spec", lambda _name: None)
        with pytest.raises(MissingExtraError, match=r"moescope\[figures\]"):
            write_similarity_figures(made, tmp_path)


@in_browser
class TestInABrowser:
    def used(self, made: Similarity, folder: Path) -> str:
        """The page after ``use.js``; the policy gives way, as it refuses a foreign script."""
        text = re.sub(
            r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", similarity_page(made)
        )
        page = folder / "used.html"
        script = f"<script>{USE.read_text()}</script></body>"
        page.write_text(text.replace("</body>", script), encoding="utf-8")
        return dom(page, folder)

    def test_everything_is_drawn_without_an_error(self, made: Similarity, tmp_path: Path) -> None:
        text = dom(write_similarity_page(made, tmp_path / "page.html"), tmp_path)
        assert 'data-ready="yes"' in root(text)
        assert "data-errors" not in root(text)
        for figure in {*FIGURES} - {"agreement"}:
            assert marks(text, figure) > 3, figure
        part = text[text.index('id="plot-agreement"') : text.index('id="table-agreement"')]
        cells = re.findall(r'(?s)<g aria-label="cell"[^>]*>(.*?)</g>', part)
        assert cells[0].count("<rect") == 4 * 10  # layers × pairs of five measures
        assert "could not be drawn" not in text.split('id="data"')[0]

    def test_every_control_can_be_used(self, made: Similarity, tmp_path: Path) -> None:
        text = self.used(made, tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert "data-cell" in root(text)

    def test_a_page_of_parameters_is_drawn_too(
        self, parameters_only: Similarity, tmp_path: Path
    ) -> None:
        text = self.used(parameters_only, tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)

    def test_hostile_names_are_shown_as_text(self, hostile: Similarity, tmp_path: Path) -> None:
        text = self.used(hostile, tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert "<title>broken" not in text
        assert "<img" not in re.sub(r'"[^"]*"', '""', text.replace("&quot;", ""))


class TestCommandLine:
    @pytest.fixture
    def moescope(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
        def call(*given: object) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["moescope", *map(str, given)])
            monkeypatch.setenv("COLUMNS", "300")
            capsys.readouterr()
            with pytest.raises(SystemExit) as stopped:
                main.run()
            out, err = capsys.readouterr()
            return int(stopped.value.code or 0), out, err

        return call

    def test_model_and_corpus_give_files_a_page_and_the_closest_pairs(  # type: ignore[no-untyped-def]
        self, moescope, tiny_folder: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        code, out, err = moescope(
            "similarity", tiny_folder, tiny_corpus, "-o", tmp_path / "alike", "--layers", "1,3",
            "--method", "cka", "--method", "router", "--total-tokens", "90",
            "--output-memory", "200MB", "--rows", "2", "--format", "json", "--pdf",
        )  # fmt: skip
        assert code == 0, err
        rows = [json.loads(line) for line in out.splitlines()]
        assert [r["method"] for r in rows] == ["cka", "cka", "router", "router"]
        assert rows[0]["value"] >= rows[1]["value"]
        assert "90 tokens" in err
        found = open_similarity(tmp_path / "alike")
        assert [r["layer"] for r in found.about["layers"]] == [1, 3]
        assert found.about["options"]["memory"] == 200e6
        assert (tmp_path / "alike" / "similarity.html").is_file()
        assert found.maps.num_rows > 0
        figures = {p.name for p in (tmp_path / "alike" / "figures").glob("*.pdf")}
        assert figures == {f"{n}-L{i}.pdf" for n in ("similarity", "map-pca") for i in (1, 3)}

    def test_a_run_alone_brings_model_text_and_place(  # type: ignore[no-untyped-def]
        self, moescope, tiny_run: AnalyzedRun
    ) -> None:
        code, out, err = moescope(
            "similarity", tiny_run.path, "--total-tokens", "60", "--map", "none",
            "--method", "cosine", "--format", "csv",
        )  # fmt: skip
        assert code == 0, err
        assert out.splitlines()[0].startswith("method,a,b,value,ci_low")
        assert open_similarity(tiny_run.path / "similarity").about["text"]["run"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("{model}", "{corpus}"), "say where the results go: -o FOLDER"),
            (("{model}", "-o", "x"), "cosine and cka need text"),
            (("{run}", "--text-field", "body"), "--text-field says how a corpus is read"),
            (("{model}", "{corpus}", "-o", "x", "--layers", "9"), "is not an MoE layer"),
            (("{model}", "{corpus}", "-o", "x", "--output-memory", "lots"), "is not a size"),
            (("{model}", "nothing.jsonl", "-o", "x"), "nothing.jsonl"),
        ],
    )
    def test_bad_input_is_one_line(  # type: ignore[no-untyped-def]
        self, moescope, given: tuple[str, ...], message: str, tiny_folder: Path,
        tiny_corpus: Path, tiny_run: AnalyzedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        places = {"model": tiny_folder, "corpus": tiny_corpus, "run": tiny_run.path}
        code, out, err = moescope("similarity", *(g.format(**places) for g in given))
        assert code == 2
        assert out == ""
        assert message in " ".join(err.split())
        assert "Traceback" not in err


def test_the_points_of_a_map_can_be_read_in_the_units_of_the_outputs() -> None:
    axes = {"x": np.array([-1.0, 3.0, 0.5]), "y": np.array([10.0, 10.5, 11.0])}
    made = page_data._to_square(axes)
    for axis, values in axes.items():
        # whole numbers of reach / 10,000 = 2 / 10,000 around the middle
        read = np.array(made[axis]) * made["unit"] + made["middle"][axis]
        assert np.allclose(read, values, atol=0.0002)
