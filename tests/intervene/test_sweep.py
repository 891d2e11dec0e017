"""Every expert on its own: importance is measured, scores are what they claim, ρ is honest."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, spearmanr
from tests.support.brute_damage import by_hand, loaded_of, some_windows
from tests.support.planted import planted
from tests.support.replay import replay

from moescope.errors import BadInputError
from moescope.intervene import sweep_experts, zero
from moescope.intervene.answers import saving_sentence
from moescope.intervene.expert_sweep.scores import SCORES, domain_bits, largest_lift
from moescope.intervene.expert_sweep.sweep import ExpertSweep
from moescope.intervene.sweep_answers import sweep_answers, sweep_notes
from moescope.metrics.ranks import rank_correlation, repeatability
from moescope.models.capture import RoutingCapture
from moescope.progress import Progress


@pytest.fixture(scope="module")
def swept() -> ExpertSweep:
    """Two layers of a tiny OLMoE: 8 experts each, 3 per token, two domains."""
    return sweep_experts(loaded_of("olmoe"), some_windows(), [1, 3])


def everywhere(sweep: ExpertSweep) -> dict[str, dict]:
    return {row["name"]: row for row in sweep.ranking()}


class TestImportance:
    def test_every_expert_is_what_brute_force_says(self, swept: ExpertSweep) -> None:
        loaded, windows = loaded_of("olmoe"), some_windows()
        found = everywhere(swept)
        assert len(found) == 16
        for name, row in found.items():
            expected = by_hand(loaded, windows, zero(name))
            tokens = expected.tokens.sum()
            assert row["tokens"] == tokens
            assert row["ce_change"] == pytest.approx(expected.ce_change.sum() / tokens, abs=2e-6)
            assert row["kl"] == pytest.approx(expected.kl.sum() / tokens, abs=2e-6)
            assert row["flips"] == pytest.approx(expected.flips.sum() / tokens)

    def test_domains_have_their_own_denominators(self, swept: ExpertSweep) -> None:
        table = swept.to_pandas()
        one = table[(table.name == "L3E1") & (table.domain == "dom0")].iloc[0]
        expected = by_hand(loaded_of("olmoe"), some_windows(), zero("L3E1"))
        mine = [0, 2, 4]
        assert one.tokens == expected.tokens[mine].sum()
        assert one.ce_change == pytest.approx(
            expected.ce_change[mine].sum() / expected.tokens[mine].sum(), abs=2e-6
        )
        assert np.isnan(one.load)  # scores stand in the rows over all text

    def test_ranks_are_within_the_layer(self, swept: ExpertSweep) -> None:
        rows = swept.ranking()
        for layer in (1, 3):
            mine = [r for r in rows if r["layer"] == layer]
            assert [r["rank"] for r in mine] == [1, 2, 3, 4, 5, 6, 7, 8]
            values = [r["ce_change"] for r in mine]
            assert values == sorted(values, reverse=True)

    def test_the_planted_expert_ranks_first_and_only_on_its_domain(self) -> None:
        made = planted(5)
        assert made.carrier is not None
        sweep = sweep_experts(made.loaded, made.windows, [1])
        first, second = sweep.ranking()[:2]
        assert first["name"] == str(made.carrier)
        assert first["ce_change"] > 5 * abs(second["ce_change"])
        table = sweep.to_pandas()
        rows = table[(table.name == str(made.carrier)) & (table.scope == "domain")]
        assert rows.set_index("domain").ce_change.idxmax() == "d0"
        assert f"In layer 1 {made.carrier} matters most" in " ".join(sweep_answers(sweep))


class TestScores:
    def test_all_of_them_agree_with_a_replay_of_the_layer(self, swept: ExpertSweep) -> None:
        """Outputs computed from the weights, one token at a time, and the definitions."""
        loaded, windows = loaded_of("olmoe"), some_windows()
        layer = next(m for m in loaded.anatomy.layers if m.layer_idx == 3)
        block = loaded.model.get_submodule(layer.site.block)
        kept: list[torch.Tensor] = []
        handle = block.register_forward_pre_hook(lambda _m, args: kept.append(args[0][0]))
        weights, sizes, domains = [], [], []
        with torch.no_grad(), RoutingCapture(loaded.model, [layer.site]) as capture:
            for w in windows:
                loaded.model(input_ids=torch.tensor(w.token_ids[None].astype(np.int64)))
                routing = capture.take()[3]
                for t in np.flatnonzero(w.counted):
                    row_w, row_n = np.zeros(8), np.zeros(8)
                    for e, g in zip(routing.topk_ids[t], routing.topk_weights[t], strict=True):
                        x = kept[-1][t : t + 1]
                        out = replay(block.experts, x, e.view(1, 1), torch.ones(1, 1))
                        row_w[e], row_n[e] = float(g), float(out.norm())
                    weights.append(row_w)
                    sizes.append(row_n)
                    domains.append(w.domain)
        handle.remove()
        weight, size, domain = np.array(weights), np.array(sizes), np.array(domains)
        chosen = (weight > 0).sum(0)
        expected = {
            "load": chosen / chosen.sum(),
            "gate_mass": weight.mean(0),
            "ean_mean": size.sum(0) / chosen,
            "ean_sum": size.sum(0),
            "reap": (weight * size).sum(0) / chosen,
            "contribution": (weight * size).mean(0),
            "router_norm": block.gate.weight.detach().norm(dim=1).numpy(),
            "weight_norm": np.sqrt(
                sum(p.detach().double().flatten(1).pow(2).sum(1).numpy()
                    for p in block.experts.parameters())
            ),
        }  # fmt: skip
        counts = np.stack([(weight[domain == d] > 0).sum(0) for d in ("dom0", "dom1")])
        tokens = np.array([(domain == d).sum() for d in ("dom0", "dom1")])
        expected["lift"] = largest_lift(counts, tokens)
        expected["domain_bits"] = domain_bits(counts, tokens)
        assert set(expected) == set(SCORES)
        found = everywhere(swept)
        for name, values in expected.items():
            mine = [found[f"L3E{e}"][name] for e in range(8)]
            assert mine == pytest.approx(values.tolist(), rel=1e-4), name
        assert [found[f"L3E{e}"]["chosen"] for e in range(8)] == chosen.tolist()

    def test_lift_by_hand(self) -> None:
        """9 of 10 tokens of domain 0, 4 of 20 of domain 1: (9.5/11)/(4.5/21) = 4.03."""
        made = largest_lift(np.array([[9], [4]]), np.array([10, 20]))
        assert made[0] == pytest.approx((9.5 / 11) / (4.5 / 21))

    def test_domain_bits_by_hand(self) -> None:
        """Equal domains: an expert of one of them tells 1 bit, one of both tells nothing."""
        made = domain_bits(np.array([[6, 3, 0], [0, 3, 0]]), np.array([10, 10]))
        assert made[:2].tolist() == [1.0, 0.0]
        assert np.isnan(made[2])

    def test_one_domain_has_neither(self) -> None:
        one = (np.array([[3, 1]]), np.array([10]))
        assert np.isnan(largest_lift(*one)).all()
        assert np.isnan(domain_bits(*one)).all()

    def test_a_family_without_stacked_weights_says_so(self) -> None:
        sweep = sweep_experts(loaded_of("dbrx"), some_windows(), [1])
        assert sweep_answers(sweep)
        weights = [row["weight_norm"] for row in sweep.ranking()]
        noted = any("weight_norm" in note.text for note in sweep_notes(sweep))
        assert noted == bool(np.isnan(weights).all())


class TestCorrelation:
    def test_it_is_spearmans(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=30), rng.integers(0, 6, 30).astype(float)  # with ties
        made = rank_correlation([(x, y)], rng)
        known = spearmanr(x, y)
        assert made.rho == pytest.approx(known.statistic)
        assert made.p == pytest.approx(known.pvalue, abs=0.02)
        assert made.low < made.rho < made.high
        assert made.experts == 30

    def test_layers_that_differ_do_not_pass_for_agreement(self) -> None:
        """Within each layer no link at all, but the second layer has more of both."""
        rng = np.random.default_rng(1)
        layers = [(rng.normal(size=40) + shift, rng.normal(size=40) + shift) for shift in (0, 8)]
        within = rank_correlation(layers, rng)
        pooled = rank_correlation(
            [tuple(np.concatenate(c) for c in zip(*layers, strict=True))], rng
        )
        assert within.low < 0 < within.high
        assert pooled.rho > 0.7

    def test_without_a_link_p_is_small_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(2)
        hits = sum(
            rank_correlation([(rng.normal(size=12), rng.normal(size=12))], rng).p <= 0.05
            for _ in range(60)
        )
        assert hits <= binom.isf(0.005, 60, 0.05)

    def test_nothing_to_rank_is_no_correlation(self) -> None:
        rng = np.random.default_rng(0)
        few = rank_correlation([(np.arange(4.0), np.arange(4.0))], rng)
        even = rank_correlation([(np.ones(9), np.arange(9.0))], rng)
        assert np.isnan([few.rho, few.low, few.p, even.rho, even.p]).all()

    def test_unknown_scores_are_left_out(self) -> None:
        rng = np.random.default_rng(0)
        x = np.array([1.0, 2, 3, 4, 5, 6, np.nan])
        made = rank_correlation([(x, np.array([2.0, 4, 6, 8, 10, 12, -5]))], rng)
        assert made.rho == pytest.approx(1.0)
        assert made.experts == 6

    def test_a_ranking_that_all_documents_share_repeats_and_noise_does_not(self) -> None:
        rng = np.random.default_rng(0)
        tokens, domain = np.full(20, 10), np.arange(20) % 2
        shared = np.tile(np.arange(12.0), (20, 1))
        assert repeatability(shared, tokens, domain, rng) == pytest.approx(1.0)
        noise = rng.normal(size=(20, 12))
        assert abs(repeatability(noise, tokens, domain, rng)) < 0.6
        assert np.isnan(repeatability(noise[:, :4], tokens, domain, rng))

    def test_the_table_has_every_score_on_every_basis(self, swept: ExpertSweep) -> None:
        table = swept.correlations.to_pandas()
        assert set(table.basis) == {"layer", "within layers", "pooled"}
        assert len(table) == 2 * len(SCORES) * (2 + 1 + 1)
        found = everywhere(swept)
        one = table.query("layer == 3 and score == 'reap' and importance == 'ce_change'").iloc[0]
        rows = [found[f"L3E{e}"] for e in range(8)]
        known = spearmanr([r["reap"] for r in rows], [r["ce_change"] for r in rows])
        assert one.rho == pytest.approx(known.statistic)
        both = table.query("basis == 'within layers' and importance == 'kl'").set_index("score")
        each = table.query("basis == 'layer' and importance == 'kl'").groupby("score").rho.mean()
        assert both.rho.sort_index().tolist() == pytest.approx(each.sort_index().tolist())

    def test_the_answer_names_the_best_score_and_what_it_is_worth(self, swept: ExpertSweep) -> None:
        table = swept.correlations.to_pandas()
        mine = table.query("layer == 1 and importance == 'ce_change'").dropna(subset=["rho"])
        best = mine.loc[mine.rho.idxmax()]
        answer = sweep_answers(swept)[0]
        assert answer.startswith("In layer 1 ")
        said = f"ρ = {best.rho:.2f} [{best.low:.2f}, {best.high:.2f}]".replace("-", "−")
        assert said in answer
        assert f"best of {len(mine)} scores" in answer
        clear = best.low > 0 and best.q <= 0.05
        assert ("predicts measured importance best" in answer) == clear
        assert ("no link is shown" in answer) != clear


class TestCost:
    def test_layers_below_and_the_layer_itself_are_not_run_again(self, swept: ExpertSweep) -> None:
        """4 layers of 6 windows × 21 places. Layer 1 on its own: 2 layers above it; layer 3: none.
        8 experts each: at most (8·2 + 8·0) of 16·4 layers, 25 %."""
        saving = swept.saving
        assert saving.trials == 16
        assert saving.layer_tokens_naive == 16 * 4 * 6 * 21
        assert 0 < saving.layer_share <= 0.25
        assert saving.head_tokens < saving.head_tokens_naive
        assert saving.naive_samples >= 3
        assert saving.naive_seconds is not None
        assert saving.max_difference is not None
        assert saving.max_difference < 1e-4
        assert "25 % of the layers × tokens" in saving_sentence(saving) or saving.layer_share < 0.25

    def test_an_interrupted_sweep_ends_in_the_same_numbers(
        self, swept: ExpertSweep, tmp_path: Path
    ) -> None:
        def stop(at: Progress) -> None:
            if at.stage.startswith("measuring, 5/"):
                raise KeyboardInterrupt

        loaded, windows = loaded_of("olmoe"), some_windows()
        with pytest.raises(KeyboardInterrupt):
            sweep_experts(loaded, windows, [1, 3], folder=tmp_path, on_progress=stop)
        kept = (tmp_path / "measured.jsonl").read_text().splitlines()
        assert sum('"trial",' in line for line in kept) == 5
        again = sweep_experts(loaded, windows, [1, 3], folder=tmp_path, resume=True)
        assert again.to_pandas().equals(swept.to_pandas())
        assert again.correlations.to_pandas().equals(swept.correlations.to_pandas())
        lines = (tmp_path / "measured.jsonl").read_text().splitlines()
        assert lines[: len(kept)] == kept
        assert sum('"trial",' in line for line in lines) == 16


def test_a_layer_without_experts_is_refused() -> None:
    with pytest.raises(BadInputError, match="not an MoE layer"):
        sweep_experts(loaded_of("deepseek_v3"), some_windows(), [0])
