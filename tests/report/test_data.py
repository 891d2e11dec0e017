"""The dict behind the page: complete, bounded, finite, and honest about what is absent."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.report.conftest import MakeRun
from tests.report.large import InventedRun

from moescope.metrics.runs import AnalyzedRun
from moescope.report.about import label
from moescope.report.cells import MAX_TOP_CELLS, SHOWN, special
from moescope.report.data import MAX_DOMAINS, report_data
from moescope.report.frames import Frame, tidy
from moescope.report.layers import flow
from moescope.report.report_page import render_report
from moescope.report.tokens import MAX_SPANS, SPAN_TOKENS, routes

MEGABYTE = 1_000_000


def size(data: dict[str, Any]) -> int:
    return len(json.dumps(data, allow_nan=False, separators=(",", ":")))


def invented(layers: int, experts: int, top_k: int, domains: int) -> dict[str, Any]:
    return report_data(cast(AnalyzedRun, InventedRun(layers, experts, top_k, domains)))


def cells(**columns: Any) -> Frame:
    """Specialization rows of layer 0, expert 0, 1, …, domain a."""
    count = len(columns["q"])
    base: dict[str, Any] = {
        "layer": np.zeros(count, int),
        "expert": np.arange(count),
        "domain": np.asarray(["a"] * count, dtype=object),
    }
    for name in (
        "tokens", "value", "chance", "others", "lift_over_others", "ci_low", "ci_high", "lift_low",
        "lift_high", "p", "by_token", "beyond_token", "shared_tokens",
    ):  # fmt: skip
        base[name] = np.full(count, 0.5)
    return Frame(base | {k: np.asarray(v, float) for k, v in columns.items()})


class TestNumbers:
    def test_what_is_not_finite_becomes_null(self) -> None:
        assert tidy({"a": [float("nan"), float("inf"), 1.0]}) == {"a": [None, None, 1.0]}

    def test_no_float_has_more_than_four_digits(self) -> None:
        assert tidy(0.123456789) == 0.1235
        assert tidy(np.float32(123456.7)) == 123500.0

    def test_counts_stay_exact(self) -> None:
        assert tidy(np.int64(123456789)) == 123456789

    def test_a_run_gives_json_without_nan(self, tiny_run: AnalyzedRun) -> None:
        text = json.dumps(report_data(tiny_run), allow_nan=False)  # raises on NaN
        assert json.loads(text) == report_data(tiny_run)


def test_no_token_shows_as_an_empty_box(make_run: MakeRun, tiny_corpus: Path) -> None:
    odd = ["\x07", "\ue000", "\u0378", "\u200b", "a\xa0b", "\u0301", "\ufffd\ufffd"]
    run = make_run(tiny_corpus)
    run.__dict__["vocabulary"] = {token: odd[token % len(odd)] for token in range(5000)}
    page = render_report(report_data(run))
    shown = set(json.loads(page.split('id="data">')[1].split("</script>")[0])["texts"].values())
    assert shown == {
        r"\x07", r"\ue000", r"\u0378", r"\u200b", r"a\xa0b", "◌\u0301", "‹bytes›",
    }  # fmt: skip


class TestNames:
    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("allenai/OLMoE-1B-7B-0924", "allenai/OLMoE-1B-7B-0924"),
            ("/home/someone/models/mine", "mine"),
            ("./data/texts.jsonl", "texts.jsonl"),
            ("data/texts.jsonl", "texts.jsonl"),
            (None, ""),
        ],
    )
    def test_folders_of_this_machine_are_not_shown(self, given: str | None, shown: str) -> None:
        assert label(given) == shown


class TestCells:
    def test_used_more_comes_first_by_the_low_end_of_the_lift(self) -> None:
        # both pass; expert 1 has the larger lift but the wider interval
        frame = cells(
            q=[0.01, 0.01],
            value=[0.6, 0.9],
            others=[0.3, 0.3],
            lift_low=[1.8, 1.1],
            lift_high=[2.2, 9],
        )
        assert special(frame, ["a"], {0: 0})["top"]["name"] == ["L0E0", "L0E1"]

    def test_used_less_comes_after_used_more(self) -> None:
        frame = cells(
            q=[0.001, 0.04],
            value=[0.1, 0.4],
            others=[0.5, 0.3],
            lift_low=[0.1, 1.1],
            lift_high=[0.3, 2],
        )
        made = special(frame, ["a"], {0: 0})
        assert made["top"]["name"] == ["L0E1", "L0E0"]
        assert (made["passed"], made["over"], made["under"]) == (2, 1, 1)

    def test_untested_cells_are_not_ranked(self) -> None:
        made = special(cells(q=[np.nan, 0.5], p=[np.nan, 0.4]), ["a"], {0: 0})
        assert (made["cells"], made["tested"], made["passed"]) == (2, 1, 0)
        assert made["top"]["name"] == ["L0E1"]

    def test_marks_are_numbered_through_the_layers(self) -> None:
        made = special(cells(q=[0.5, 0.01, 0.01], value=[0.5, 0.9, 0.1]), ["a"], {0: 100})
        assert made["marks"] == [{"more": [101], "less": [102]}]
        assert (made["more"], made["less"], made["named"]) == ([1], [1], [["L0E1"]])

    def test_every_domain_has_its_own_ten_however_strong_another_is(self) -> None:
        count = 300
        names = np.asarray(["a"] * count * 2 + ["b"] * 24, dtype=object)
        value = np.r_[np.full(count, 0.9), np.full(count, 0.1), np.full(12, 0.6), np.full(12, 0.4)]
        frame = cells(q=np.full(names.size, 0.01), value=value, lift_low=value, lift_high=value)
        frame.columns["domain"] = names
        made = special(frame, ["a", "b"], {0: 0})
        top = list(zip(made["top"]["domain"], made["top"]["used"], strict=True))
        assert top.count(("a", "more")) == top.count(("a", "less")) == made["each"]
        assert top.count(("b", "more")) == top.count(("b", "less")) == 12


class TestPaths:
    def test_the_ways_taken_beyond_independence_by_hand(self) -> None:
        # 100 tokens, K = 1: 50 each, then 60 and 40; independence gives 30, 20, 30, 20
        rows = {
            "layer": [2] * 4, "next_layer": [4] * 4, "expert": [0, 0, 1, 1],
            "next_expert": [0, 1, 0, 1], "count": [45, 5, 15, 35], "chance": [0.6, 0.4, 0.6, 0.4],
        }  # fmt: skip
        frame = Frame({name: np.asarray(column) for name, column in rows.items()})
        (step,) = flow(frame, 100, {2: 1, 4: 1})
        assert (step["layer"], step["next"]) == (2, 4)
        assert step["moved"] == pytest.approx((15 + 15 + 15 + 15) / 2 / 100)
        noise = np.sqrt(2 / np.pi * np.array([30, 20, 30, 20])).sum() / 2 / 100
        assert step["moved_chance"] == pytest.approx(noise, rel=1e-3)
        assert step["top"] == {
            "expert": [0, 1], "next_expert": [0, 1], "share": [0.45, 0.35], "expected": [0.3, 0.2],
        }  # fmt: skip

    def test_independent_layers_move_as_much_as_noise(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 8, 5000), rng.integers(0, 8, 5000)
        count = np.zeros((8, 8), int)
        np.add.at(count, (a, b), 1)
        i, j = np.indices((8, 8)).reshape(2, -1)
        frame = Frame({
            "layer": np.zeros(64, int), "next_layer": np.ones(64, int), "expert": i,
            "next_expert": j, "count": count.ravel(), "chance": np.bincount(b)[j] / 5000,
        })  # fmt: skip
        (step,) = flow(frame, 5000, {0: 1, 1: 1})
        assert step["moved"] == pytest.approx(step["moved_chance"], rel=0.25)

    def test_routes_name_their_commonest_token(self, tiny_run: AnalyzedRun) -> None:
        tokens = tiny_run.tokens("prefill")
        assert tokens is not None
        made = routes(tokens)
        first = np.stack([ids[:, 0] for ids in tokens.ids.values()], axis=1)
        own = (first == made["experts"][0]).all(1)
        assert own.sum() == made["count"][0] == max(made["count"])
        assert (tokens.token_id[own] == made["id"][0]).sum() == made["of_id"][0]
        shares = [(first[:, n] == e).mean() for n, e in enumerate(made["experts"][0])]
        assert made["expected"][0] == pytest.approx(np.prod(shares) * len(first), rel=1e-3)


class TestBounds:
    def test_a_large_model_with_ten_domains_takes_a_few_megabytes(self) -> None:
        data = invented(layers=16, experts=64, top_k=8, domains=10)
        assert size(data) < 4 * MEGABYTE
        assert data["views"]["prefill"]["rates"]["low"] is not None

    def test_a_very_large_model_is_thinned_and_says_so(self) -> None:
        data = invented(layers=60, experts=256, top_k=8, domains=10)
        view = data["views"]["prefill"]
        assert size(data) < 6 * MEGABYTE
        assert view["rates"]["low"] is None  # no intervals
        assert view["expert_tokens"]["kinds"] == ["input"]
        first = view["pairs"][0]
        assert len(first["experts"]) < first["all_experts"] == 256
        assert len(view["special"]["top"]["name"]) == MAX_TOP_CELLS + 10 * SHOWN

    def test_examples_are_few_short_and_of_every_domain(self) -> None:
        data = invented(layers=4, experts=16, top_k=2, domains=7)
        spans = data["views"]["prefill"]["examples"]["spans"]
        assert len(spans) <= MAX_SPANS
        assert all(len(s["ids"]) <= SPAN_TOKENS for s in spans)
        assert len({s["domain"] for s in spans}) == 7

    def test_hundreds_of_domains_are_cut_to_the_largest(self) -> None:
        data = invented(layers=1, experts=4, top_k=1, domains=300)
        assert len(data["views"]["prefill"]["domains"]) == MAX_DOMAINS
        assert any("252 domains" in a["text"] for a in data["alerts"])


class TestWhatIsAbsent:
    def test_a_run_of_sums_says_what_it_cannot_show(self, bare_run: AnalyzedRun) -> None:
        data = report_data(bare_run)
        view = data["views"]["prefill"]
        assert view["examples"] is None
        assert view["information"]["layer"] == []
        assert view["loss"]["loss"] == []
        said = " ".join(a["text"] for a in data["alerts"])
        assert "sums only" in said
        assert "no predictions" in said

    def test_one_domain_makes_no_claim_about_domains(self, one_domain_run: AnalyzedRun) -> None:
        data = report_data(one_domain_run)
        view = data["views"]["prefill"]
        assert view["special"]["tested"] == 0
        assert any("not tested" in s for s in view["short"])
        assert not any("about the domain" in s for s in view["short"])
        assert any("One domain only" in a["text"] for a in data["alerts"])

    def test_text_without_domains_is_shown_as_a_whole(self, unlabelled_run: AnalyzedRun) -> None:
        data = report_data(unlabelled_run)
        assert data["views"]["prefill"]["rates"]["groups"][0] == "all"

    def test_few_documents_are_called_out(self, tiny_run: AnalyzedRun) -> None:
        said = [a["text"] for a in report_data(tiny_run)["alerts"] if a["level"] == "warn"]
        assert any("Few documents" in text for text in said)

    def test_a_router_that_was_not_seen_is_bad_news(self) -> None:
        run = InventedRun(layers=2, experts=4, top_k=1, domains=2)
        run.manifest.coverage["routers_seen"] = 1
        alerts = report_data(cast(AnalyzedRun, run))["alerts"]
        assert alerts[0]["level"] == "bad"
        assert "1 of 2 routers" in alerts[0]["text"]


class TestContent:
    def test_rates_of_a_layer_add_up_to_k(self, tiny_run: AnalyzedRun) -> None:
        data = report_data(tiny_run)
        layer = data["layers"][0]
        for rates in data["views"]["prefill"]["rates"]["rate"]:
            total = sum(rates[: layer["experts"]]) / 10_000
            assert total == pytest.approx(layer["top_k"], abs=0.01)

    def test_every_phase_has_its_view(self, tiny_run: AnalyzedRun) -> None:
        assert list(report_data(tiny_run)["views"]) == ["prefill", "decode"]

    def test_in_short_has_a_handful_of_sentences(self, tiny_run: AnalyzedRun) -> None:
        for view in report_data(tiny_run)["views"].values():
            assert 4 <= len(view["short"]) <= 6

    def test_every_shown_token_has_its_text(self, tiny_run: AnalyzedRun) -> None:
        data = report_data(tiny_run)
        for view in data["views"].values():
            for span in view["examples"]["spans"]:
                assert {str(t) for t in span["ids"]} <= set(data["texts"])
