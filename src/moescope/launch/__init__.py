"""A corpus cut into shards, each traced by a worker process, joined into one run.

Workers are processes of this machine or tasks of a Ray cluster. What makes a lost worker harmless
is not here: a shard is decided by document ids alone, and its run resumes where it was committed.
The room knows traces and their merging; it knows nothing of tables or pages.
"""

from typing import TYPE_CHECKING

from moescope.launch.options import LaunchOptions
from moescope.lazy import lazily

if TYPE_CHECKING:
    from moescope.launch.run import launch

__all__ = ["LaunchOptions", "launch"]

__getattr__ = lazily(__name__, {"launch": "moescope.launch.run"})
