"""A corpus through a model into a run folder."""

from moescope.trace.progress import Progress
from moescope.trace.record import trace

__all__ = ["Progress", "trace"]
