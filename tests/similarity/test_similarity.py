"""Similarity of a tiny model's experts: the right tokens, the right numbers, said plainly."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.similarity.test_gram import brute_cka, brute_cosine
from tests.support.replay import _fused_expert
from tests.support.saved import tiny_tokenizer
from tests.support.tiny import tiny_model

from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, ModelError, RunError
from moescope.measure.windows import TextWindow, choose_windows
from moescope.metrics.runs import AnalyzedRun
from moescope.models import LoadedModel, ModelSpec, find_anatomy
from moescope.models.expert_calls import ExpertLayer
from moescope.models.loading import weights_fingerprint
from moescope.similarity.compare import SimilarityOptions, compare_experts
from moescope.similarity.inputs import capture_inputs, even_shares, take_tokens
from moescope.similarity.result import Similarity, open_similarity
from moescope.similarity.shuffled import shuffled_expert
from moescope.similarity.tables import clustered_order, nearest

EXPERTS = 8
FEW = SimilarityOptions(tokens=120, window_tokens=16)


def loaded_as(model_type: str, **overrides: object) -> LoadedModel:
    model = tiny_model(model_type, **overrides)
    anatomy = find_anatomy(model, model.config)
    return LoadedModel(
        ModelSpec(model_type), model, tiny_tokenizer(), anatomy, "c", "t",
        weights_fingerprint(model), "float32", "float32", "cpu", None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> CorpusSpec:
    return CorpusSpec(path=str(tiny_corpus))


@pytest.fixture(scope="module")
def made(tiny_loaded: LoadedModel, corpus: CorpusSpec) -> Similarity:
    return compare_experts(tiny_loaded, corpus, FEW)


def experts_of(loaded: LoadedModel) -> torch.nn.Module:
    return loaded.model.get_submodule(loaded.anatomy.layers[0].site.experts)


def only(loaded: LoadedModel, corpus: CorpusSpec, **more: object) -> Similarity:
    """The first layer, without shuffled experts."""
    options = {"layers": loaded.anatomy.layer_numbers[:1], "reference": 0, **more}
    now = {**vars(loaded), "weights_hash": weights_fingerprint(loaded.model)}  # it was changed
    loaded = LoadedModel(**now)
    return compare_experts(loaded, corpus, FEW.model_copy(update=options))


class TestNumbers:
    def test_they_equal_brute_force_on_what_the_experts_really_received(
        self, tiny_loaded: LoadedModel, corpus: CorpusSpec, made: Similarity
    ) -> None:
        """Inputs by a hook of the test's own, experts from their weights one token at a time."""
        windows = choose_windows(tiny_loaded, corpus, tokens_per_domain=120, window_tokens=16)
        sample = take_tokens(windows, 120, 0)
        layer = tiny_loaded.anatomy.layers[1]
        experts = tiny_loaded.model.get_submodule(layer.site.experts)
        seen: list[torch.Tensor] = []
        handle = experts.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
        with torch.no_grad():
            for w in sample.windows:  # one by one: no padding at all
                tiny_loaded.model(torch.as_tensor(w.token_ids[None].astype(np.int64)))
                seen[-1] = seen[-1].reshape(-1, 32)[torch.as_tensor(w.counted)]
        handle.remove()
        inputs = torch.cat(seen)
        assert len(inputs) == 120
        y = np.stack([
            torch.stack([_fused_expert(experts, e, x) for x in inputs]).detach().double().numpy()
            for e in range(EXPERTS)
        ])  # fmt: skip
        n = layer.layer_idx
        np.testing.assert_allclose(made.matrix(n, "cka"), brute_cka(y), atol=2e-5)
        np.testing.assert_allclose(made.matrix(n, "cosine"), brute_cosine(y), atol=2e-5)

    def test_weights_and_router_rows(self, tiny_loaded: LoadedModel, made: Similarity) -> None:
        layer = tiny_loaded.anatomy.layers[0]
        experts = tiny_loaded.model.get_submodule(layer.site.experts)
        router = tiny_loaded.model.get_submodule(layer.site.router)
        flat = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], dim=1)
        for method, rows in (("weights", flat), ("router", router.weight)):
            units = torch.nn.functional.normalize(rows.detach().double(), dim=1)
            expected = (units @ units.T).numpy()
            np.testing.assert_allclose(made.matrix(layer.layer_idx, method), expected, atol=1e-6)

    def test_every_pair_of_every_layer_is_there_once(
        self, tiny_loaded: LoadedModel, made: Similarity
    ) -> None:
        table = made.to_pandas()
        layers = tiny_loaded.anatomy.layer_numbers
        assert len(table) == 4 * len(layers) * EXPERTS * (EXPERTS - 1) // 2
        assert not table.duplicated(["layer", "method", "expert_a", "expert_b"]).any()
        text = table[table.method.isin(["cosine", "cka"])]
        assert (text.tokens == 120).all()
        assert ((text.ci_low <= text.value) & (text.value <= text.ci_high)).all()
        assert text.reference.notna().all()
        assert table[table.method == "weights"].ci_low.isna().all()

    def test_outputs_in_a_file_give_the_same_numbers(
        self, tiny_loaded: LoadedModel, corpus: CorpusSpec, tmp_path: Path
    ) -> None:
        options = SimilarityOptions(methods=("cka", "cosine"), tokens=400, window_tokens=60)
        kept = compare_experts(tiny_loaded, corpus, options)
        tight = options.model_copy(update={"memory": 1e6})
        spilt = compare_experts(tiny_loaded, corpus, tight, folder=tmp_path / "new")
        a, b = kept.to_pandas().value, spilt.to_pandas().value
        np.testing.assert_allclose(a, b, atol=1e-6)
        left = {path.name for path in (tmp_path / "new").iterdir()}
        assert left == {"measured", "measured.jsonl", "moescope.sha256"}

    def test_the_same_seed_gives_the_same_bytes_and_another_moves_only_the_reference(
        self, tiny_loaded: LoadedModel, corpus: CorpusSpec, made: Similarity
    ) -> None:
        again = compare_experts(tiny_loaded, corpus, FEW)
        assert again.about == made.about
        assert again.pairs.equals(made.pairs)
        other = compare_experts(tiny_loaded, corpus, FEW.model_copy(update={"seed": 1})).to_pandas()
        mine = made.to_pandas()
        np.testing.assert_array_equal(other.value, mine.value)
        text = mine.method == "cka"
        assert (other.reference[text] != mine.reference[text]).all()


class TestPlanted:
    @pytest.fixture
    def loaded(self, tiny_loaded: LoadedModel) -> LoadedModel:
        """A copy of the model to change."""
        model = copy.deepcopy(tiny_loaded.model)
        return LoadedModel(**{**vars(tiny_loaded), "model": model})

    def test_copies_of_one_expert_are_alike_by_every_measure(
        self, loaded: LoadedModel, corpus: CorpusSpec
    ) -> None:
        with torch.no_grad():
            for weights in experts_of(loaded).parameters():
                weights[5] = weights[2]
        found = only(loaded, corpus)
        n = loaded.anatomy.layers[0].layer_idx
        for method in ("cosine", "cka", "weights"):
            matrix = found.matrix(n, method)
            assert matrix[2, 5] == pytest.approx(1.0, abs=1e-6)
            assert nearest(matrix)[0][2] == 5
            order = clustered_order(matrix)
            assert abs(order.index(2) - order.index(5)) == 1
        cka = next(r for r in found.about["summary"] if r["method"] == "cka")
        assert cka["max_pair"] == [2, 5]

    def test_reordered_neurons_are_the_same_function_with_other_weights(
        self, loaded: LoadedModel, corpus: CorpusSpec
    ) -> None:
        experts = experts_of(loaded)
        width = experts.down_proj.shape[2]
        order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            both = torch.cat([order, order + width])
            experts.gate_up_proj[5] = experts.gate_up_proj[2][both]
            experts.down_proj[5] = experts.down_proj[2][:, order]
        found = only(loaded, corpus)
        n = loaded.anatomy.layers[0].layer_idx
        assert found.matrix(n, "cosine")[2, 5] == pytest.approx(1.0, abs=1e-5)
        assert found.matrix(n, "cka")[2, 5] == pytest.approx(1.0, abs=1e-5)
        assert abs(found.matrix(n, "weights")[2, 5]) < 0.3

    def test_renumbering_the_experts_renumbers_every_matrix(
        self, loaded: LoadedModel, corpus: CorpusSpec
    ) -> None:
        plain = only(loaded, corpus)
        order = torch.tensor([4, 0, 7, 2, 1, 6, 3, 5])
        site = loaded.anatomy.layers[0].site
        with torch.no_grad():
            for path in (site.experts, site.router):
                for weights in loaded.model.get_submodule(path).parameters():
                    weights.copy_(weights[order])
        moved = only(loaded, corpus)
        n = site.layer_idx
        for method in plain.methods:
            expected = plain.matrix(n, method)[np.ix_(order, order)]
            np.testing.assert_allclose(moved.matrix(n, method), expected, atol=1e-5)

    def test_a_dead_expert_is_unknown_and_named(
        self, loaded: LoadedModel, corpus: CorpusSpec
    ) -> None:
        with torch.no_grad():
            for weights in experts_of(loaded).parameters():
                weights[3] = 0.0
        found = only(loaded, corpus)
        row = found.about["layers"][0]
        assert row["undefined"]["cka"] == {"3": "its output is zero on every token"}
        assert row["undefined"]["weights"] == {"3": "all its weights are zero"}
        assert np.isnan(found.matrix(row["layer"], "cosine")[3]).all()
        assert "router" not in row["undefined"]


class TestTokens:
    def window(self, doc: str, domain: str, tokens: int, number: int = 0) -> TextWindow:
        counted = np.r_[False, np.ones(tokens, bool)]
        return TextWindow(doc, domain, number, 7, np.arange(tokens + 1, dtype=np.int32), counted)

    def test_domains_share_evenly_and_a_short_one_gives_all(self) -> None:
        windows = [self.window(f"{d}{i}", d, 9) for d in "ab" for i in range(9)]
        sample = take_tokens([*windows, self.window("c0", "c", 5)], 65, seed=0)
        counts = np.bincount(sample.domain)
        assert sample.num_tokens == 65
        assert sorted(counts.tolist()) == [5, 30, 30]

    @pytest.mark.parametrize(
        ("windows", "tokens", "lengths"),
        [(20, 400, [50] * 8), (20, 100, [32, 32, 32, 4]), (5, 400, [100] * 4), (3, 300, [100] * 3)],
    )
    def test_a_share_comes_from_several_windows_but_not_from_snippets(
        self, windows: int, tokens: int, lengths: list[int]
    ) -> None:
        sample = take_tokens([self.window(f"d{i}", "x", 100) for i in range(windows)], tokens, 0)
        assert sorted((w.num_tokens for w in sample.windows), reverse=True) == lengths

    def test_what_does_not_count_is_not_taken_and_places_are_right(self) -> None:
        sample = take_tokens([self.window("a", "x", 4)], 3, seed=0)
        assert sample.token_id.tolist() == [1, 2, 3]  # 0 stands for BOS, the fourth was cut off
        assert sample.pos.tolist() == [8, 9, 10]
        assert sample.windows[0].token_ids.tolist() == [0, 1, 2, 3]

    def test_groups_hold_whole_documents_of_nearly_equal_size(self) -> None:
        windows = [
            self.window(f"{d}{i}", d, 5 + i % 3, number)
            for d in "ab" for i in range(25) for number in (0, 1)
        ]  # fmt: skip
        sample = take_tokens(windows, 10_000, seed=0)
        bounds = np.cumsum([0, *sample.group_sizes])
        assert len(sample.group_sizes) == 10
        groups = [set(sample.doc[a:b]) for a, b in pairwise(bounds)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 50
        assert max(sample.group_sizes) < 1.3 * min(sample.group_sizes)
        shares = [np.bincount(sample.domain[a:b], minlength=2) for a, b in pairwise(bounds)]
        assert np.all(np.stack(shares) > 0.3 * np.min(sample.group_sizes))

    def test_rows_stand_in_the_order_of_the_sample_whatever_the_batches(
        self, tiny_loaded: LoadedModel, corpus: CorpusSpec
    ) -> None:
        windows = choose_windows(tiny_loaded, corpus, tokens_per_domain=60, window_tokens=16)
        sample = take_tokens(windows, 150, 0)
        layers = tiny_loaded.anatomy.layers
        whole = capture_inputs(tiny_loaded, layers, sample)
        small = capture_inputs(tiny_loaded, layers, sample, budget=1.0)
        for layer in layers:
            a, b = whole[layer.layer_idx], small[layer.layer_idx]
            torch.testing.assert_close(a.rows(0, 150), b.rows(0, 150), atol=1e-5, rtol=1e-5)
            assert (a.topk_ids == b.topk_ids).all()
            assert a.given(EXPERTS).sum(1).tolist() == [layer.top_k] * 150

    @pytest.mark.parametrize(
        ("wanted", "there", "shares"),
        [(10, [100, 2, 100], [4, 2, 4]), (7, [5, 5], [3, 4]), (9, [1, 2], [1, 2]), (5, [], [])],
    )
    def test_even_shares(self, wanted: int, there: list[int], shares: list[int]) -> None:
        assert even_shares(wanted, there) == shares


class TestShuffled:
    def test_entries_stay_places_change_and_everything_comes_back(
        self, tiny_loaded: LoadedModel
    ) -> None:
        experts = ExpertLayer(tiny_loaded.model, tiny_loaded.anatomy.layers[0])
        before = {n: t.clone() for n, t in experts.weights()}
        with shuffled_expert(experts, 3, seed=1):
            for name, tensor in experts.weights():
                assert torch.equal(tensor[:3], before[name][:3])
                assert not torch.equal(tensor[3], before[name][3])
                mine, theirs = tensor[3].flatten().sort()[0], before[name][3].flatten().sort()[0]
                assert torch.equal(mine, theirs)
        assert all(torch.equal(t, before[n]) for n, t in experts.weights())
        with pytest.raises(KeyboardInterrupt), shuffled_expert(experts, 3, seed=1):
            raise KeyboardInterrupt
        assert all(torch.equal(t, before[n]) for n, t in experts.weights())

    def test_a_comparison_leaves_the_model_as_it_was(
        self, tiny_loaded: LoadedModel, made: Similarity
    ) -> None:
        assert made.methods
        assert weights_fingerprint(tiny_loaded.model) == tiny_loaded.weights_hash


class TestRunsAndFiles:
    def test_a_run_brings_its_text_its_layers_and_its_coactivation(
        self, tiny_loaded: LoadedModel, tiny_run: AnalyzedRun
    ) -> None:
        options = FEW.model_copy(update={"methods": ("router",), "maps": ("pca",)})
        found = compare_experts(tiny_loaded, tiny_run, options)
        assert found.about["text"]["run"] == str(tiny_run.path)
        table = tiny_run.table("coactivation").to_pandas()
        table = table[(table.phase == "prefill") & (table.layer == 1)]
        wanted = table.set_index(["expert_i", "expert_j"]).lift
        lift = found.matrix(1, "router", "lift")
        assert lift[2, 6] == pytest.approx(wanted[2, 6], nan_ok=True)
        assert {(r["a"], r["b"]) for r in found.about["agreement"]} == {
            ("router", "coactivation_lift")
        }

    def test_what_is_saved_is_what_is_read(self, made: Similarity, tmp_path: Path) -> None:
        again = open_similarity(made.save(tmp_path / "out"))
        assert again.pairs.equals(made.pairs)
        assert again.about == json.loads(json.dumps(made.about))
        np.testing.assert_array_equal(again.matrix(1, "cka"), made.matrix(1, "cka"))

    def test_a_changed_file_is_refused(self, made: Similarity, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"holds no result\.json"):
            open_similarity(tmp_path)
        made.save(tmp_path)
        with (tmp_path / "pairs.parquet").open("ab") as file:
            file.write(b"x")
        with pytest.raises(RunError, match="was truncated or altered"):
            open_similarity(tmp_path)

    def test_asking_for_what_is_not_there_lists_what_is(self, made: Similarity) -> None:
        with pytest.raises(BadInputError, match=r"layers: 0, 1, 2, 3; methods: cosine, cka"):
            made.matrix(99, "cka")


class TestWithoutText:
    def test_weights_and_router_need_none(self, tiny_loaded: LoadedModel) -> None:
        found = compare_experts(tiny_loaded, None, SimilarityOptions(methods=("weights", "router")))
        assert found.about["text"] is None
        assert found.methods == ["weights", "router"]

    def test_outputs_and_maps_do(self, tiny_loaded: LoadedModel) -> None:
        with pytest.raises(BadInputError, match="cosine and a pca map need text"):
            compare_experts(
                tiny_loaded, None, SimilarityOptions(methods=("cosine",), maps=("pca",))
            )


@pytest.mark.parametrize(
    "model_type",
    ["mixtral", "deepseek_v3", "gpt_oss", "dbrx", "jetmoe", "llama4_text", "longcat_flash",
     "qwen3_moe", "zaya", "nemotron_h", "gemma4_text"],
)  # fmt: skip
def test_every_form_of_experts_is_compared_or_the_reason_given(
    model_type: str, corpus: CorpusSpec
) -> None:
    loaded = loaded_as(model_type)
    found = compare_experts(loaded, corpus, FEW.model_copy(update={"tokens": 60}))
    for row in found.about["layers"]:
        computed = [m for m in found.methods if m not in row["not_computed"]]
        assert {"cosine", "cka"} <= set(computed)
        for method in computed:
            matrix = found.matrix(row["layer"], method)
            unknown = {int(e) for e in row["undefined"].get(method, {})}
            for e in range(row["experts"]):
                assert np.isnan(matrix[e, e]) == (e in unknown), (method, e)
    for why in row["not_computed"].values():
        assert "compare" in why


def test_where_nothing_can_be_compared_the_reason_is_the_error() -> None:
    with pytest.raises(ModelError, match="does not keep its 8 experts as stacked tensors"):
        compare_experts(loaded_as("dbrx"), None, SimilarityOptions(methods=("weights",)))
