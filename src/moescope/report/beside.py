"""What was measured on a run and lies in its folder: what its pages must not contradict.

Routing says which experts are used. Where someone took experts away and kept the result beside the
run, a page that leads with use has to say what that showed.
"""

from __future__ import annotations

from moescope.metrics.runs import AnalyzedRun
from moescope.result import results_in

_KIND = "ablation"


def measured_beside(run: AnalyzedRun) -> tuple[tuple[str, str], ...]:
    """The verdict of each ablation that lies in the run's folder and is of the same model.

    Args:
        run: a finished run.

    Returns:
        Name of the folder and the first sentence of its result, by name; nothing where the run
        does not know its model.
    """
    model = run.manifest.model
    known = {n: model.get(n) for n in ("config_sha256", "weights_sha256") if model.get(n)}
    found = results_in(run.path, **known) if known else {}
    return tuple(
        (name, head.answers[0])
        for name, head in found.items()
        if head.kind == _KIND and head.answers
    )
