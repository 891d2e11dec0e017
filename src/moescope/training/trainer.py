"""Train a small MoE from a recipe: the loop, its checkpoints, and what it writes down.

The folder of a run: ``recipe.yaml`` (resolved), ``tokenizer/``, ``tokens/``, ``log/*.parquet``,
``checkpoint/`` (to resume from), ``checkpoints/step-N/`` (kept stock models), ``model/`` (the
trained stock model). The trainer knows nothing of pages; whoever wants one listens.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from moescope.errors import (
    InterruptedTrainingError,
    MoescopeError,
    RunError,
    TrainingError,
)
from moescope.files import claim, nothing_of_bad_input, write_bytes
from moescope.memory import keep_memory
from moescope.progress import OnProgress, Progress, quiet
from moescope.training.checkpoint import (
    export_model,
    load_checkpoint,
    read_state,
    rounded,
    save_checkpoint,
)
from moescope.training.data import Sampler, Streams, heldout_windows, prepare_data, unigram_losses
from moescope.training.evaluate import HeldOut, evaluate
from moescope.training.log import TrainingLog
from moescope.training.losses import update_selection_bias
from moescope.training.need import require_memory
from moescope.training.network import Network, Pass, build_network, capacity_factor
from moescope.training.objective import StepResult, Workers, balance_weights, run_step
from moescope.training.optimizer import Optimizer, learning_rate
from moescope.training.part import weight_at
from moescope.training.recipe import Recipe, routing_notes
from moescope.training.rows import drop_rows, load_rows, routing_row

_SAVED = torch.bfloat16
"""The weights of the models that are written."""

_LEAST_TOKENS = 256
"""Of any vocabulary; the first look at the memory is before there is a tokenizer."""


@dataclass(frozen=True)
class Kept:
    """A model kept on the way."""

    step: int
    share: float
    path: Path


@dataclass
class TrainingState:
    """Where a training run is; what listeners are told.

    Attributes:
        recipe: what is trained. folder: where. notes: said at the start.
        status: running, finished or stopped. message: why it stopped.
        step: steps done. seconds: spent on steps, all sessions together.
        tokens_per_second: of the last steps.
        log: the tables so far. kept: models kept so far.
        parameters, active_parameters: of the stock model.
        layer_numbers: of its MoE layers.
    """

    recipe: Recipe
    folder: Path
    notes: list[str]
    log: TrainingLog
    parameters: int
    active_parameters: int
    layer_numbers: tuple[int, ...]
    status: Literal["running", "finished", "stopped"] = "running"
    message: str | None = None
    step: int = 0
    seconds: float = 0.0
    tokens_per_second: float = math.nan
    kept: list[Kept] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: the run. model: the stock model in it.
        losses: held-out nats per token by domain, in the precision of the training.
        saved: those of the model in the folder, whose weights are rounded to bfloat16.
        unigram: the baseline, fit on training text.
        state: the last state.
    """

    folder: Path
    model: Path
    losses: dict[str, float]
    saved: dict[str, float]
    unigram: dict[str, float]
    state: TrainingState


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    on_progress: OnProgress = quiet,
    listen: Callable[[TrainingState], None] = lambda _: None,
    refresh: Callable[[TrainingState], None] = lambda _: None,
) -> Trained:
    """Train a model from a recipe.

    The same recipe and text give the same losses to the last digit on the same machine and
    libraries, whether the run was interrupted or not.

    Args:
        recipe: from `load_recipe`.
        folder: the run's own folder: new, empty, or one to go on with.
        resume: go on from the checkpoint in it, or begin if there is none yet.
        device: ``cpu`` or an accelerator.
        on_progress: told what is being prepared, and how far the steps are.
        listen: told the state after every step.
        refresh: told the state every ``run.refresh_seconds`` and at the end, log written.

    Returns:
        Where the model is, and its held-out losses.

    Raises:
        BadInputError: data that is missing or too short.
        RunError: the folder holds another run, or one that was not asked to go on.
        TrainingError: the loss is no longer a number; the weights before that step are kept.
        WriteError: disk full or no permission.
        InterruptedTrainingError: by a signal, after a checkpoint.
    """
    reads = [c.path for c in (recipe.data.train, recipe.data.heldout) if c is not None]
    with claim(folder, "training", reads=reads) as target:
        kept = target / "checkpoint"
        with nothing_of_bad_input(target, unless=kept.exists):
            return _train(recipe, target, resume, device, on_progress, listen, refresh)


def _train(
    recipe: Recipe,
    target: Path,
    resume: bool,
    device: str,
    on_progress: OnProgress,
    listen: Callable[[TrainingState], None],
    refresh: Callable[[TrainingState], None],
) -> Trained:
    found = read_state(target / "checkpoint")
    _check_folder(recipe, target, found, resume)
    require_memory(recipe, _LEAST_TOKENS, torch.device(device))
    keep_memory()
    data = prepare_data(recipe, target, on_progress)
    if found is not None and found[1]["data"] != data.fingerprint:
        raise RunError(
            f"{target} was trained on other text or with another tokenizer than the recipe now "
            "names; give the same text, or another folder"
        )
    on_progress(Progress("building the model"))
    run = _Run(recipe, target, data, torch.device(device))
    if found is not None:
        run.restore(*found)
    for note in run.state.notes:
        on_progress(Progress("training", note=f"note: {note}"))
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_bytes(target / "recipe.yaml", text.encode())
    try:
        with _signals() as asked:
            run.loop(asked, on_progress, listen, refresh)
        return run.finish(refresh)
    except BaseException as error:
        run.state.status = "stopped"
        run.state.message = str(error) or type(error).__name__
        with contextlib.suppress(MoescopeError):  # a full disk has been said already
            refresh(run.state)
        raise
    finally:
        run.workers.close()


def _check_folder(
    recipe: Recipe, folder: Path, found: tuple[Path, dict[str, Any]] | None, resume: bool
) -> None:
    if found is None:
        if (folder / "model").exists():
            raise RunError(f"{folder} holds a model already; give another folder")
        return  # nothing was finished there: from the beginning is the same
    where, state = found
    if not resume:
        raise RunError(
            f"{folder} holds a training run at step {state['step']}; resume it, or give another "
            "folder"
        )
    if state["recipe"] != recipe.identity():
        raise RunError(
            f"the checkpoint {where} is of another recipe; {folder / 'recipe.yaml'} is the one it "
            "was trained with: use that, or give another folder"
        )


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or termination is noted and obeyed between steps; the second at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        before = {}  # not in the main thread: signals are somebody else's
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
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
        rate = weight_at(self.recipe.balance.bias_update, step / self.recipe.num_steps)
        if not rate:
            return
        for layer_idx, router in self.network.routers.items():
            load_E = done.layers[layer_idx].counts.to(router.e_score_correction_bias)
            bias = update_selection_bias(router.e_score_correction_bias, load_E, rate)
            router.e_score_correction_bias.copy_(bias)

    def stop_for(self, what: str, value: float, batches: torch.Tensor) -> None:
        """Say where the numbers broke, and which weights are still good."""
        layer = _first_broken_layer(self.network, batches, self.state.step)
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
        state.log.replace("loads", load_rows(state.step, done))
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
        self.evaluate()
        saved = self.saved_losses()
        self.save()
        self.export(self.folder / "model")
        self.state.status = "finished"
        refresh(self.state)
        unigram = {name: pooled for name, (pooled, _) in self.unigram.items()}
        model = self.folder / "model"
        return Trained(self.folder, model, self.losses, saved, unigram, self.state)


@torch.no_grad()
def _first_broken_layer(network: Network, batches: torch.Tensor, step: int) -> str:
    """Run the step's text again and look where the first non-finite number appears."""
    found: list[str] = []
    handles = []
    for name, module in network.model.named_modules():

        def look(_: Any, __: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not found and torch.is_tensor(first) and not torch.isfinite(first).all():
                found.append(name)  # the innermost module is the first to return

        handles.append(module.register_forward_hook(look))
    try:
        for index, tokens in enumerate(batches):
            factor = capacity_factor(network.recipe.capacity, training=True)
            seed = (network.recipe.seed, step, index)
            network.forward(tokens[:, :-1], Pass(True, len(tokens), seed, factor))
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"first in {found[0]}"
    return "every layer's output is still finite, so it arose in the loss or on the way back"


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
