"""Arrays of a profile by hand: intervals, token lists, vocabulary, partners, halves, cells."""

import numpy as np
import pyarrow as pa
import pytest

from moescope.errors import BadInputError
from moescope.metrics.intervals import lift_interval, ratio_interval
from moescope.profiles.cells import Cells, half_of_documents, spread
from moescope.profiles.partners import MIN_PAIR_COUNT, strongest_partners
from moescope.profiles.tokens_in import list_overlap, top_tokens, vocabulary_of_experts
from moescope.run.aggregates import AggregateShape

CELLS = Cells.of(AggregateShape(layers=(1, 3), num_experts=(4, 2), top_k=(2, 1)))


class TestCells:
    def test_experts_are_numbered_through_the_layers(self) -> None:
        assert CELLS.total == 6
        assert [str(CELLS.ref(c)) for c in range(6)] == [
            "L1E0", "L1E1", "L1E2", "L1E3", "L3E0", "L3E1",
        ]  # fmt: skip
        assert CELLS.named(str(CELLS.ref(c)) for c in range(6)) == list(range(6))
        assert CELLS.of_layer(CELLS.layers[1]) == slice(4, 6)

    @pytest.mark.parametrize(
        ("name", "says"),
        [("L3E2", "layer 3 of .* has experts E0 to E1"), ("L2E0", "its MoE layers are 1, 3")],
    )
    def test_an_expert_that_is_not_there_is_refused(self, name: str, says: str) -> None:
        with pytest.raises(BadInputError, match=says):
            CELLS.named([name])

    def test_a_table_is_spread_whatever_the_order_of_its_rows(self) -> None:
        rows = [("prefill", n, e, d) for n, s in ((1, 4), (3, 2)) for e in range(s) for d in "ba"]
        rows.append(("decode", 1, 0, "a"))
        order = np.random.default_rng(0).permutation(len(rows))
        value = [10 * n + e + (0.5 if d == "b" else 0) for _, n, e, d in rows]
        table = pa.table({
            "phase": [rows[i][0] for i in order], "layer": [rows[i][1] for i in order],
            "expert": [rows[i][2] for i in order], "domain": [rows[i][3] for i in order],
            "x": [float(value[i]) if rows[i][0] == "prefill" else -1.0 for i in order],
        })  # fmt: skip
        made = spread(table, "prefill", "x", CELLS, ["a", "b", "c"])
        assert made[0].tolist() == [10, 11, 12, 13, 30, 31]
        assert made[1].tolist() == [10.5, 11.5, 12.5, 13.5, 30.5, 31.5]
        assert np.isnan(made[2]).all()


def test_halves_alternate_within_a_domain_whatever_the_order() -> None:
    names, domains = ["d", "a", "c", "b", "e"], [0, 0, 0, 0, 1]
    made = dict(zip(names, half_of_documents(names, domains).tolist(), strict=True))
    assert made == {"a": 0, "b": 1, "c": 0, "d": 1, "e": 0}
    turned = half_of_documents(names[::-1], domains[::-1])[::-1]
    assert turned.tolist() == [made[n] for n in names]


class TestIntervals:
    def test_equal_documents_leave_nothing_to_doubt(self) -> None:
        domain = np.zeros(8, np.int64)
        low, high = ratio_interval(np.full((8, 1), 3.0), np.full((8, 1), 4.0), domain)
        assert low[0] == high[0] == pytest.approx(0.75)

    def test_few_documents_give_no_interval(self) -> None:
        bottom = np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0]], float)
        domain = np.zeros(5, np.int64)
        low, high = ratio_interval(np.ones((5, 2)), bottom, domain)
        assert np.isfinite([low[0], high[0]]).all()  # five documents
        assert np.isnan([low[1], high[1]]).all()  # four with any assignment

    def test_the_interval_covers_the_truth_about_as_often_as_stated(self) -> None:
        rng, covered = np.random.default_rng(2), 0
        for _ in range(200):
            own = rng.beta(2, 6, 40)  # every document has a mood of its own, mean 1/4
            bottom = rng.integers(20, 60, 40).astype(float)
            top = rng.binomial(bottom.astype(int), own).astype(float)
            domain = np.zeros(40, np.int64)
            low, high = ratio_interval(top[:, None], bottom[:, None], domain)
            covered += bool(low[0] <= 0.25 <= high[0])
        assert 178 <= covered <= 199  # 190 stated; by tokens it would be far below

    def test_the_lift_of_independent_experts_is_about_one(self) -> None:
        rng = np.random.default_rng(4)
        tokens = np.full(60, 200)
        one, other = rng.random((60, 200)) < 0.3, rng.random((60, 200)) < 0.5
        sums = [x.sum(1)[:, None].astype(float) for x in (one & other, one, other)]
        domain = np.zeros(60, np.int64)
        low, high = lift_interval(*sums, tokens.astype(float), domain)
        assert low[0] < 1 < high[0]
        assert high[0] - low[0] < 0.1

    def test_an_expert_that_is_missing_from_many_resamples_gets_none(self) -> None:
        one = np.zeros((30, 1))
        one[:5] = 1.0  # five documents: allowed, and absent from (25/30)^30 = 0.4 % of resamples
        domain = np.zeros(30, np.int64)
        tokens = np.ones(30)
        assert np.isfinite(lift_interval(one, one, np.ones((30, 1)), tokens, domain)[0])
        rare = np.where(np.arange(30)[:, None] < 5, np.array([[1e-3]]), 0.0)
        assert np.isnan(lift_interval(rare, one * 0, np.ones((30, 1)), tokens, domain)[0])


class TestTokensIn:
    # K = 1; 100 tokens: x 40 times, y 50 times, z 10 times
    IDS = np.array([5, 7, 9])
    COUNTS = np.array([[30, 10], [10, 40], [10, 0]])

    def test_share_and_lift_by_hand(self) -> None:
        made = top_tokens(self.IDS, self.COUNTS, top_k=1, rows=3)
        # expert 0 served 50 of 100: rate 1/2. Surplus x: 30 − 20 = 10, z: 10 − 5 = 5, y: < 0
        assert made.ids[0].tolist() == [5, 9, -1]
        assert made.share[0, :2].tolist() == [30 / 50, 10 / 50]
        assert made.of_token[0, :2].tolist() == [30 / 40, 1.0]
        assert made.lift[0, :2].tolist() == [1.5, 2.0]
        assert made.ids[1].tolist() == [7, -1, -1]
        assert made.lift[1, 0] == pytest.approx(0.8 / 0.5)

    def test_the_minimum_count_is_of_the_expert_not_of_the_id(self) -> None:
        made = top_tokens(self.IDS, self.COUNTS, top_k=1, rows=3, min_count=11)
        assert made.ids[0].tolist() == [5, -1, -1]

    def test_with_two_experts_per_token_each_occurrence_counts_once(self) -> None:
        counts = np.array([[20, 20, 0], [0, 10, 10]])  # K = 2: x 20 times, y 10 times
        made = top_tokens(np.array([1, 2]), counts, top_k=2, rows=1)
        assert made.of_token[0, 0] == 1.0  # 20 of 20
        assert made.lift[0, 0] == pytest.approx(1.0 / (20 / 30))

    def test_vocabulary_by_hand(self) -> None:
        made = vocabulary_of_experts(self.IDS, self.COUNTS, top_k=1)
        # expert 0: (30·30/40 + 10·10/50 + 10·10/10) / 50 = (22.5 + 2 + 10) / 50
        assert made.value[0] == pytest.approx(34.5 / 50)
        assert made.null[0] == pytest.approx(0.5 + 0.5 * 3 / 100)  # r + (1 − r)·X/N
        assert made.excess[0] == pytest.approx((0.69 - 0.515) / (1 - 0.515))
        assert made.top_share.tolist() == [30 / 50, 40 / 50]
        assert made.top_id.tolist() == [5, 7]
        assert made.half_types.tolist() == [1, 1]
        assert made.text_half_types == 1

    def test_the_null_is_what_independent_routing_gives(self) -> None:
        rng = np.random.default_rng(0)
        times = rng.integers(10, 60, 300)
        values = []
        for _ in range(200):
            mine = rng.binomial(times, 0.3)
            counts = np.stack([mine, times - mine], axis=1)
            values.append(vocabulary_of_experts(np.arange(300), counts, top_k=1).excess[0])
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values)) < 4 * error
        assert error < 0.001

    def test_rare_ids_are_left_out_and_nothing_left_is_not_zero(self) -> None:
        made = vocabulary_of_experts(np.array([1]), np.array([[3, 0]]), top_k=1)
        assert np.isnan(made.value).all()
        assert np.isnan(made.excess).all()

    def test_permuting_experts_permutes_the_result(self) -> None:
        counts = np.random.default_rng(1).integers(0, 50, (40, 6))
        order = np.array([3, 0, 5, 1, 4, 2])
        plain = top_tokens(np.arange(40), counts, 2, 5)
        turned = top_tokens(np.arange(40), counts[:, order], 2, 5)
        assert np.array_equal(plain.ids[order], turned.ids)
        a = vocabulary_of_experts(np.arange(40), counts, 2).excess[order]
        assert np.allclose(a, vocabulary_of_experts(np.arange(40), counts[:, order], 2).excess)

    def test_halves_that_agree_and_halves_that_do_not(self) -> None:
        a = np.array([[20, 0], [20, 0], [20, 0], [0, 20], [0, 20], [0, 20]])
        assert list_overlap(np.arange(6), [a, a], 1, 5).tolist() == [1.0, 1.0]
        assert list_overlap(np.arange(6), [a, a[:, ::-1]], 1, 5).tolist() == [0.0, 0.0]
        assert np.isnan(list_overlap(np.arange(6), [a, a * 0], 1, 5)).all()


class TestPartners:
    def test_lift_and_order_by_hand(self) -> None:
        # 1,000 tokens; expert 0 on 100. With 1: 40 of 200, lift 2. With 2: 30 of 100, lift 3.
        pairs = np.array([[0, 40, 30, 5]])
        own, other = np.array([100]), np.array([100, 200, 100, 10])
        made = strongest_partners(pairs, own, other, 1000, rows=3)
        # cautious lifts: 2·exp(−1.96/√40) = 1.47 and 3·exp(−1.96/√30) = 2.10
        assert made.expert[0].tolist() == [2, 1, -1]
        assert made.lift[0, :2].tolist() == [3.0, 2.0]
        assert made.given[0, :2].tolist() == [0.3, 0.4]
        assert made.times[0, :2].tolist() == [30, 40]

    def test_a_large_lift_of_few_tokens_is_not_listed(self) -> None:
        few = MIN_PAIR_COUNT - 1
        made = strongest_partners(
            np.array([[few]]), np.array([few]), np.array([few]), 10_000, rows=1
        )
        assert made.expert.tolist() == [[-1]]
        assert np.isnan(made.lift).all()

    def test_experts_that_avoid_each_other_are_no_partners(self) -> None:
        made = strongest_partners(np.array([[50]]), np.array([500]), np.array([500]), 1000, rows=1)
        assert made.expert.tolist() == [[-1]]  # lift 0.2
