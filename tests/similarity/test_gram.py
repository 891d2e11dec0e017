"""Cosine and CKA over streamed outputs: against float64 by brute force, whole and in parts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from moescope.errors import WriteError
from moescope.metrics.intervals import delete_group_interval
from moescope.similarity import row_store
from moescope.similarity.gram import FunctionOutputs, TokenGroups, cosine_sums, gram_sums
from moescope.similarity.pair_values import (
    PairValues,
    cka_values,
    cosine_values,
    flat_cosines,
)
from moescope.similarity.row_store import RowStore

SIZES = [7, 12, 5, 9, 8, 11]


def outputs_of(functions: int = 5, width: int = 6, seed: int = 0) -> np.ndarray:
    """Correlated outputs with a mean far from 0, (F, N, D) float64."""
    rng = np.random.default_rng(seed)
    tokens = sum(SIZES)
    shared = rng.standard_normal((tokens, width))
    own = rng.standard_normal((functions, tokens, width))
    return shared @ rng.standard_normal((functions, width, width)) + own + 1.5


def streamed(
    y: np.ndarray, dtype: torch.dtype = torch.float64, budget: float = 1e9,
    folder: Path | None = None, sizes: list[int] = SIZES,
) -> FunctionOutputs:  # fmt: skip
    made = FunctionOutputs(
        len(y), TokenGroups(sizes), y.shape[2], budget=budget, folder=folder, dtype=dtype
    )
    for function, rows in enumerate(y):
        made.add(function, torch.tensor(rows, dtype=dtype))
    return made


def cka_of(made: FunctionOutputs, experts: int | None = None) -> PairValues:
    lost = made.undefined(centred=True)
    return cka_values(gram_sums(made), made.groups.sizes, lost, experts or made.shape[0])


def cosine_of(made: FunctionOutputs, routed: np.ndarray | None = None) -> PairValues:
    given = np.zeros((made.shape[1], made.shape[0]), bool) if routed is None else routed
    sums = cosine_sums(made, torch.as_tensor(given))
    return cosine_values(sums, made.groups.sizes, made.undefined(centred=False), made.shape[0])


def brute_cka(y: np.ndarray) -> np.ndarray:
    """The definition, in feature space: nothing of token Gram matrices."""
    c = y - y.mean(1, keepdims=True)
    made = np.empty((len(y), len(y)))
    for i, x in enumerate(c):
        for j, z in enumerate(c):
            top = np.linalg.norm(z.T @ x) ** 2
            made[i, j] = top / (np.linalg.norm(x.T @ x) * np.linalg.norm(z.T @ z))
    return made


def brute_cosine(y: np.ndarray) -> np.ndarray:
    made = np.empty((len(y), len(y)))
    for i, x in enumerate(y):
        for j, z in enumerate(y):
            cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(x, z)]  # noqa: B905
            made[i, j] = np.mean(cosines)
    return made


class TestAgainstBruteForce:
    @pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
    @pytest.mark.parametrize("side", [1, 4, 13, 1000])
    def test_cka_and_cosine_do_not_depend_on_blocks_or_files(
        self, dtype: torch.dtype, close: float, side: int, tmp_path: Path
    ) -> None:
        y = outputs_of()
        budget = 2.0 * dtype.itemsize * len(y) * side**2  # what gives blocks of that side
        made = streamed(y, dtype, budget, tmp_path)
        assert made.store.in_memory == (y.size * dtype.itemsize <= budget / 2)
        np.testing.assert_allclose(cka_of(made).value, brute_cka(y), atol=close)
        np.testing.assert_allclose(cosine_of(made).value, brute_cosine(y), atol=close)

    def test_every_part_is_centred_by_its_own_mean(self) -> None:
        y = outputs_of()
        made = streamed(y)
        sums = gram_sums(made)
        of_token = np.repeat(np.arange(len(SIZES)), SIZES)
        # the whole, the whole without each of 6 groups, groups 0 2 4, groups 1 3 5
        parts = [of_token >= 0, *(of_token != g for g in range(6)), of_token % 2 == 0,
                 of_token % 2 == 1]  # fmt: skip
        assert len(sums.products) == len(parts)
        for products, part, tokens in zip(sums.products, parts, sums.tokens, strict=True):
            c = y[:, part] - y[:, part].mean(1, keepdims=True)
            expected = [[np.linalg.norm(a.T @ b) ** 2 for b in c] for a in c]
            assert tokens == part.sum()
            np.testing.assert_allclose(products, expected, rtol=1e-10)

    def test_halves_and_intervals_are_those_of_the_parts(self) -> None:
        y = outputs_of()
        of_token = np.repeat(np.arange(len(SIZES)), SIZES)
        for of, brute in ((cka_of, brute_cka), (cosine_of, brute_cosine)):
            made = of(streamed(y))
            assert made.halves is not None
            for half in (0, 1):
                expected = brute(y[:, of_token % 2 == half])
                np.testing.assert_allclose(made.halves[half], expected, atol=1e-10)
            left_out = np.stack([brute(y[:, of_token != g]) for g in range(len(SIZES))])
            ends = delete_group_interval(brute(y), left_out, np.array(SIZES))
            off = ~np.eye(len(y), dtype=bool)
            np.testing.assert_allclose(made.low[off], np.maximum(ends.low, -1)[off], atol=1e-9)
            mean = delete_group_interval(
                brute(y)[off].mean(), left_out[:, off].mean(1), np.array(SIZES)
            )
            assert made.mean_high == pytest.approx(float(mean.high))

    def test_cosine_over_the_tokens_given_to_one_of_the_two(self) -> None:
        y = outputs_of(functions=3)
        routed = np.random.default_rng(1).random((sum(SIZES), 3)) < 0.3
        made = cosine_of(streamed(y), routed)
        either = routed[:, 0] | routed[:, 2]
        assert made.routed is not None
        assert made.routed_tokens is not None
        assert made.routed_tokens[0, 2] == either.sum()
        assert made.routed[0, 2] == pytest.approx(brute_cosine(y[:, either])[0, 2])

    def test_debiased_cka_equals_the_estimator_with_the_diagonal_taken_out(self) -> None:
        y = outputs_of()
        n = y.shape[1]
        c = y - y.mean(1, keepdims=True)
        grams = [a @ a.T for a in c]
        for k in grams:
            np.fill_diagonal(k, 0.0)

        def hsic(k: np.ndarray, m: np.ndarray) -> float:
            """Song et al. 2012, Eq. 5, as it stands there."""
            edge = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ m.sum(0)
            return float((np.trace(k @ m) + edge) / (n * (n - 3)))

        expected = hsic(grams[0], grams[3]) / np.sqrt(
            hsic(grams[0], grams[0]) * hsic(grams[3], grams[3])
        )
        made = cka_of(streamed(y)).debiased
        assert made is not None
        assert made[0, 3] == pytest.approx(expected, rel=1e-10)


class TestWhatTheMeasuresAreBlindTo:
    def test_the_same_expert_many_times_gives_one(self) -> None:
        made = streamed(np.repeat(outputs_of(1), 4, axis=0))
        np.testing.assert_allclose(cka_of(made).value, 1.0, atol=1e-12)
        np.testing.assert_allclose(cosine_of(made).value, 1.0, atol=1e-12)

    def test_rotating_one_output_leaves_cka_and_not_cosine(self) -> None:
        y = outputs_of(2)
        turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
        both = np.stack([y[0], y[0] @ turn])
        assert cka_of(streamed(both)).value[0, 1] == pytest.approx(1.0)
        assert abs(cosine_of(streamed(both)).value[0, 1]) < 0.6

    def test_scale_and_sign_and_for_cka_a_shift(self) -> None:
        y = outputs_of(2)
        plain, scaled = streamed(y), streamed(np.stack([y[0], 40 * y[1]]))
        assert cka_of(scaled).value[0, 1] == pytest.approx(cka_of(plain).value[0, 1])
        assert cosine_of(scaled).value[0, 1] == pytest.approx(cosine_of(plain).value[0, 1])
        turned = streamed(np.stack([y[0], 3 - y[1]]))
        assert cka_of(turned).value[0, 1] == pytest.approx(cka_of(plain).value[0, 1])
        assert cosine_of(turned).value[0, 1] != pytest.approx(cosine_of(plain).value[0, 1])

    @pytest.mark.parametrize("of", [cka_of, cosine_of])
    def test_renumbering_experts_renumbers_the_matrix(
        self, of: Callable[[FunctionOutputs], PairValues]
    ) -> None:
        y, order = outputs_of(), np.array([3, 0, 4, 1, 2])
        expected = of(streamed(y)).value[np.ix_(order, order)]
        np.testing.assert_allclose(of(streamed(y[order])).value, expected, atol=1e-12)


class TestChance:
    def test_it_is_the_mean_over_all_permutations_of_the_tokens_of_one(self) -> None:
        y = outputs_of(2, width=3)[:, :5]
        made = streamed(y, sizes=[3, 2])
        rows = [brute_cka(np.stack([y[0], y[1][list(p)]]))[0, 1] for p in _permutations(5)]
        assert cka_of(made).chance[0, 1] == pytest.approx(np.mean(rows))
        rows = [brute_cosine(np.stack([y[0], y[1][list(p)]]))[0, 1] for p in _permutations(5)]
        assert cosine_of(made).chance[0, 1] == pytest.approx(np.mean(rows))

    def test_unrelated_outputs_have_cka_above_0_and_debiased_cka_around_0(self) -> None:
        rng = np.random.default_rng(3)
        drawn = []
        for _ in range(40):
            made = cka_of(streamed(rng.standard_normal((2, sum(SIZES), 30))))
            assert made.debiased is not None
            drawn.append((made.value[0, 1], made.chance[0, 1], made.debiased[0, 1]))
        value, chance, debiased = np.mean(drawn, axis=0)
        assert value == pytest.approx(chance, rel=0.02)
        assert chance > 0.3  # 30 dimensions on 52 tokens
        assert abs(debiased) < 0.02

    def test_intervals_cover_the_truth_about_as_often_as_they_say(self) -> None:
        """Documents with an effect of their own; the truth is the mean over documents, 0."""
        rng, hits = np.random.default_rng(4), 0
        for _ in range(400):
            sums = rng.standard_normal(10) + 0.3 * rng.standard_normal(10)
            left_out = np.array([np.delete(sums, g).mean() for g in range(10)])
            ends = delete_group_interval(np.float64(sums.mean()), left_out, np.ones(10, np.int64))
            hits += bool(ends.low < 0 < ends.high)
        assert 0.92 < hits / 400 < 0.98


class TestUndefined:
    def test_an_output_of_zero_everywhere_is_unknown_and_says_why(self) -> None:
        y = outputs_of(3)
        y[1] = 0.0
        for made in (cka_of(streamed(y)), cosine_of(streamed(y))):
            assert np.isnan(made.value[1]).all()
            assert np.isnan(made.chance[1]).all()
            assert made.undefined == {1: "its output is zero on every token"}
            assert np.isfinite(made.value[0, 2])

    def test_a_constant_output_has_a_cosine_and_no_cka(self) -> None:
        y = outputs_of(2)
        y[1] = [1, 2, 3, 4, 5, 6]
        assert cka_of(streamed(y)).undefined == {1: "its output is the same on every token"}
        assert np.isfinite(cosine_of(streamed(y)).value[0, 1])

    def test_a_token_without_output_is_left_out_of_the_cosine(self) -> None:
        y = outputs_of(2)
        y[1, 4:9] = 0.0
        made = cosine_of(streamed(y))
        kept = np.r_[0:4, 9 : sum(SIZES)]
        assert made.value[0, 1] == pytest.approx(brute_cosine(y[:, kept])[0, 1])
        assert made.tokens[0, 1] == sum(SIZES) - 5

    def test_an_output_that_is_not_finite_is_named(self) -> None:
        y = outputs_of(2)
        y[0, 3, 1] = np.inf
        assert cka_of(streamed(y)).undefined == {0: "its output is not finite on 1 tokens"}

    def test_one_document_gives_values_without_intervals(self) -> None:
        made = streamed(outputs_of(3), sizes=[sum(SIZES)])
        for values in (cka_of(made), cosine_of(made)):
            assert np.isfinite(values.value).all()
            assert np.isnan(values.low).all()
            assert np.isnan(values.mean_low)


class TestWeights:
    def test_cosine_of_everything_an_expert_has_laid_out_as_one_vector(self) -> None:
        rng = np.random.default_rng(5)
        up, down = rng.standard_normal((3, 4, 5)) + 0.3, rng.standard_normal((3, 7)) * 9
        made = flat_cosines([("up", torch.tensor(up)), ("down", torch.tensor(down))], 3)
        flat = np.concatenate([up.reshape(3, -1), down], axis=1)
        units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        np.testing.assert_allclose(made.value, units @ units.T, atol=1e-12)
        left = flat - flat.mean(0)
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        np.testing.assert_allclose(made.centred, left @ left.T, atol=1e-12)

    def test_chance_and_its_spread_are_those_of_all_permutations_of_the_entries(self) -> None:
        a, b = np.array([1.0, 2, 4, 8, -3]), np.array([2.0, 1, 0, 5, 1])
        made = flat_cosines([("w", torch.tensor(np.stack([a, b])))], 2)
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        drawn = [a @ b[list(p)] / norms for p in _permutations(5)]
        assert made.chance_sd is not None
        assert made.chance[0, 1] == pytest.approx(np.mean(drawn))
        assert made.chance_sd[0, 1] == pytest.approx(np.std(drawn))

    def test_pieces_of_a_long_tensor_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = [("w", torch.randn(4, 10, 3, generator=torch.Generator().manual_seed(0)))]
        whole = flat_cosines(weights, 4)
        monkeypatch.setattr("moescope.similarity.pair_values._CELLS", 7)
        np.testing.assert_allclose(flat_cosines(weights, 4).value, whole.value, atol=1e-12)

    def test_equal_weights_have_nothing_left_without_their_mean(self) -> None:
        made = flat_cosines([("w", torch.ones(3, 8))], 3)
        assert made.centred is not None
        assert np.isnan(made.centred).all()
        np.testing.assert_allclose(made.value, 1.0)

    def test_an_expert_of_zeros_is_unknown(self) -> None:
        made = flat_cosines([("w", torch.tensor([[0.0, 0.0], [1.0, 2.0]]))], 2)
        assert made.undefined == {0: "all its weights are zero"}
        assert np.isnan(made.value[0]).all()


def test_the_jackknife_of_a_mean_of_equal_groups_is_its_standard_error() -> None:
    groups = np.array([2.0, 3, 5, 7, 11, 13])
    left_out = np.array([np.delete(groups, g).mean() for g in range(6)])
    ends = delete_group_interval(np.float64(groups.mean()), left_out, np.full(6, 20))
    reach = student.ppf(0.975, 5) * groups.std(ddof=1) / np.sqrt(6)
    assert float(ends.high) == pytest.approx(groups.mean() + reach)
    assert np.isnan(delete_group_interval(np.float64(1.0), left_out[:4], np.full(4, 20)).low)


def test_a_store_in_a_file_gives_back_what_was_written_and_leaves_no_file(tmp_path: Path) -> None:
    rows = torch.arange(24.0).reshape(2, 4, 3)
    store = RowStore((2, 4, 3), folder=tmp_path)
    store.write(1, 2, rows[1, 2:])
    store.write(1, 0, rows[1, :2])
    assert torch.equal(store.read(1, 1, 4), rows[1, 1:])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, _place: int) -> None: ...

        def write(self, _content: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_store.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(WriteError, match=r"the disk is full: the outputs of a layer need"):
        RowStore((2, 4, 3), folder=tmp_path).write(0, 0, torch.zeros(4, 3))


def _permutations(size: int) -> list[tuple[int, ...]]:
    from itertools import permutations

    return list(permutations(range(size)))
