"""Experts that a domain uses are found and confirmed; where domains are alike, nothing is."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom
from tests.adapt.invented import EXPERTS, LAYERS, InventedRun, drawn

from moescope import confirm_experts, select_experts
from moescope.adapt import confirm
from moescope.adapt.evidence import read_evidence
from moescope.adapt.selection import confirmed_on
from moescope.errors import BadInputError, RunError
from moescope.intervene.contrast.statistics import RateDifferences
from moescope.metrics.runs import AnalyzedRun
from moescope.plan import Plan, PlanEntry, PlanSplit
from moescope.result import Result

TRUTH = {"law": [(0, 2), (1, 7), (2, 5)]}
NAMES = ["L1E2", "L3E7", "L4E5"]
DOMAINS = ["law"] * 40 + ["news"] * 40 + ["plays"] * 40


def planted(seed: int = 0, name: str = "run", **more: Any) -> InventedRun:
    counts = drawn(np.random.default_rng(3), DOMAINS, TRUTH)
    if seed:  # other documents of the same experts
        counts = drawn(np.random.default_rng(3), DOMAINS * 2, TRUTH)[len(DOMAINS) :]
    return InventedRun(counts, DOMAINS, name, **more)


@pytest.mark.parametrize("score", ["lift", "risk-difference"])
def test_planted_experts_are_found_and_confirmed(score: str) -> None:
    found = select_experts(planted(), "law", score=score, per_layer=1)
    rows = {r["name"]: r for r in found.to_arrow().to_pylist()}
    assert sorted(rows) == NAMES
    assert all(r["confirmed"] and r["delta_low"] > 0 for r in rows.values())
    assert np.mean([r["chosen_again"] for r in rows.values()]) > 0.8
    assert sum(r["chosen_by_other_half"] for r in rows.values()) >= 2
    assert "All 3 chosen experts are used more in law than in news, plays" in found.answers[0]
    assert "was not measured" in found.answers[0]
    [own] = [r for r in found.tables["domains"].to_pylist() if r["domain"] == "law"]
    assert (own["role"], own["shared"], own["documents"]) == ("target", 3, 40)


def test_where_domains_are_alike_nothing_is_confirmed_more_often_than_stated() -> None:
    """80 runs of one kind of text under two labels; a family has 6 chosen experts."""
    rng, families, experts, runs = np.random.default_rng(11), 0, 0, 80
    for seed in range(runs):
        domain = ["a"] * 24 + ["b"] * 36
        run = InventedRun(drawn(rng, domain, {}), domain)
        confirmed = select_experts(run, "a", per_layer=2, seed=seed).confirmed
        families, experts = families + (confirmed > 0), experts + confirmed
    assert families <= binom.ppf(0.999, runs, 0.05)
    assert experts / (6 * runs) <= 0.05


def test_the_half_that_chose_has_no_part_in_the_test_nor_the_other_in_the_choice() -> None:
    run = planted()
    plain = select_experts(run, "law", per_layer=2)
    split = plain.plan.split
    assert split == PlanSplit(seed=0, share=0.5, chose="first")
    ids = np.asarray(run.documents["doc"].to_pylist())
    first = np.zeros(len(ids), bool)
    for d in range(3):
        rows = run.cluster_domain == d
        first[rows] = split.first(ids[rows].tolist())
    assert first.sum() == 60
    kept = run._sums.arrays["cluster_counts"].copy()
    rng = np.random.default_rng(0)
    for half, same in ((~first, ("score", "share", "name")), (first, ("rate", "p", "delta"))):
        run._sums.arrays["cluster_counts"] = kept.copy()
        shuffled = rng.permuted(kept[half], axis=2)  # other experts, the same tokens
        run._sums.arrays["cluster_counts"][half] = shuffled
        changed = select_experts(run, "law", per_layer=2)
        if half is first:  # who is chosen changes, the figures of an expert do not
            mine = {r["name"]: r for r in plain.to_arrow().to_pylist()}
            both = [r for r in changed.to_arrow().to_pylist() if r["name"] in mine]
            assert both
            assert all(r["rate"] == mine[r["name"]]["rate"] for r in both)
            assert changed.plan.experts != plain.plan.experts
        else:
            assert all(changed.to_arrow()[c].equals(plain.to_arrow()[c]) for c in same)
            assert not changed.to_arrow()["rate"].equals(plain.to_arrow()["rate"])


def test_what_a_plan_covers_is_counted_on_the_documents_that_test() -> None:
    found = select_experts(planted(), ["law", "news"], against="plays", score="token", per_layer=3)
    covers = found.about["covers"]
    assert (covers["experts"], covers["of"], covers["by_chance"]) == (9, 36, 0.25)
    assert covers["parameters"] == 9 * 100  # an invented expert has 100
    assert covers["target"] > 0.4  # the most used
    assert sum(found.about["documents"].values()) == 120
    assert "9 of 36 experts (25.0 %), 900 of 10,000 parameters (9.0 %)" in " ".join(found.answers)
    assert any("busy everywhere" in note.text for note in found.notes)


def test_a_random_choice_is_the_same_for_one_seed_and_depends_on_no_document() -> None:
    one, again = (select_experts(planted(s), "law", score="random", budget=0.2) for s in (0, 1))
    assert one.plan.experts == again.plan.experts
    assert len(one.plan.experts) == 7  # a fifth of 36
    other = select_experts(planted(), "law", score="random", budget=0.2, seed=1)
    assert other.plan.experts != one.plan.experts
    assert np.isnan(one.to_arrow()["chosen_again"].to_pylist()).all()


def test_gate_mass_is_that_of_the_half_that_chooses() -> None:
    """One layer, four experts: expert 3 gets all weight in one half, expert 0 in the other."""
    domain = ["a"] * 20 + ["b"] * 20
    counts = np.full((40, 1, 4), 5)
    ids = [f"run-{i}" for i in range(40)]
    first = PlanSplit(seed=0).first(ids[:20]) + PlanSplit(seed=0).first(ids[20:])
    weights = np.asarray([[1.0 if (i % 4 == 3) == first[i // 4] else 0.1] for i in range(160)])
    tokens = SimpleNamespace(
        doc=np.repeat(np.arange(40), 4), doc_names=ids,
        ids={1: np.tile(np.arange(4), 40)[:, None]}, weights={1: weights},
    )  # fmt: skip
    run = InventedRun(counts, domain, tokens=tokens)
    found = select_experts(run, "a", score="gate", per_layer=1)
    assert [str(e) for e in found.plan.experts] == ["L1E3"]
    row = found.to_arrow().to_pylist()[0]
    assert row["score"] == pytest.approx(1 / 1.3)
    assert row["score_held_out"] == pytest.approx(0.1 / 3.1)
    assert row["confirmed"] is False  # the counts are all the same


def test_counts_and_gate_mass_of_a_trace_are_those_of_its_documents(tiny_run: AnalyzedRun) -> None:
    found = read_evidence(tiny_run, gate=True)
    rows = tiny_run.documents.to_pylist()
    assert dict(zip(found.keys, found.tokens.tolist(), strict=True)) == {
        r["doc"]: r["tokens"] for r in rows if r["tokens"]
    }
    assert (found.counts.sum(1) == found.tokens * sum(tiny_run.shape.top_k)).all()
    whole = tiny_run.aggregates().arrays["gate_mass"].reshape(len(tiny_run.domains), -1)
    assert found.mass is not None
    for d in range(len(tiny_run.domains)):  # the sample holds all of so small a run
        assert found.mass[found.domain == d].sum(0) == pytest.approx(whole[d], rel=2e-3)


def test_a_run_without_what_a_score_needs_says_so() -> None:
    with pytest.raises(RunError, match="kept aggregates only; trace it with `keep=sample`"):
        select_experts(planted(), "law", score="gate", per_layer=1)
    unknown = planted(absent={"weights": "the server kept none"})
    with pytest.raises(RunError, match="needs the router's weights: the server kept none"):
        select_experts(unknown, "law", score="gate", per_layer=1)
    counted = planted(absent={"tokens": "only counts were caught"})
    with pytest.raises(RunError, match="cannot be halved by documents: only counts"):
        select_experts(counted, "law", per_layer=1)
    with pytest.raises(BadInputError, match="no text of another domain to compare law, news, play"):
        select_experts(planted(), ["law", "news", "plays"], per_layer=1)


def test_a_choice_can_be_written_and_read_and_is_bound_to_its_weights(tmp_path: Path) -> None:
    found = select_experts(planted(), "law", per_layer=1)
    plan = Plan.read(found.plan.write(tmp_path / "plan.json"))
    assert plan == found.plan
    assert plan.weights_sha256 == "w" * 64
    assert plan.found_by["rule"] == {"per_layer": 1}
    assert all("chosen by risk-difference" in str(e.reason) for e in plan.entries)
    json.dumps(found.to_dict(), allow_nan=False)


class TestOtherDocuments:
    @pytest.fixture(autouse=True)
    def _runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Paths of invented runs lead to them."""
        self.there: dict[str, InventedRun] = {"run": planted()}

        def opened(run: Any) -> InventedRun:
            if isinstance(run, InventedRun):
                return run
            if run not in self.there:
                raise RunError(f"{run} is not a run")
            return self.there[run]

        monkeypatch.setattr(confirm, "open_run", opened)
        self.plan = select_experts(planted(), "law", per_layer=1).plan

    def test_the_experts_are_confirmed_there_too(self) -> None:
        found = confirm_experts(planted(1, "other"), self.plan)
        assert found.confirmed == 3
        assert found.about["documents"] == {"confirmed": 120, "left_out": 0}
        assert found.answers[0].startswith("All 3 experts of the plan are used more in law")
        assert not found.notes

    def test_the_same_documents_are_refused(self) -> None:
        with pytest.raises(BadInputError, match="chosen on the documents of run itself"):
            confirm_experts(planted(), self.plan)
        with pytest.raises(BadInputError, match="all 120 documents of copy are among those"):
            confirm_experts(planted(0, "copy"), self.plan)

    def test_documents_that_both_runs_have_are_left_out(self) -> None:
        counts = [r._sums.arrays["cluster_counts"] for r in (planted(), planted(1))]
        both = InventedRun(np.concatenate([counts[0][:50], counts[1]]), DOMAINS[:50] + DOMAINS, "x")
        found = confirm_experts(both, self.plan)
        assert found.about["documents"] == {"confirmed": 120, "left_out": 50}
        alone = confirm_experts(planted(1, "other"), self.plan)
        assert found.to_arrow().equals(alone.to_arrow())
        assert "50 documents took part in the choice: left out." in [n.text for n in found.notes]

    def test_where_that_is_not_known_it_is_said(self) -> None:
        self.there.clear()
        found = confirm_experts(planted(1, "other"), self.plan)
        assert found.confirmed == 3
        assert "cannot be read: run is not a run" in found.notes[0].text

    def test_an_expert_that_is_to_be_suppressed_is_expected_to_be_used_less(self) -> None:
        entries = [PlanEntry(e.expert, setting="-2.0") for e in self.plan.entries]
        less = self.plan.model_copy(update={"entries": tuple(entries), "found_by": {}})
        found = confirm_experts(planted(1, "other"), less, "law")
        assert found.confirmed == 0
        assert "does not say on which documents" in found.notes[0].text
        turned = confirm_experts(planted(1, "other"), less, "news", against=["law"])
        assert turned.confirmed == 3

    def test_a_layer_that_was_not_traced_is_said(self) -> None:
        counts = planted(1)._sums.arrays["cluster_counts"][:, :2]
        plan = self.plan.model_copy(update={"layers": LAYERS[:2], "num_experts": (EXPERTS,) * 2})
        with pytest.raises(BadInputError, match="L4E5 does not exist: layer 4 is not an MoE layer"):
            confirm_experts(InventedRun(counts, DOMAINS, "fewer"), plan)


def swept(folder: Path, change: np.ndarray) -> None:
    """A result of every expert of the first two layers, as `ablate --each` leaves it."""
    rows = [
        {"layer": n, "expert": e, "scope": scope, "domain": domain, "ce_change": float(value),
         "chosen": 9}
        for scope, domain in (("all", "all"), ("domain", "law"))
        for n, values in zip(LAYERS[:2], change, strict=True)
        for e, value in enumerate(values if scope == "domain" else values[::-1])
    ]  # fmt: skip
    identity = {"config_sha256": "c" * 64, "weights_sha256": "w" * 64}
    tables = {"each": pa.Table.from_pylist(rows)}
    Result("ablation", identity, tables, about={"trials": "each"}).save(folder)


@pytest.mark.parametrize("matters", [True, False])
def test_what_a_sweep_in_the_run_measured_stands_in_the_verdict(
    tmp_path: Path, matters: bool
) -> None:
    rng = np.random.default_rng(2)
    change = rng.normal(0, 0.001, (2, EXPERTS))
    if matters:
        change[0, 2] = change[1, 7] = 0.1
    swept(tmp_path / "ablation", change)
    run = planted()
    run.path = tmp_path
    found = select_experts(run, "law", per_layer=1)
    told = found.foretold
    assert told is not None
    assert (told.layers, told.text, told.chosen, told.experts) == (LAYERS[:2], "law", 2, 24)
    assert told.chosen_mean == pytest.approx((change[0, 2] + change[1, 7]) / 2)
    assert told.random_mean == pytest.approx(change.mean())
    if matters:
        assert told.p_random == pytest.approx(1 / 144, rel=0.4)  # the largest of 12, twice
        assert "the model needs them more than as many random experts." in found.answers[0]
    else:
        assert "it is not shown that the model needs them" in found.answers[0]
        assert "the score does not tell which experts matter" in found.answers[1]
    two = select_experts(run, ["law", "news"], per_layer=1).foretold
    assert two is not None
    assert two.text == "all text"


@pytest.mark.parametrize(("sign", "edge"), [(1, -0.003), (1, 0.003), (-1, 0.003), (-1, -0.003)])
def test_an_interval_that_reaches_zero_confirms_nothing(
    sign: int, edge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = (edge, 0.09) if sign > 0 else (-0.09, edge)
    one = [np.array([v]) for v in (0.1, 0.06, 0.04 * sign, *ends, 0.001)]
    found = RateDifferences(*one)
    monkeypatch.setattr("moescope.adapt.selection.compare_rates", lambda *_, **__: found)
    evidence = read_evidence(planted())
    every = np.ones(len(DOMAINS), np.bool_)
    made = confirmed_on(evidence, np.array([0]), every, every, np.array([sign]), seed=0)
    assert made.q[0] < 0.05
    assert bool(made.confirmed[0]) == (edge * sign > 0)


@pytest.mark.parametrize("given", [5, [5], "law", {"law": 1}])
@pytest.mark.parametrize("what", ["domains", "against"])
def test_a_plan_that_was_edited_by_hand_is_refused_in_words(what: str, given: Any) -> None:
    plan = select_experts(planted(), "law", budget=0.05).plan
    edited = plan.model_copy(update={"found_by": {**plan.found_by, what: given}})
    with pytest.raises(BadInputError, match=f"found_by.{what}: expected a list of names, got"):
        confirm_experts(planted(1, "other"), edited)


def test_where_it_is_not_known_which_documents_chose_the_verdict_says_so() -> None:
    run = planted()
    plan = select_experts(run, "law", budget=0.05).plan
    by = {name: value for name, value in plan.found_by.items() if name != "fingerprint"}
    made = confirm_experts(run, plan.model_copy(update={"found_by": by}))
    assert "some of which may have chosen them" in made.answers[0]
