"""What moescope ships to be tried on: a small MoE, a query set, and domain samples.

The query set measures a model; it holds questions and gives no advice. Sources and licences stand
in ``SOURCES.md`` beside this file, the model's card in ``moe-10m/README.md``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from moescope.corpus.spec import SHIPPED
from moescope.demo.checkpoints import checkpoint_steps, restore_checkpoint, write_checkpoint
from moescope.errors import BadInputError
from moescope.jobs import Analysis, analyze, foresee
from moescope.models import AnyModel, LoadedModel
from moescope.models.loading import how_held, open_held
from moescope.models.spec import EngineName, as_spec
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.manifest import claim_run
from moescope.run.options import TraceOptions

__all__ = [
    "MODEL",
    "QUERIES",
    "SAMPLES",
    "checkpoint_steps",
    "restore_checkpoint",
    "run_demo",
]

MODEL = Path(__file__).parent / "moe-10m"
"""The shipped model: OLMoE's architecture, 6 layers, 32 experts, 4 per token."""

QUERIES = SHIPPED["demo:queries"]
"""Questions by domain: ndis_policy, ndis_legal, support_coordination, everyday."""

SAMPLES = SHIPPED["demo:samples"]
"""One jsonl file per domain."""


def run_demo(
    out: str | Path,
    *,
    corpus: Literal["queries", "samples"] = "queries",
    model: AnyModel | None = None,
    engine: EngineName = "auto",
    memory: str | None = None,
    limit: int | None = None,
    step: int | None = None,
    on_progress: OnProgress = quiet,
) -> Analysis:
    """Analyze the shipped model, or another one, on shipped text.

    What that will take is told before weights are read, as the note of a `Progress`.

    Args:
        out: folder of the run; a demo run that is there already is taken up where it stopped.
        corpus: the query set or the domain samples.
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`; the shipped one by default.
        engine: see `moescope.models.loading.open_model`.
        memory: see `moescope.models.loading.open_model`.
        limit: stop each domain after this many tokens.
        step: analyze the shipped model as it was at this training step, one of
            `checkpoint_steps()`. Its files are written to ``out/model``.
        on_progress: told how far it is.

    Returns:
        The run and its report.

    Raises:
        BadInputError: the model was not kept at ``step``, or it is another model.
        MoescopeError: as `analyze`.
    """
    text, options = f"demo:{corpus}", TraceOptions(limit=limit)
    model = str(MODEL) if model is None else model
    spec = None if isinstance(model, LoadedModel) else as_spec(model)
    if step is not None and (spec is None or spec.model != str(MODEL)):
        raise BadInputError("`step` is of the shipped model; leave `model` or `step` out")
    with claim_run(out) as folder:
        if spec is not None:
            if step is not None:
                spec = replace(spec, model=str(write_checkpoint(step, folder / "model")))
            held = how_held(spec, engine=engine, memory=memory)
            on_progress(Progress("loading", note=str(foresee(held, text, options))))
            model = open_held(held, window=options.context)
        return analyze(model, text, folder, options, resume=True, on_progress=on_progress)
