"""`moescope demo`: the main job on what is shipped."""

from __future__ import annotations

from typing import Annotated, Literal

from moescope.cli.analyze_cmd import summarize
from moescope.cli.resume import RUN_MARKS, changes
from moescope.cli.settings import EngineArgs, ModelArgs, is_begun
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import Flag, of, verb
from moescope.errors import RunError
from moescope.run.options import TraceOptions

_AGAIN = "the same command goes on from there"


class DemoArgs(EngineArgs, ModelArgs):
    """Everything that `demo` can be told."""

    model: Annotated[str | None, Flag()] = None  # type: ignore[assignment]
    """hub id or folder of another model; by default the shipped one"""
    out: Annotated[str, Flag("-o")] = "demo-run"
    """folder of the run"""
    corpus: Literal["queries", "samples"] = "queries"
    """which shipped text; other verbs take it as demo:queries and demo:samples"""
    limit: int | None = of(TraceOptions, "limit")
    step: int | None = None
    """the model as it was at this training step (in a clone only: 44, 440, 1760)"""


@verb(marks=RUN_MARKS, advice=_AGAIN)
def demo(settings: DemoArgs) -> None:
    """Analyze the shipped small MoE, or any other, on the shipped text.

    queries: questions on NDIS policy, its legal context and support coordination, and everyday
    ones.
    samples: 13 domains from code to German. The shipped model needs no network; it is small,
    measures methods and gives no advice.

    Example: moescope demo -o demo-run

    Example: moescope demo --model allenai/OLMoE-1B-7B-0924 -o olmoe-run
    """
    from moescope.demo import MODEL, run_demo
    from moescope.files import nothing_of_bad_input
    from moescope.run.manifest import claim_run

    model = settings.model or str(MODEL)
    with (
        progress() as show,
        claim_run(settings.out) as folder,
        nothing_of_bad_input(folder, unless=lambda: is_begun(folder)),
    ):
        changed = changes(settings, folder)
        if changed:
            raise RunError(
                f"{folder} holds a demo of other settings ({', '.join(changed)}); give another "
                f"folder with -o, or remove {folder}"
            )
        if not (folder / "config.yaml").exists():
            settings.write_to(folder)
        done = run_demo(
            folder,
            corpus=settings.corpus,
            model=settings.model_copy(update={"model": model}).model_spec(),
            engine=settings.engine,
            memory=settings.memory,
            limit=settings.limit,
            step=settings.step,
            on_progress=show,
        )
    summarize(done.run)
    errors.print(
        "The shipped text measures a model; nothing in it or in the report is advice.", style="dim"
    )
    output.print(str(done.report), soft_wrap=True)
