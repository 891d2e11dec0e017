"""Do two measures rank the same pairs of experts alike? By hand, planted, and under the null."""

import numpy as np
import pytest

from moescope.metrics.ranks import mantel, spearman
from moescope.similarity.tables import clustered_order, nearest


class TestAgreement:
    def test_rank_correlation_by_hand(self) -> None:
        # ranks 1 2 3 4 and 1 3 2 4: 1 − 6·(0+1+1+0)/(4·15) = 0.8
        x, y = np.array([1.0, 2, 3, 4]), np.array([5.0, 7, 6, 8])
        assert spearman(x, y) == pytest.approx(0.8)
        assert spearman(np.stack([x, -x]), y) == pytest.approx([0.8, -0.8])
        assert np.isnan(spearman(x, np.ones(4)))

    def test_unrelated_matrices_are_called_alike_no_more_often_than_stated(self) -> None:
        """Experts with an effect of their own make pairs dependent: shuffling pairs would fail."""
        rng = np.random.default_rng(0)
        low = 0
        for _ in range(120):
            own = rng.standard_normal((2, 9))
            x, y = own[:, :, None] + own[:, None, :] + 0.2 * rng.standard_normal((2, 9, 9))
            low += mantel((x + x.T) / 2, (y + y.T) / 2, rng, 199).p < 0.05
        assert low <= 12  # 6 expected, 12 is beyond the 99th percentile

    def test_a_planted_likeness_is_found(self) -> None:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((9, 9))
        x += x.T
        found = mantel(x, x + 0.3 * (lambda m: m + m.T)(rng.standard_normal((9, 9))), rng)
        assert found.rho > 0.8
        assert found.p == 0.001
        assert found.pairs == 36

    def test_experts_without_a_value_are_left_out(self) -> None:
        x = np.arange(36.0).reshape(6, 6)
        x += x.T
        y = x.copy()
        y[2, :] = y[:, 2] = np.nan
        found = mantel(x, y, np.random.default_rng(0), 99)
        assert (found.experts, found.pairs) == (5, 10)
        assert found.rho == pytest.approx(1.0)
        assert 2 not in [w for w in nearest(y)[0] if w is not None]
        assert clustered_order(np.where(np.eye(6) > 0, 1.0, y / 100))[-1] != 2
        y[2, 2] = np.nan
        assert clustered_order(y / 100)[-1] == 2
