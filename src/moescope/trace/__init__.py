"""A corpus through a model into a run folder."""

from moescope.trace.record import Progress, trace

__all__ = ["Progress", "trace"]
