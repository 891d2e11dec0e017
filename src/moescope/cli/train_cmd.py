"""`moescope train`: a small MoE from a recipe, its routers watched while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from moescope.cli.tables import Sheet
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import Argument, Flag, Settings, of, verb
from moescope.errors import BadInputError
from moescope.models import ModelSpec

if TYPE_CHECKING:
    from moescope.training.recipe import Recipe
    from moescope.training.state import Trained


class TrainArgs(Settings):
    """Everything that `train` can be told beside the recipe."""

    recipe: Annotated[str | None, Argument("RECIPE")] = None
    """YAML file; with --example the name of a shipped recipe"""
    example: bool = False
    """train a shipped recipe on the shipped text; without a name they are listed"""
    out: Annotated[str | None, Flag("-o")] = None
    """folder of the run; for an example a folder of its name unless given"""
    steps: int | None = Field(None, ge=1)
    """optimizer steps, whatever the recipe says"""
    set_: tuple[str, ...] = ()
    """section.key=value, wins over the recipe; may be repeated"""
    device: str = of(ModelSpec, "device")

    @model_validator(mode="after")
    def _recipe_and_folder(self) -> Self:
        if self.example and self.out is None:
            self.out = self.recipe
        elif self.recipe is None and not self.example:
            raise BadInputError(
                "`recipe` is missing; give a YAML file, or `example` for the shipped recipes"
            )
        elif self.out is None:
            raise BadInputError("out is missing; give `out` or set it in --config")
        return self

    def load(self) -> Recipe:
        """The recipe under the other settings."""
        from moescope.training.recipe_file import load_example, load_recipe

        length = () if self.steps is None else (f"train.steps={self.steps}", "train.tokens=null")
        load = load_example if self.example else load_recipe
        return load(str(self.recipe), (*self.set_, *length))


@verb(marks=("checkpoint", "checkpoint.old"))
def train(settings: TrainArgs, resume: bool) -> None:
    """Train a small MoE from a recipe; routers, balancing and capacity are its knobs.

    The folder gets model/ (a stock transformers model), log/*.parquet and training.html, a page
    that follows the run. Interrupted, it goes on with --resume and ends in the same numbers.

    Example: moescope train --example noisy-topk -o noisy --set seed=1
    """
    if settings.recipe is None:
        _list_examples()
        return
    recipe = settings.load()
    from moescope.files import claim
    from moescope.jobs import train as train_recipe
    from moescope.models.loading import pick_device

    device, out = str(pick_device(settings.device)), str(settings.out)
    with progress() as show:
        done = train_recipe(recipe, out, resume=resume, device=device, on_progress=show)
        with claim(out, "training") as folder:
            settings.write_to(folder)
    _summarize(done)
    output.print(str(done.model), soft_wrap=True)


def _list_examples() -> None:
    """Name and purpose of every shipped recipe, on stdout."""
    from moescope.training.recipe_file import example_names, load_example

    for name in example_names():
        output.print(f"{name}: {load_example(name).about}", soft_wrap=True)


def _summarize(done: Trained) -> None:
    """Held-out loss by domain beside the baseline, on stderr."""
    title = "held-out loss, nats per token (unigram: token shares of the training text)"
    table = Sheet(title, "<domain", "loss", "as saved", "unigram", "better by")
    for domain, loss in sorted(done.losses.items()):
        saved, baseline = done.saved[domain], done.unigram[domain]
        figures = (f"{loss:.3f}", f"{saved:.3f}", f"{baseline:.3f}", f"{baseline - saved:+.3f}")
        table.add(domain, *figures)
    table.print(on=errors)
