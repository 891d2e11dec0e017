"""Pieces of a measurement are whole or not there, and come back as they were."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moescope.errors import RunError
from moescope.files import claim
from moescope.measure.journal import JOURNAL, Journal, drop_journal, open_journal

TABLE = pa.table({"a": [1, 2, 3]})


def begun(folder: Path) -> Path:
    with open_journal(folder, "tests", {"a": 1}) as journal:
        journal.add("plain", 0, value=0.1)
        journal.add("layer", 3, tables={"pairs": TABLE}, notes=[])
    return folder / JOURNAL


def resumed(folder: Path, **identity: object) -> Journal:
    with open_journal(folder, "tests", identity or {"a": 1}, resume=True) as journal:
        return journal


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = begun(tmp_path / "o")
    good = path.read_text()
    for other in (good.replace('"key"', '"kee"'), good.replace("0.1", "0.2"), "{}\n"):
        path.write_text(other)
        with pytest.raises(RunError, match="is damaged"):
            resumed(tmp_path / "o")
        assert path.read_text() == other


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [*np.random.default_rng(0).normal(size=50).tolist(), float("inf")]
    with open_journal(tmp_path / "o", "tests", {}) as journal:
        journal.add("plain", 0, values=values)
    with open_journal(tmp_path / "o", "tests", {}, resume=True) as journal:
        again = journal.find("plain", 0)
    assert again is not None
    assert again["values"] == values


@pytest.mark.parametrize("harm", ["kept", "removed", "cut short"])
def test_a_piece_with_tables_is_whole_or_not_there(harm: str, tmp_path: Path) -> None:
    begun(tmp_path / "o")
    file = tmp_path / "o" / "measured" / "layer-3-pairs.parquet"
    if harm == "removed":
        file.unlink()
    elif harm == "cut short":
        file.write_bytes(file.read_bytes()[:-1])
    journal = resumed(tmp_path / "o")
    assert (journal.find("layer", 3) is not None) == (harm == "kept")
    assert journal.find("plain", 0) is not None
    if harm == "kept":
        assert journal.tables("layer", 3)["pairs"].equals(TABLE)


def test_in_memory_it_is_the_same() -> None:
    with open_journal(None, "tests", {}) as journal:
        journal.add("layer", 3, tables={"pairs": TABLE})
        assert journal.find("layer", 3) is not None
        assert journal.tables("layer", 3)["pairs"].equals(TABLE)


def test_what_differs_is_said_in_one_sentence(tmp_path: Path) -> None:
    begun(tmp_path / "o")
    with pytest.raises(RunError, match=r"^cannot resume .*o: a was 1, now 2; give what it was"):
        resumed(tmp_path / "o", a=2)
    with (
        pytest.raises(RunError, match="resume it, or give another folder"),
        open_journal(tmp_path / "o", "tests", {"a": 1}),
    ):
        pass


def test_it_goes_when_its_result_is_whole(tmp_path: Path) -> None:
    begun(tmp_path / "o")
    (tmp_path / "o" / "mine.txt").write_text("mine")
    with claim(tmp_path / "o", "tests") as folder:
        drop_journal(folder)
    left = {p.relative_to(tmp_path / "o").as_posix() for p in (tmp_path / "o").rglob("*")}
    assert left == {"mine.txt", "moescope.sha256"}
