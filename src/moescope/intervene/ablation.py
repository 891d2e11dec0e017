"""A finished measurement as the `Result` that is kept and shown on a page."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from typing import Any

from moescope.intervene.answers import damage_answers, damage_notes, saving_sentence
from moescope.intervene.damage.measure import ABLATION, Damage
from moescope.intervene.expert_sweep.scores import SCORE_NAMES, SCORES
from moescope.intervene.expert_sweep.sweep import ExpertSweep
from moescope.intervene.sweep_answers import sweep_answers, sweep_notes
from moescope.measure.identity import versions
from moescope.result import Result


def ablation_result(found: Damage | ExpertSweep, source: Mapping[str, Any]) -> Result:
    """What was measured, with answers in sentences, notes, what it cost, and versions.

    Args:
        found: of `measure_damage` or `sweep_experts`.
        source: where the text came from and how it was cut, for the reader.

    Returns:
        Of kind ``ablation``. Table ``damage``: the plan and every control by domain; or ``each``:
        every expert by domain, and ``correlations``: every score.
    """
    if isinstance(found, Damage):
        tables = {"damage": found.table}
        answers, notes = damage_answers(found), damage_notes(found)
        more: dict[str, Any] = {}
    else:
        tables = {"each": found.table, "correlations": found.correlations}
        answers, notes = sweep_answers(found), sweep_notes(found)
        more = {"scores": SCORES, "score_names": SCORE_NAMES}
    about = {
        **found.about(),
        **more,
        "edit": found.edit.name,
        "edit_words": found.edit.words,
        "model": found.model,
        "targets": found.scopes.targets,
        "text": found.scopes.describe(found.measured.tokens),
        "saving": found.saving.to_dict(),
        "seed": found.seed,
        "cost": saving_sentence(found.saving),
        "source": dict(source),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"python": platform.python_version()},
    }
    return Result(ABLATION, found.identity, tables, tuple(answers), tuple(notes), about)
