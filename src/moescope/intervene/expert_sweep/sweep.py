"""Every expert of some layers taken away on its own: which matter, and which score would have told.

Importance is measured: the change of cross-entropy when one expert is edited. Beside it stand the
scores that are used in its place (load, gate mass, output norms, specialization), from the same
text, and how well each of them ranks the experts. How the model is run is the business of
`moescope.measure.trials`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moescope.axes import ExpertRef
from moescope.corpus import AnyText
from moescope.given import require_seed
from moescope.intervene.damage.edits import damage_edit
from moescope.intervene.damage.measure import ABLATION, TrialsResult
from moescope.intervene.damage.scopes import Scopes
from moescope.intervene.expert_sweep.scores import ScoreKeeper
from moescope.intervene.expert_sweep.tables import correlation_table, expert_table, repeatabilities
from moescope.measure.identity import describe_model, identity
from moescope.measure.journal import open_journal
from moescope.measure.trials import Trial, TrialRunner, batch_budget
from moescope.measure.windows import TextWindow, as_windows
from moescope.models.accept import AnyModel, as_model
from moescope.progress import OnProgress, quiet
from moescope.run.reader import Run


@dataclass(frozen=True, kw_only=True)
class ExpertSweep(TrialsResult):
    """What `sweep_experts` found; see `TrialsResult` too.

    Each expert is a trial of its own; the scores stand in the rows of scope ``all``.

    Attributes:
        layers: numbers of the layers. experts: all of them, by layer and number.
        correlations: Spearman's ρ of every score with measured importance.
        repeatability: by layer, ρ of importance between halves of the documents.
        score_notes: scores that this architecture does not have.
    """

    layers: tuple[int, ...]
    experts: tuple[ExpertRef, ...]
    correlations: pa.Table
    repeatability: dict[int, float]
    score_notes: list[str]

    def ranking(self) -> list[dict[str, Any]]:
        """The rows over all text, most important expert of each layer first."""
        rows = self.table.filter(pc.equal(self.table["scope"], "all")).to_pylist()
        return sorted(rows, key=lambda r: (r["layer"], r["rank"]))

    def about(self) -> dict[str, Any]:
        """What is known besides the tables, as JSON takes it."""
        return {"trials": "each", "layers": self.layers, "repeatability": self.repeatability}


def sweep_experts(
    model: AnyModel,
    texts: AnyText | Run | Sequence[TextWindow],
    layers: Sequence[int] | None = None,
    *,
    edit: str = "zero",
    targets: Sequence[str] = (),
    seed: int = 0,
    batch_tokens: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> ExpertSweep:
    """Edit every expert of these layers on its own, and see which scores would have told.

    Units, denominators and intervals are those of `measure_damage`.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        texts: a path, a `CorpusSpec`, a list of texts (see `moescope.corpus.as_text`), a run, or
            windows that were chosen already.
        layers: numbers of MoE layers; all by default.
        edit: ``zero``, ``zero-renormalize``, ``mask``, ``scale=0.5``.
        targets: domains that get a common figure, and all others one.
        seed: of the resampling.
        batch_tokens: tokens run at once, padding included; automatic by default.
        folder: where results are kept as they come; None keeps nothing.
        resume: go on with what the folder holds.
        on_progress: told after each trial of each batch.

    Returns:
        See `ExpertSweep`.

    Raises:
        BadInputError: an unknown edit or target.
        ModelError: a layer that is not an MoE layer, or an edit that this architecture cannot take.
        RunError: the folder holds another measurement.
    """
    require_seed(seed)
    loaded = as_model(model)
    windows = as_windows(loaded, texts)
    chosen, scopes = damage_edit(edit), Scopes(windows, targets)
    swept = loaded.anatomy.select(None if layers is None else tuple(layers))
    numbers = tuple(m.layer_idx for m in swept)
    experts = tuple(ExpertRef(m.layer_idx, e) for m in swept for e in range(m.num_experts))
    batch = batch_budget(loaded, batch_tokens)
    settings = {
        "batch_tokens": batch,
        "kind": "each", "layers": numbers, "edit": edit, "targets": scopes.targets, "seed": seed,
    }  # fmt: skip
    place = {name: i for i, name in enumerate(scopes.domains)}
    domain_of = np.asarray([place[w.domain] for w in windows], np.int64)
    keeper = ScoreKeeper(loaded, swept, domain_of, len(scopes.domains))
    made_of = identity(loaded, windows, **settings)
    with open_journal(folder, ABLATION, made_of, resume=resume) as journal:
        runner = TrialRunner(
            loaded, windows, swept, batch_tokens=batch, journal=journal, observe=keeper.observe,
            on_progress=on_progress,
        )  # fmt: skip
        measured = runner.run([Trial(str(ref), (chosen.make([ref]),)) for ref in experts])
    scores = keeper.scores(measured.observed)
    table = expert_table(experts, measured, scopes, scores)
    return ExpertSweep(
        layers=numbers,
        experts=experts,
        edit=chosen,
        table=table,
        correlations=correlation_table(table, numbers, seed),
        repeatability=repeatabilities(experts, measured, scopes, seed),
        scopes=scopes,
        measured=measured,
        score_notes=keeper.notes,
        model=describe_model(loaded),
        identity=made_of,
        seed=seed,
    )
