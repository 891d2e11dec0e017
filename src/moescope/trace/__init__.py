"""A corpus through a model into a run folder."""

from moescope.trace.record import trace

__all__ = ["trace"]
