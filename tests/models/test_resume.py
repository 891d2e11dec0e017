"""A pass from the middle is the whole pass, bit for bit, or `check` says that it is not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.tiny import COMPOSITE_MODEL_TYPES, MOE_MODEL_TYPES, tiny_model

from moescope.axes import ExpertRef
from moescope.errors import BadInputError, CoverageError, ModelError
from moescope.models import find_anatomy
from moescope.models.anatomy import REFUSED
from moescope.models.capture import RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit, mask, scale, zero
from moescope.models.resume import Resumable

TYPES = [t for t in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES) if t not in REFUSED]

CARRIES_MORE = {"inkling2_text": {3, 4}}
"""Starts that do not work: these layers read what earlier ones left outside of their output."""


class Tiny:
    """A tiny model and one padded batch of three, kept at every layer."""

    def __init__(self, model_type: str) -> None:
        self.type = model_type
        self.model: Any = tiny_model(model_type)
        self.anatomy = find_anatomy(self.model, self.model.config)
        self.loaded = SimpleNamespace(model=self.model, anatomy=self.anatomy)
        self.ids = torch.randint(4, 100, (3, 8), generator=torch.Generator().manual_seed(1))
        self.mask = torch.ones_like(self.ids)
        self.mask[1, 6:] = 0
        self.resumable = Resumable(self.model, self.anatomy.layers[0].site.router)
        self.starts = range(self.resumable.num_layers + 1)
        self.plain = self.resumable.keep(self.ids, self.mask, self.starts)

    def works(self, start: int) -> bool:
        return start not in CARRIES_MORE.get(self.type, set())

    @torch.inference_mode()
    def whole(self) -> torch.Tensor:
        return self.model(
            input_ids=self.ids, attention_mask=self.mask, use_cache=False
        ).logits  # fmt: skip


@pytest.fixture(scope="module", params=TYPES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param)


def test_keeping_is_a_plain_pass(tiny: Tiny) -> None:
    assert torch.equal(tiny.plain, tiny.whole())
    assert tiny.resumable.num_layers > tiny.anatomy.layers[-1].layer_idx


def test_a_pass_from_any_layer_is_the_plain_one_bit_for_bit_and_check_says_so(tiny: Tiny) -> None:
    for start in tiny.starts:
        assert tiny.resumable.check(tiny.plain, start) == tiny.works(start), start
    for start in {tiny.anatomy.layers[-1].layer_idx, *CARRIES_MORE.get(tiny.type, ())}:
        assert torch.equal(tiny.resumable.run(start), tiny.plain) == tiny.works(start)
    assert torch.equal(tiny.whole(), tiny.plain), "not restored"
    assert not tiny.resumable.check(tiny.plain + 1e-6, 1)


def test_some_rows_in_any_order_give_their_logits(tiny: Tiny) -> None:
    """Another batch size may round in another way, no more."""
    start = tiny.anatomy.layers[-1].layer_idx
    if not tiny.works(start):
        pytest.skip("does not resume there")
    for rows in ([2], [2, 0], [1, 1, 0, 2]):
        ours = tiny.resumable.run(start, torch.tensor(rows))
        torch.testing.assert_close(ours, tiny.plain[rows], rtol=1e-4, atol=1e-4)


def test_an_edited_pass_from_its_layer_is_the_whole_edited_pass(tiny: Tiny) -> None:
    layer = tiny.anatomy.layers[-1]
    start, everyone = layer.layer_idx, range(layer.num_experts)
    if tiny.type == "jetmoe" or not tiny.works(start):
        pytest.skip("no edits, or does not resume there")
    edits: list[Edit] = [scale([ExpertRef(start, e) for e in everyone], 0.5),
                         zero([ExpertRef(start, e) for e in everyone]).at([2])]  # fmt: skip
    with edited(tiny.loaded, edits):
        expected, ours = tiny.whole(), tiny.resumable.run(start)
        some = tiny.resumable.run(start, torch.tensor([2, 0]))
        assert not tiny.resumable.check(tiny.plain, start)
    assert torch.equal(ours, expected)
    assert not torch.equal(expected, tiny.plain)
    torch.testing.assert_close(some, expected[[2, 0]], rtol=1e-4, atol=1e-4)
    assert torch.equal(tiny.resumable.run(start), tiny.plain)


# -- one model


@pytest.fixture(scope="module")
def olmoe() -> Tiny:
    return Tiny("olmoe")


def test_a_start_that_was_not_kept_is_refused(olmoe: Tiny) -> None:
    fresh = Resumable(olmoe.model, "model.layers.2.mlp")
    with pytest.raises(BadInputError, match="nothing was kept to start at layer 0; kept: none"):
        fresh.run(0)
    fresh.keep(olmoe.ids, olmoe.mask, [1, 3])
    with pytest.raises(BadInputError, match="to start at layer 2; kept: 1, 3"):
        fresh.run(2)
    with pytest.raises(BadInputError, match="start at layer 2"):
        fresh.check(olmoe.plain, 2)
    for wrong in (5, -1):
        with pytest.raises(BadInputError, match=f"a layer from 0 to 4, got {wrong}"):
            fresh.keep(olmoe.ids, olmoe.mask, [wrong])


def test_a_module_outside_the_layers_is_refused(olmoe: Tiny) -> None:
    with pytest.raises(ModelError, match="lm_head lies in no numbered decoder layer"):
        Resumable(olmoe.model, "lm_head")


def test_another_batch_replaces_what_was_kept(olmoe: Tiny) -> None:
    resumable = Resumable(olmoe.model, "model.layers.2")
    resumable.keep(olmoe.ids, olmoe.mask, [2])
    other = olmoe.ids[:2, :5]
    plain = resumable.keep(other, torch.ones_like(other), [2])
    assert resumable.check(plain, 2)
    assert resumable.run(2).shape == (2, 5, olmoe.plain.shape[-1])


def test_skipped_layers_do_no_work_and_the_rest_is_seen_by_capture(olmoe: Tiny) -> None:
    asked: list[int] = []
    handles = [
        layer.mlp.register_forward_hook(lambda *_a, n=n: asked.append(n))
        for n, layer in enumerate(olmoe.model.model.layers)
    ]
    sites = [layer.site for layer in olmoe.anatomy.layers if layer.layer_idx >= 2]
    with RoutingCapture(olmoe.model, sites) as capture:
        olmoe.resumable.run(2)
        assert set(capture.take(olmoe.ids.numel())) == {2, 3}
    for handle in handles:
        handle.remove()
    assert asked == [2, 3]


def test_an_edit_below_the_start_is_an_error_not_a_silent_nothing(olmoe: Tiny) -> None:
    with edited(olmoe.loaded, mask("L1E0")), pytest.raises(CoverageError, match="layer 1"):
        olmoe.resumable.run(2)
    assert olmoe.resumable.check(olmoe.plain, 2)


def test_an_exception_in_the_middle_restores_the_layers(olmoe: Tiny) -> None:
    def fail(*_args: Any) -> None:
        raise KeyError

    handle = olmoe.model.model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        olmoe.resumable.run(2)
    handle.remove()
    assert torch.equal(olmoe.whole(), olmoe.plain)


def test_a_forward_that_another_tool_put_on_a_layer_stays(olmoe: Tiny) -> None:
    layer = olmoe.model.model.layers[0]
    stock = layer.forward
    layer.forward = wrapped = lambda *a, **k: stock(*a, **k)
    try:
        assert olmoe.resumable.check(olmoe.plain, 2)
        assert layer.forward is wrapped
    finally:
        del layer.forward


def test_a_layer_that_changes_its_input_in_place_is_found_out(olmoe: Tiny) -> None:
    """What was kept is the very tensor that the next layer gets."""

    def overwrite(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        args[0].mul_(1.25)

    handle = olmoe.model.model.layers[2].register_forward_pre_hook(overwrite)
    resumable = Resumable(olmoe.model, "model.layers.2")
    plain = resumable.keep(olmoe.ids, olmoe.mask, [2])
    assert not resumable.check(plain, 2)
    handle.remove()
