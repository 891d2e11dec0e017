"""The page of a training run: live while it runs, whole without a network, safe with any text."""

import copy
import html
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import HOSTILE
from tests.report.test_browser import BROWSER, USE, dom, root
from tests.report.test_page import Page

from moescope.report.training_data import POINTS
from moescope.report.training_page import training_page, write_training_page
from moescope.words import printable

LAYERS, EXPERTS, TOP_K = 3, 8, 2
DOMAINS = ["code", "math", "web-forum"]
FIGURES = (
    "loss", "domains", "final", "routing", "loads", "history", "noise", "aux",
    "dropped", "drops", "optimizer", "throughput",
)  # fmt: skip

in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


def run(steps: int = 200, status: str = "running") -> dict[str, Any]:
    """A run as the trainer describes it: every number follows from its step."""
    at = list(range(1, steps + 1))
    fall = [math.exp(-s / 50) for s in at]
    logged = [s for s in at if s % 10 == 0 or steps < 10]
    cells = [(s, n) for s in logged for n in range(LAYERS)]
    told = [(s, i, name) for s in logged[::5] for i, name in enumerate(DOMAINS)]
    return {
        "name": "small-olmoe",
        "status": status,
        "message": None,
        "refresh_seconds": 15,
        "about": "Look for a load that stays even.",
        "recipe": {
            "seed": 7, "train.learning_rate": 0.002, "data.context": 512,
            "router.kind": "noisy_topk", "router.noise": True, "model.num_experts": 8,
            "model.top_k": 2, "balance.importance": 0.1, "balance.load_balancing.start": 0.1,
            "balance.load_balancing.end": 0.01, "capacity": None,
        },
        "notes": ["capacity applies in training only; the saved model routes without it"],
        "model": {
            "architecture": "olmoe", "parameters": 1_234_567, "active_parameters": 345_678,
            "num_experts": EXPERTS, "top_k": TOP_K, "layers": list(range(LAYERS)),
        },
        "progress": {
            "step": steps, "total_steps": 400, "tokens": steps * 2048, "total_tokens": 819_200,
            "tokens_per_second": 5312.4, "seconds": 77.0, "seconds_left": 4000.0,
        },
        "steps": {
            "step": at, "tokens": [s * 2048 for s in at], "loss": [3 + 6 * f for f in fall],
            "load_balancing_loss": [1 + f for f in fall], "router_z_loss": [4 + f for f in fall],
            "importance_loss": [None] * steps, "learning_rate": [0.002] * steps,
            "gradient_norm": [1 + f for f in fall], "tokens_per_second": [5312.4] * steps,
            "dropped_share": [0.1 * f for f in fall],
        },
        "layers": {
            "step": [s for s, _ in cells], "layer": [n for _, n in cells],
            "cv": [0.1 * (n + 1) for _, n in cells],
            "max_violation": [0.5 * (n + 1) for _, n in cells],
            "load_entropy": [0.9 for _ in cells], "router_entropy": [0.8 for _ in cells],
            "dead_share": [n / EXPERTS for _, n in cells], "dropped_share": [0.01 for _ in cells],
            "saturation": [0.7 if s % 50 == 0 else None for s, _ in cells],
            "noise_scale": [0.7 - 0.01 * n for _, n in cells],
            "load": [[0.0, 0.25, *[0.125] * 6] for _ in cells],
        },
        "domains": {
            "step": [s for s, _, _ in told], "domain": [name for _, _, name in told],
            "tokens": [100 * (i + 1) for _, i, _ in told], "loss": [3.0 + i for _, i, _ in told],
            "unigram": [6.0 for _ in told],
        },
        "checkpoints": [
            {"step": 40, "share": 0.1, "path": "/home/someone/run/step-40", "kept": True}
        ],
        "drops": {"positions": ["0–255", "256–511"], "share": [0.01, 0.05]},
    }  # fmt: skip


def fresh() -> dict[str, Any]:
    """A run before its first logged step, in the two ways of saying that there is nothing."""
    empty = {"step": [], "layer": [], "domain": [], "loss": []}
    return {
        **run(), "steps": None, "layers": dict(empty), "domains": dict(empty), "progress": None,
        "checkpoints": [], "drops": None,
    }  # fmt: skip


def hostile() -> dict[str, Any]:
    data = run()
    data["domains"]["domain"] = [f"{HOSTILE}{name}" for name in data["domains"]["domain"]]
    data["model"]["architecture"] = HOSTILE
    data["checkpoints"][0]["path"] = HOSTILE
    data["drops"]["positions"] = [f"{HOSTILE}{p}" for p in data["drops"]["positions"]]
    return {
        **data, "name": HOSTILE, "message": HOSTILE, "notes": [HOSTILE],
        "recipe": {f"{HOSTILE}.{HOSTILE}": HOSTILE, "data.list": [HOSTILE]},
    }  # fmt: skip


def embedded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(text).data)
    return found


def words(text: str) -> str:
    """What a reader reads without scripts."""
    body = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


class TestSelfContained:
    def test_nothing_is_loaded_and_scripts_are_allowed_by_hash_only(self) -> None:
        text = training_page(run())
        page = Page(text)
        assert page.loads == ["data:,"]
        assert page.policy.startswith("default-src 'none'")
        scripts = page.policy.split("script-src")[1].split(";")[0]
        assert "unsafe" not in scripts
        assert len(re.findall("sha256-", scripts)) == len(re.findall("<script>", text))
        assert "url(" not in text.split("<style>")[1].split("</style>")[0]

    def test_every_figure_has_its_place_and_ids_are_unique(self) -> None:
        page = Page(training_page(run()))
        assert {f"plot-{name}" for name in FIGURES} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert {a.removeprefix("#") for a in page.anchors} <= set(page.ids)

    def test_hostile_text_stays_text(self) -> None:
        text = training_page(hostile())
        page = Page(text)
        assert "<img" not in text
        assert "img" not in page.tags
        assert embedded(text)["domains"]["names"][0].startswith(printable(HOSTILE))
        assert words(text).count("</script><img src=x") >= 6

    def test_the_same_data_gives_the_same_bytes_and_is_left_alone(self, tmp_path: Path) -> None:
        data = run()
        before = copy.deepcopy(data)
        first = write_training_page(data, tmp_path / "new" / "1.html").read_bytes()
        assert write_training_page(data, tmp_path / "2.html").read_bytes() == first
        assert data == before
        assert not list(tmp_path.rglob("*.partial"))

    def test_half_a_surrogate_pair_in_a_path_can_be_written(self, tmp_path: Path) -> None:
        data = {**run(), "notes": ["file \udc80"]}
        assert r"file \udc80" in write_training_page(data, tmp_path / "page.html").read_text(
            "utf-8"
        )

    def test_folders_of_this_machine_stay_out(self) -> None:
        data = run()
        data["recipe"]["data.train.path"] = "/home/someone/texts/train.jsonl"
        text = training_page(data)
        assert "someone" not in text
        assert "train.jsonl" in words(text)
        assert "step-40" in words(text)


class TestRefresh:
    def test_a_running_page_looks_again(self) -> None:
        text = training_page({**run(), "refresh_seconds": 7})
        assert '<meta http-equiv="refresh" content="7">' in text
        assert embedded(text)["refresh"] == 7

    @pytest.mark.parametrize("status", ["finished", "stopped"])
    def test_an_ended_one_does_not(self, status: str) -> None:
        text = training_page(run(status=status))
        assert 'http-equiv="refresh"' not in text
        assert embedded(text)["refresh"] is None
        assert "left" not in words(text).split("Where it stands")[0]

    def test_why_it_stopped_is_said_aloud(self) -> None:
        text = training_page({**run(status="stopped"), "message": "the loss is NaN at step 201"})
        assert "Stopped. the loss is NaN at step 201" in words(text)
        assert 'role="alert"' in text

    def test_another_status_is_refused(self) -> None:
        with pytest.raises(ValueError, match="running, finished, stopped"):
            training_page({**run(), "status": "done"})


class TestNumbers:
    def test_the_head_says_how_far_it_is(self) -> None:
        said = words(training_page(run()))
        assert "step 200 of 400" in said
        assert "410 k of 819 k tokens" in said
        assert "5,312 tokens per second" in said
        assert "1 min so far about 1 h 7 min left" in said
        assert "olmoe · 1.23 M parameters (346 k at work per token) · 3 MoE layers" in said

    def test_cards_name_the_worst_layer_and_the_dead_experts(self) -> None:
        said = words(training_page(run()))
        # MaxVio 0.5, 1.0, 1.5 in layers 0 to 2; dead 0, 1 and 2 of 8
        assert "1.50 largest MaxVio, of layer 2" in said
        assert "3 of 24 experts dead: no token of step 200 chose them" in said

    def test_the_heldout_mean_is_weighted_by_tokens(self) -> None:
        # (100·3 + 200·4 + 300·5)/600 = 2600/600; the unigram model has 6 everywhere
        last = embedded(training_page(run()))["domains"]["last"]
        assert last["mean"] == pytest.approx(2600 / 600, abs=1e-4)
        assert last["unigram"] == 6
        assert "1.667 less than the unigram model's 6.000" in words(training_page(run()))

    def test_a_domain_missing_from_an_evaluation_counts_in_neither_mean(self) -> None:
        data = run()
        data["domains"]["loss"][-1] = None
        data["domains"]["unigram"][-1] = 9.0
        last = embedded(training_page(data))["domains"]["last"]
        assert last["mean"] == pytest.approx(1100 / 300, abs=1e-4)
        assert last["unigram"] == 6

    def test_the_cv_to_expect_by_chance_is_told_where_tokens_are(self) -> None:
        data = run()
        assert embedded(training_page(data))["routing"]["cv_chance"] is None
        data["layers"]["tokens"] = [300] * len(data["layers"]["step"])
        # sqrt((1 - 2/8) / (300 * 2/8)) = sqrt(0.75 / 75) = 0.1
        assert embedded(training_page(data))["routing"]["cv_chance"] == 0.1

    def test_what_is_not_finite_is_absent(self) -> None:
        data = run(status="stopped")
        data["steps"]["loss"][-1] = math.nan
        data["steps"]["gradient_norm"] = [math.inf] * 200
        found = embedded(training_page(data))["steps"]
        assert found["loss"][-1] is None
        assert "gradient_norm" not in found

    def test_of_a_repeated_step_the_last_row_counts(self) -> None:
        data = run(3)
        data["steps"] = {"step": [1, 2, 3, 2], "loss": [4.0, 3.0, 9.0, 2.0]}
        found = embedded(training_page(data))["steps"]
        assert (found["step"], found["loss"]) == ([1, 2, 3], [4.0, 2.0, 9.0])

    def test_columns_of_unequal_length_are_refused(self) -> None:
        data = run()
        data["steps"]["loss"].pop()
        with pytest.raises(ValueError, match="column loss has 199 rows, expected 200"):
            training_page(data)


class TestKnobs:
    def test_the_head_names_what_decides_the_routing(self) -> None:
        said = words(training_page(run()))
        assert (
            "router noisy_topk with noise experts 8, top-2 balancing load_balancing 0.1 to 0.01, "
            "importance 0.1 capacity no limit learning rate 0.002 seed 7"
        ) in said
        assert "Look for a load that stays even." in said

    def test_what_a_page_of_before_does_not_know_is_left_out(self) -> None:
        text = training_page({**run(), "recipe": {"train.steps": 3}, "about": None})
        assert 'class="knobs"' not in text


class TestThinning:
    def test_the_load_of_every_expert_is_means_over_blocks_of_steps(self) -> None:
        data = run()
        # 100 steps of one layer are 50 blocks of 2; E0 has all of the even steps
        steps = list(range(1, 101))
        data["layers"] = {
            "step": steps, "layer": [0] * 100,
            "load": [[1.0, 0.0] if s % 2 == 0 else [0.5, 0.5] for s in steps],
        }  # fmt: skip
        found = embedded(training_page(data))["loads"]
        assert (found["each"], len(found["steps"])) == (2, 50)
        assert found["history"][0] == [[1.5, 0.5]]  # (1 + 2)/2 and (1 + 0)/2 of an even load
        assert (found["step"], found["load"]) == (100, [[1.0, 0.0]])

    def test_a_short_run_is_drawn_whole(self) -> None:
        found = embedded(training_page(run()))["steps"]
        assert found["each"] == 1
        assert len(found["loss"]) == 200

    def test_a_long_run_becomes_means_that_say_what_they_span(self) -> None:
        data = run()
        count = 4 * POINTS + 2  # blocks of 5; the last one holds the 2 rows that are left
        at = list(range(1, count + 1))
        loss = [float(s) for s in at]
        loss[1] = None  # type: ignore[call-overload]
        data["steps"] = {
            "step": at, "tokens": [1_000_003 * s for s in at], "loss": loss, "gradient_norm": at,
        }  # fmt: skip
        found = embedded(training_page(data))["steps"]
        assert found["each"] == 5
        assert found["logged"] == count
        assert len(found["loss"]) == math.ceil(count / 5) <= POINTS
        assert (found["from"][0], found["to"][0], found["step"][0]) == (1, 5, 3)
        assert found["loss"][0] == (1 + 3 + 4 + 5) / 4
        assert found["tokens"][0] == 3_000_009
        assert found["gradient_norm_max"][0] == 5
        assert (found["from"][-1], found["to"][-1], found["loss"][-1]) == (4001, 4002, 4001.5)

    def test_many_layers_are_thinned_too_and_the_latest_numbers_stay(self) -> None:
        data = run()
        cells = [(s, n) for s in range(1, 1001) for n in range(40)]
        data["layers"] = {
            "step": [s for s, _ in cells], "layer": [n for _, n in cells],
            "cv": [float(s) for s, _ in cells],
        }  # fmt: skip
        found = embedded(training_page(data))["routing"]
        # 15000 values over 40 layers are 375 points: means over 3 steps, (1 + 2 + 3)/3 = 2
        assert found["each"] == 3
        assert found["measures"]["cv"][0] == [2.0] * 40
        assert found["last"]["cv"] == {"step": 1000, "values": [1000.0] * 40}


class TestEmpty:
    def test_before_the_first_step_it_says_so(self) -> None:
        text = training_page(fresh())
        assert "No step has been logged yet." in words(text)
        assert "every 15 seconds" in words(text)
        assert not [i for i in Page(text).ids if i.startswith("plot-")]
        assert "capacity applies in training only" in words(text)

    def test_only_name_and_status_are_needed(self) -> None:
        assert "ended before its first" in words(
            training_page({"name": "bare", "status": "stopped"})
        )

    def test_without_an_evaluation_it_says_so(self) -> None:
        said = words(training_page({**run(), "domains": None}))
        assert "No held-out evaluation has been made yet." in said


def used(data: dict[str, Any], folder: Path, script: str | None = None) -> Path:
    """The page after a script; the policy gives way, as it rightly refuses a foreign one."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", training_page(data))
    page = folder / "used.html"
    added = f"<script>{USE.read_text() if script is None else script}</script></body>"
    page.write_text(text.replace("</body>", added), encoding="utf-8")
    return page


def lines(text: str, figure: str) -> int:
    start = text.index(f'id="plot-{figure}"')
    part = text[start : text.index(f'id="table-{figure}"')]
    return len(re.findall(r'(?s)<g aria-label="line"[^>]*>.*?<path', part))


def patient(page: Path, folder: Path) -> str:
    """The root element after ten seconds of the page's own time."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1100,900", f"--user-data-dir={folder / 'profile'}", "--dump-dom",
        "--virtual-time-budget=10000",
    ]  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *flags, page.as_uri()], capture_output=True, timeout=180, check=True
    )
    return root(done.stdout.decode("utf-8", "replace"))


@in_browser
class TestInTheBrowser:
    @pytest.mark.parametrize("status", ["running", "finished"])
    def test_everything_is_drawn_under_the_policy(self, status: str, tmp_path: Path) -> None:
        page = write_training_page(run(status=status), tmp_path / "page.html")
        text = dom(page, tmp_path)
        assert 'data-ready="yes"' in root(text)
        assert "data-errors" not in root(text)
        drawn = ("loss", "domains", "routing", "noise", "aux", "dropped", "optimizer", "throughput")
        for figure in drawn:
            assert lines(text, figure) > 0, figure
        assert f'data-marks="{LAYERS * EXPERTS}"' in text
        assert text.count(f'data-marks="{EXPERTS * 20}"') == LAYERS  # 20 logged steps
        assert ("looks again in" in text.split('id="data"')[0]) == (status == "running")

    @pytest.mark.parametrize(
        "data",
        [fresh(), run(1), run(12), {**run(), "model": None}, {**run(), "steps": None},
         {"name": "bare", "status": "finished"}],
        ids=["nothing", "one step", "twelve steps", "no model", "no steps", "bare"],
    )  # fmt: skip
    def test_a_run_that_lacks_something_is_drawn_too(
        self, data: dict[str, Any], tmp_path: Path
    ) -> None:
        text = dom(used(data, tmp_path), tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)

    def test_every_control_can_be_used_with_hostile_names(self, tmp_path: Path) -> None:
        text = dom(used(hostile(), tmp_path), tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert "<title>broken" not in text
        assert "<img" not in re.sub(r'"[^"]*"', '""', text.replace("&quot;", ""))

    def test_a_reload_finds_the_page_as_it_was_left(self, tmp_path: Path) -> None:
        script = """
          const told = document.documentElement.dataset;
          if (!sessionStorage.getItem("seen")) {
            sessionStorage.setItem("seen", "yes");
            M.set({ routing: "saturation", scale: "log", shown: ["math"] });
            M.id("table-loads").open = true;
            window.scrollTo({ top: 900, behavior: "instant" });
            setTimeout(() => location.reload(), 100);
          } else setTimeout(() => {
            const { routing, scale, shown } = M.state;
            const cell = M.id("table-loads").querySelector("td").textContent;
            told.found = [routing, scale, shown, Math.round(scrollY), cell].join("|");
          }, 200);"""
        assert 'data-found="saturation|log|math|900|L0E0"' in patient(
            used(run(), tmp_path, script), tmp_path
        )

    def test_it_reloads_by_itself_until_it_is_paused(self, tmp_path: Path) -> None:
        script = """
          const loads = Number(sessionStorage.getItem("loads") || 0) + 1;
          sessionStorage.setItem("loads", loads);
          const told = document.documentElement.dataset;
          told.loads = loads;
          if (loads === 2) document.querySelector("#reload button").click();
          told.said = document.querySelector("#reload .when").textContent;"""
        found = patient(used({**run(), "refresh_seconds": 2}, tmp_path, script), tmp_path)
        assert 'data-loads="2"' in found
        assert 'data-said="not looking again"' in found
