"""A corpus through a model into a run folder, and the run folder read back."""

from moescope.trace.options import TraceOptions
from moescope.trace.reader import Run, TokenRows
from moescope.trace.record import Progress, trace

__all__ = ["Progress", "Run", "TokenRows", "TraceOptions", "trace"]
