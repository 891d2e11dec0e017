"""Whole jobs, which join the rooms below: a corpus to a report, a recipe to a model and its page.

The verbs `analyze`, `demo` and `train` do nothing but call these; with a launcher, which traces by
itself, `report_on` does the rest.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from moescope.corpus import AnyText, as_text, open_corpus, tokenize_document
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.metrics.tables import TABLES
from moescope.models import AnyModel, LoadedModel, as_model
from moescope.models.loading import Holding
from moescope.models.outlook import Outlook, outlook
from moescope.models.source import load_tokenizer
from moescope.models.spec import as_spec
from moescope.progress import OnProgress, Progress, quiet
from moescope.report.contents import renew_contents
from moescope.report.report_page import build_report
from moescope.report.training_page import write_training_page
from moescope.run.options import TraceOptions
from moescope.trace import trace
from moescope.training import trainer
from moescope.training.knobs import flat
from moescope.training.recipe import Recipe
from moescope.training.recipe_file import load_recipe
from moescope.training.state import Trained, TrainingState

PAGE = "training.html"
_COUNTING_SECONDS = 5.0
"""Tokens of a text are counted for so long before it is run; what is there then is the least."""

_TABLE_SECONDS = 0.05
"""That all tables take for each expert of a model: a guess, for the bar alone."""

_WORK = {"domain_specialization": 60, "information": 40}
"""How much longer some tables take than the others do."""


class Analysis(NamedTuple):
    """The finished run and where its report is."""

    run: AnalyzedRun
    report: Path

    def _repr_html_(self) -> str:
        return self.run._repr_html_()


def analyze(
    model: AnyModel,
    texts: AnyText,
    run: str | Path,
    options: TraceOptions | None = None,
    *,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> Analysis:
    """Trace, tables and report.

    Args:
        model: a hub id, a folder or a `ModelSpec`, streamed if it does not fit into memory; or a
            `LoadedModel`.
        texts: a file, a folder, ``hf:owner/name``, a `CorpusSpec`, or a list of texts; see
            `moescope.corpus.as_text`.
        run: folder to write.
        options: how to trace; see `TraceOptions`.
        resume: go on with an interrupted run.
        on_progress: told how far it is.

    Returns:
        The run, with its tables computed, and the path of the report.

    Raises:
        MoescopeError: see the tree in `moescope.errors`; what was committed stays.
    """
    corpus, asked = as_text(texts), options or TraceOptions()
    if not isinstance(model, LoadedModel):
        on_progress(Progress(f"loading {Path(as_spec(model).model).name}"))
    loaded = as_model(model, engine="auto", batch_tokens=asked.batch_tokens, window=asked.context)
    later = _TABLE_SECONDS * sum(layer.num_experts for layer in loaded.anatomy.layers)
    folder = trace(
        loaded, corpus, run, asked, resume=resume,
        on_progress=lambda at: on_progress(at._replace(later=later)),
    )  # fmt: skip
    if loaded.streamed is not None:
        loaded.streamed.release()  # tables need the memory, and no model
    return report_on(folder, on_progress=on_progress)


def foresee(held: Holding, texts: AnyText, options: TraceOptions | None = None) -> Outlook:
    """What tracing a text through a model will take, before the model is loaded.

    Args:
        held: the model, as `moescope.models.loading.how_held` says.
        texts: see `analyze`.
        options: how the text is going to be traced.

    Raises:
        CorpusError: the text cannot be read.
        ModelError: the model has no tokenizer that can be used.
    """
    options, tokenizer = options or TraceOptions(), load_tokenizer(held.spec)
    tokens: Counter[str] = Counter()
    began, whole = time.monotonic(), True
    for number, document in enumerate(open_corpus(as_text(texts))):
        if not (whole := time.monotonic() - began < _COUNTING_SECONDS):
            break
        room = None if options.limit is None else options.limit - tokens[document.domain]
        if room is not None and room <= 0:
            continue
        made = tokenize_document(
            tokenizer,
            document,
            number,
            context_length=options.context or 2048,
            chat_template=options.chat_template,
            chat_text=options.chat_text,
            limit=options.match_length or room,
        )
        tokens[document.domain] += made.num_tokens
    return outlook(held, tokens.total(), whole)


def report_on(run: str | Path, *, on_progress: OnProgress = quiet) -> Analysis:
    """Tables and report of a finished run.

    Args:
        run: its folder.
        on_progress: told how far it is.

    Raises:
        RunError: it is not finished, damaged, or an empty shard, of which nothing can be said.
    """
    opened, done, total = open_run(run), 0, sum(_WORK.get(name, 1) for name in TABLES)
    for number, name in enumerate(TABLES, 1):
        on_progress(Progress(f"table {number} of {len(TABLES)}, {name}", done, total))
        opened.table(name)
        done += _WORK.get(name, 1)
    on_progress(Progress("writing the report", done, total))
    report = build_report(opened)
    renew_contents(opened.path, lambda why: on_progress(Progress("writing", note=f"note: {why}")))
    return Analysis(opened, report)


def train(
    recipe: Recipe | str | os.PathLike[str],
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    on_progress: OnProgress = quiet,
) -> Trained:
    """Train a small MoE from a recipe; ``FOLDER/training.html`` follows along.

    Args:
        recipe: the path of a YAML file, or what `load_recipe` gives.
        folder: the run's own folder.
        resume: go on from its checkpoint.
        device: ``cpu`` or an accelerator.
        on_progress: told how far it is, and where the page is.

    Returns:
        Where the model is, and its held-out losses.

    Raises:
        MoescopeError: see `moescope.training.trainer.train`.
    """
    page = Path(folder) / PAGE

    def refresh(state: TrainingState) -> None:
        begins = state.status == "running" and not page.exists()
        write_training_page(training_data(state), page)
        if begins:
            on_progress(Progress("training", note=f"live page: {page}"))

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    return trainer.train(
        recipe, folder, resume=resume, device=device, on_progress=on_progress, refresh=refresh
    )


def training_data(state: TrainingState) -> dict[str, Any]:
    """The plain dict that the live page shows."""
    recipe, log = state.recipe, state.log
    total_tokens = recipe.num_steps * recipe.step_tokens
    rate = state.tokens_per_second
    left = (recipe.num_steps - state.step) * recipe.step_tokens / rate if rate > 0 else None
    return {
        "name": recipe.name,
        "status": state.status,
        "message": state.message,
        "refresh_seconds": recipe.run.refresh_seconds,
        "about": recipe.about,
        "recipe": flat(recipe.model_dump(mode="json", exclude={"name", "about"})),
        "notes": state.notes,
        "model": {
            "architecture": recipe.model.architecture,
            "parameters": state.parameters,
            "active_parameters": state.active_parameters,
            "num_experts": recipe.model.num_experts,
            "top_k": recipe.model.top_k,
            "layers": list(state.layer_numbers),
        },
        "progress": {
            "step": state.step,
            "total_steps": recipe.num_steps,
            "tokens": state.step * recipe.step_tokens,
            "total_tokens": total_tokens,
            "tokens_per_second": None if math.isnan(rate) else rate,
            "seconds": state.seconds,
            "seconds_left": left if state.status == "running" else None,
        },
        "steps": log.table("steps").to_pydict(),
        "layers": log.table("layers").to_pydict(),
        "domains": _domains(log.rows["domains"]),
        "checkpoints": [
            {"step": k.step, "share": k.share, "path": str(k.path), "kept": True}
            for k in state.kept
        ],
        "drops": _drops(log.rows["drops"]),
    }


def _domains(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Held-out losses as the saved model routes, in the precision of the training."""
    shown = "stock" if any(row["routing"] == "stock" for row in rows) else "recipe"
    kept = [row for row in rows if row["routing"] == shown]
    columns = ("step", "domain", "tokens", "loss", "unigram")
    return {name: [row[name] for row in kept] for name in columns}


def _drops(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    return {
        "positions": [f"{row['position_from']}–{row['position_to']}" for row in rows],
        "share": [row["dropped_share"] for row in rows],
    }
