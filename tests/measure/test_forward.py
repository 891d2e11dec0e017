"""One loop for every measurement: how much at once, what is read, and when memory runs out."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.brute_damage import loaded_of, some_windows

from moescope.errors import ModelError
from moescope.intervene import measure_damage
from moescope.intervene.contrast.compare import contrast
from moescope.measure import forward, trials
from moescope.measure.forward import fitting_batch, run_batches
from moescope.measure.windows import WindowBatch, window_batches
from moescope.models import LoadedModel
from moescope.models.capture import RoutingCapture
from moescope.models.expert_calls import ExpertInputs, ExpertLayer
from moescope.models.experts import fast_experts, run_sorted
from moescope.similarity.inputs import capture_inputs, take_tokens


@pytest.fixture
def loaded() -> LoadedModel:
    return loaded_of("olmoe")


def test_a_batch_is_as_large_as_its_room() -> None:
    assert fitting_batch(4, 4 * 1000) == 1000
    assert fitting_batch(4, 4 * 1000, most=512) == 512
    assert fitting_batch(4, 1.0) == 64  # the least
    assert fitting_batch(1) == 8192  # the most


def test_the_loop_computes_experts_as_a_trace_does(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are switched while the model and ``use`` run, and no longer afterwards."""
    calls = 0

    def counted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return run_sorted(*args)

    monkeypatch.setattr("moescope.models.experts.run_sorted", counted)
    seen: list[int] = []

    def use(batch: WindowBatch, given: dict[int, Any]) -> None:
        seen.append(calls)
        number = loaded.anatomy.layers[0].layer_idx
        ExpertLayer(loaded.model, loaded.anatomy.layers[0])(0, given[number].hidden)
        seen.append(calls)

    reader = ExpertInputs(loaded.model, loaded.anatomy.layers)
    run_batches(loaded, window_batches(some_windows()[:1], 4096), reader, use)
    layers = len(loaded.anatomy.layers)
    assert seen == [layers, layers + 1]
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]))
    assert calls == layers + 1


def test_nothing_is_read_while_a_batch_is_used(loaded: LoadedModel) -> None:
    """So ``use`` may run the experts, or the model, again."""
    reader = RoutingCapture(loaded.model, [m.site for m in loaded.anatomy.layers])
    tokens: list[int] = []

    def use(batch: WindowBatch, _routing: dict[int, Any]) -> None:
        loaded.model(input_ids=torch.as_tensor(batch.token_ids))
        tokens.append(int(batch.counted.sum()))

    run_batches(loaded, window_batches(some_windows(), 64), reader, use)
    assert len(tokens) > 1
    assert sum(tokens) == sum(w.num_tokens for w in some_windows())


@pytest.mark.parametrize("kind", ["olmoe", "gpt_oss", "deepseek_v3", "llama4_text"])
def test_damage_is_the_same_with_either_arithmetic_of_the_experts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage() -> tuple[Any, Any]:
        loaded = loaded_of(kind)
        number = loaded.anatomy.layer_numbers[0]
        made = measure_damage(loaded, some_windows(), f"L{number}E1", controls=1)
        return made.measured, made.prepared.chosen

    sorted_, chosen = damage()
    monkeypatch.setattr(trials, "fast_experts", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(forward, "fast_experts", lambda _: contextlib.nullcontext())
    stock, chosen_stock = damage()
    assert np.array_equal(chosen, chosen_stock)
    for name in ("ce", "ce_change", "kl"):
        assert np.allclose(getattr(sorted_, name), getattr(stock, name), atol=1e-5)
    assert np.array_equal(sorted_.flips, stock.flips)


@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        (lambda m: measure_damage(m, some_windows(), "L1E1", controls=0), "batch_tokens"),
        (lambda m: contrast(m, ["one text"], ["another"]), "context"),
        (lambda m: capture_inputs(m, m.anatomy.layers, take_tokens(some_windows(), 50, 0)),
         "memory"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_line_that_names_the_setting(
    tiny_loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[[LoadedModel], Any],
    setting: str,
    error: Exception,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(tiny_loaded.model.base_model, "forward", full)
    line = rf"^not enough memory for a batch of [\d,]+ tokens; give a smaller {setting}$"
    with pytest.raises(ModelError, match=line):
        verb(tiny_loaded)


def test_other_errors_of_a_pass_stay_what_they_are(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tiny_loaded.model.base_model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        capture_inputs(tiny_loaded, tiny_loaded.anatomy.layers, take_tokens(some_windows(), 50, 0))


def test_experts_are_given_back_after_an_error(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {id(m.config): m.config for m in tiny_loaded.model.modules()
               if hasattr(m, "_is_expert_parallel")}  # fmt: skip
    before = {n: c._experts_implementation_internal for n, c in configs.items()}
    with fast_experts(tiny_loaded.model):
        assert {c._experts_implementation_internal for c in configs.values()} == {"moescope_sorted"}

    def fail(*_: Any) -> None:
        raise KeyError("fault of the caller")

    reader = RoutingCapture(tiny_loaded.model, [m.site for m in tiny_loaded.anatomy.layers])
    with pytest.raises(KeyError):
        run_batches(tiny_loaded, window_batches(some_windows(), 64), reader, fail)
    assert {n: c._experts_implementation_internal for n, c in configs.items()} == before
