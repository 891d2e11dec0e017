"""`moescope capacity`: which tokens of a text overflow their experts, and where they go."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from moescope.cli.common import Format
from moescope.cli.settings import finite
from moescope.cli.terminal import output, write
from moescope.errors import BadInputError
from moescope.given import MOST_TOKENS

if TYPE_CHECKING:
    from moescope.training.overflow import LayerOverflow

_HELP = """Show what a capacity limit does to a text: who overflows, and where those tokens go.

Example: moescope capacity MODEL "the plan pays for the chair and the ramp" --capacity 3 --top-k 1
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("capacity", help=_HELP)(capacity)


def capacity(
    model: Annotated[str, typer.Argument(help="hub id or folder", metavar="MODEL")],
    text: Annotated[str, typer.Argument(help="a text", metavar="TEXT")],
    limit: Annotated[
        int | None,
        typer.Option("--capacity", max=MOST_TOKENS, help="tokens that an expert takes at most"),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(callback=finite, help="instead of --capacity: tokens · factor · K / E [1.25]"),
    ] = None,
    overflow: Annotated[
        Literal["drop", "reroute"],
        typer.Option(help="drop to the residual, or take the next most probable expert with room"),
    ] = "drop",
    layer: Annotated[int | None, typer.Option(help="one MoE layer; the first unless given")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="seat only the first so many choices of a token")
    ] = None,
    all_layers: Annotated[bool, typer.Option("--all-layers", help="every MoE layer")] = False,
    form: Annotated[Format, typer.Option("--format", help="how to print")] = "table",
    dtype: Annotated[str, typer.Option(help="precision; auto: as stored")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code of the model")] = False,
) -> None:
    """Print the queues."""
    from moescope.models import ModelSpec, load_model
    from moescope.training.overflow import explain_overflow

    if form == "csv":
        raise BadInputError("capacity prints as table or json; csv has no place for sets")
    if limit is not None and factor is not None:
        raise BadInputError("--capacity and --factor say the same thing; give one of them")
    loaded = load_model(ModelSpec(model, revision, dtype, device, trust_remote_code))
    if layer is None and not all_layers:
        layer = loaded.anatomy.layer_numbers[0]
    layers = explain_overflow(
        loaded,
        text,
        layer=layer,
        capacity=limit,
        factor=1.25 if factor is None else factor,
        overflow=overflow,
        top_k=top_k,
    )
    for made in layers:
        if form == "json":
            for row in made.rows:
                record = {"layer": made.layer, "capacity": made.capacity, **asdict(row)}
                write(json.dumps(record) + "\n")
        else:
            output.print(_table(made))


def _table(made: LayerOverflow) -> Table:
    wanted = len(made.rows) * made.top_k
    table = Table(
        header_style="bold",
        title=f"layer {made.layer}: {len(made.rows)} tokens, {made.num_experts} experts, room for "
        f"{made.capacity} each",
        title_justify="left",
        caption=f"{made.dropped} of {wanted} choices dropped, {made.rerouted} rerouted. Tokens "
        "queue in order; a token without any expert passes on unchanged through the residual.",
        caption_justify="left",
    )
    table.add_column("token")
    table.add_column("wanted", justify="right")
    table.add_column("got", justify="right")
    table.add_column("why")
    for row in made.rows:
        lost = row.wanted != row.got
        table.add_row(
            Text(row.text.replace(" ", "·").replace("\n", "⏎")),
            " ".join(f"E{e}" for e in row.wanted),
            Text(
                " ".join("–" if e is None else f"E{e}" for e in row.got),
                style="bold red" if None in row.got else ("bold yellow" if lost else ""),
            ),
            row.note,
        )
    return table
