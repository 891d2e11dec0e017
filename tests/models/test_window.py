"""The columns of a pass: a cache is found whatever it is called, and none is guessed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_model
from torch import nn
from transformers import DynamicCache

from moescope.errors import ModelError
from moescope.models import find_anatomy
from moescope.models.capture import RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import zero
from moescope.models.window import PassWindow

IDS = torch.randint(4, 100, (2, 6), generator=torch.Generator().manual_seed(3))
ONE = IDS[:, :1]
NAMES = ("cache", "past_key_values", "cache_params")


def filled(length: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, length, 4), torch.zeros(2, 1, length, 4), 0)
    return cache


def columns(**given: Any) -> list[int]:
    window = PassWindow()
    window.read(given)
    return window.rows(tuple(range(20)), window.batch * window.length).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", ["cache", "past_key_values", "memory", "state"])
def test_a_cache_is_found_under_any_name(name: str) -> None:
    window = PassWindow()
    window.read({"input_ids": ONE, name: filled(5)})
    assert window.rows((5,), 2).tolist() == [True, True]
    assert window.rows((0,), 2).tolist() == [False, False]


def test_without_a_cache_the_first_column_is_0() -> None:
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    numbers = (padded.cumsum(-1) - 1).clamp_min(0)
    for more in ({}, {"attention_mask": padded}, {"position_ids": numbers}, {"use_cache": True},
                 {"past_key_values": None}, {"cache": DynamicCache()}):  # fmt: skip
        assert columns(input_ids=IDS, **more) == list(range(12))


UNTOLD = {
    "an old tuple of tensors": (
        {"input_ids": ONE, "past_key_values": ((torch.zeros(1), torch.zeros(1)),)},
        "does not say how many tokens it holds",
    ),
    "a mask longer than the pass": (
        {"input_ids": ONE, "attention_mask": torch.ones(2, 6)}, "came with a mask of 6",
    ),
    "numbers that do not begin at 0": (
        {"input_ids": ONE, "position_ids": torch.tensor([[5]])}, "begins at number 5",
    ),
    "no tokens by name": ({"hidden": torch.zeros(2, 1, 8)}, "neither input_ids"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTOLD)
def test_what_cannot_be_told_is_an_error(case: str) -> None:
    given, message = UNTOLD[case]
    with pytest.raises(ModelError, match=message) as error:
        columns(**given)
    assert str(error.value).endswith("leave the position out")
    assert "\n" not in str(error.value)


def test_before_any_pass_nothing_is_told() -> None:
    with pytest.raises(ModelError, match="no pass"):
        PassWindow().rows((0,), 0)


def test_what_an_earlier_pass_held_is_forgotten() -> None:
    window = PassWindow()
    window.read({"input_ids": ONE, "cache": filled(5)})
    window.read({"something_else": 1})
    with pytest.raises(ModelError, match="neither input_ids"):
        window.rows((5,), 2)
    window.read({"input_ids": IDS})
    assert window.rows((0,), 12).sum() == 2


def _hand_over(body: nn.Module, wrap: Any) -> None:
    """Let the body take its cache under a new name, as another version of transformers may."""
    stock: Any = body.forward

    def forward(*args: Any, kept_tokens: Any = None, **kwargs: Any) -> Any:
        if kept_tokens is not None:
            kwargs[kept_tokens[0]] = kept_tokens[1]
        return stock(*args, **kwargs)

    def rename(_body: Any, args: Any, kwargs: Any) -> Any:
        for name in NAMES:
            if kwargs.get(name) is not None:
                kwargs["kept_tokens"] = wrap(name, kwargs.pop(name))
        return args, kwargs

    body.forward = forward  # type: ignore[method-assign]
    body.register_forward_pre_hook(rename, with_kwargs=True)


class Named(DynamicCache):
    """A cache with the name that the stock code gives it; a pair to `_hand_over`."""

    def __init__(self, name: str, cache: Any) -> None:
        self.pair = (name, cache)

    def __getitem__(self, index: int) -> Any:
        return self.pair[index]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.pair[1].get_seq_length(layer_idx))


def _silent(wrap: Any) -> list[bool]:
    """Decode with one layer zeroed at column 7; which passes had no weight at all."""
    model: Any = tiny_model("olmoe")
    anatomy = find_anatomy(model, model.config)
    layer = anatomy.layers[1]
    _hand_over(model.base_model, wrap)
    everyone = [f"L{layer.layer_idx}E{e}" for e in range(layer.num_experts)]
    loaded = SimpleNamespace(model=model, anatomy=anatomy)
    edit = zero(everyone).at([7])
    with edited(loaded, edit), RoutingCapture(model, [layer.site]) as seen, torch.no_grad():
        model.generate(
            IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, min_new_tokens=4,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        steps = seen.take_steps()
    return [bool((step[layer.layer_idx].topk_weights == 0).all()) for step in steps]


def test_an_edit_in_the_decoding_is_applied_when_the_cache_has_a_new_name() -> None:
    assert _silent(Named) == [False, False, True, False]


def test_an_edit_in_the_decoding_is_refused_when_no_cache_can_be_seen() -> None:
    with pytest.raises(ModelError, match=r"begins at number 6.* leave the position out"):
        _silent(lambda name, cache: (name, cache))
