"""Edits on every architecture: each does what it says, or is refused in one clear line."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.alike import one_of_each
from tests.support.multimodal import MULTIMODAL_TYPES, any_model
from tests.support.tiny import MOE_MODEL_TYPES

from moescope.axes import ExpertRef
from moescope.errors import ModelError
from moescope.models import find_anatomy
from moescope.models.anatomy import REFUSED
from moescope.models.capture import Routing, RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit, bias, force, mask, scale, top_k, zero

TYPES = [t for t in (*MOE_MODEL_TYPES, *MULTIMODAL_TYPES) if t not in (*REFUSED, "inkling2_loop")]
LENGTH = 8

REFUSALS = {
    "jetmoe": dict.fromkeys(
        ("mask", "zero", "scale", "bias", "force", "top_k"), "cannot be edited: its router hands"
    ),
    "phimoe": {"force": "a forced expert has no weight", "top_k": "its number is built in"},
    "zaya": {"force": "a forced expert has no weight"},
    "gemma4_text": {"top_k": "its number is built in"},
    "inkling_mm_model": dict.fromkeys(("mask", "bias"), "it takes no bias and no mask"),
    "inkling_text": dict.fromkeys(("mask", "bias"), "it takes no bias and no mask"),
    "deepseek_v4": {"top_k": "its number is built in"},  # its hash layers; see also below
}


class Tiny:
    """A tiny model, what it does unedited, and the most used expert of its last MoE layer."""

    def __init__(self, model_type: str) -> None:
        self.type = model_type
        self.model: Any = any_model(model_type)
        self.anatomy = find_anatomy(self.model, self.model.config)
        self.loaded = SimpleNamespace(model=self.model, anatomy=self.anatomy)
        self.ids = torch.randint(4, 100, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        self.layer = self.anatomy.layers[-1]
        self.number = self.layer.layer_idx
        self.logits, self.before = self.run([])
        self.busy = int(self.before.topk_ids.flatten().mode().values)
        self.ref = ExpertRef(self.number, self.busy)
        self.hit = self.before.topk_ids == self.busy
        assert self.hit.any()

    @torch.no_grad()
    def run(self, edits: Sequence[Edit]) -> tuple[torch.Tensor, Routing]:
        with edited(self.loaded, edits), RoutingCapture(self.model, [self.layer.site]) as capture:
            logits = self.model(input_ids=self.ids, use_cache=False).logits
            return logits, capture.take(expected_rows=self.ids.numel())[self.number]

    def takes(self, kind: str) -> bool:
        return kind not in REFUSALS.get(self.type, {})


@pytest.fixture(scope="module", params=one_of_each(TYPES))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param)


def test_edits_that_change_nothing_leave_logits_bit_identical(tiny: Tiny) -> None:
    nothing: list[Edit] = []
    if tiny.takes("zero"):
        nothing += [scale(tiny.ref, 1.0), zero(tiny.ref).at([LENGTH])]
    if tiny.takes("bias"):
        nothing += [bias(tiny.ref, 0.0), bias(tiny.ref, 5.0).at([LENGTH])]
    if tiny.takes("top_k"):
        nothing.append(top_k(tiny.layer.top_k))
    assert torch.equal(tiny.run(nothing)[0], tiny.logits)


def test_a_zeroed_expert_weighs_nothing_and_nobody_takes_its_place(tiny: Tiny) -> None:
    if not tiny.takes("zero"):
        pytest.skip("refused, see below")
    logits, after = tiny.run([zero(tiny.ref)])
    assert (logits != tiny.logits).any()
    if tiny.type == "llama4_text":
        return _weights_of_llama4(tiny, after)
    assert torch.equal(after.topk_ids, tiny.before.topk_ids)
    expected = tiny.before.topk_weights.masked_fill(tiny.hit, 0.0)
    assert torch.equal(after.topk_weights, expected)
    _, after = tiny.run([zero(tiny.ref, renormalize=True)])
    lost_all = (expected == 0).all(-1)
    total = tiny.before.topk_weights.sum(-1).masked_fill(lost_all, 0.0)
    torch.testing.assert_close(after.topk_weights.sum(-1), total)
    untouched = ~tiny.hit.any(-1)
    assert torch.equal(after.topk_weights[untouched], tiny.before.topk_weights[untouched])
    return None


def _weights_of_llama4(tiny: Tiny, after: Routing) -> None:
    """Its router hands on weights alone, so a zeroed expert cannot be told from one not chosen."""
    before = tiny.before.topk_weights.masked_fill(tiny.hit, 0.0).sort(-1, descending=True).values
    assert torch.equal(after.topk_weights, before)


def test_scale_multiplies_the_weight_and_no_other(tiny: Tiny) -> None:
    if not tiny.takes("scale"):
        pytest.skip("refused, see below")
    _, after = tiny.run([scale(tiny.ref, 0.75)])
    expected = tiny.before.topk_weights * torch.where(tiny.hit, 0.75, 1.0)
    order = expected.argsort(-1, descending=True) if tiny.type == "llama4_text" else None
    if order is not None:
        expected = expected.gather(-1, order)
    assert torch.equal(after.topk_weights, expected)


def test_a_masked_expert_is_never_chosen_and_somebody_else_is(tiny: Tiny) -> None:
    if not tiny.takes("mask"):
        pytest.skip("refused, see below")
    logits, after = tiny.run([mask(tiny.ref)])
    assert (logits != tiny.logits).any()
    assert not (after.topk_ids == tiny.busy).any()
    assert after.topk_ids.shape == tiny.before.topk_ids.shape
    distinct = after.topk_ids.sort(-1).values.diff(dim=-1)
    assert (distinct > 0).all()
    _, after = tiny.run([mask(tiny.ref, renormalize=False)])
    assert not (after.topk_ids == tiny.busy).any()
    untouched = ~tiny.hit.any(-1)
    assert torch.equal(after.topk_ids[untouched], tiny.before.topk_ids[untouched])
    assert torch.equal(after.topk_weights[untouched], tiny.before.topk_weights[untouched])


def test_bias_brings_an_expert_in_or_keeps_it_out(tiny: Tiny) -> None:
    if not tiny.takes("bias"):
        pytest.skip("refused, see below")
    rare = int(tiny.before.topk_ids.flatten().bincount(minlength=tiny.layer.num_experts).argmin())
    _, up = tiny.run([bias(ExpertRef(tiny.number, rare), 60.0)])
    _, down = tiny.run([bias(tiny.ref, -60.0)])
    more = (up.topk_ids == rare).sum() - (tiny.before.topk_ids == rare).sum()
    fewer = (tiny.before.topk_ids == tiny.busy).sum() - (down.topk_ids == tiny.busy).sum()
    assert more > 0
    assert fewer > 0
    if not tiny.layer.selection_bias:  # else groups or a bias may still keep it out, or in
        assert (up.topk_ids == rare).any(-1).all()
        assert not (down.topk_ids == tiny.busy).any()


def test_a_forced_expert_is_chosen_and_the_others_keep_their_proportions(tiny: Tiny) -> None:
    if not tiny.takes("force"):
        pytest.skip("refused, see below")
    rare = int(tiny.before.topk_ids.flatten().bincount(minlength=tiny.layer.num_experts).argmin())
    _, after = tiny.run([force(ExpertRef(tiny.number, rare))])
    assert (after.topk_ids == rare).sum(-1).eq(1).all()
    anyway = (tiny.before.topk_ids == rare).any(-1)
    assert not anyway.all()
    assert torch.equal(after.topk_weights[anyway], tiny.before.topk_weights[anyway])
    assert (after.topk_weights > 0).all()
    ratios = []
    for row in (~anyway).nonzero().flatten().tolist():
        old = _by_expert(tiny.before, row)
        new = _by_expert(after, row)
        lost = set(old) - set(new)
        assert lost == {min(old, key=old.__getitem__)}, "the weakest goes"
        kept = [new[e] / old[e] for e in set(old) & set(new)]
        ratios += kept
        assert kept == pytest.approx([kept[0]] * len(kept), rel=1e-4)
        if tiny.layer.normalized and tiny.type != "gemma4_text":  # one more factor per expert
            assert sum(new.values()) == pytest.approx(sum(old.values()), rel=1e-4)
    if not tiny.layer.normalized:
        assert ratios == pytest.approx([1.0] * len(ratios), rel=1e-4)


def _by_expert(routing: Routing, row: int) -> dict[int, float]:
    return dict(
        zip(routing.topk_ids[row].tolist(), routing.topk_weights[row].tolist(), strict=True)
    )


def test_one_more_expert_weighs_what_forcing_it_gives(tiny: Tiny) -> None:
    """The router's own choice number K + 1 shows what the forced expert's logit is worth."""
    if not tiny.takes("top_k") or not tiny.takes("force"):
        pytest.skip("refused, see below")
    _, wider = tiny.run([top_k(tiny.layer.top_k + 1, layers=[tiny.number])])
    assert wider.topk_ids.shape[-1] == tiny.layer.top_k + 1
    more, old = _by_expert(wider, 0), _by_expert(tiny.before, 0)
    [newcomer] = set(more) - set(old)
    _, after = tiny.run([force(ExpertRef(tiny.number, newcomer)).at([0])])
    new = _by_expert(after, 0)
    for e in new:
        assert new[e] / new[newcomer] == pytest.approx(more[e] / more[newcomer], rel=1e-4)


def test_one_expert_alone_is_the_first_choice(tiny: Tiny) -> None:
    if not tiny.takes("top_k") or tiny.type == "longcat_flash":
        pytest.skip("refused, see below")
    _, alone = tiny.run([top_k(1, layers=[tiny.number])])
    assert alone.topk_ids.shape[-1] == 1
    assert (alone.topk_ids == tiny.before.topk_ids).any(-1).all()


@pytest.mark.parametrize("tiny", TYPES, indirect=True)  # the caches are as many
@torch.no_grad()
def test_a_position_in_the_decoding_is_found_with_every_kind_of_cache(tiny: Tiny) -> None:
    if not tiny.takes("zero"):
        pytest.skip("refused, see below")
    everyone = [ExpertRef(tiny.number, e) for e in range(tiny.layer.num_experts)]
    edit = zero(everyone).at([2, LENGTH + 1])
    with edited(tiny.loaded, edit), RoutingCapture(tiny.model, [tiny.layer.site]) as capture:
        tiny.model.generate(
            tiny.ids, attention_mask=torch.ones_like(tiny.ids), max_new_tokens=3,
            min_new_tokens=3, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        prompt, *steps = [step[tiny.number] for step in capture.take_steps()]
    silent = (prompt.topk_weights == 0).all(-1).reshape(2, LENGTH)
    assert silent.all(0).nonzero().flatten().tolist() == [2]
    quiet = [bool((s.topk_weights == 0).all()) for s in steps]
    if tiny.type == "zaya":  # its skip expert weighs nothing anyway
        assert quiet[1]
    else:
        assert quiet == [False, True]


def test_gradients_stay_finite_under_edits(tiny: Tiny) -> None:
    if not tiny.takes("zero"):
        pytest.skip("refused, see below")
    edits = [zero(tiny.ref), scale(tiny.ref, 2.0)]
    edits += [mask(tiny.ref)] if tiny.takes("mask") else []
    with edited(tiny.loaded, edits):
        tiny.model(input_ids=tiny.ids, use_cache=False).logits.logsumexp(-1).mean().backward()
    router = tiny.model.get_submodule(tiny.layer.site.router)
    grads = [p.grad for p in tiny.model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)
    if tiny.type != "phimoe":  # a softmax over one near-best expert is 1, whatever its logit
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())
    tiny.model.zero_grad()


def test_the_model_is_as_it_was(tiny: Tiny) -> None:
    """Last of the tests that share a model: none of the edits above left a trace."""
    assert torch.equal(tiny.run([])[0], tiny.logits)
    assert not any(k.startswith("_moescope") for k in tiny.model.__dict__)
    for module in tiny.model.modules():
        assert "forward" not in module.__dict__


EDITS = {
    "mask": lambda ref, k: mask(ref),
    "zero": lambda ref, k: zero(ref),
    "scale": lambda ref, k: scale(ref, 2.0),
    "bias": lambda ref, k: bias(ref, 1.0),
    "force": lambda ref, k: force(ref),
    "top_k": lambda ref, k: top_k(k + 1),
}


@pytest.mark.parametrize("model_type", REFUSALS)
def test_what_an_architecture_cannot_take_is_refused_in_one_line(model_type: str) -> None:
    tiny = Tiny(model_type)
    for kind, message in REFUSALS[model_type].items():
        with pytest.raises(ModelError, match=message) as error:
            tiny.run([EDITS[kind](tiny.ref, tiny.layer.top_k)])
        assert "\n" not in str(error.value)
        assert tiny.layer.site.router.rpartition(".")[2] in str(error.value)
    assert torch.equal(tiny.run([])[0], tiny.logits)


def test_a_token_that_chooses_by_its_own_number_cannot_be_kept_from_an_expert() -> None:
    tiny = Tiny("deepseek_v4")
    hashed = tiny.anatomy.layers[0]
    table = tiny.model.get_submodule(hashed.site.router).tid2eid
    expert = ExpertRef(hashed.layer_idx, int(table[tiny.ids[0, 0], 0]))
    with pytest.raises(ModelError, match="still chose a masked expert"):
        tiny.run([mask(expert)])
    assert (tiny.run([zero(expert)])[0] != tiny.logits).any()


def test_gemma_multiplies_the_weight_of_a_forced_expert_by_its_own_scale_too() -> None:
    tiny = Tiny("gemma4_text")
    per_expert = tiny.model.get_submodule(tiny.layer.site.router).per_expert_scale.detach()
    assert per_expert.std() > 0.05
    rare = int(tiny.before.topk_ids.flatten().bincount(minlength=8).argmin())
    _, after = tiny.run([force(ExpertRef(tiny.number, rare))])
    shares = tiny.before.logits.gather(-1, after.topk_ids)  # its router hands out probabilities
    expected = shares / shares.sum(-1, keepdim=True) * per_expert[after.topk_ids]
    torch.testing.assert_close(after.topk_weights, expected, rtol=1e-4, atol=1e-6)


def test_longcat_takes_no_single_expert() -> None:
    tiny = Tiny("longcat_flash")
    with pytest.raises(ModelError, match=r"LongcatFlashExperts.*at least 2"):
        tiny.run([top_k(1)])


def test_every_refusal_is_in_the_table() -> None:
    assert set(REFUSALS) <= set(TYPES)
