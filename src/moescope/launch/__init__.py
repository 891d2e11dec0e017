"""A corpus cut into shards, each traced by a worker process, joined into one run.

Workers are processes of this machine or tasks of a Ray cluster. What makes a lost worker harmless
is not here: a shard is decided by document ids alone, and its run resumes where it was committed.
The room knows traces and their merging; it knows nothing of tables or pages.
"""

from moescope.launch.job import LaunchOptions
from moescope.launch.run import launch
from moescope.launch.watch import LaunchProgress

__all__ = ["LaunchOptions", "LaunchProgress", "launch"]
