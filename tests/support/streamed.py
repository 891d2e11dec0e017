"""The run of a streamed model beside the run of the same model in memory."""

from pathlib import Path

import numpy as np

from moescope.metrics.runs import open_run
from moescope.run.options import TraceOptions

OPTIONS = TraceOptions(context=32, limit=200)


def same_run(left: Path, right: Path) -> float:
    """Checks that both runs hold the same routing; returns the largest difference in loss."""
    a, b = open_run(left), open_run(right)
    one, other = a.tokens(), b.tokens()
    assert one is not None
    assert other is not None
    assert a.manifest.model["weights_sha256"] == b.manifest.model["weights_sha256"]
    for layer in one.ids:
        np.testing.assert_array_equal(one.ids[layer], other.ids[layer])
        np.testing.assert_allclose(one.weights[layer], other.weights[layer], atol=1e-3)
    assert np.isfinite(one.nll).any()
    return float(np.nanmax(np.abs(one.nll - other.nll)))
