"""`moescope capacity`: which tokens of a text overflow their experts, and where they go."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from rich.text import Text

from moescope.cli.fit import Head
from moescope.cli.settings import ModelArgs, TableOrJson, WideArgs
from moescope.cli.tables import Sheet, write_json
from moescope.cli.terminal import output
from moescope.cli.verb import Argument, verb
from moescope.errors import BadInputError
from moescope.given import MOST_TOKENS
from moescope.words import counted

if TYPE_CHECKING:
    from moescope.training.overflow import LayerOverflow


class CapacityArgs(ModelArgs, WideArgs):
    """Everything that `capacity` can be told."""

    text: Annotated[str, Argument("TEXT")]
    """a text"""
    capacity: int | None = Field(
        None, le=MOST_TOKENS, description="tokens that an expert takes at most"
    )
    factor: float | None = None
    """instead of --capacity: tokens · factor · K / E; 1.25 by default"""
    overflow: Literal["drop", "reroute"] = "drop"
    """drop to the residual, or take the next most probable expert with room"""
    layer: int | None = None
    """one MoE layer; the first unless given"""
    top_k: int | None = None
    """seat only this many first choices of a token"""
    all_layers: bool = False
    """every MoE layer"""
    format: TableOrJson = "table"
    """how to print"""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.capacity is not None and self.factor is not None:
            raise BadInputError("`capacity` and `factor` say the same thing; give one of them")
        return self


@verb()
def capacity(settings: CapacityArgs) -> None:
    """Show what a capacity limit does to a text: who overflows, and where those tokens go.

    Example: moescope capacity MODEL "To be, or not to be, that is the question" --top-k 1
    """
    from moescope.training.overflow import explain_overflow

    layer = settings.layer
    wanted = None if layer is None else (layer,)
    loaded = settings.load(lambda outline: outline.anatomy.select(wanted))
    if layer is None and not settings.all_layers:
        layer = loaded.anatomy.layer_numbers[0]
    layers = explain_overflow(
        loaded,
        settings.text,
        layer=layer,
        capacity=settings.capacity,
        factor=1.25 if settings.factor is None else settings.factor,
        overflow=settings.overflow,
        top_k=settings.top_k,
    )
    for made in layers:
        if settings.format == "json":
            for row in made.rows:
                write_json({"layer": made.layer, "capacity": made.capacity, **asdict(row)})
        else:
            _print(made, settings)


def _print(made: LayerOverflow, settings: CapacityArgs) -> None:
    wanted = len(made.rows) * made.top_k
    title = (
        f"layer {made.layer}: {counted(len(made.rows), 'token')}, {made.num_experts} experts, "
        f"room for {made.capacity} each"
    )
    table = Sheet(
        title, "<token", Head("wanted", "words", keep=True), Head("got", "words", keep=True),
        Head("why", "words"),
    )  # fmt: skip
    for row in made.rows:
        lost = row.wanted != row.got
        table.add(
            Text(row.text.replace(" ", "·").replace("\n", "⏎")),
            " ".join(f"E{e}" for e in row.wanted),
            Text(
                " ".join("–" if e is None else f"E{e}" for e in row.got),
                style="bold red" if None in row.got else ("bold yellow" if lost else ""),
            ),
            row.note,
        )
    table.print(settings)
    output.print(
        f"{made.dropped} of {counted(wanted, 'choice')} dropped, {made.rerouted} rerouted. Tokens "
        "queue in order; a token without any expert passes on unchanged through the residual.",
        style="dim",
    )
