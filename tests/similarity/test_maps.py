"""Maps of outputs: the points are real, the plane is the right one, and trust is measured."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.replay import _fused_expert

from moescope.corpus import CorpusSpec
from moescope.errors import MissingExtraError
from moescope.measure.windows import choose_windows
from moescope.models import LoadedModel
from moescope.models.expert_calls import ExpertLayer
from moescope.similarity import maps
from moescope.similarity.compare import SimilarityOptions, compare_experts
from moescope.similarity.inputs import LayerSample, capture_inputs, take_tokens
from moescope.similarity.maps import (
    draw_map,
    neighbour_shares,
    pca_map,
    sample_outputs,
    umap_map,
)

EXPERTS = 8


@pytest.fixture(scope="module")
def inputs(tiny_loaded: LoadedModel, tiny_corpus: Path) -> dict[int, LayerSample]:
    spec = CorpusSpec(path=str(tiny_corpus))
    windows = choose_windows(tiny_loaded, spec, tokens_per_domain=80, window_tokens=20)
    return capture_inputs(tiny_loaded, tiny_loaded.anatomy.layers, take_tokens(windows, 200, 0))


class TestPoints:
    def test_each_is_what_the_expert_added_for_a_token_that_was_given_to_it(
        self, tiny_loaded: LoadedModel, inputs: dict[int, LayerSample]
    ) -> None:
        layer = tiny_loaded.anatomy.layers[2]
        sample = inputs[layer.layer_idx]
        points = sample_outputs(ExpertLayer(tiny_loaded.model, layer), sample, 40, seed=0)
        experts = tiny_loaded.model.get_submodule(layer.site.experts)
        assert len(points.token) == 40
        for output, token, expert, weight in zip(*points, strict=True):
            choice = sample.topk_ids[token].tolist().index(expert)
            assert weight == sample.topk_weights[token, choice]
            with torch.no_grad():
                alone = _fused_expert(experts, expert, sample.rows(token, token + 1)[0])
            np.testing.assert_allclose(output, alone.numpy() * weight, atol=1e-5)

    def test_experts_share_the_points_evenly_and_no_pair_comes_twice(
        self, tiny_loaded: LoadedModel, inputs: dict[int, LayerSample]
    ) -> None:
        layer = tiny_loaded.anatomy.layers[0]
        sample = inputs[layer.layer_idx]
        given = sample.given(EXPERTS).sum(0)
        points = sample_outputs(ExpertLayer(tiny_loaded.model, layer), sample, 160, seed=0)
        counts = np.bincount(points.expert, minlength=EXPERTS)
        full = counts == given  # gave all that it had
        assert (counts[~full] >= counts[full].max(initial=0)).all()
        assert np.ptp(counts[~full]) <= 1
        assert len(set(zip(points.token, points.expert, strict=True))) == 160

    def test_all_pairs_where_more_are_asked_for(
        self, tiny_loaded: LoadedModel, inputs: dict[int, LayerSample]
    ) -> None:
        layer = tiny_loaded.anatomy.layers[0]
        points = sample_outputs(
            ExpertLayer(tiny_loaded.model, layer), inputs[layer.layer_idx], 10_000, seed=0
        )
        assert len(points.token) == 200 * layer.top_k


class TestPca:
    @pytest.mark.parametrize("shape", [(30, 7), (6, 40)])
    def test_plane_and_shares_are_those_of_a_singular_value_decomposition(
        self, shape: tuple[int, int]
    ) -> None:
        x = np.random.default_rng(0).standard_normal(shape) * np.geomspace(9, 1, shape[1]) + 3
        made = pca_map(x.astype(np.float32))
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(made.xy), np.abs(u[:, :2] * s[:2]), atol=1e-4)
        np.testing.assert_allclose(made.explained, s[:2] ** 2 / (s**2).sum(), rtol=1e-5)

    def test_mirrored_points_give_a_mirrored_map_and_not_another(self) -> None:
        x = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
        np.testing.assert_allclose(pca_map(x).xy, pca_map(x[::-1]).xy[::-1], atol=1e-5)
        np.testing.assert_allclose(np.abs(pca_map(-x).xy), np.abs(pca_map(x).xy), atol=1e-5)

    def test_points_on_a_line_need_one_axis(self) -> None:
        made = pca_map(np.outer(np.arange(6), [3, 4]).astype(np.float32))
        assert made.explained == pytest.approx((1.0, 0.0), abs=1e-9)
        np.testing.assert_allclose(np.diff(made.xy[:, 0]), 5.0, atol=1e-5)  # |(3, 4)| = 5

    def test_equal_points_have_no_variance_to_show(self) -> None:
        made = pca_map(np.ones((6, 3), np.float32))
        assert made.explained is not None
        assert np.isnan(made.explained).all()

    def test_four_points_are_no_map(self) -> None:
        assert draw_map("pca", np.eye(4, dtype=np.float32), 0) is None


class TestUmap:
    def test_without_the_extra_the_line_that_installs_it_is_said(
        self, tiny_loaded: LoadedModel, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maps, "find_spec", lambda _name: None)
        options = SimilarityOptions(maps=("umap",))
        with pytest.raises(MissingExtraError, match=r"moescope\[maps\]"):  # before anything is run
            compare_experts(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), options)

    @pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is an extra")
    def test_far_clusters_stay_apart_and_the_same_seed_gives_the_same_map(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 5)).astype(np.float32)
        x[20:] += 50
        made, again = umap_map(x, seed=3), umap_map(x, seed=3)
        np.testing.assert_array_equal(made.xy, again.xy)
        middle = [made.xy[:20].mean(0), made.xy[20:].mean(0)]
        spread = np.linalg.norm(made.xy[:20] - middle[0], axis=1).max()
        assert np.linalg.norm(middle[0] - middle[1]) > spread
        assert made.parameters == {
            "n_neighbors": 15, "min_dist": 0.1, "metric": "euclidean", "random_state": 3,
        }  # fmt: skip


class TestTrust:
    def test_by_hand(self) -> None:
        """Six points on a line in three documents; two neighbours each."""
        x = np.array([[0.0], [1], [2], [10], [11], [12]])
        document = np.array([0, 1, 2, 0, 1, 2])
        label = np.array([0, 0, 0, 1, 1, 0])
        # 0: 1 2 → both; 1: 0 2 → both; 2: 1 0 → both; 10: 11 12 → one; 11: 12 10 → one;
        # 12: 11 10 → none; 8 of 12. Others of other documents with the same label, of 4 each:
        # 2 (1 and 2, or 1 and 12…): point 0: 1 2 12 → 3; 1: 0 2 12 → 3; 2: 0 1 → 2; 10: 11 → 1;
        # 11: 10 → 1; 12: 0 1 → 2; 12 of 24
        [found] = neighbour_shares({"line": x}, {"label": label}, document, neighbours=2)
        assert found["share"] == pytest.approx(8 / 12)
        assert found["chance"] == pytest.approx(12 / 24)
        assert found["points"] == 6

    def test_points_of_the_same_document_are_no_neighbours(self) -> None:
        rng = np.random.default_rng(0)
        place = np.repeat(rng.standard_normal((30, 4)) * 100, 12, axis=0)
        x = place + rng.standard_normal(place.shape) * 0.01  # a tight cluster per document
        label = np.repeat(rng.integers(0, 3, 30), 12)
        document = np.repeat(np.arange(30), 12)
        [found] = neighbour_shares({"x": x}, {"label": label}, document)
        assert found["share"] < 0.7  # with them it would be 1
        assert found["chance"] == pytest.approx(1 / 3, abs=0.1)

    def test_planted_clusters_are_seen_and_chance_is_not(self) -> None:
        rng = np.random.default_rng(1)
        planted, other = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
        x = rng.standard_normal((400, 8))
        x[:, 0] += planted * 30
        found = neighbour_shares({"x": x}, {"planted": planted, "other": other}, np.arange(400))
        by = {f["label"]: f for f in found}
        assert by["planted"]["share"] == 1.0
        assert by["planted"]["chance"] == pytest.approx(0.25, abs=0.02)
        assert by["other"]["ci_low"] < by["other"]["chance"] < by["other"]["ci_high"]

    def test_too_few_points_elsewhere_leave_a_point_out(self) -> None:
        x = np.arange(12.0)[:, None]
        document = np.r_[np.zeros(11), 1].astype(np.int64)
        [found] = neighbour_shares({"x": x}, {"a": document}, document)
        assert found["points"] == 1  # only the one of document 1 has ten points elsewhere


def test_maps_of_a_comparison_carry_token_text_domain_and_expert(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    options = SimilarityOptions(
        methods=("router",), maps=("pca",), map_points=50, tokens=90, window_tokens=20, layers=(1,)
    )
    made = compare_experts(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), options)
    table = made.maps.to_pandas()
    [about] = made.about["maps"]
    assert len(table) == about["points"] == 50
    assert set(table.domain) == {"domain0", "domain1", "domain2"}
    assert 0 < sum(about["explained"]) <= 1
    assert {(f["space"], f["label"]) for f in about["neighbours"]} == {
        (s, n) for s in ("outputs", "pca") for n in ("expert", "domain", "token")
    }
    decoded = [tiny_loaded.tokenizer.decode([t]).strip() for t in table.token_id]
    assert [t.strip() for t in table.token] == decoded
