"""What launching stands on: locks that die with their holder, and the account of lost workers."""

import os
import threading
import time
from pathlib import Path

import pytest
from moescope.launch.alone import holder

from moescope.corpus import Shard
from moescope.errors import LaunchError
from moescope.launch import LaunchProgress, alone
from moescope.launch.job import Parts
from moescope.launch.watch import Watch
from moescope.launch.worker import Outcome


def test_deaths_count_only_while_a_shard_gets_no_further(tmp_path: Path) -> None:
    committed = {Shard(1, 1): 0}
    parts = Parts(tmp_path / "run", 1)
    parts.tokens = committed.__getitem__  # type: ignore[method-assign]
    seen: list[LaunchProgress] = []
    watch = Watch(parts, seen.append)
    [shard] = parts.shards
    for _ in range(9):  # nine nights, nine lost workers
        committed[shard] += 10
        assert not watch.finish(shard, Outcome("it was switched off"))
    assert seen[-1].lost == 9
    assert seen[-1].tokens == 90
    for _ in range(2):
        assert not watch.finish(shard, Outcome("it was switched off"))
    with pytest.raises(LaunchError, match="4 workers died over it and got no further"):
        watch.finish(shard, Outcome("it was switched off"))


def test_a_lock_is_held_by_one_at_a_time_though_each_removes_it(tmp_path: Path) -> None:
    inside: list[int] = []
    most, entered = 0, 0

    def enter() -> None:
        nonlocal most, entered
        for _ in range(40):
            with alone(tmp_path, tmp_path / "deep" / "er" / "lock", 60):
                inside.append(1)
                most, entered = max(most, len(inside)), entered + 1
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 160)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_lock_says_who_holds_it_and_keeps_folders_that_were_there(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with alone(tmp_path, lock, 1):
        assert (holder(lock) or "").startswith(f"process {os.getpid()} on ")
        with pytest.raises(LaunchError, match=f"another process .process {os.getpid()} on "):
            alone(tmp_path, lock, 0.1).__enter__()
    assert holder(lock) is None
    assert tmp_path.is_dir()
    lock.write_text("{")
    assert holder(lock) is None
