"""The account of lost workers."""

from pathlib import Path

import pytest

from moescope.corpus import Shard
from moescope.errors import LaunchError
from moescope.launch.job import Parts
from moescope.launch.watch import Watch
from moescope.launch.worker import Outcome
from moescope.progress import Progress


def test_deaths_count_only_while_a_shard_gets_no_further(tmp_path: Path) -> None:
    committed = {Shard(1, 1): 0}
    parts = Parts(tmp_path / "run", 1)
    parts.tokens = committed.__getitem__  # type: ignore[method-assign]
    seen: list[Progress] = []
    watch = Watch(parts, seen.append)
    [shard] = parts.shards
    for _ in range(9):  # nine nights, nine lost workers
        committed[shard] += 10
        assert not watch.finish(shard, Outcome("it was switched off"))
    assert sum("a worker died" in at.note for at in seen) == 9
    assert seen[-1].done == 90
    for _ in range(2):
        assert not watch.finish(shard, Outcome("it was switched off"))
    with pytest.raises(LaunchError, match="4 workers died over it and got no further"):
        watch.finish(shard, Outcome("it was switched off"))
