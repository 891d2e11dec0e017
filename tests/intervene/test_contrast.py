"""Contrast: rates by hand, planted differences found, random labels not rejected too often."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.saved import WORDS

from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, CorpusError
from moescope.intervene.contrast.compare import contrast
from moescope.intervene.contrast.statistics import (
    DocumentCounts,
    compare_rates,
    rate_difference,
    smallest_p,
    swap_p,
    token_part,
)
from moescope.intervene.steering.settings import parse_setting
from moescope.metrics.statistics import MIN_CLUSTERS, benjamini_hochberg
from moescope.models import LoadedModel
from moescope.models.capture import RoutingCapture
from moescope.run.options import TraceOptions

GREEN = [
    "the green river under old stars", "water boils for tea near a river", "old stars near water",
    "a green river for tea", "tea under green stars", "near the old river a green star",
]  # fmt: skip
COURT = [
    "the court may review a decision", "a plan covers support for living", "the court review",
    "when the plan may cover support", "review a decision when a court", "the plan for support",
]  # fmt: skip


def counts(rows: list[list[int]], tokens: list[int]) -> DocumentCounts:
    return DocumentCounts(np.array(rows, np.int64), np.array(tokens, np.int64))


def noisy(
    rng: np.random.Generator, documents: int, rates: np.ndarray, spread: float = 6.0
) -> DocumentCounts:
    """Documents whose own rates scatter around the given ones: tokens of one are alike."""
    tokens = rng.integers(20, 80, documents)
    own = rng.beta(spread * rates, spread * (1 - rates), size=(documents, rates.size))
    return DocumentCounts(rng.binomial(tokens[:, None], own).astype(np.int64), tokens)


# -- arithmetic


def test_a_difference_pools_tokens_not_documents() -> None:
    with_texts = counts([[4, 0], [16, 3]], [10, 30])
    without = counts([[2, 3], [6, 0]], [20, 20])
    # expert 0: 20/40 − 8/40; expert 1: 3/40 − 3/40
    assert rate_difference(with_texts, without).tolist() == pytest.approx([0.3, 0.0])


def test_swapping_within_pairs_by_hand() -> None:
    """Five pairs of equal length, always 3 against 1: of 32 swaps two are as extreme."""
    a, b = counts([[3]] * 5, [10] * 5), counts([[1]] * 5, [10] * 5)
    p = swap_p(a, b, np.random.default_rng(0), 999)
    assert p[0] == 2 / 32


def test_swaps_are_those_of_brute_force_with_unequal_lengths() -> None:
    rng = np.random.default_rng(3)
    a, b = noisy(rng, 7, np.array([0.5, 0.2, 0.9])), noisy(rng, 7, np.array([0.3, 0.2, 0.8]))
    observed = np.abs(rate_difference(a, b))
    hits = np.zeros(3)
    for swap in itertools.product([False, True], repeat=7):
        s = np.array(swap)
        one, other = (
            DocumentCounts(
                np.where(s[:, None], y.counts, x.counts), np.where(s, y.tokens, x.tokens)
            )
            for x, y in ((a, b), (b, a))
        )
        hits += np.abs(rate_difference(one, other)) >= observed - 1e-9
    assert swap_p(a, b, rng, 999).tolist() == pytest.approx((hits / 2**7).tolist())
    drawn = swap_p(a, b, rng, 100)  # fewer than 2⁷: random swaps
    assert np.abs(drawn - hits / 2**7).max() < 0.2


def test_the_smallest_p_is_reached_by_the_clearest_case() -> None:
    assert smallest_p(5, 5, paired=True, num_tests=1) == 2 / 32
    assert smallest_p(5, 5, paired=False, num_tests=1) == 2 / 252  # C(10, 5), and its mirror
    assert smallest_p(5, 6, paired=False, num_tests=1) == 1 / 462  # C(11, 5), and no mirror
    assert smallest_p(200, 200, paired=False, num_tests=1) == 1 / 1000  # limited by the draws


def test_fewer_documents_than_a_test_needs_give_none() -> None:
    few = MIN_CLUSTERS - 1
    a, b = counts([[3]] * few, [10] * few), counts([[1]] * few, [10] * few)
    for paired in (False, True):
        made = compare_rates(a, b, paired=paired)
        assert np.isnan([made.low[0], made.high[0], made.p[0]]).all()
        assert made.delta[0] == pytest.approx(0.2)


def test_an_expert_that_nobody_chose_is_in_no_test() -> None:
    a, b = counts([[3, 0]] * 6, [10] * 6), counts([[1, 0]] * 6, [10] * 6)
    made = compare_rates(a, b, paired=False)
    assert np.isnan(made.p[1])
    assert np.isfinite(made.p[0])


def test_pairs_are_compared_within_themselves() -> None:
    """Rates differ widely between pairs and by 0.1 within each: the pairing removes the spread."""
    level = np.linspace(0, 40, 12).astype(int)
    more = [4, 5, 6] * 4
    a = counts([[v + m] for v, m in zip(level, more, strict=True)], [50] * 12)
    b = counts([[v] for v in level], [50] * 12)
    apart, together = (compare_rates(a, b, paired=p) for p in (False, True))
    assert 0.08 < together.low[0] < 0.1 < together.high[0] < 0.12
    assert apart.low[0] < 0 < apart.high[0]
    assert together.p[0] < 0.01
    assert apart.p[0] > 0.3


def test_pairs_that_differ_by_the_same_have_no_interval_of_one_point() -> None:
    """Five pairs are no proof that no other would differ by anything else."""
    made = compare_rates(counts([[0]] * 5, [10] * 5), counts([[10]] * 5, [10] * 5), paired=True)
    assert made.delta[0] == -1
    assert made.low[0] < made.high[0]


def test_one_text_against_seven_others_is_no_test() -> None:
    a = counts([[9]] + [[0]] * 7, [10] + [0] * 7)
    b = counts([[0]] + [[1]] * 7, [0] + [10] * 7)
    made = compare_rates(a, b, paired=True)
    assert np.isnan([made.low[0], made.high[0], made.p[0]]).all()


# -- calibration


@pytest.mark.parametrize("paired", [False, True])
def test_random_labels_are_rejected_no_more_often_than_stated(paired: bool) -> None:
    rates = np.full(8, 0.25)
    small = cover = called = 0
    seeds, width = 60, rates.size
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        made = compare_rates(noisy(rng, 15, rates), noisy(rng, 15, rates), paired=paired, seed=seed)
        small += int((made.p <= 0.05).sum())
        cover += int(((made.low <= 0) & (made.high >= 0)).sum())
        called += bool((benjamini_hochberg(made.p) < 0.05).any())
    # 480 tests of size 0.05 would give 24 ± 4.8; percentile intervals of 15 documents fall short
    assert small <= 40
    assert cover / (seeds * width) > 0.88
    assert called <= 8  # of 60 families: 3 expected, 8 is three standard deviations


@pytest.mark.parametrize("paired", [False, True])
def test_a_planted_difference_is_found_and_only_that(paired: bool) -> None:
    base = np.full(12, 0.25)
    planted = base.copy()
    planted[[2, 7]] = [0.55, 0.05]
    found = covered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = compare_rates(
            noisy(rng, 30, planted), noisy(rng, 30, base), paired=paired, seed=seed
        )
        q = benjamini_hochberg(made.p)
        assert q[2] < 0.05
        assert q[7] < 0.05
        assert made.delta[2] > 0 > made.delta[7]
        covered += bool(made.low[2] <= 0.30 <= made.high[2])
        found += int((q < 0.05).sum())
    assert covered >= 16  # of 20 intervals at 95 %: 19 expected, fewer than 16 has odds of 1 in 400
    assert found <= 2 * 20 + 6  # at most 5 % of the called are false, give or take


# -- the part of the tokens


def test_a_difference_that_follows_tokens_is_named_so_by_hand() -> None:
    """Token 7 always goes to expert 0, 8 to expert 1; 9 occurs on one side and is left out."""
    ids = np.array([7, 7, 7, 8, 9]), np.array([7, 8, 8, 8])
    chosen = tuple(np.where(i == 7, 0, 1)[:, None] for i in ids)
    part = token_part(ids, (chosen[0], chosen[1]), 3)
    # over 7 and 8: expert 0 takes 3/4 against 1/4
    assert part.delta_shared.tolist() == [0.5, -0.5, 0.0]
    assert part.by_token.tolist() == [0.5, -0.5, 0.0]
    assert part.shared == (4 / 5, 1.0)


def test_a_difference_beside_the_tokens_is_not_put_down_to_them() -> None:
    """The same tokens on both sides, other experts: nothing for the tokens to explain."""
    ids = np.array([7, 8]), np.array([7, 8])
    part = token_part(ids, (np.array([[0], [0]]), np.array([[1], [1]])), 2)
    assert part.delta_shared.tolist() == [1.0, -1.0]
    assert part.by_token.tolist() == [0.0, 0.0]


def test_both_at_once_by_hand() -> None:
    """x: 3 of 3 against 0 of 1 go to expert 0; y: 0 of 1 against 0 of 3."""
    ids = np.array([1, 1, 1, 2]), np.array([1, 2, 2, 2])
    part = token_part(ids, (np.array([[0], [0], [0], [1]]), np.array([[1], [1], [1], [1]])), 2)
    # measured: 3/4 − 0; pooled rate of x is 3/4, of y 0; mix of x: 3/4 − 1/4
    assert part.delta_shared[0] == 0.75
    assert part.by_token[0] == pytest.approx(0.75 * 0.5)


def test_sets_without_a_common_token_have_no_such_part() -> None:
    part = token_part((np.array([1]), np.array([2])), (np.array([[0]]), np.array([[0]])), 2)
    assert np.isnan(part.by_token).all()
    assert part.shared == (0.0, 0.0)


# -- on a model


def brute_rates(loaded: LoadedModel, texts: list[str]) -> tuple[np.ndarray, int]:
    """Rates of all experts, text by text, without batches, padding or windows."""
    layers = loaded.anatomy.layers
    total = np.zeros(sum(m.num_experts for m in layers))
    tokens = 0
    for text in texts:
        ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        with torch.inference_mode(), RoutingCapture(loaded.model, [m.site for m in layers]) as c:
            loaded.model(ids)
            seen = c.take()
        tokens += ids.shape[1] - 1  # the BOS does not count
        start = 0
        for layer in layers:
            chosen = seen[layer.layer_idx].topk_ids[1:]
            for e in range(layer.num_experts):
                total[start + e] += int((chosen == e).any(-1).sum())
            start += layer.num_experts
    return total / tokens, tokens


def test_rates_are_those_of_brute_force(tiny_loaded: LoadedModel) -> None:
    made = contrast(tiny_loaded, GREEN, COURT)
    green, green_tokens = brute_rates(tiny_loaded, GREEN)
    court, court_tokens = brute_rates(tiny_loaded, COURT)
    assert made.num_tokens == (green_tokens, court_tokens)
    assert made.columns["rate_with"].tolist() == pytest.approx(green.tolist())
    assert made.columns["delta"].tolist() == pytest.approx((green - court).tolist())
    top_k = [m.top_k for m in tiny_loaded.anatomy.layers for _ in range(m.num_experts)]
    assert made.columns["rate_with"].sum() == pytest.approx(
        sum(m.top_k for m in tiny_loaded.anatomy.layers)
    )
    assert len(top_k) == made.to_arrow().num_rows == len(made.to_pandas())


def test_files_give_what_their_texts_give(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in GREEN))
    (tmp_path / "b.txt").write_text("\n".join(COURT))
    made = contrast(
        tiny_loaded,
        CorpusSpec(path=str(tmp_path / "a.jsonl"), domain="with"),
        CorpusSpec(path=str(tmp_path / "b.txt"), text_unit="line"),
    )
    plain = contrast(tiny_loaded, GREEN, COURT)
    assert made.num_documents == (6, 6)
    assert made.columns["delta"].tolist() == plain.columns["delta"].tolist()


def test_of_a_pair_only_the_span_counts(tiny_loaded: LoadedModel) -> None:
    a = ["the old court may review a plan"] * 6
    b = ["the green court may review a list"] * 6
    sizes = [len(tiny_loaded.tokenizer(t[0])["input_ids"]) - 1 for t in (a, b)]
    whole = contrast(tiny_loaded, a, b, paired=True)
    differing = contrast(tiny_loaded, a, b, paired=True, span="differing")
    shared = contrast(tiny_loaded, a, b, paired=True, span="shared")
    assert whole.num_tokens == (6 * sizes[0], 6 * sizes[1])
    for side in (0, 1):
        assert differing.num_tokens[side] + shared.num_tokens[side] == whole.num_tokens[side]
    assert shared.num_tokens[0] == shared.num_tokens[1] > 0
    # the same tokens on both sides: nothing for token identity to explain
    assert np.abs(shared.columns["by_token"]).max() == pytest.approx(0.0, abs=1e-12)
    assert differing.shared_tokens[0] < 1.0


def test_a_span_that_is_empty_is_refused(tiny_loaded: LoadedModel) -> None:
    same = ["the court may review"] * 6
    with pytest.raises(CorpusError, match="no token that its partner lacks"):
        contrast(tiny_loaded, same, same, paired=True, span="differing")


def test_text_against_itself_differs_in_nothing(tiny_loaded: LoadedModel) -> None:
    made = contrast(tiny_loaded, GREEN, GREEN, paired=True)
    assert np.abs(made.columns["delta"]).max() == 0.0
    assert made.proposals == ()
    assert made.settings() == []
    with pytest.raises(BadInputError, match="nothing to steer by"):
        made.plan()


def many(words: list[str], number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=12)) for _ in range(number)]


def test_what_one_half_chose_the_other_half_tests(tiny_loaded: LoadedModel) -> None:
    a, b = many(WORDS[:16], 24, 0), many(WORDS[28:], 24, 1)
    made = contrast(tiny_loaded, a, b, candidates=6)
    assert made.holdout
    assert len(made.proposals) == 6
    sizes = [abs(p.delta_chosen_on) for p in made.proposals]
    assert sizes == sorted(sizes, reverse=True)
    confirmed = [p for p in made.proposals if p.confirmed]
    assert confirmed, "word lists that differ route differently in a random model too"
    # the halves together are the whole: the difference over all texts lies between theirs
    names = made.columns["name"].tolist()
    for p in made.proposals:
        whole = made.columns["delta"][names.index(p.expert)]
        assert min(p.delta, p.delta_chosen_on) - 0.05 <= whole
        assert whole <= max(p.delta, p.delta_chosen_on) + 0.05
    q = benjamini_hochberg(np.array([p.p for p in made.proposals]))
    assert [p.q for p in made.proposals] == q.tolist()


def test_settings_boost_one_side_and_suppress_the_other(tiny_loaded: LoadedModel) -> None:
    a, b = many(WORDS[:16], 24, 0), many(WORDS[28:], 24, 1)
    made = contrast(tiny_loaded, a, b)
    named = {}
    for text in made.settings(1.5):
        setting = parse_setting(text)
        named.update(dict.fromkeys(setting.selectors, setting.value))
    expected = {p.expert: 1.5 if p.boost else -1.5 for p in made.proposals if p.confirmed}
    assert named == expected
    assert expected
    mirrored = contrast(tiny_loaded, b, a)
    assert mirrored.columns["delta"].tolist() == pytest.approx((-made.columns["delta"]).tolist())
    plan = made.plan(1.5)
    assert plan.settings() == made.settings(1.5)
    assert plan.weights_sha256 == tiny_loaded.weights_hash
    json.dumps(made.to_dict(), allow_nan=False)


def test_texts_of_one_kind_confirm_nothing_more_often_than_stated(
    tiny_loaded: LoadedModel,
) -> None:
    """Both sides from the same words: over 20 divisions hardly a candidate is confirmed."""
    texts = many(WORDS, 40, 2)
    confirmed = families = 0
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(texts))
        a, b = ([texts[i] for i in part] for part in (order[:20], order[20:]))
        made = contrast(tiny_loaded, a, b, options=TraceOptions(seed=seed))
        assert made.holdout
        confirmed += sum(p.confirmed for p in made.proposals)
        families += any(p.confirmed for p in made.proposals)
    assert families <= 4  # 1 expected of 20 at a rate of 0.05; more than 4 has odds below 1 in 300
    assert confirmed <= 6


def test_few_texts_say_what_they_cannot_do(tiny_loaded: LoadedModel) -> None:
    four = contrast(tiny_loaded, GREEN[:4], COURT[:4])
    assert not any(p.confirmed for p in four.proposals)
    assert any("Fewer than 5 texts" in n for n in four.notes)
    six = contrast(tiny_loaded, GREEN, COURT)
    assert not six.holdout
    assert any("at best" in n for n in six.notes)
    assert any("same texts" in n for n in six.notes)


def test_a_budget_of_tokens_leaves_whole_texts_out_and_says_so(tiny_loaded: LoadedModel) -> None:
    made = contrast(tiny_loaded, GREEN, COURT, tokens=12)
    assert all(n < 6 for n in made.num_documents)
    assert any("Left out" in n for n in made.notes)
    again = contrast(tiny_loaded, GREEN, COURT, tokens=12)
    assert again.num_tokens == made.num_tokens


def test_what_cannot_be_compared_is_refused(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="`with` has 6, `without` 5"):
        contrast(tiny_loaded, GREEN, COURT[:5], paired=True)
    with pytest.raises(BadInputError, match="needs `paired`"):
        contrast(tiny_loaded, GREEN, COURT, span="shared")
    with pytest.raises(BadInputError, match="at least 10 texts"):
        contrast(tiny_loaded, GREEN, COURT, holdout=True)
    with pytest.raises(CorpusError):
        contrast(tiny_loaded, CorpusSpec(path=str(tmp_path / "none.jsonl")), COURT)
    with pytest.raises(BadInputError, match="MoE layers"):
        contrast(tiny_loaded, GREEN, COURT, layers=[77])
