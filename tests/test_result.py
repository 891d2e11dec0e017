"""One folder for whatever was found: written whole, read only when it is what was written."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.killed import run_and_kill

from moescope.errors import RunError
from moescope.files import LEDGER, claim, write_bytes
from moescope.result import Note, Result, plain, read_result, results_in


def made(**changes: Any) -> Result:
    given: dict[str, Any] = {
        "kind": "tests", "identity": {"text": "abc"}, "answers": ("It is so.",),
        "tables": {"rows": pa.table({"a": [1, 2]}), "more": pa.table({"b": ["x"]})},
        "notes": (Note("warn", "few"),), "about": {"seed": 3, "loads": {5: float("nan")}},
    }  # fmt: skip
    return Result(**{**given, **changes})


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    folder = made().save(tmp_path / "o")
    assert read_result(folder, "tests") == made()
    assert {p.name for p in folder.iterdir()} == {
        LEDGER, "more.parquet", "result.json", "rows.parquet",
    }  # fmt: skip
    head = json.loads((folder / "result.json").read_text())
    assert head["about"] == {"seed": 3, "loads": {"5": None}}
    assert head["files"]["rows.parquet"]["rows"] == 2


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [made().save(tmp_path / name) for name in "ab"]
    for name in ("result.json", "rows.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_files_of_an_earlier_result_go_and_others_stay(tmp_path: Path) -> None:
    with claim(tmp_path / "o", "tests") as folder:
        for name in ("tests.json", "old.parquet", "page.html"):
            write_bytes(folder / name, b"of an earlier one")
    (tmp_path / "o" / "mine.json").write_text("mine")
    made().save(tmp_path / "o")
    made(tables={}).save(tmp_path / "o")
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {LEDGER, "mine.json", "page.html", "result.json"}
    assert read_result(tmp_path / "o").tables == {}


def test_a_users_file_is_not_replaced(tmp_path: Path) -> None:
    made().save(tmp_path / "o")
    (tmp_path / "o" / "new.parquet").write_text("mine")
    with pytest.raises(RunError, match="was not written by moescope"):
        made(tables={"new": pa.table({})}).save(tmp_path / "o")
    assert (tmp_path / "o" / "new.parquet").read_text() == "mine"


def _head(folder: Path, **changes: Any) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


HARM = {
    "no JSON": (lambda f: (f / "result.json").write_text("{"), "is damaged"),
    "not UTF-8": (lambda f: (f / "result.json").write_bytes(b"\xff"), "is damaged"),
    "another version": (lambda f: _head(f, schema_version=2), "is damaged .schema_version"),
    "another key": (lambda f: _head(f, colour="red"), "is damaged .colour"),
    "another kind": (lambda f: _head(f, kind="quilt"), "another kind .quilt, not tests."),
    "notes of no form": (lambda f: _head(f, notes=[{"a": "b"}]), "is damaged .notes"),
    "a file outside": (
        lambda f: _head(f, files={"../x.parquet": {"sha256": "0" * 64, "rows": 1}}), "not a table",
    ),
    "a table that was changed": (
        lambda f: (f / "rows.parquet").write_bytes(b"PAR1"), "was truncated or altered",
    ),
    "a table that is gone": (lambda f: (f / "rows.parquet").unlink(), "is missing"),
    "no result": (lambda f: (f / "result.json").unlink(), "holds no result.json"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_is_no_result_is_one_line(harm: str, tmp_path: Path) -> None:
    folder = made().save(tmp_path / "o")
    change, said = HARM[harm]
    change(folder)
    with pytest.raises(RunError, match=said) as caught:
        read_result(folder, "tests")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["ablation", "similarity", "steering"])
def test_a_folder_of_an_older_version_says_what_to_do(kind: str, tmp_path: Path) -> None:
    with claim(tmp_path / "o", kind) as folder:
        write_bytes(folder / f"{kind}.json", b"{}")
    with pytest.raises(RunError, match="made by an older moescope; run the same command again"):
        read_result(tmp_path / "o", kind)
    made(kind=kind).save(tmp_path / "o")
    assert not (tmp_path / "o" / f"{kind}.json").exists()


SAVE = """
import pyarrow as pa
from moescope.result import Result
tables = {n: pa.table({"a": [NUMBER]}) for n in ("one", "two", "three")}
Result("tests", {"number": NUMBER}, tables).save(FOLDER)
"""


@pytest.mark.parametrize("writes", range(1, 9))
def test_killed_while_it_is_saved_there_is_a_whole_one_or_none(writes: int, tmp_path: Path) -> None:
    script = SAVE.replace("FOLDER", repr(str(tmp_path / "o")))
    run_and_kill(script.replace("NUMBER", "1"))
    run_and_kill(script.replace("NUMBER", "2"), "moescope.files.ledger:Ledger.add", writes)
    if (tmp_path / "o" / "result.json").exists():
        found = read_result(tmp_path / "o", "tests")
        numbers = {t["a"].to_pylist()[0] for t in found.tables.values()}
        assert numbers == {found.identity["number"]}
    run_and_kill(script.replace("NUMBER", "3"))
    assert read_result(tmp_path / "o").identity == {"number": 3}


def test_whatever_numbers_come_in_they_go_out_as_json() -> None:
    import numpy as np

    values = {1: np.float32(0.5), "a": (np.array([1.0, np.inf]), None), "n": Note("note", "x")}
    assert plain(values) == {
        "1": 0.5, "a": [[1.0, None], None], "n": {"level": "note", "text": "x"},
    }  # fmt: skip


def test_results_that_lie_in_a_folder_are_found_by_what_they_are_of(tmp_path: Path) -> None:
    for name, weights in (("ablation", "aa"), ("mine", "aa"), ("other", "bb")):
        Result("ablation", {"weights_sha256": weights}, {}, (f"of {weights}",)).save(
            tmp_path / name
        )
    (tmp_path / "mine" / "result.json").write_text("{")
    (tmp_path / "empty").mkdir()
    assert list(results_in(tmp_path)) == ["ablation", "other"]
    found = results_in(tmp_path, weights_sha256="aa")
    assert [(n, h.kind, h.answers) for n, h in found.items()] == [
        ("ablation", "ablation", ("of aa",))
    ]
    assert results_in(tmp_path / "nowhere") == {}
