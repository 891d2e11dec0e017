"""`moescope import`: a run from routed-expert ids that a serving engine captured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moescope.cli.analyze_cmd import summarize
from moescope.cli.common import tracing_progress, write_config
from moescope.cli.config import parse_layers
from moescope.cli.resume import RUN_MARKS, resumable
from moescope.cli.settings import SEED, finite
from moescope.cli.terminal import errors, output

if TYPE_CHECKING:
    from moescope.run.reader import Run

_HELP = """Make a run of routed-expert ids that vLLM, SGLang or llama.cpp captured while serving.

Ids are all that engines return: weights, entropy and losses are absent from the run, and, without
--ordered, so is which of a token's experts was first. Of counts (layer, expert, count) single
tokens, documents, intervals and tests are absent too.

Example: moescope import vllm captured.jsonl -o served-run --model allenai/OLMoE-1B-7B-0924
"""

_SETTINGS = {"layers", "keep", "seed", "sample_tokens", "token_budget", "checkpoint_seconds"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("import", help=_HELP)(import_)


def import_(
    engine: Annotated[
        Literal["vllm", "sglang", "llamacpp", "counts"],
        typer.Argument(
            help="what captured them: vllm, sglang, llamacpp; counts: sums by layer and expert",
            metavar="ENGINE",
        ),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="vllm, sglang: .jsonl, .json, .npz, .safetensors; llamacpp: .csv; counts: any of "
            "these; or folders",
            metavar="FILES...",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="folder of the run")],
    model: Annotated[str, typer.Option(help="hub id or folder of the served model; no weights")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit on the hub")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="run Python code that the model brings")
    ] = False,
    domain: Annotated[
        str | None, typer.Option(help="domain of every request that names none")
    ] = None,
    ordered: Annotated[
        bool,
        typer.Option("--ordered", help="the engine names a token's experts by descending weight"),
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="MoE layers to import, such as 0,3,8-11")
    ] = None,
    keep: Annotated[
        Literal["aggregates", "sample", "all"],
        typer.Option(help="sums only; also a bounded token sample; also every token"),
    ] = "sample",
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="stop at a request that cannot be used, or leave it out and count it"),
    ] = "fail",
    engine_version: Annotated[
        str | None, typer.Option(help="the engine's version, for the manifest")
    ] = None,
    seed: Annotated[int, typer.Option(**SEED, help="of sampling and resampling")] = 0,
    sample_tokens: Annotated[
        int, typer.Option(min=1, help="sampled tokens of each domain and phase")
    ] = 8192,
    token_budget: Annotated[
        int, typer.Option(min=1, help="tokens of each domain in the token-id tables")
    ] = 250_000,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="commit after the first pool that ends this late"
        ),
    ] = 20.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted import")
    ] = False,
) -> None:
    """Import, and print the run folder."""
    from moescope.files import nothing_of_bad_input
    from moescope.models import ModelSpec
    from moescope.run.manifest import claim_run, has_progress
    from moescope.run.options import TraceOptions
    from moescope.run.reader import Run
    from moescope.trace.importers import import_traces

    options = TraceOptions(
        layers=None if layers is None else parse_layers(layers),
        keep=keep,
        seed=seed,
        sample_tokens=sample_tokens,
        token_budget=token_budget,
        checkpoint_seconds=checkpoint_seconds,
    )
    settings = {
        "engine": engine,
        "files": [str(f) for f in files],
        "model": model,
        "domain": domain,
        "ordered": ordered,
        "on_error": on_error,
        **options.model_dump(mode="json", include=_SETTINGS),
    }
    with (
        tracing_progress() as bar,
        resumable(out, *RUN_MARKS),
        claim_run(out) as folder,
        nothing_of_bad_input(folder, unless=lambda: has_progress(folder)),
    ):
        write_config(folder, settings, begun=has_progress(folder))
        bar.stage("importing")
        import_traces(
            engine,
            files,
            folder,
            ModelSpec(model, revision, trust_remote_code=trust_remote_code),
            options,
            domain=domain,
            ordered=ordered,
            on_error=on_error,
            engine_version=engine_version,
            resume=resume,
            on_progress=bar.update,
        )
    run = Run(folder)
    summarize(run)
    _explain(run)
    output.print(str(folder), soft_wrap=True)


def _explain(run: Run) -> None:
    """Say on stderr what the run does not know."""
    for reason in run.absent.values():
        errors.print(f"absent: {reason}", soft_wrap=True)
    for note in run.manifest.source["notes"]:
        errors.print(f"note: {note}", soft_wrap=True)
