"""The pieces of a trace on their own: facts by hand, coverage, sparse counts, the token sample."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moescope.errors import CoverageError
from moescope.models import LoadedModel
from moescope.models.capture import RoutingCapture
from moescope.run.aggregates import AggregateShape, PhaseAggregates, pack, unpack
from moescope.run.facts import LayerFacts, TokenBlock
from moescope.run.sample import Sample
from moescope.run.sparse import SparseCounter
from moescope.trace.facts import layer_facts


def test_the_facts_of_one_token_by_hand() -> None:
    # p = 0.5 0.25 0.125 0.125; chosen 1 and 0 with weights 0.25 and 0.5 (not normalised)
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    made = layer_facts(logits, torch.tensor([[1, 0]]), torch.tensor([[0.25, 0.5]]), "softmax")
    assert made.topk_ids.tolist() == [[0, 1]]  # by descending weight
    assert made.topk_mass[0] == pytest.approx(0.75)
    assert made.margin_first[0] == pytest.approx(0.25)
    assert made.margin_kth[0] == pytest.approx(0.25 - 0.125)
    # H(p) = 1.75 bits of log2(4) = 2; H(2/3, 1/3) = 0.918 bits of 1
    assert made.router_entropy[0] == pytest.approx(1.75 / 2)
    assert made.topk_entropy[0] == pytest.approx(0.9183, abs=1e-4)


def test_a_choice_against_the_probabilities_has_a_negative_margin() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    made = layer_facts(logits, torch.tensor([[2]]), torch.tensor([[1.0]]), "sigmoid")
    assert made.margin_kth[0] < 0
    assert made.topk_entropy[0] == 0.0  # one choice leaves nothing open


def test_a_router_that_saw_nothing_is_an_error_and_names_itself(tiny_loaded: LoadedModel) -> None:
    model = tiny_loaded.model
    sites = [m.site for m in tiny_loaded.anatomy.layers]
    ids = torch.tensor([[5, 6, 7]])
    block = model.get_submodule(sites[2].block)
    original = block.forward
    block.forward = lambda hidden: hidden  # a renamed or bypassed block, as an upgrade might bring
    try:
        with RoutingCapture(model, sites) as capture, torch.no_grad():
            model(input_ids=ids)
            with pytest.raises(CoverageError, match=r"layer 2: router model\.layers\.2.* 0 times"):
                capture.take(expected_rows=3)
    finally:
        block.forward = original
    with RoutingCapture(model, sites) as capture, torch.no_grad():
        model(input_ids=ids)
        with pytest.raises(CoverageError, match="expected 4"):
            capture.take(expected_rows=4)


@given(st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=8))
def test_a_sparse_counter_counts_as_a_dictionary_would(batches: list[list[int]]) -> None:
    counter, other = SparseCounter(), SparseCounter()
    for i, batch in enumerate(batches):
        (counter if i % 2 else other).add(np.asarray(batch, np.int64))
    counter.merge(other)
    flat = [x for batch in batches for x in batch]
    expected = {x: flat.count(x) for x in sorted(set(flat))}
    assert dict(zip(counter.keys.tolist(), counter.counts.tolist(), strict=True)) == expected


@given(st.integers(0, 500), st.integers(0, 2**24 - 1), st.integers(0, 4095))
def test_packed_keys_come_back(domain: int, token: int, expert: int) -> None:
    key = pack(*(np.asarray([v], np.int64) for v in (domain, token, expert)))
    assert [int(v[0]) for v in unpack(key)] == [domain, token, expert]


def block_of(doc: int, domain: int, tokens: int) -> TokenBlock:
    full = lambda v, t=np.int64: np.full(tokens, v, t)  # noqa: E731
    return TokenBlock(
        doc=full(doc), cluster=full(doc), domain=full(domain), window=full(0),
        pos=np.arange(tokens), token_id=np.arange(tokens), next_id=full(-1), pred_id=full(-1),
        nll=full(np.nan, np.float32), follows=np.arange(tokens) > 0,
        last=np.arange(tokens) == tokens - 1,
    )  # fmt: skip


def facts_of(tokens: int) -> LayerFacts:
    rng = np.random.default_rng(tokens)
    logits = torch.as_tensor(rng.normal(size=(tokens, 4)), dtype=torch.float32)
    weights, ids = torch.softmax(logits, -1).topk(2)
    return layer_facts(logits, ids, weights, "softmax")


def test_the_sample_does_not_depend_on_the_order_of_reading() -> None:
    names = [f"doc{i}" for i in range(40)]
    kept = []
    for seed in range(3):
        sample = Sample(tokens_per_domain=100, span_tokens=30)
        for i in np.random.default_rng(seed).permutation(40):
            tokens = 5 + 3 * int(i) % 37
            sample.add(block_of(int(i), int(i) % 2, tokens), [facts_of(tokens)], (0,), names)
        kept.append([span.key for span in sample.ordered()])
        for domain in (0, 1):
            spans = [s for s in sample.ordered() if s.domain == domain]
            assert 100 <= sum(s.num_tokens for s in spans) < 100 + 30
    assert kept[0] == kept[1] == kept[2]


def test_two_halves_merged_equal_the_whole() -> None:
    shape = AggregateShape((0,), (4,), (2,))
    whole, left, right = (PhaseAggregates(shape) for _ in range(3))
    for i, part in ((0, left), (1, right), (2, left), (3, right)):
        for target in (whole, part):
            target.grow(4, 2)
            target.add(block_of(i, i % 2, 10 + i), [facts_of(10 + i)])
    left.merge(right)
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(left.arrays[name], array, rtol=1e-12, err_msg=name)
    for name, counter in whole.sparse.items():
        assert left.sparse[name].keys.tolist() == counter.keys.tolist()
        assert left.sparse[name].counts.tolist() == counter.counts.tolist()


def test_past_the_token_budget_nothing_enters_the_token_tables() -> None:
    aggregates = PhaseAggregates(AggregateShape((0,), (4,), (2,), token_budget=12))
    aggregates.grow(2, 1)
    for doc in (0, 1):
        aggregates.add(block_of(doc, 0, 10), [facts_of(10)])
    assert aggregates.sparse["input_0"].counts.sum() == 12 * 2
    assert aggregates.arrays["cluster_counts"].sum() == 20 * 2
