"""`moescope import`: a run from routed-expert ids that a serving engine captured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from moescope.cli.analyze_cmd import summarize
from moescope.cli.resume import RUN_MARKS
from moescope.cli.settings import LayersArgs, MetaArgs
from moescope.cli.terminal import output, progress
from moescope.cli.verb import Argument, Flag, note, of, verb
from moescope.given import Seed
from moescope.run.options import TraceOptions

if TYPE_CHECKING:
    from moescope.run.reader import Run


class ImportArgs(MetaArgs, LayersArgs):
    """Everything that `import` can be told."""

    engine: Annotated[Literal["vllm", "sglang", "llamacpp", "counts"], Argument("ENGINE")]
    """what captured them: vllm, sglang, llamacpp; counts: sums by layer and expert"""
    files: Annotated[tuple[str, ...], Argument("FILES...")]
    """vllm, sglang: .jsonl, .json, .npz, .safetensors; llamacpp: .csv; counts: any of these; or
    folders"""
    out: Annotated[str, Flag("-o")]
    """folder of the run"""
    model: str = Field(description="hub id or folder of the served model; no weights")
    domain: str | None = None
    """domain of every request that names none"""
    ordered: bool = False
    """the engine names a token's experts by descending weight"""
    on_error: Literal["fail", "skip"] = "fail"
    """stop at a request that cannot be used, or leave it out and count it"""
    engine_version: str | None = None
    """the engine's version, for the manifest"""
    keep: Literal["aggregates", "sample", "all"] = of(TraceOptions, "keep")
    seed: Seed = of(TraceOptions, "seed")
    sample_tokens: int = of(TraceOptions, "sample_tokens")
    token_budget: int = of(TraceOptions, "token_budget")
    checkpoint_seconds: float = of(TraceOptions, "checkpoint_seconds")


@verb(marks=RUN_MARKS)
def import_(settings: ImportArgs, resume: bool) -> None:
    """Make a run of routed-expert ids that vLLM, SGLang or llama.cpp captured while serving.

    Ids are all that engines return: weights, entropy and losses are absent from the run, and,
    without --ordered, so is which of a token's experts was first. Of counts (layer, expert, count)
    single tokens, documents, intervals and tests are absent too.

    Example: moescope import vllm captured.jsonl -o served-run --model allenai/OLMoE-1B-7B-0924
    """
    from moescope.files import nothing_of_bad_input
    from moescope.run.manifest import claim_run, has_progress
    from moescope.run.reader import Run
    from moescope.trace.importers import import_traces

    with (
        progress("importing") as show,
        claim_run(settings.out) as folder,
        nothing_of_bad_input(folder, unless=lambda: has_progress(folder)),
    ):
        if not has_progress(folder):
            settings.write_to(folder)
        import_traces(
            settings.engine,
            [Path(file) for file in settings.files],
            folder,
            settings.model_spec(),
            settings.given(TraceOptions),
            domain=settings.domain,
            ordered=settings.ordered,
            on_error=settings.on_error,
            engine_version=settings.engine_version,
            resume=resume,
            on_progress=show,
        )
    run = Run(folder)
    summarize(run)
    _explain(run)
    output.print(str(folder), soft_wrap=True)


def _explain(run: Run) -> None:
    """Say on stderr what the run does not know."""
    for reason in run.absent.values():
        note(f"absent: {reason}", "")
    for remark in run.manifest.source["notes"]:
        note(remark, "")
