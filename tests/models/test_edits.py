"""Every edit against a brute-force rewrite of the forward pass, in prefill and in generation."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.brute_edits import FAMILIES, Rewritten, decide, rule_of
from tests.support.tiny import tiny_model
from torch import nn

from moescope.axes import ExpertRef
from moescope.errors import ModelError
from moescope.models import find_anatomy
from moescope.models.capture import Routing, RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit, bias, force, mask, scale, top_k, zero

LENGTH, WRITTEN = 7, 3
WHERE_WRITTEN = LENGTH + 1  # the second decoding step reads this column


class Bench:
    """One tiny model, its rewrite, and what it does unedited."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.family = family
        self.model: Any = tiny_model(family, dtype=dtype)
        self.anatomy = find_anatomy(self.model, self.model.config)
        self.loaded = SimpleNamespace(model=self.model, anatomy=self.anatomy)
        self.rewritten = Rewritten(self.model)
        self.ids = torch.randint(4, 100, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        self.plain = prefill(self.model, self.ids)
        self.routing = self.capture([])
        self.numbers = self.anatomy.layer_numbers

    def capture(self, edits: Sequence[Edit]) -> dict[int, Routing]:
        sites = [layer.site for layer in self.anatomy.layers]
        with edited(self.loaded, edits), RoutingCapture(self.model, sites) as capture:
            prefill(self.model, self.ids)
            return capture.take(expected_rows=self.ids.numel())

    def expert(self, rank: int, layer: int = 0) -> ExpertRef:
        """The expert of this rank by use, in one of the MoE layers (0: the first)."""
        number = self.numbers[layer]
        counts = self.routing[number].topk_ids.flatten().bincount(minlength=8)
        return ExpertRef(number, int(counts.argsort(descending=True, stable=True)[rank]))

    def pair(self, layer: int = 0) -> list[ExpertRef]:
        """A much used expert of each half: DeepSeek's groups of four must keep three each."""
        ranked = [self.expert(rank, layer) for rank in range(8)]
        return [next(e for e in ranked if e.expert // 4 == half) for half in (0, 1)]

    def whole_layer(self, layer: int = 0) -> list[ExpertRef]:
        return [ExpertRef(self.numbers[layer], e) for e in range(8)]


@cache
def bench(family: str) -> Bench:
    return Bench(family)


@torch.no_grad()
def prefill(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, **kwargs).logits


@torch.no_grad()
def generate(model: Any, ids: torch.Tensor | None, **kwargs: Any) -> Any:
    if ids is not None and "attention_mask" not in kwargs:
        kwargs["attention_mask"] = torch.ones_like(ids)
    return model.generate(
        ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **kwargs,
    )  # fmt: skip


def close(ours: torch.Tensor, brute: torch.Tensor) -> None:
    torch.testing.assert_close(ours, brute, rtol=1e-4, atol=3e-5)


def assert_as_rewritten(
    b: Bench, *blocks: Sequence[Edit], rows: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Under nested blocks, outermost first; returns edited logits of prefill and of generation.

    ``rows``: how many of the two prompts are continued.
    """
    edits, prompts = [edit for block in blocks for edit in block], b.ids[:rows]
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(edited(b.loaded, block))
        ours, written = prefill(b.model, b.ids), generate(b.model, prompts)
    close(ours, prefill(b.rewritten.start(edits), b.ids))
    brute = generate(b.rewritten.start(edits), prompts)
    assert torch.equal(written.sequences, brute.sequences)
    assert len(written.logits) == WRITTEN
    for mine, other in zip(written.logits, brute.logits, strict=True):
        close(mine, other)
    assert torch.equal(prefill(b.model, b.ids), b.plain), "not restored"
    return ours, torch.stack(written.logits)


CASES: dict[str, Callable[[Bench], list[Edit]]] = {
    "mask one": lambda b: [mask(b.expert(0))],
    "mask one in the last layer": lambda b: [mask(b.expert(0, -1))],
    "mask two": lambda b: [mask(b.pair())],
    "mask, others kept": lambda b: [mask(b.expert(0), renormalize=False)],
    "mask two, others kept": lambda b: [mask(b.pair(), renormalize=False)],
    "mask two in two edits, others kept": lambda b: [
        mask(e, renormalize=False) for e in b.pair()
    ],
    "mask two, beside one of them others kept": lambda b: [
        mask(b.pair()[0]), mask(b.pair()[1], renormalize=False)
    ],
    "mask in several layers": lambda b: [mask([b.expert(0, 0), b.expert(1, 1), b.expert(0, -1)])],
    "zero": lambda b: [zero(b.expert(0))],
    "zero, rest scaled up": lambda b: [zero(b.expert(0), renormalize=True)],
    "zero two, the rest of one scaled up": lambda b: [
        zero(b.expert(1)), zero(b.expert(0), renormalize=True)
    ],
    "zero a whole layer": lambda b: [zero(b.whole_layer(-1))],
    "zero a whole layer, nothing left to scale up": lambda b: [
        zero(b.whole_layer(), renormalize=True)
    ],
    "scale up, down and below zero": lambda b: [
        scale(b.expert(0), 3.0), scale(b.expert(1), 0.25), scale(b.expert(0, -1), -1.0)
    ],
    "bias up": lambda b: [bias(b.expert(5), 3.0)],
    "bias down": lambda b: [bias(b.expert(0), -2.0)],
    "bias twice": lambda b: [bias(b.expert(6), 1.5), bias(b.expert(6), 1.0)],
    "force one": lambda b: [force(b.expert(6))],
    "force the expert that is chosen most": lambda b: [force(b.expert(0))],
    "force two": lambda b: [force([b.expert(6), b.expert(5)])],
    "force two in two edits": lambda b: [force(b.expert(5)), force(b.expert(6))],
    "top_k up": lambda b: [top_k(b.anatomy.layers[0].top_k + 1)],
    "top_k 1 in the last layer": lambda b: [top_k(1, layers=[b.numbers[-1]])],
    "top_k twice, the last holds": lambda b: [top_k(4), top_k(1)],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_an_edit_does_what_the_rewritten_model_does(family: str, case: str) -> None:
    b = bench(family)
    ours, _ = assert_as_rewritten(b, CASES[case](b))
    assert (ours - b.plain).abs().max() > 1e-2, "the edit changed nothing"


AT: dict[str, Callable[[Bench], list[Edit]]] = {
    "zero": lambda b: [zero(b.whole_layer())],
    "zero, rest scaled up": lambda b: [zero(b.whole_layer()[1:6], renormalize=True)],
    "scale": lambda b: [scale(b.whole_layer(), 2.0)],
    "bias": lambda b: [bias(b.expert(6), 20.0)],
    "force": lambda b: [force([b.expert(6), b.expert(7)])],
    "mask": lambda b: [mask(b.expert(0))],
    "mask, others kept": lambda b: [mask(b.expert(0), renormalize=False)],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", AT)
def test_an_edit_at_positions_holds_at_those_columns_and_no_other(family: str, kind: str) -> None:
    b = bench(family)
    edits = [edit.at([2, 5, WHERE_WRITTEN]) for edit in AT[kind](b)]
    if kind.startswith("mask") and family == "deepseek_v3":
        with edited(b.loaded, edits), pytest.raises(ModelError, match="masked at some positions"):
            prefill(b.model, b.ids)
        return
    ours, written = assert_as_rewritten(b, edits, rows=2)
    changed = (ours - b.plain).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False, False, True, True, True, True, True]
    with edited(b.loaded, [edit.at([2, 5]) for edit in edits]):
        before = generate(b.model, b.ids).logits
    stepwise = (written - torch.stack(before)).abs().amax((1, 2)) > 1e-4
    assert stepwise[:2].tolist() == [False, False]  # made by columns up to 7
    assert stepwise[2] or kind.startswith("mask")  # column 8, unless the expert was not wanted


def test_two_edits_at_different_positions_do_not_meet() -> None:
    b = bench("mixtral")  # K = 2: three forced experts would not fit into one position
    experts = [b.expert(rank) for rank in (5, 6, 7)]
    edits = [force(e).at([i, i + 1]) for i, e in zip((0, 2, 4), experts, strict=True)]
    assert_as_rewritten(b, edits)


def _all_kinds(b: Bench) -> list[Edit]:
    """One edit of each kind that meet in the first layer, and some elsewhere."""
    one, other = b.pair()
    spare = [e for e in b.whole_layer() if e not in (one, other)]
    return [
        bias(other, 1.0),
        mask(one, renormalize=False),
        top_k(3),
        force(spare[0]).at([1, 4, WHERE_WRITTEN]),
        force(spare[1]),
        zero(spare[2], renormalize=True),
        zero(spare[3]),
        scale(spare[1], 0.5).at([0, 1, 2, WHERE_WRITTEN]),
        scale(spare[1], 3.0),
        mask(b.expert(0, -1)),
        bias(b.expert(5, -1), 2.0),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_all_kinds_compose_whatever_their_order(family: str) -> None:
    b = bench(family)
    edits = _all_kinds(b)
    ours, _ = assert_as_rewritten(b, edits[:4], edits[4:])
    for blocks in ([edits], [edits[::-1]], [edits[4:], edits[:4]], [[e] for e in edits]):
        with ExitStack() as stack:
            for block in blocks:
                stack.enter_context(edited(b.loaded, block))
            assert torch.equal(prefill(b.model, b.ids), ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_that_change_nothing_leave_logits_bit_identical(family: str) -> None:
    b = bench(family)
    one_row, chosen = b.ids[:1], b.routing[b.numbers[0]].topk_ids[3].tolist()
    here = [e for e in b.whole_layer() if e.expert in chosen]
    elsewhere = [e for e in b.whole_layer() if e.expert not in chosen]
    nothing: list[list[Edit]] = [
        [],
        [scale(b.expert(0), 1.0), bias(b.expert(0), 0.0)],
        [scale(b.expert(0), 1.0).at([3]), bias(b.expert(1), 0.0).at([0])],
        [scale(b.expert(0), 4.0), scale(b.expert(0), 0.25)],
        [top_k(b.anatomy.layers[0].top_k)],
        [force(here).at([3])],
        [zero(elsewhere).at([3]), zero(elsewhere, renormalize=True).at([3])],
        [scale(elsewhere, 9.0).at([3])],
        [zero(b.expert(0)).at([LENGTH]), zero(b.expert(0, -1)).at([99])],  # columns never read
    ]
    if b.family != "deepseek_v3":
        nothing.append([mask(elsewhere[0], renormalize=False).at([3])])
    expected = prefill(b.model, one_row)
    for edits in nothing:
        with edited(b.loaded, edits):
            assert torch.equal(prefill(b.model, one_row), expected), [str(e) for e in edits]


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_sees_what_was_used(family: str) -> None:
    b = bench(family)
    edits = _all_kinds(b)
    prefill(b.rewritten.start(edits), b.ids)
    for number, routing in b.capture(edits).items():
        for row, seen in enumerate(b.rewritten.seen[number]):
            got = dict(zip(routing.topk_ids[row].tolist(), routing.topk_weights[row].tolist(),
                           strict=True))  # fmt: skip
            assert got == pytest.approx(seen, rel=1e-4, abs=1e-6)


def test_masking_with_others_kept_leaves_tokens_alone_that_chose_another_expert() -> None:
    b = bench("olmoe")
    expert = b.expert(2)
    before, number = b.routing[expert.layer_idx], expert.layer_idx
    away = ~(before.topk_ids == expert.expert).any(-1)
    assert away.any()
    assert not away.all()
    kept = b.capture([mask(expert, renormalize=False)])[number]
    assert torch.equal(kept.topk_weights[away], before.topk_weights[away])
    # renormalising hands the masked share to all: p / (1 − p_masked) everywhere
    share = before.logits.softmax(-1)[:, expert.expert]
    handed = b.capture([mask(expert)])[number]
    close(handed.topk_weights[away], before.topk_weights[away] / (1 - share[away, None]))


# -- generation as people use it


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_left_padding_counts_columns(family: str) -> None:
    b = bench(family)
    padding = torch.ones_like(b.ids)
    padding[1, :3] = 0
    edits = [zero(b.whole_layer()).at([4, WHERE_WRITTEN]), force(b.expert(6, -1))]
    with edited(b.loaded, edits):
        ours = generate(b.model, b.ids, attention_mask=padding)
    brute = generate(b.rewritten.start(edits), b.ids, attention_mask=padding)
    assert torch.equal(ours.sequences, brute.sequences)
    for mine, other in zip(ours.logits, brute.logits, strict=True):
        close(mine, other)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_beams(family: str) -> None:
    b = bench(family)
    edits = [zero(b.whole_layer()).at([1, LENGTH, WHERE_WRITTEN]), bias(b.expert(6, -1), 2.0)]
    with edited(b.loaded, edits):
        ours = generate(b.model, b.ids, num_beams=3)
    brute = generate(b.rewritten.start(edits), b.ids, num_beams=3)
    assert torch.equal(ours.sequences, brute.sequences)
    assert not torch.equal(ours.sequences, generate(b.model, b.ids, num_beams=3).sequences)


def test_embeddings_instead_of_ids_a_static_cache_and_chunks_of_the_prompt() -> None:
    b = bench("olmoe")
    edits = [zero(b.whole_layer()).at([2, WHERE_WRITTEN]), mask(b.expert(0, -1)).at([3])]
    embedded = b.model.get_input_embeddings()(b.ids).detach()
    with edited(b.loaded, edits):
        ours = generate(b.model, b.ids)
        others = [
            generate(b.model, None, inputs_embeds=embedded,
                     attention_mask=torch.ones_like(b.ids)),
            generate(b.model, b.ids, cache_implementation="static", disable_compile=True),
            generate(b.model, b.ids, prefill_chunk_size=4),
            generate(b.model, b.ids, use_cache=False),
        ]  # fmt: skip
    for other in others:
        assert torch.equal(other.sequences[:, -WRITTEN:], ours.sequences[:, -WRITTEN:])
        for mine, theirs in zip(ours.logits, other.logits, strict=True):
            close(mine, theirs)


def test_the_body_alone_called_with_positional_arguments_and_a_cache() -> None:
    b = bench("olmoe")
    edits = [zero(b.whole_layer()).at([2, 5])]
    prefill(b.rewritten.start(edits), b.ids)
    with edited(b.loaded, edits), torch.no_grad():
        body = b.model.base_model
        whole = body(b.ids).last_hidden_state
        first = body(b.ids[:, :4], use_cache=True)
        rest = body(b.ids[:, 4:], None, None, first.past_key_values).last_hidden_state
    close(rest, whole[:, 4:])
    with torch.no_grad():
        close(whole, b.rewritten.start(edits).base_model(b.ids).last_hidden_state)


# -- precision and gradients


def test_in_bfloat16_choice_and_weights_follow_from_the_rounded_logits() -> None:
    for family in FAMILIES:
        b = Bench(family, torch.bfloat16)
        layer, rule = b.numbers[0], rule_of(b.model.model.layers[b.numbers[0]].mlp)
        one, other = b.pair()
        spare = [e for e in b.whole_layer() if e not in (one, other)]
        edits = [mask(one, renormalize=False), force(spare[0]), zero(spare[1], renormalize=True),
                 scale(other, 0.5)]  # fmt: skip
        after, compared = b.capture(edits)[layer], 0
        assert after.topk_weights.dtype == b.routing[layer].topk_weights.dtype
        for row, logits in enumerate(b.routing[layer].logits.float().tolist()):
            ranked = sorted(logits)
            if min(y - x for x, y in itertools.pairwise(ranked)) < 0.03:
                continue  # rounding may decide between neighbours
            compared += 1
            brute = decide(rule, logits, edits, layer)
            got = dict(zip(after.topk_ids[row].tolist(), after.topk_weights[row].tolist(),
                           strict=True))  # fmt: skip
            assert got == pytest.approx(brute, rel=2**-6, abs=1e-3)
        assert compared >= 4
        with edited(b.loaded, [scale(one, 1.0), bias(one, 0.0), top_k(rule.top_k)]):
            assert torch.equal(prefill(b.model, b.ids), b.plain)


def _gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_edits_as_through_the_same_weights(family: str) -> None:
    """Zeroing an expert and halving another is what a model with such output weights does."""
    b = bench(family)
    gone, half = b.expert(0), b.expert(1)
    with edited(b.loaded, [zero(gone), scale(half, 0.5)]):
        ours = _gradients(b.model, b.ids)
    twin = tiny_model(family)
    experts = twin.model.layers[gone.layer_idx].mlp.experts
    with torch.no_grad():
        for name, tensor in experts.named_parameters():
            if name.startswith("down_proj"):
                tensor[gone.expert] = 0.0
                tensor[half.expert] *= 0.5
    theirs = _gradients(twin, b.ids)
    b.model.zero_grad()
    routers = [n for n in theirs if ".gate.weight" in n or ".router.weight" in n]
    assert len(routers) == len(b.numbers)
    for name in routers:
        assert ours[name].abs().sum() > 0
        close(ours[name], theirs[name])


def test_inference_mode_and_training_mode_give_the_same_numbers() -> None:
    b = bench("deepseek_v3")
    with edited(b.loaded, [mask(b.expert(0)), force(b.expert(6, -1))]):
        expected = prefill(b.model, b.ids)
        with torch.inference_mode():
            assert torch.equal(b.model(input_ids=b.ids, use_cache=False).logits, expected)
        with_grad = b.model(input_ids=b.ids, use_cache=False).logits
        assert with_grad.requires_grad
        close(with_grad.detach(), expected)
    assert all(torch.isfinite(t).all() for _, t in b.model.named_buffers())


def test_two_models_at_once_keep_their_own_edits() -> None:
    one, two = bench("olmoe"), bench("mixtral")
    with edited(one.loaded, mask(one.expert(0))), edited(two.loaded, zero(two.expert(0)).at([2])):
        close(prefill(one.model, one.ids),
              prefill(one.rewritten.start([mask(one.expert(0))]), one.ids))  # fmt: skip
        close(prefill(two.model, two.ids),
              prefill(two.rewritten.start([zero(two.expert(0)).at([2])]), two.ids))  # fmt: skip
        same = prefill(two.model, two.ids)[:, :2]
    assert torch.equal(same, two.plain[:, :2])


def test_the_rewritten_models_are_the_stock_ones_when_nothing_is_edited() -> None:
    for family in FAMILIES:
        b = bench(family)
        assert isinstance(b.rewritten.model, nn.Module)
        assert b.rewritten.model is not b.model
        assert_as_rewritten(b, [])
