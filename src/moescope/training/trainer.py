"""Train a small MoE from a recipe: whose the folder is, going on, signals, and the end.

The folder of a run: ``recipe.yaml`` (resolved), ``tokenizer/``, ``tokens/``, ``log/*.parquet``,
``checkpoint/`` (to resume from), ``checkpoints/step-N/`` (kept stock models), ``model/`` (the
trained stock model). The steps are in `loop`. Nothing here knows of pages; whoever wants one
listens.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from moescope.errors import BadInputError, MoescopeError, RunError
from moescope.files import claim, nothing_of_bad_input, write_bytes
from moescope.memory import keep_memory
from moescope.progress import OnProgress, Progress, quiet
from moescope.training.checkpoint import read_state
from moescope.training.data import prepare_data
from moescope.training.knobs import difference
from moescope.training.loop import Run
from moescope.training.need import require_memory
from moescope.training.recipe import Recipe
from moescope.training.recipe_file import load_recipe
from moescope.training.state import Trained, TrainingState

_LEAST_TOKENS = 256
"""Of any vocabulary; the first look at the memory is before there is a tokenizer."""


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
    run = Run(recipe, target, data, torch.device(device))
    if found is not None:
        run.restore(*found)
    notes = [f"note: {note}" for note in run.state.notes]
    for said in [recipe.about, *notes] if recipe.about else notes:
        on_progress(Progress("training", note=said))
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
            f"the checkpoint {where} is of another recipe{_difference(folder, recipe)}; "
            f"{folder / 'recipe.yaml'} is the one it was trained with: use that, or give another "
            "folder"
        )


def _difference(folder: Path, recipe: Recipe) -> str:
    """Which settings differ; nothing where the recipe in the folder cannot be read any more."""
    try:
        said = difference(load_recipe(folder / "recipe.yaml"), recipe)
    except BadInputError:
        return ""
    return said and f": {said}"


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
