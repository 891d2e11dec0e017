"""What moescope ships to be tried on: a small MoE, a query set, and domain samples.

The query set measures a model; it holds questions and gives no advice. Sources and licences stand
in ``SOURCES.md`` beside this file, the model's card in ``moe-10m/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moescope.corpus import CorpusSpec
from moescope.demo.checkpoints import checkpoint_steps, restore_checkpoint, write_checkpoint
from moescope.jobs import Analysis, analyze
from moescope.models import ModelSpec
from moescope.progress import OnProgress, quiet
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

_HERE = Path(__file__).parent

MODEL = _HERE / "moe-10m"
"""The shipped model: OLMoE's architecture, 6 layers, 32 experts, 4 per token."""

QUERIES = _HERE / "queries.jsonl"
"""Questions by domain: ndis_policy, ndis_legal, support_coordination, everyday."""

SAMPLES = _HERE / "samples"
"""One jsonl file per domain."""


def run_demo(
    out: str | Path,
    *,
    corpus: Literal["queries", "samples"] = "queries",
    limit: int | None = None,
    step: int | None = None,
    on_progress: OnProgress = quiet,
) -> Analysis:
    """Analyze the shipped model on shipped text.

    Args:
        out: folder of the run; a demo run that is there already is taken up where it stopped.
        corpus: the query set or the domain samples.
        limit: stop each domain after this many tokens.
        step: analyze the model as it was at this training step, one of `checkpoint_steps()`; the
            finished model by default. Its files are written to ``out/model``.
        on_progress: told how far it is.

    Returns:
        The run and its report.

    Raises:
        BadInputError: the model was not kept at ``step``.
    """
    path = QUERIES if corpus == "queries" else SAMPLES
    with claim_run(out) as folder:
        model = MODEL if step is None else write_checkpoint(step, folder / "model")
        return analyze(
            ModelSpec(str(model)),
            CorpusSpec(path=str(path)),
            folder,
            TraceOptions(limit=limit),
            resume=True,
            on_progress=on_progress,
        )
