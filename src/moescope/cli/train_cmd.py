"""`moescope train`: a small MoE from a recipe, its routers watched while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from moescope.cli.tables import Sheet
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import Argument, Flag, Settings, of, verb
from moescope.models import ModelSpec

if TYPE_CHECKING:
    from moescope.training.trainer import Trained


class TrainArgs(Settings):
    """Everything that `train` can be told beside the recipe."""

    recipe: Annotated[str, Argument("RECIPE")]
    """YAML file"""
    out: Annotated[str, Flag("-o")]
    """folder of the run"""
    set_: tuple[str, ...] = ()
    """section.key=value, wins over the recipe; may be repeated"""
    device: str = of(ModelSpec, "device")


@verb(marks=("checkpoint", "checkpoint.old"))
def train(settings: TrainArgs, resume: bool) -> None:
    """Train a small MoE from a recipe; routers, balancing and capacity are its knobs.

    The folder gets model/ (a stock transformers model), log/*.parquet and training.html, a page
    that follows the run. Interrupted, it goes on with --resume and ends in the same numbers.

    Example: moescope train recipe.yaml -o my-moe --set train.steps=500 --set router.kind=noisy_topk
    """
    from moescope.training.recipe_file import load_recipe

    recipe = load_recipe(settings.recipe, settings.set_)
    from moescope.files import claim
    from moescope.jobs import train as train_recipe
    from moescope.models.loading import pick_device

    device = str(pick_device(settings.device))
    with progress() as show:
        done = train_recipe(recipe, settings.out, resume=resume, device=device, on_progress=show)
        with claim(settings.out, "training") as folder:
            settings.write_to(folder)
    _summarize(done)
    output.print(str(done.model), soft_wrap=True)


def _summarize(done: Trained) -> None:
    """Held-out loss by domain beside the baseline, on stderr."""
    title = "held-out loss, nats per token (unigram: token shares of the training text)"
    table = Sheet(title, "<domain", "loss", "as saved", "unigram", "better by")
    for domain, loss in sorted(done.losses.items()):
        saved, baseline = done.saved[domain], done.unigram[domain]
        figures = (f"{loss:.3f}", f"{saved:.3f}", f"{baseline:.3f}", f"{baseline - saved:+.3f}")
        table.add(domain, *figures)
    table.print(on=errors)
