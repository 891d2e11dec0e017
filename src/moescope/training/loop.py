"""The steps of a training run: one after the other, written down, looked at, saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moescope.errors import InterruptedTrainingError, TrainingError
from moescope.progress import OnProgress, Progress
from moescope.training.broken import first_broken_layer
from moescope.training.checkpoint import (
    export_model,
    load_checkpoint,
    read_state,
    rounded,
    save_checkpoint,
)
from moescope.training.data import Sampler, Streams, heldout_windows, unigram_losses
from moescope.training.evaluate import HeldOut, evaluate
from moescope.training.log import TrainingLog
from moescope.training.losses import update_selection_bias
from moescope.training.need import require_memory
from moescope.training.network import Network, build_network, capacity_factor
from moescope.training.objective import StepResult, Workers, balance_weights, run_step
from moescope.training.optimizer import Optimizer, learning_rate
from moescope.training.part import weight_at
from moescope.training.recipe import Recipe, routing_notes
from moescope.training.rows import drop_rows, routing_row
from moescope.training.state import Kept, Trained, TrainingState

_SAVED = torch.bfloat16
"""The weights of the models that are written."""


class Run:
    """One training run in progress."""

    def __init__(self, recipe: Recipe, folder: Path, data: Streams, device: torch.device) -> None:
        self.recipe, self.folder, self.data, self.device = recipe, folder, data, device
        tokenizer = data.tokenizer
        require_memory(recipe, len(tokenizer), device)
        self.network = build_network(recipe, len(tokenizer), tokenizer.eos_token_id, device)
        if _precision(recipe, device) == torch.bfloat16:
            for parameter in self.network.model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)  # rotary tables and biases stay
        self.network.model.train()
        self.optimizer = Optimizer(self.network.named_parameters(), recipe.train)
        self.workers = Workers(_num_workers(recipe, device))
        context = recipe.data.context
        self.sampler = Sampler(data.train, context, recipe.seed, recipe.data.mixture)
        self.windows = {
            name: heldout_windows(stream, context, recipe.data.heldout_tokens)
            for name, stream in data.heldout.items()
        }
        self.unigram = unigram_losses(data.train, self.windows, len(tokenizer))
        total, active = _count(self.network)
        self.state = TrainingState(
            recipe, folder, routing_notes(recipe), TrainingLog(folder / "log"), total, active,
            self.network.layer_numbers,
        )  # fmt: skip
        self.before: torch.Tensor | None = None
        self.losses: dict[str, float] = {}
        self.evaluated = -1

    def restore(self, where: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        arrays = load_checkpoint(where, self.network, self.optimizer)
        self.before = arrays.get("chosen")
        self.state.step, self.state.seconds = state["step"], state["seconds"]
        self.state.log = TrainingLog(self.folder / "log", keep_until=state["step"])
        self.state.kept = [
            Kept(k["step"], k["share"], self.folder / k["path"]) for k in state["kept"]
        ]
        self.evaluated, self.losses = state["evaluated"], state["losses"]

    def loop(
        self,
        asked: Callable[[], bool],
        on_progress: OnProgress,
        listen: Callable[[TrainingState], None],
        refresh: Callable[[TrainingState], None],
    ) -> None:
        """All steps that are left.

        Raises:
            InterruptedTrainingError: somebody asked to stop, and it is saved.
        """
        state, recipe = self.state, self.recipe
        saved = shown = -math.inf
        if state.step == 0 and self.evaluated < 0:
            self.evaluate()
        saved = time.monotonic()
        while state.step < recipe.num_steps:
            began = time.monotonic()
            self.step()
            state.seconds += time.monotonic() - began
            if state.step % recipe.run.evaluate_every == 0:
                self.evaluate()
            self.keep_if_due()
            loss = state.log.rows["steps"][-1]["loss"]
            stage = f"step {state.step}/{recipe.num_steps}, loss {loss:.3f}"
            total = recipe.num_steps * recipe.step_tokens
            on_progress(Progress(stage, state.step * recipe.step_tokens, total, "tokens"))
            listen(state)
            now = time.monotonic()
            stop = asked()
            if stop or now - saved > recipe.run.checkpoint_minutes * 60:
                self.save()
                saved = time.monotonic()
            if stop:
                raise InterruptedTrainingError(
                    f"interrupted after step {state.step} of {recipe.num_steps}; it is saved"
                )
            if now - shown > recipe.run.refresh_seconds:
                state.log.write()
                refresh(state)
                shown = time.monotonic()

    def step(self) -> None:
        """One optimizer step, all of it decided by the recipe and the step's number."""
        recipe, state, step = self.recipe, self.state, self.state.step
        began = time.monotonic()
        ids = self.sampler.step(step, recipe.train.micro_batches, recipe.train.sequences)
        weights = balance_weights(recipe, step / recipe.num_steps)
        batches = torch.from_numpy(ids).to(self.device)
        done = run_step(self.network, self.workers, batches, step, weights)
        if not math.isfinite(done.loss):
            self.stop_for("the loss", done.loss, batches)
        rate = learning_rate(step, recipe.num_steps, recipe.train)
        with self.workers.single_threaded():
            norm = self.optimizer.step(done.gradients, rate)
        if not math.isfinite(norm):
            self.stop_for("the gradient norm", norm, batches)
        self.update_biases(done, step)
        state.step = step + 1
        state.tokens_per_second = recipe.step_tokens / (time.monotonic() - began)
        self.write_down(done, rate, norm)

    def update_biases(self, done: StepResult, step: int) -> None:
        """Move the selection biases of sigmoid_bias against the load of the step."""
        rate = weight_at(self.recipe.balance.bias_update, step / self.recipe.num_steps)
        if not rate:
            return
        for layer_idx, router in self.network.routers.items():
            load_E = done.layers[layer_idx].counts.to(router.e_score_correction_bias)
            bias = update_selection_bias(router.e_score_correction_bias, load_E, rate)
            router.e_score_correction_bias.copy_(bias)

    def stop_for(self, what: str, value: float, batches: torch.Tensor) -> None:
        """Say where the numbers broke, and which weights are still good."""
        layer = first_broken_layer(self.network, batches, self.state.step)
        self.save()
        found = read_state(self.folder / "checkpoint")
        good = "there is no good checkpoint yet"
        if found is not None:
            good = f"the last good checkpoint is {found[0]} (step {found[1]['step']})"
        raise TrainingError(
            f"{what} is {value} at step {self.state.step + 1} of {self.recipe.num_steps}, {layer}; "
            f"{good}: train again with a lower train.learning_rate or gradient_clip, or a "
            "balance.router_z weight"
        )

    def write_down(self, done: StepResult, rate: float, norm: float) -> None:
        """The rows of the step's tables."""
        state, recipe = self.state, self.recipe
        dropped = sum(sums.dropped for sums in done.layers.values())
        wanted = sum(int(sums.counts.sum()) for sums in done.layers.values())
        limited = capacity_factor(recipe.capacity, training=True) is not None
        state.log.add(
            "steps",
            step=state.step,
            tokens=state.step * recipe.step_tokens,
            loss=done.loss,
            dropped_share=dropped / wanted if limited else None,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=state.tokens_per_second,
            **done.parts,
        )
        due = (recipe.run.log_every, recipe.run.evaluate_every, recipe.num_steps)
        if all(state.step % every for every in due):
            return
        for layer_idx, sums in done.layers.items():
            state.log.add("layers", step=state.step, layer=layer_idx, **routing_row(sums, limited))
        if limited:
            state.log.replace("drops", drop_rows(state.step, done, recipe.data.context))

    def evaluate(self) -> None:
        """Held-out loss by domain; saturation against the evaluation before."""
        recipe, step = self.recipe, self.state.step
        if self.evaluated == step:
            return
        differs = recipe.router.kind == "expert_choice" or (
            recipe.capacity is not None and recipe.capacity.evaluate is not None
        )
        for routing in ("recipe", "stock") if differs else ("recipe",):
            held = self.look(routing)
        if self.before is not None:
            values = dict(zip(self.state.layer_numbers, held.saturation(self.before), strict=True))
            for row in self.state.log.rows["layers"]:
                if row["step"] == step:
                    row["saturation"] = values[row["layer"]]
        self.before, self.losses, self.evaluated = held.chosen, held.losses, step

    def look(self, routing: str) -> HeldOut:
        """One look at the held-out text: as the recipe routes, or as a stock model does."""
        sequences, stock = self.recipe.train.sequences, routing != "recipe"
        held = evaluate(self.network, self.workers, self.windows, sequences, stock=stock)
        for name, loss in held.losses.items():
            pooled, own = self.unigram[name]
            self.state.log.add(
                "domains", step=self.state.step, domain=name, routing=routing, loss=loss,
                tokens=held.tokens[name], unigram=pooled, unigram_domain=own,
            )  # fmt: skip
        return held

    def keep_if_due(self) -> None:
        """Keep the stock model at the shares that the recipe names."""
        state, num_steps = self.state, self.recipe.num_steps
        for share in self.recipe.run.keep:
            if state.step == max(1, round(share * num_steps)):
                path = self.folder / "checkpoints" / f"step-{state.step:06d}"
                self.saved_losses()
                self.export(path)
                state.kept.append(Kept(state.step, share, path))

    def export(self, path: Path) -> None:
        """Write the stock model of this moment."""
        export_model(self.network, self.optimizer, self.data.tokenizer, path, _SAVED)

    def saved_losses(self) -> dict[str, float]:
        """Held-out loss by domain of the stock model of this moment as the file has it."""
        rows, step = self.state.log.rows["domains"], self.state.step
        here = [row for row in rows if row["routing"] == "saved" and row["step"] == step]
        if here:  # written before an interruption
            return {row["domain"]: row["loss"] for row in here}
        with rounded(self.network, self.optimizer, _SAVED):
            return self.look("saved").losses

    def save(self) -> None:
        """Replace the checkpoint, but never a good one by weights that are not numbers."""
        state = self.state
        state.log.write()
        if not all(bool(torch.isfinite(m).all()) for m in self.optimizer.masters.values()):
            return
        kept = [
            {"step": k.step, "share": k.share, "path": str(k.path.relative_to(self.folder))}
            for k in state.kept
        ]
        save_checkpoint(
            self.folder / "checkpoint",
            self.network,
            self.optimizer,
            {
                "step": state.step,
                "seconds": state.seconds,
                "recipe": self.recipe.identity(),
                "data": self.data.fingerprint,
                "kept": kept,
                "evaluated": self.evaluated,
                "losses": self.losses,
                "torch": torch.__version__,
            },
            {} if self.before is None else {"chosen": self.before},
        )

    def finish(self, refresh: Callable[[TrainingState], None]) -> Trained:
        """Look once more, and write the model."""
        self.evaluate()
        saved = self.saved_losses()
        self.save()
        self.export(self.folder / "model")
        self.state.status = "finished"
        refresh(self.state)
        unigram = {name: pooled for name, (pooled, _) in self.unigram.items()}
        model = self.folder / "model"
        return Trained(self.folder, model, self.losses, saved, unigram, self.state)


def _precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    from moescope.models.loading import has_bfloat16

    wanted = recipe.train.precision
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" or has_bfloat16() else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _num_workers(recipe: Recipe, device: torch.device) -> int:
    if device.type != "cpu":
        return 1
    wanted = recipe.run.workers or torch.get_num_threads()
    return max(1, min(wanted, recipe.train.micro_batches))


def _count(network: Network) -> tuple[int, int]:
    """All parameters of the stock model, and those that one token meets."""
    sizes = network.recipe.model
    total = sum(p.numel() for p in network.model.parameters())
    one = 3 * sizes.hidden_size * sizes.intermediate_size
    idle = len(network.layer_numbers) * (sizes.num_experts - sizes.top_k) * one
    return total, total - idle
