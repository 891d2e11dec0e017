"""Training: resumed equals uninterrupted, what is saved is stock, and breakdowns are named."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import RecipeWriter
from transformers import AutoModelForCausalLM

from moescope.errors import (
    BadInputError,
    InterruptedTrainingError,
    RunError,
    TrainingError,
)
from moescope.models import ModelSpec, load_model
from moescope.training import loop
from moescope.training.data import heldout_windows, prepare_data
from moescope.training.kernels import chunked_cross_entropy
from moescope.training.log import TrainingLog
from moescope.training.network import _ACTIVE, Network, Pass, build_network
from moescope.training.recipe import Recipe, RunRecipe
from moescope.training.recipe_file import load_recipe
from moescope.training.state import Trained, TrainingState
from moescope.training.trainer import train

MAPPINGS: dict[str, dict[str, Any]] = {
    "olmoe": {},
    "olmoe normalized": {"router": {"normalize": True}},
    "mixtral": {"model": {"architecture": "mixtral"}},
    "qwen2_moe": {"model": {"architecture": "qwen2_moe", "shared_expert_size": 8}},
    "deepseek_v3": {
        "model": {"architecture": "deepseek_v3", "shared_expert_size": 8},
        "router": {"kind": "sigmoid_bias"},
        "balance": {"load_balancing": 0.0, "bias_update": 0.01},
    },
    "deepseek_v3 top-1": {
        "model": {"architecture": "deepseek_v3", "shared_expert_size": 8, "top_k": 1},
        "router": {"kind": "sigmoid_bias"},
        "balance": {"load_balancing": 0.0, "bias_update": 0.01},
    },
    "noisy_topk": {
        "router": {"kind": "noisy_topk"},
        "balance": {"load_balancing": 0.0, "importance": 0.1, "load": 0.1},
    },
    "noisy_topk global": {
        "router": {"kind": "noisy_topk"},
        "balance": {"load_balancing": 0.0, "importance": 0.1, "load": 0.1, "scope": "global_batch"},
    },
    "switch": {"router": {"kind": "switch"}, "model": {"top_k": 1}},
    "expert_choice": {"router": {"kind": "expert_choice"}, "balance": {"load_balancing": 0.0}},
    "capacity dropped": {"capacity": {"train": 1.0, "minimum": 1}},
    "capacity rerouted": {"capacity": {"train": 1.0, "minimum": 1, "overflow": "reroute"}},
}


class Stop(Exception):
    pass


def stop_after(step: int) -> Any:
    def listen(state: TrainingState) -> None:
        if state.step == step:
            raise Stop

    return listen


def losses_of(done: Trained) -> list[float]:
    return [row["loss"] for row in done.state.log.rows["steps"]]


@pytest.mark.parametrize("name", MAPPINGS)
def test_what_was_trained_is_a_stock_model_with_the_same_heldout_loss(
    name: str, write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(**MAPPINGS[name]))
    done = train(recipe, tmp_path / "run")
    assert load_model(ModelSpec(str(done.model))).anatomy.layer_numbers == (0, 1)
    found = heldout_losses(recipe, tmp_path / "run", done.model)
    assert found == pytest.approx(said(done, recipe.num_steps, "saved"), abs=2e-4)
    assert found == pytest.approx(done.saved, abs=2e-4)
    routing = "stock" if name == "expert_choice" else "recipe"
    exact = said(done, recipe.num_steps, routing)
    assert found == pytest.approx(exact, abs=0.02)  # the file holds bfloat16
    assert found != exact


def heldout_losses(recipe: Recipe, run: Path, model: Path) -> dict[str, float]:
    """What transformers' own code makes of a saved model, in float32."""
    stock: Any = load_model(ModelSpec(str(model), dtype="float32")).model
    losses = {}
    for domain, stream in prepare_data(recipe, run).heldout.items():
        rows = torch.from_numpy(heldout_windows(stream, 16, recipe.data.heldout_tokens))
        with torch.no_grad():
            hidden = stock.model(rows[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
            loss = chunked_cross_entropy(hidden, stock.lm_head.weight, rows[:, 1:].reshape(-1))
        losses[domain] = float(loss)
    return losses


def said(done: Trained, step: int, routing: str) -> dict[str, float]:
    """Held-out losses in the log."""
    rows = [r for r in done.state.log.rows["domains"] if r["step"] == step]
    return {r["domain"]: r["loss"] for r in rows if r["routing"] == routing}


def test_the_loss_of_a_model_that_was_kept_on_the_way_is_logged_as_it_was_kept(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(run={"keep": [0.3]}))
    done = train(recipe, tmp_path / "run")
    [kept] = done.state.kept
    found = heldout_losses(recipe, tmp_path / "run", kept.path)
    assert found == pytest.approx(said(done, kept.step, "saved"), abs=2e-4)
    assert not said(done, kept.step, "recipe")  # no evaluation was due
    again = train(recipe.model_copy(update={"run": RunRecipe()}), tmp_path / "other")
    assert losses_of(again) == losses_of(done)


def test_in_half_precision_rotary_tables_and_selection_biases_are_not_rounded(
    write_recipe: RecipeWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded ones would be trained with, and the saved model has exact ones."""
    runs: list[Any] = []
    stock = loop.export_model
    monkeypatch.setattr(loop, "export_model", lambda *args: (runs.append(args[0]), stock(*args)))
    changes = {**MAPPINGS["deepseek_v3"], "train": {"precision": "bfloat16"}}
    done = train(load_recipe(write_recipe(**changes)), tmp_path / "run")
    model = runs[0].model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    stored = load_file(done.model / "model.safetensors")
    biases = {n: b for n, b in model.named_buffers() if "bias" in n}
    assert biases
    for name, bias in biases.items():
        assert torch.equal(stored[name], bias)
        assert not torch.equal(bias, bias.bfloat16().float())
    assert done.saved == done.losses  # the weights of the training are those of the file


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_task_alone_teaches_every_router(name: str, write_recipe: RecipeWriter) -> None:
    """A weight that is always 1 would have no gradient, and balancing alone would move it."""
    network = build_network(
        load_recipe(write_recipe(**MAPPINGS[name])), 128, 2, torch.device("cpu")
    )
    ids = torch.randint(4, 100, (2, 17), generator=torch.Generator().manual_seed(1))
    hidden = network.forward(ids[:, :-1], Pass(True, 2, seed=(0,), capacity_factor=1.0))
    loss = chunked_cross_entropy(hidden, network.head(), ids[:, 1:].reshape(-1))
    routers = [router.weight for router in network.routers.values()]
    for gradient in torch.autograd.grad(loss, routers):
        assert gradient.abs().max() > 1e-5


def test_a_rerouted_single_expert_brings_its_own_score(write_recipe: RecipeWriter) -> None:
    changes = {**MAPPINGS["deepseek_v3 top-1"], "capacity": {"overflow": "reroute", "minimum": 1}}
    network = build_network(load_recipe(write_recipe(**changes)), 128, 2, torch.device("cpu"))
    how = Pass(True, 1, capacity_factor=1.0)
    token = _ACTIVE.set(how)
    logits, weights, ids = network.routers[0](torch.randn(16, 16))
    _ACTIVE.reset(token)
    assert how.layers[0].rerouted.any()
    torch.testing.assert_close(weights, logits.sigmoid().gather(1, ids))


@pytest.mark.parametrize("name", ["olmoe", "noisy_topk global", "deepseek_v3", "capacity rerouted"])
def test_a_resumed_training_equals_the_uninterrupted_one_to_the_last_digit(
    name: str, write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(**MAPPINGS[name], run={"checkpoint_minutes": 1e-9}))
    whole = train(recipe, tmp_path / "whole")
    for step in (2, 5):
        with pytest.raises(Stop):
            train(recipe, tmp_path / "parts", resume=step > 2, listen=stop_after(step))
    parts = train(recipe, tmp_path / "parts", resume=True)
    assert losses_of(parts) == losses_of(whole)
    assert parts.losses == whole.losses
    for table in ("layers", "domains"):
        assert parts.state.log.table(table).equals(whole.state.log.table(table))
    one, other = (
        load_file(p / "checkpoint/weights.safetensors") for p in (whole.folder, parts.folder)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_numbers_do_not_depend_on_the_number_of_workers(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    runs = [train(load_recipe(write_recipe(run={"workers": n})), tmp_path / f"{n}") for n in (2, 3)]
    assert losses_of(runs[0]) == losses_of(runs[1])


def test_the_loss_falls_below_the_unigram_baseline(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    path = write_recipe(train={"steps": 60, "learning_rate": 0.03})
    done = train(load_recipe(path), tmp_path / "run")
    for domain, loss in done.losses.items():
        assert loss < done.unigram[domain]


def test_models_are_kept_at_the_shares_that_the_recipe_names(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(run={"keep": [0.01, 0.5]}))
    done = train(recipe, tmp_path / "run")
    assert [(k.step, k.path.name) for k in done.state.kept] == [
        (1, "step-000001"),
        (3, "step-000003"),
    ]
    for kept in done.state.kept:
        assert AutoModelForCausalLM.from_pretrained(kept.path) is not None


def test_saturation_of_the_routing_is_written_at_every_evaluation_after_the_first(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    done = train(load_recipe(write_recipe(run={"evaluate_every": 3})), tmp_path / "run")
    table = TrainingLog.read(done.folder, "layers").to_pylist()
    found = {(r["step"], r["layer"]): r["saturation"] for r in table if r["saturation"] is not None}
    assert set(found) == {(3, 0), (3, 1), (6, 0), (6, 1)}
    assert all(0.0 <= value <= 1.0 for value in found.values())


def test_a_loss_that_is_no_number_names_step_layer_and_the_last_good_checkpoint(
    write_recipe: RecipeWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Network] = []

    def build(*words: Any) -> Network:
        built.append(build_network(*words))
        return built[0]

    def poison(state: TrainingState) -> None:
        if state.step == 2:
            experts = built[0].model.model.layers[1].mlp.experts
            with torch.no_grad():
                experts.down_proj[0].fill_(float("nan"))

    monkeypatch.setattr(loop, "build_network", build)
    recipe = load_recipe(write_recipe(run={"checkpoint_minutes": 1e-9}))
    with pytest.raises(TrainingError) as failed:
        train(recipe, tmp_path / "run", listen=poison)
    line = str(failed.value)
    assert "the loss is nan at step 3 of 6, first in model.layers.1.mlp.experts" in line
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint'} (step 1)" in line
    weights = load_file(tmp_path / "run" / "checkpoint" / "weights.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_folder_with_a_run_is_not_overwritten_nor_resumed_with_another_recipe(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(load_recipe(write_recipe(train={"steps": 2})), folder)
    with pytest.raises(RunError, match="resume it, or give another folder"):
        train(load_recipe(write_recipe(train={"steps": 2})), folder)
    with pytest.raises(RunError, match=r"of another recipe: seed is 3 there and 9 here; "):
        train(load_recipe(write_recipe(train={"steps": 2}, seed=9)), folder, resume=True)


def test_the_recipe_in_the_folder_of_a_run_is_the_recipe(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(train={"steps": 2}))
    train(recipe, tmp_path / "run", resume=True)  # nothing there yet: it begins
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert written.identity() == recipe.identity()
    assert written.data == recipe.data


def test_a_tokenizer_is_trained_again_when_another_one_is_asked_for(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    sizes = []
    for size in (300, 310, 310):
        recipe = load_recipe(write_recipe(tokenizer={"path": None, "vocab_size": size}))
        sizes.append(len(prepare_data(recipe, tmp_path / "run").tokenizer))
    assert sizes == [300, 310, 310]


def test_too_little_text_for_a_sequence_is_refused_with_the_domain(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = load_recipe(
        write_recipe(data={"context": 20_000}, model={"max_position_embeddings": 20_000})
    )
    with pytest.raises(BadInputError, match=r"of domain '.+' has .* tokens, but a sequence reads"):
        train(recipe, tmp_path / "run")


def test_a_signal_saves_the_step_and_says_so(write_recipe: RecipeWriter, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())

    def interrupt(state: TrainingState) -> None:
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedTrainingError, match="it is saved"):
        train(recipe, tmp_path / "run", listen=interrupt)
    done = train(recipe, tmp_path / "run", resume=True)
    assert losses_of(done) == losses_of(train(recipe, tmp_path / "whole"))


def test_bfloat16_weights_follow_their_float32_masters_and_resume_exactly(
    write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    changes = {"train": {"precision": "bfloat16"}, "run": {"checkpoint_minutes": 1e-9}}
    recipe = load_recipe(write_recipe(**changes))
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "parts", listen=stop_after(4))
    parts = train(recipe, tmp_path / "parts", resume=True)
    assert losses_of(parts) == losses_of(whole)
    masters = load_file(whole.folder / "checkpoint" / "weights.safetensors")
    shipped = AutoModelForCausalLM.from_pretrained(whole.model)
    for name, weight in shipped.named_parameters():
        assert masters[name].dtype == torch.float32
        assert torch.equal(weight, masters[name].to(torch.bfloat16))
