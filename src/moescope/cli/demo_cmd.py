"""`moescope demo`: the main job on what is shipped."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from moescope.cli.analyze_cmd import summarize
from moescope.cli.common import tracing_progress
from moescope.cli.resume import RUN_MARKS, resumable
from moescope.cli.terminal import errors, output

_HELP = """Analyze the shipped small MoE on the shipped text; needs no network.

queries: questions on NDIS policy, its legal context and support coordination, and everyday ones.
samples: 13 domains from code to German. The model is small and measures methods; it gives no
advice.

Example: moescope demo -o demo-run
"""

_AGAIN = "the same command goes on from there"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo", help=_HELP)(demo)


def demo(
    out: Annotated[str, typer.Option("--out", "-o", help="folder of the run")] = "demo-run",
    corpus: Annotated[
        Literal["queries", "samples"], typer.Option(help="which shipped text")
    ] = "queries",
    limit: Annotated[
        int | None, typer.Option(min=1, help="stop each domain after so many tokens")
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            help="the model as it was at this training step (in a clone only: 44, 440, 1760)"
        ),
    ] = None,
) -> None:
    """Run the demo and print the path of the report."""
    from moescope.demo import run_demo

    with tracing_progress() as bar, resumable(out, *RUN_MARKS, advice=_AGAIN):
        done = run_demo(
            out,
            corpus=corpus,
            limit=limit,
            step=step,
            on_progress=bar.update,
            on_stage=bar.stage,
        )
    summarize(done.run)
    errors.print(
        "The shipped text measures a model; nothing in it or in the report is advice.", style="dim"
    )
    output.print(str(done.report), soft_wrap=True)
