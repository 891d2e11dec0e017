"""Counts that went to disk are the same counts, and nothing of them is left."""

import errno
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.support.saved import save_tiny

from moescope.corpus import CorpusSpec
from moescope.errors import WriteError
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec
from moescope.models.loading import load_streamed
from moescope.run import spill
from moescope.run import state as state_module
from moescope.run.aggregates import AggregateShape, pack
from moescope.run.options import TraceOptions
from moescope.run.sparse import SparseCounter
from moescope.run.spill import Parts, SortedRuns, load_arrays, save_arrays
from moescope.run.state import RunState
from moescope.trace import trace

BATCHES = st.lists(st.tuples(st.lists(st.integers(0, 60), max_size=40), st.booleans()), max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES)
def test_counts_are_those_of_a_counter_in_memory(
    tmp_path: Path, batches: list[tuple[list[int], bool]]
) -> None:
    counter, plain = SparseCounter(), SparseCounter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_AT_A_TIME", 7)
        for keys, goes in batches:
            counter.add(np.asarray(keys, np.int64))
            plain.add(np.asarray(keys, np.int64))
            if goes:
                counter.spill(tmp_path)
                assert counter.nbytes == 0
        for made in ((counter.keys, counter.counts), counter.stored(tmp_path)):
            np.testing.assert_array_equal(np.asarray(made[0]), plain.keys)
            np.testing.assert_array_equal(np.asarray(made[1]), plain.counts)
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    made = {
        "wide": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "bytes": np.frombuffer(b"abc", np.uint8),
        "none": np.zeros((0, 4), np.float64),
        "halves": np.ones(3, np.float16),
    }
    parts = Parts(np.dtype(np.float32), (3, 2), lambda: iter([np.ones((1, 2), np.float32)] * 3))
    save_arrays(tmp_path / "f.safetensors", {**made, "parts": parts})
    for found in (load_file(tmp_path / "f.safetensors"), load_arrays(tmp_path / "f.safetensors")):
        assert found.keys() == {*made, "parts"}
        for name, array in {**made, "parts": np.asarray(parts)}.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_a_run_whose_sums_go_to_disk_is_the_same_run(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, corpus = (
        ModelSpec(str(save_tiny("olmoe", tmp_path / "m"))),
        CorpusSpec(path=str(tiny_corpus)),
    )
    options = TraceOptions(context=32, checkpoint_seconds=0, pool_tokens=200, batch_tokens=128)
    whole = trace(load_streamed(spec), corpus, tmp_path / "whole", options)
    runs: list[int] = []
    stock = SortedRuns.add
    monkeypatch.setattr(
        SortedRuns, "add", lambda self, *a: runs.append(sum(self._sizes)) or stock(self, *a)
    )
    monkeypatch.setattr(state_module, "_LEAST", 0)
    monkeypatch.setattr(RunState, "dense_bytes", lambda _state: 10**15)
    bounded = trace(load_streamed(spec), corpus, tmp_path / "bounded", options)
    assert max(runs) > 0  # more was joined to what was on disk already
    left, right = (
        load_file(p / open_run(p).manifest.state.file) for p in (whole, bounded)
    )  # fmt: skip
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)
    names = [sorted(q.relative_to(p) for q in p.rglob("*")) for p in (whole, bounded)]
    assert names[0] == names[1]


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    run = SortedRuns(tmp_path)

    class Full:
        def write(self, _data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    run._file = Full()  # type: ignore[assignment]
    with pytest.raises(WriteError, match="the disk is full"):
        run.add(np.arange(3), np.arange(3))


def test_what_is_on_disk_is_not_written_again_at_every_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each spill once wrote everything: 64 of one size wrote 2,080 times that size."""
    written: list[int] = []
    stock = tempfile.TemporaryFile

    class Counting:
        def __init__(self, **options: Path) -> None:
            self.file = stock(**options)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            written.append(len(data))
            return self.file.write(data)

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", Counting)
    counter, size = SparseCounter(), 1000
    for n in range(64):
        counter.add(np.arange(size, dtype=np.int64) * 64 + n)
        counter.spill(tmp_path)
    assert sum(written) < 10 * 64 * size * 16
    np.testing.assert_array_equal(counter.keys, np.arange(64 * size))
    assert (counter.counts == 1).all()


def test_the_ids_of_spilled_counts_are_found_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_AT_A_TIME", 1 << 12)
    state = RunState(AggregateShape((0,), (4,), (2,)), 100, 0)
    state.place("a")
    counter = state.phase("prefill")[0].sparse["input_0"]
    domain, token, expert = np.indices((400, 200, 4)).reshape(3, -1)
    counter.add(pack(domain, token, expert))
    counter.spill(tmp_path)
    del domain, token, expert
    tracemalloc.start()
    assert state.token_ids() == list(range(200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 200 * 4 * 8  # of 16 bytes on disk for each
