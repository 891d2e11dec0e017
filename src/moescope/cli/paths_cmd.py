"""`moescope paths`: two texts, their routes aligned, and where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from moescope.cli.fit import Head
from moescope.cli.settings import ModelArgs, TableOrJson, WideArgs
from moescope.cli.tables import Sheet, write_json
from moescope.cli.terminal import output
from moescope.cli.verb import Argument, verb

if TYPE_CHECKING:
    from moescope.trace.routes import RouteComparison


class PathsArgs(ModelArgs, WideArgs):
    """Everything that `paths` can be told."""

    left: Annotated[str, Argument("TEXT")]
    """a text"""
    right: Annotated[str, Argument("TEXT")]
    """another text"""
    format: TableOrJson = "table"
    """how to print"""


@verb()
def paths(settings: PathsArgs) -> None:
    """Show the routes of two texts token by token, and where they part.

    Example: moescope paths MODEL "the plan covers therapy" "the new plan covers therapy"
    """
    from moescope.trace.routes import compare_routes

    made = compare_routes(settings.load(), settings.left, settings.right)
    if settings.format == "json":
        for row in made.rows:
            write_json({"layers": made.layers, **row._asdict()})
        return
    table = Sheet(
        "", "<text 1", "<text 2", *(Head(f"L{layer}", keep=True) for layer in made.layers)
    )
    for row in made.rows:
        cells = []
        for i in range(len(made.layers)):
            a = row.left_ids[i][0] if row.left_ids else None
            b = row.right_ids[i][0] if row.right_ids else None
            cells.append(_cell(a, b, None if row.shared is None else row.shared[i]))
        table.add(Text(_shown(row.left)), Text(_shown(row.right)), *cells)
    table.print(settings)
    output.print(_caption(made), style="dim")


def _shown(text: str | None) -> str:
    return "" if text is None else text.replace(" ", "·").replace("\n", "⏎")


def _cell(a: int | None, b: int | None, shared: float | None) -> Text:
    if shared is None:
        return Text(str(a if a is not None else b), style="dim")
    text = str(a) if a == b else f"{a}→{b}"
    return Text(text, style="" if shared == 1.0 else ("bold yellow" if a == b else "bold red"))


def _caption(made: RouteComparison) -> str:
    words = (
        "First choice by layer; a→b: it changed. Yellow: same first choice, other experts "
        "beside it."
    )
    if made.first_difference is None:
        return words + " Tokens that both texts have take the same experts everywhere."
    at = made.rows[made.first_difference]
    layer = next(n for n, s in zip(made.layers, at.shared or [], strict=True) if s < 1.0)
    return (
        f"{words} The routes part at {_shown(at.left)!r}, layer {layer}: the first token "
        "of both texts with another set of experts."
    )
