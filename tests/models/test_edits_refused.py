"""Bad input to edits is one clear line, and leaving a block leaves the model as it was."""

import copy
import pickle
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny import tiny_model

from moescope.axes import ExpertRef
from moescope.errors import BadInputError, CoverageError, ModelError
from moescope.models import find_anatomy
from moescope.models.capture import RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit, bias, force, mask, parse_experts, scale, top_k, zero
from moescope.models.resume import Resumable

IDS = torch.randint(4, 100, (2, 7), generator=torch.Generator().manual_seed(1))


def load(model_type: str = "olmoe") -> Any:
    model = tiny_model(model_type)
    return SimpleNamespace(model=model, anatomy=find_anatomy(model, model.config))


@pytest.fixture(scope="module")
def olmoe() -> Any:
    """4 layers of 8 experts, three for a token."""
    return load()


@pytest.fixture(scope="module")
def qwen() -> Any:
    """MoE layers 1 and 3 of four."""
    return load("qwen2_moe")


@torch.no_grad()
def logits(loaded: Any) -> torch.Tensor:
    return loaded.model(input_ids=IDS, use_cache=False).logits


# -- naming experts


def test_selectors_name_single_experts_ranges_layers_and_one_number_everywhere(qwen: Any) -> None:
    names = [str(e) for e in parse_experts(qwen.anatomy, ["L1E2", "l3e5-7", "L1E2"])]
    assert names == ["L1E2", "L3E5", "L3E6", "L3E7"]
    assert len(parse_experts(qwen.anatomy, "L3E*", expect=8)) == 8
    assert parse_experts(qwen.anatomy, "L*E4") == (ExpertRef(1, 4), ExpertRef(3, 4))
    assert len(parse_experts(qwen.anatomy, "L*E*")) == 16
    assert len(parse_experts(qwen.anatomy, "L*E6-7")) == 4


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("L9E0", "L9E0 does not exist: layer 9 is not an MoE layer .* layers are 1, 3"),
        ("L2E0", "L2E0 does not exist: layer 2 is not an MoE layer"),
        ("L9E*", "layer 9 is not an MoE layer"),
        ("L1E99", "L1E99 does not exist: layer 1 of this .* has experts E0 to E7"),
        ("L1E6-9", "L1E9 does not exist: layer 1 of this .* has experts E0 to E7"),
        ("L*E8", "L1E8 does not exist"),
        ("L1E5-3", "range starts after its end"),
        ("L1", "'L1' names no expert: expected L5E9, L5E0-7"),
        ("", "no expert was named"),
        ("L1E-3", "names no expert"),
        ([], "no expert was named"),
    ],
)
def test_a_selector_that_matches_nothing_says_what_there_is(
    qwen: Any, selectors: Any, message: str
) -> None:
    with pytest.raises(BadInputError, match=message) as error:
        parse_experts(qwen.anatomy, selectors)
    assert "\n" not in str(error.value)


def test_a_selector_that_matches_another_number_than_expected_is_refused(qwen: Any) -> None:
    with pytest.raises(BadInputError, match="L1E0-3 selects 4 experts, expected 5"):
        parse_experts(qwen.anatomy, "L1E0-3", expect=5)
    with pytest.raises(BadInputError, match="selects 2 experts, expected 1"):
        parse_experts(qwen.anatomy, "L*E0", expect=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mask("L0"), "'L0' names no expert"),
        (lambda: mask("L0E*"), "'L0E\\*' may stand for many experts.*parse_experts"),
        (lambda: zero(["L0E1", "L0E1-3"]), "may stand for many experts"),
        (lambda: zero([]), "at least one expert"),
        (lambda: force((0, 1)), "0 names no expert"),
        (lambda: scale("L0E1", float("nan")), "scale needs a finite number, got nan"),
        (lambda: bias("L0E1", float("inf")), "bias needs a finite number, got inf; mask"),
        (lambda: top_k(2.5), "top_k must be a whole number from 0 on, got 2.5"),
        (lambda: top_k(2, layers=[]), "names no layer"),
        (lambda: top_k(2, layers=["1"]), "a layer must be a whole number"),
        (lambda: zero("L0E1").at([-1]), "a position must be a whole number from 0 on, got -1"),
        (lambda: zero("L0E1").at([1.0]), "a position must be a whole number"),
        (lambda: zero("L0E1").at([]), "at\\(\\) names no position"),
    ],
)
def test_an_edit_that_means_nothing_cannot_be_made(make: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make()


def test_edits_show_what_they_do() -> None:
    assert str(mask(["L1E2", "L0E3"])) == "mask L0E3, L1E2"
    assert str(mask("L1E2", renormalize=False)) == "mask L1E2 (weights of the rest kept)"
    assert str(zero("L1E2", renormalize=True)) == "zero L1E2 (rest scaled up)"
    assert str(scale("L1E2", 0.5).at([4, 3, 3])) == "L1E2 × 0.5 at 3, 4"
    assert str(bias("L1E2", 2).at(np.array([0]))) == "L1E2 +2 logits at 0"
    assert str(top_k(3)) == "top_k = 3"
    many = force([ExpertRef(0, e) for e in range(8)])
    assert str(many) == "force L0E0, L0E1, L0E2, L0E3, L0E4, L0E5 and 2 more"


def test_which_edits_leave_tokens_alone_that_chose_others() -> None:
    alone = [zero("L0E1"), scale("L0E1", 2.0), mask("L0E1", renormalize=False)]
    assert all(edit.only_where_chosen for edit in alone)
    assert not any(e.only_where_chosen for e in (mask("L0E1"), bias("L0E1", 1.0), force("L0E1")))


# -- edits that do not fit the model, or each other


def refused(loaded: Any, *blocks: list[Edit] | Edit) -> str:
    """The one line with which the innermost block is refused; the model stays what it was."""
    before = logits(loaded)
    *outer, last = blocks
    with pytest.raises(BadInputError) as error:
        _enter(loaded, outer, last)
    assert torch.equal(logits(loaded), before)
    assert "\n" not in str(error.value)
    return str(error.value)


def _enter(loaded: Any, outer: Any, last: Any) -> None:
    if outer:
        with edited(loaded, outer[0]):
            _enter(loaded, outer[1:], last)
    else:
        with edited(loaded, last):
            raise AssertionError("not refused")


def experts(*numbers: int, layer: int = 1) -> list[ExpertRef]:
    return [ExpertRef(layer, e) for e in numbers]


def test_experts_and_layers_that_do_not_exist(qwen: Any) -> None:
    assert "L9E0 does not exist: layer 9 is not an MoE layer" in refused(qwen, mask("L9E0"))
    assert "L1E99 does not exist: layer 1 of this" in refused(qwen, zero("L1E99"))
    said = refused(qwen, top_k(1, layers=[1, 2]))
    assert "layer 2 is not an MoE layer" in said
    assert "are 1, 3" in said


def test_fewer_experts_left_than_a_token_takes(qwen: Any) -> None:
    room = "layer 1: mask names 7 of 8 experts, but a token takes 2, so at most 6 can be masked"
    assert refused(qwen, mask(experts(*range(7)))) == room
    assert refused(qwen, [mask(experts(*range(4))), mask(experts(3, 4, 5, 6))]) == room
    assert refused(qwen, mask(experts(*range(4))), zero("L3E0"), mask(experts(4, 5, 6))) == room
    assert "takes 3" in refused(qwen, [mask(experts(*range(6))), top_k(3)])
    assert "takes 3" in refused(qwen, mask(experts(*range(6))), top_k(3, layers=[1]))
    with edited(qwen, [mask(experts(*range(6))), top_k(3, layers=[3])]):
        logits(qwen)
    with edited(qwen, [mask(experts(*range(7))), top_k(1)]):
        logits(qwen)


def test_more_experts_forced_than_fit(qwen: Any) -> None:
    said = refused(qwen, force(experts(0, 1, 2)))
    assert said.endswith("force names 3 of 8 experts, but a token takes 2, so at most 2 can be "
                         "forced")  # fmt: skip
    assert refused(qwen, force(experts(0, 1)), force(experts(2)))
    assert "at most 1" in refused(qwen, force(experts(0, 1)), top_k(1))
    with edited(qwen, [force(experts(0, 1, 2)), top_k(3)]):
        logits(qwen)


def test_room_is_counted_where_edits_meet(qwen: Any) -> None:
    here, there = force(experts(0, 1)).at([0, 4]), force(experts(2, 3)).at([1])
    with edited(qwen, [here, there]):
        logits(qwen)
    assert "layer 1, position 4: force" in refused(qwen, [here, force(experts(5)).at([3, 4])])
    assert "layer 1, position 0: force" in refused(qwen, here, force(experts(5)))


def test_an_expert_both_masked_and_forced(qwen: Any) -> None:
    said = refused(qwen, [mask("L1E5"), force(["L1E4", "L1E5"])])
    assert said == "layer 1: L1E5 is both masked and forced; leave one of them out"
    assert refused(qwen, force("L1E5"), mask("L1E5").at([3]))
    with edited(qwen, [mask("L1E5").at([2]), force("L1E5").at([3]), mask("L3E4"), force("L1E4")]):
        logits(qwen)


def test_top_k_out_of_range_or_at_positions(qwen: Any) -> None:
    assert refused(qwen, top_k(0)) == "top_k = 0 in layer 1: expected 1 to 8"
    assert refused(qwen, top_k(9)) == "top_k = 9 in layer 1: expected 1 to 8"
    assert "cannot differ between positions" in refused(qwen, top_k(2).at([0]))


def test_something_that_is_no_edit(qwen: Any) -> None:
    assert "such as mask('L5E9'); got 'L1E2'" in refused(qwen, "L1E2")  # type: ignore[arg-type]
    assert "an edit is what" in refused(qwen, [ExpertRef(1, 2)])  # type: ignore[list-item]


def test_groups_that_could_not_fill_a_choice() -> None:
    """DeepSeek-V3: the best of two groups of four, then three of its experts."""
    loaded = load("deepseek_v3")
    said = refused(loaded, mask(["L1E0", "L1E3"]))
    assert "picks 1 of 2 groups of 4 experts before it picks 3" in said
    assert refused(loaded, mask("L1E0"), mask("L1E1"))
    assert refused(loaded, top_k(5))
    with edited(loaded, [mask(["L1E0", "L1E4"]), mask(["L2E0"])]):
        logits(loaded)
    with edited(loaded, [mask(["L1E0", "L1E1", "L1E2", "L1E3"]), top_k(4)]):  # group 1 is whole
        logits(loaded)
    with edited(loaded, mask(["L1E0", "L1E1", "L1E2"])):  # group 0 has no two left: out of play
        logits(loaded)


# -- leaving


def test_an_exception_inside_restores_the_model(olmoe: Any) -> None:
    before = logits(olmoe)

    def fail() -> None:
        with edited(olmoe, [mask("L0E1"), top_k(2)]):
            assert not torch.equal(logits(olmoe), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(logits(olmoe), before)
    assert "_moescope_edits" not in olmoe.model.__dict__


def test_an_exception_in_the_middle_of_a_pass_restores_everything() -> None:
    """In DeepSeek-V3 a mask sets the selection bias while the router decides."""
    loaded = load("deepseek_v3")
    before, state = logits(loaded), copy.deepcopy(loaded.model.state_dict())
    router = loaded.model.model.layers[2].mlp.gate
    k = router.top_k

    def fail(_module: Any, _args: Any) -> None:
        raise KeyError

    handle = loaded.model.model.layers[2].mlp.experts.register_forward_pre_hook(fail)
    with pytest.raises(KeyError), edited(loaded, [mask("L2E1"), top_k(2)]):
        logits(loaded)
    handle.remove()
    broken = router.weight
    del router.weight  # now the router itself fails, with its bias masked
    with pytest.raises(AttributeError), edited(loaded, [mask("L2E1"), top_k(2)]):
        logits(loaded)
    router.weight = broken
    assert router.top_k == k
    assert torch.equal(logits(loaded), before)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_weights_of_an_edited_model_are_its_own() -> None:
    loaded = load("deepseek_v3")
    before = {n: t.clone() for n, t in loaded.model.state_dict().items()}
    with edited(loaded, [mask("L1E0"), top_k(2), bias("L2E1", 3.0)]):
        logits(loaded)
        inside = loaded.model.state_dict()
    assert all(torch.equal(t, before[n]) for n, t in inside.items())
    assert list(inside) == list(before)


def test_a_mask_never_writes_into_the_weights_not_even_for_the_time_of_a_pass() -> None:
    with torch.inference_mode():  # weights made here could not be written to outside
        loaded = load("deepseek_v3")
    gate = loaded.model.model.layers[1].mlp.gate
    own, seen = gate.e_score_correction_bias, []
    handle = gate.register_forward_hook(lambda *_a: seen.append(gate.e_score_correction_bias))
    with edited(loaded, mask("L1E0")):
        assert torch.isfinite(logits(loaded)).all()
    handle.remove()
    assert seen == [own]
    assert gate.e_score_correction_bias is own
    assert torch.isfinite(own).all()


def test_blocks_that_close_in_another_order_take_their_own_edits_along(olmoe: Any) -> None:
    before = logits(olmoe)
    with edited(olmoe, zero("L1E2").at([3])):
        second_alone = logits(olmoe)
    first, second = edited(olmoe, mask("L0E1")), edited(olmoe, zero("L1E2").at([3]))
    first.__enter__()
    second.__enter__()
    both = logits(olmoe)
    first.__exit__(None, None, None)
    assert torch.equal(logits(olmoe), second_alone)
    assert not torch.equal(both, second_alone)
    second.__exit__(None, None, None)
    assert torch.equal(logits(olmoe), before)


def test_a_refused_inner_block_leaves_the_outer_one_in_force(olmoe: Any) -> None:
    with edited(olmoe, mask("L0E1")):
        inside = logits(olmoe)
        with pytest.raises(BadInputError), edited(olmoe, [zero("L1E0"), mask("L9E0")]):
            pass
        assert torch.equal(logits(olmoe), inside)
        with edited(olmoe, []):
            assert torch.equal(logits(olmoe), inside)
        assert torch.equal(logits(olmoe), inside)


def test_a_forward_that_another_tool_put_there_is_used_and_given_back() -> None:
    """As accelerate does for models spread over devices."""
    loaded = load()
    router = loaded.model.model.layers[0].mlp.gate
    stock, calls = router.forward, []

    def wrapped(hidden: torch.Tensor) -> Any:
        calls.append(hidden.shape)
        return stock(hidden)

    router.forward = wrapped
    with edited(loaded, mask("L0E1")):
        logits(loaded)
    assert router.forward is wrapped
    assert len(calls) == 1


def test_an_edited_model_cannot_be_copied_because_the_copy_would_stay_edited(olmoe: Any) -> None:
    before = logits(olmoe)
    with edited(olmoe, mask("L0E1")):
        for take in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ModelError, match="cannot be copied or pickled"):
                take(olmoe.model)
        with pytest.raises(ModelError, match="leave the edited block"):
            find_anatomy(olmoe.model, olmoe.model.config)
    assert torch.equal(logits(SimpleNamespace(model=copy.deepcopy(olmoe.model))), before)


# -- passes that an edit cannot reach


def test_a_pass_that_never_asks_the_router_is_an_error_not_a_silent_nothing(olmoe: Any) -> None:
    layers = olmoe.model.model.layers
    plain = Resumable(olmoe.model, olmoe.anatomy.layers[0].site.router)
    plain.keep(IDS, torch.ones_like(IDS), [2])
    with edited(olmoe, mask("L1E0")):
        with pytest.raises(CoverageError, match=r"layer 1: router .* was not asked in this pass"):
            plain.run(2)
        plain.run(0)

    @contextmanager
    def fused(layer: Any):  # type: ignore[no-untyped-def]
        """A kernel that computes a whole block at once, router included."""
        layer.mlp.forward = lambda hidden: hidden
        yield
        del layer.mlp.forward

    with fused(layers[3]), edited(olmoe, zero("L3E0")), pytest.raises(CoverageError):
        logits(olmoe)
    with edited(olmoe, zero("L3E0")):
        logits(olmoe)


def test_rows_that_are_no_columns_of_the_pass_are_refused(olmoe: Any) -> None:
    block = olmoe.model.model.layers[0].mlp
    hidden = torch.zeros(1, 5, olmoe.anatomy.layers[0].hidden_size)
    with edited(olmoe, zero("L0E0")), torch.no_grad():
        block(hidden)
    with (
        edited(olmoe, zero("L0E0").at([1])),
        torch.no_grad(),
        pytest.raises(ModelError, match="no pass of the model is running"),
    ):
        block(hidden)
    with edited(olmoe, zero("L0E0").at([1])), torch.no_grad():
        logits(olmoe)
        rows, length = IDS.shape
        with pytest.raises(ModelError, match=f"saw 5 rows in a pass of {rows} × {length} tokens"):
            block(hidden)


def test_a_cache_that_does_not_count_is_refused_only_where_positions_are_asked_for(
    olmoe: Any,
) -> None:
    from transformers import DynamicCache

    class Mute(DynamicCache):
        """As a model of linear attention alone has it, when moescope asks."""

        mute = True

        def get_seq_length(self, layer_idx: int = 0) -> int:
            if self.mute:
                self.mute = False  # the model itself asks next
                raise ValueError("only linear attention")
            return super().get_seq_length(layer_idx)

    with edited(olmoe, zero("L0E0")), torch.no_grad():
        olmoe.model(input_ids=IDS, past_key_values=Mute(), use_cache=True)
    with (
        edited(olmoe, zero("L0E0").at([0])),
        torch.no_grad(),
        pytest.raises(ModelError, match="does not say how many tokens it holds"),
    ):
        olmoe.model(input_ids=IDS, past_key_values=Mute(), use_cache=True)


def test_capture_works_whichever_was_entered_first(olmoe: Any) -> None:
    sites = [layer.site for layer in olmoe.anatomy.layers]
    with RoutingCapture(olmoe.model, sites) as capture, edited(olmoe, mask("L0E1")):
        logits(olmoe)
        inner = capture.take()[0]
    with edited(olmoe, mask("L0E1")), RoutingCapture(olmoe.model, sites) as capture:
        logits(olmoe)
        outer = capture.take()[0]
    assert torch.equal(inner.topk_ids, outer.topk_ids)
    assert not (inner.topk_ids == 1).any()


def test_router_logits_that_the_model_hands_out_are_the_edited_ones(olmoe: Any) -> None:
    with edited(olmoe, mask("L0E1")), torch.no_grad():
        handed = olmoe.model(input_ids=IDS, output_router_logits=True).router_logits
    assert torch.isneginf(handed[0][:, 1]).all()
