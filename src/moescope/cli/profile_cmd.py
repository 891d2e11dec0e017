"""`moescope profile`: what single experts do, or all of them on a page to browse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moescope.cli.terminal import bar, output, write
from moescope.errors import BadInputError

if TYPE_CHECKING:
    from moescope.profiles.facts import Profiles
    from moescope.profiles.profile import ProfileOptions

_HELP = """Profile experts: what they serve, where they contribute most, what they push towards.

Each profile is written to RUN/profiles as JSON and as a page; --all writes an index of every
expert to browse. What needs the model is measured once, for all experts, and kept beside the run.

Example: moescope profile my-run L5E9
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("profile", help=_HELP)(profile)


def profile(
    run: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    experts: Annotated[
        list[str] | None, typer.Argument(help="experts, such as L5E9 L5E10", metavar="EXPERT...")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every expert, with an index page")] = False,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="how to print")
    ] = "table",
    model: Annotated[
        str | None, typer.Option(help="hub id or folder of the run's model [as the run names it]")
    ] = None,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="leave out what needs the model, and say so")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(help="tokens of each domain to measure [as the run sampled]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="precision [that of the run]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code of the model")] = False,
    pipeline: Annotated[
        str, typer.Option(help="spaCy pipeline for parts of speech; 'none' leaves them out")
    ] = "en_core_web_sm",
) -> None:
    """Write and print profiles."""
    if every == bool(experts):
        raise BadInputError("name experts such as L5E9, or give --all; one of the two")
    if no_model and model:
        raise BadInputError("--model and --no-model exclude each other")
    if no_model and tokens is not None:
        raise BadInputError("--tokens says how much to measure with the model; --no-model has none")
    from moescope.metrics.runs import open_run
    from moescope.profiles.profile import profile_all, profile_experts, write_profiles
    from moescope.report.profile_page import build_profile_page

    opened = open_run(run)
    chosen = (model, revision, dtype, device, trust_remote_code)
    options = _options(opened, chosen, no_model, tokens, pipeline)
    with _progress() as (stage, progress):
        if every:
            made = profile_all(opened, options, on_stage=stage, on_progress=progress)
        else:
            made = profile_experts(
                opened, experts or [], options, on_stage=stage, on_progress=progress
            )
        stage("writing")
        write_profiles(opened, made, index=every)
        parts = [made] if every else [made[i : i + 1] for i in range(len(made))]
        pages = [build_profile_page(opened, part) for part in parts]
    if form == "json":
        for one in made:
            write(json.dumps(one.to_dict()) + "\n")
        return
    if every:
        _print_counts(made)
    else:
        from moescope.cli.profile_text import print_profile

        for one in made:
            print_profile(one)
    for page in pages:
        output.print(str(page), soft_wrap=True)


def _options(
    run: Any,
    chosen: tuple[str | None, str | None, str | None, str, bool],
    no_model: bool,
    tokens: int | None,
    pipeline: str,
) -> ProfileOptions:
    from moescope.models import ModelSpec
    from moescope.profiles.profile import ProfileOptions

    name, revision, dtype, device, trust = chosen
    known = run.manifest.model
    spec = ModelSpec(
        name or str(known.get("name")),
        revision if name or revision else known.get("revision"),
        dtype or "auto",
        device,
        trust,
    )
    return ProfileOptions(
        model=None if no_model else spec,
        use_model=not no_model,
        tokens_per_domain=tokens,
        pipeline=None if pipeline.lower() == "none" else pipeline,
    )


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """Stages and measured tokens, with rate and time left, on stderr."""
    with bar("tokens") as shown:
        task = shown.add_task("starting", total=None, tokens="")

        def stage(words: str) -> None:
            shown.update(task, description=words, tokens="", total=None)

        def progress(done: int, total: int) -> None:
            seconds = shown.tasks[0].elapsed or 0.0
            rate = f", {done / seconds:,.0f} tok/s" if seconds > 1 else ""
            shown.update(
                task, completed=done, total=total, tokens=f"{done:,} of {total:,} tokens{rate}"
            )

        yield stage, progress


def _print_counts(made: Profiles) -> None:
    """What stands out, counted."""
    from collections import Counter

    from rich.table import Table

    table = Table(title=f"{len(made):,} experts", title_justify="left", header_style="bold")
    table.add_column("what stands out")
    table.add_column("experts", justify="right")
    for kind, count in Counter(made.column("role_kind")).most_common():
        table.add_row(_KINDS.get(kind, kind), f"{count:,}")
    for flag, count in sorted(Counter(f for own in made.column("flags") for f in own).items()):
        table.add_row(f"flag: {flag}", f"{count:,}")
    output.print(table)


_KINDS = {
    "domain": "serves a domain",
    "avoids": "avoids a domain",
    "none": "no domain stands out",
    "untested": "domains not compared",
}
