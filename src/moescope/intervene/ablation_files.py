"""A finished measurement as files: ``ablation.json`` and the Parquet tables beside it.

The page is drawn elsewhere (`moescope.report.ablation_page`), from the same dict.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moescope.files import claim, write_bytes
from moescope.intervene.answers import (
    damage_answers,
    damage_notes,
    saving_sentence,
    sweep_answers,
    sweep_notes,
)
from moescope.intervene.damage.measure import Damage
from moescope.intervene.expert_sweep.scores import SCORE_NAMES, SCORES
from moescope.intervene.expert_sweep.sweep import ExpertSweep
from moescope.measure.identity import finite
from moescope.measure.journal import ABLATION_KIND
from moescope.run.store import write_parquet

__all__ = ["ABLATION", "SCHEMA_VERSION", "ablation_data", "save_ablation"]

ABLATION = "ablation.json"
SCHEMA_VERSION = 1


def ablation_data(result: Damage | ExpertSweep, source: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is known about a measurement, as JSON takes it.

    Args:
        result: of `measure_damage` or `sweep_experts`.
        source: where the text came from and how it was cut, for the reader.

    Returns:
        `result.to_dict()` with answers in sentences, notes, what it cost, and versions.
    """
    if isinstance(result, Damage):
        answers, notes = damage_answers(result), damage_notes(result)
    else:
        answers, notes = sweep_answers(result), sweep_notes(result)
    names = ("moescope", "torch", "transformers", "numpy")
    made: dict[str, Any] = finite(
        {
            "schema_version": SCHEMA_VERSION,
            **result.to_dict(),
            "edit_words": result.edit.words,
            "answers": answers,
            "notes": [note._asdict() for note in notes],
            "cost": saving_sentence(result.saving),
            "scores": SCORES if isinstance(result, ExpertSweep) else {},
            "score_names": SCORE_NAMES if isinstance(result, ExpertSweep) else {},
            "source": dict(source),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {n: version(n) for n in names} | {"python": platform.python_version()},
        }
    )
    return made


def save_ablation(result: Damage | ExpertSweep, data: Mapping[str, Any], folder: Path) -> None:
    """Write ``ablation.json`` and the tables.

    ``damage.parquet`` holds the plan and every control by domain; ``each.parquet`` every expert by
    domain and ``correlations.parquet`` every score. The JSON keeps the plan's rows, or those over
    all text.

    Raises:
        WriteError: disk full or no permission.
    """
    with claim(folder, ABLATION_KIND):
        if isinstance(result, Damage):
            write_parquet(folder / "damage.parquet", result.table)
            rows = [r for r in data["rows"] if r["trial"] == "plan"]
        else:
            write_parquet(folder / "each.parquet", result.table)
            write_parquet(folder / "correlations.parquet", result.correlations)
            rows = [r for r in data["rows"] if r["scope"] == "all"]
        text = json.dumps({**data, "rows": rows}, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(folder / ABLATION, text.encode("utf-8", "replace"))
