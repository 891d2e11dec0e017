"""`moescope train`: a small MoE from a recipe, its routers watched while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from moescope.cli.resume import resumable
from moescope.cli.terminal import bar, errors, output

if TYPE_CHECKING:
    from moescope.training.trainer import Trained, TrainingState

_HELP = """Train a small MoE from a recipe; routers, balancing and capacity are its knobs.

The folder gets model/ (a stock transformers model), log/*.parquet and training.html, a page that
follows the run. Interrupted, it goes on with --resume and ends in the same numbers.

Example: moescope train recipe.yaml -o my-moe --set train.steps=500 --set router.kind=noisy_topk
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train", help=_HELP)(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file", metavar="RECIPE")],
    out: Annotated[str, typer.Option("--out", "-o", help="folder of the run")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value, wins over the recipe; may be repeated"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """Train, show progress, and print the held-out losses and the folder of the model."""
    from moescope.jobs import PAGE
    from moescope.jobs import train as train_recipe
    from moescope.models.loading import pick_device
    from moescope.training.recipe import routing_notes
    from moescope.training.recipe_file import load_recipe

    checked = load_recipe(recipe, tuple(override or ()))
    chosen = str(pick_device(device))
    with bar("figures") as progress, resumable(out, "checkpoint", "checkpoint.old"):
        task = progress.add_task("starting", total=None, figures="")

        def say(words: str) -> None:
            progress.update(task, description=words)

        def listen(state: TrainingState) -> None:
            if progress.tasks[task].total is None:  # the data are there, and it goes on
                for note in routing_notes(checked):
                    errors.print(f"note: {note}", soft_wrap=True)
                errors.print(f"live page: {Path(out) / PAGE}", soft_wrap=True)
            loss = state.log.rows["steps"][-1]["loss"]
            progress.update(
                task,
                description=f"step {state.step}/{checked.num_steps}",
                total=checked.num_steps,
                completed=state.step,
                figures=f"loss {loss:.3f} · {state.tokens_per_second:,.0f} tok/s",
            )

        done = train_recipe(checked, out, resume=resume, device=chosen, say=say, listen=listen)
    _summarize(done)
    output.print(str(done.model), soft_wrap=True)


def _summarize(done: Trained) -> None:
    """Held-out loss by domain beside the baseline, on stderr."""
    table = Table(
        title="held-out loss, nats per token (unigram: token shares of the training text)",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("domain")
    for name in ("loss", "as saved", "unigram", "better by"):
        table.add_column(name, justify="right")
    for domain, loss in sorted(done.losses.items()):
        saved, baseline = done.saved[domain], done.unigram[domain]
        figures = (f"{loss:.3f}", f"{saved:.3f}", f"{baseline:.3f}", f"{baseline - saved:+.3f}")
        table.add_row(domain, *figures)
    errors.print(table)
