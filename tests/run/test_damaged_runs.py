"""Runs that others made or damaged: whatever the files hold, one line says what is wrong."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from moescope.errors import RunError
from moescope.files import LEDGER, claim, claims
from moescope.jobs import report_on
from moescope.metrics.runs import AnalyzedRun, open_run

Manifest = dict[str, Any]


@pytest.fixture
def copy(tiny_run: AnalyzedRun, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("tables"))
    return tmp_path / "run"


def refused(run: Path) -> str:
    """What is said when everything is asked of a run; its files stay as they are."""
    there = [p for p in run.rglob("*") if p.is_file() and p.name != LEDGER]
    before = {p: p.read_bytes() for p in there}
    with pytest.raises(RunError) as caught:
        report_on(run)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    assert not {p for p, b in before.items() if p.read_bytes() != b}
    return line


def rewrite(run: Path, change: Callable[[Manifest], object]) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def put(*keys: str, value: object) -> Callable[[Manifest], object]:
    """Set a value deep in the manifest."""

    def change(manifest: Manifest) -> None:
        inner: Any = manifest
        for key in keys[:-1]:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        last = int(keys[-1]) if isinstance(inner, list) else keys[-1]
        inner[last] = value

    return change


def drop(*keys: str) -> Callable[[Manifest], object]:
    def change(manifest: Manifest) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


CHANGES: dict[str, tuple[Callable[[Manifest], object], str]] = {
    **{
        f"{name} of {value!r}": (
            put(*name.split("."), value=value), f"manifest.json is damaged ({where or name}"
        )
        for name, value, where in [
            ("model.top_k", [5, 5, 5, 5], "model.top_k is not"),
            ("model.top_k", [0, 0, 0, 0], "model.top_k.0"),
            ("model.top_k", [2, 2], "model.top_k has 2 entries for 4"),
            ("model.top_k", [9, 9, 9, 9], "model.top_k is more"),
            ("model.top_k", "2", ""),
            ("model.num_experts", [8, 8, 8, -8], "model.num_experts.3"),
            ("model.num_experts", [10**9] * 4, "model.num_experts.0"),
            ("model.num_experts", [8.0, 8, 8, 8], "model.num_experts.0"),
            ("model.layers", [3, 2, 1, 0], "model.layers"),
            ("model.layers", [0, 1, 2, 77], "model.layers"),
            ("model.layers", [], ""),
            ("model.layers", [0, 1, 1, 2], "model.layers"),
            ("model.name", None, ""),
            ("model.config_sha256", "abc", ""),
            ("model", [], ""),
            ("model.more", 1, ""),
            ("options.seed", -1, ""),
            ("options.seed", 2**70, ""),
            ("options.seed", "0", ""),
            ("options.sample_tokens", 0, ""),
            ("options.token_budget", 1e9, ""),
            ("options.keep", "everything", ""),
            ("corpus", {}, "corpus.path"),
            ("progress.tokens", -5, ""),
            ("progress.domain_tokens", {"law": -1}, "progress.domain_tokens.law"),
            ("progress", {}, "progress lacks"),
            ("coverage", {}, "coverage lacks"),
            ("coverage.routers_seen", True, ""),
            ("domains", ["a", "a"], "domains"),
            ("domains", {"a": 1}, ""),
            ("source", {"absent": {"weights": 3}}, "source.absent.weights"),
            ("source", {"absent": {"the moon": "why"}}, "source.absent.the moon"),
            ("documents", [], "a complete run"),
            ("documents.0.file", "../victim.parquet", ""),
            ("documents.0.file", "/etc/passwd", ""),
            ("documents.0.file", "a/../../victim", ""),
            ("documents.0.file", "C:\\victim", ""),
            ("documents.0.file", "", ""),
            ("documents.0.file", "nul\0", ""),
            ("state.file", "../victim", ""),
            ("state.sha256", "0", ""),
            ("shards", [{"file": "..", "sha256": "0" * 64}], "shards.0.file"),
            ("state", None, "a complete run"),
            ("vocabulary", None, "a complete run"),
            ("merged", {"parts": []}, "merged.shards"),
            ("status", "finished", ""),
            ("versions", {"torch": 2}, "versions.torch"),
            ("created", 2026, ""),
        ]
    },
    "no model": (drop("model"), "manifest.json is damaged (model"),
    "no layers": (drop("model", "layers"), "manifest.json is damaged (model.layers"),
    "no options": (drop("options"), "manifest.json is damaged (options"),
    "another version": (put("schema_version", value=99), "schema version 99, expected 1"),
    "a version of many digits": (put("schema_version", value=10**400), "schema version 1000"),
    "no version": (drop("schema_version"), "schema version None"),
}  # fmt: skip
CHANGES["model.top_k of [5, 5, 5, 5]"] = (
    put("model", "top_k", value=[5, 5, 5, 5]),
    "assignments in prefill, expected",
)


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_says_what_cannot_be(name: str, copy: Path) -> None:
    change, said = CHANGES[name]
    rewrite(copy, change)
    assert said in refused(copy)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"[]", "schema version None"),
        (b"null", "schema version None"),
        (b"{", "damaged"),
        (b'{"schema_version": 1}', "damaged (model"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema_version": 1, "model": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"schema_version": NaN}', "schema version nan"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(content: bytes, said: str, copy: Path) -> None:
    (copy / "manifest.json").write_bytes(content)
    assert said in refused(copy)


def replace_file(run: Path, which: str, write: Callable[[Path], object]) -> None:
    """Another file in the place of one, with the checksum in the manifest to match."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    stored = manifest[which][0] if isinstance(manifest[which], list) else manifest[which]
    path = run / stored["file"]
    write(path)
    stored["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        held = load_file(path)
        change(held)
        save_file({k: np.ascontiguousarray(v) for k, v in held.items()}, path)

    return write


def columns(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return arrays(lambda a: a.update({f"prefill/{name}": change(a[f"prefill/{name}"])}))


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a state of zeros": ("state", lambda p: p.write_bytes(bytes(100))),
    "an empty state": ("state", lambda p: p.write_bytes(b"")),
    "a state without domains": ("state", arrays(lambda a: a.pop("domains"))),
    "a state without counts": ("state", arrays(lambda a: a.pop("prefill/cluster_counts"))),
    "one array more": ("state", arrays(lambda a: a.update({"prefill/x": a["domains"]}))),
    "counts of another shape": ("state", changed("cluster_counts", lambda c: c[..., :-1])),
    "counts as floats": ("state", changed("cluster_counts", lambda c: c + 0.5)),
    "negative counts": ("state", changed("cluster_counts", lambda c: -c)),
    "masses that are no number": ("state", changed("gate_mass", lambda m: m * np.nan)),
    "counts that do not add up": ("state", changed("cluster_counts", lambda c: c + 1)),
    "clusters of no domain": (
        "state", arrays(lambda a: a.update(cluster_domain=a["cluster_domain"] + 1))
    ),
    "a domain too few": ("state", arrays(lambda a: a.update(domain_docs=a["domain_docs"][:1]))),
    "a sample of fewer rows": (
        "state",
        arrays(lambda a: a.update({"prefill/sample/keys": a["prefill/sample/keys"][:-9]})),
    ),
    "documents that are no table": ("documents", lambda p: p.write_bytes(b"PAR1")),
    "documents without a column": ("documents", columns(lambda t: t.drop_columns(["doc"]))),
    "a sample that is not a table": ("sample", lambda p: p.write_text("{}")),
    "a sample without a layer": ("sample", columns(lambda t: t.drop_columns(["e_0"]))),
    "a sample without phases": ("sample", columns(lambda t: t.drop_columns(["phase"]))),
    "a vocabulary that is a list": ("vocabulary", lambda p: p.write_text("[1]")),
    "a vocabulary of words": ("vocabulary", lambda p: p.write_text('{"a": "b"}')),
    "a vocabulary that is nested": ("vocabulary", lambda p: p.write_text("[" * 100_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_the_manifest_describes(name: str, copy: Path) -> None:
    which, write = FILES[name]
    replace_file(copy, which, write)
    assert "damaged or was written by something else" in refused(copy)


def test_experts_of_a_token_that_are_too_many_or_not_there(copy: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("e_0")
        flat = table["e_0"].combine_chunks().flatten()
        strange = pa.array(np.full(len(flat), 200, np.uint8))
        width = len(flat) // table.num_rows
        return table.set_column(at, "e_0", pa.FixedSizeListArray.from_arrays(strange, width))

    replace_file(copy, "sample", columns(change))
    assert "e_0 names an expert that is not there" in refused(copy)


def test_one_flipped_byte_in_a_kept_table_is_seen(copy: Path) -> None:
    right = open_run(copy).table("load")
    kept = copy / "tables" / "load.parquet"
    good = kept.read_bytes()
    for place in range(4, len(good), 701):
        kept.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert open_run(copy).table("load").equals(right)
        assert kept.read_bytes() == good  # made again


def test_a_run_that_cannot_be_written_is_read_all_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(claims, "acquire", refuses)
        table = open_run(copy).table("load")
    assert not (copy / "tables").exists()
    with claim(copy, "run"), monkeypatch.context() as patch:
        patch.setattr(claims.threading, "get_ident", lambda: 0)  # another thread, or process
        assert open_run(copy).table("load").equals(table)
    assert not (copy / "tables").exists()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert open_run(copy).table("load").equals(table)
    assert not (copy / "tables").exists() or not list((copy / "tables").iterdir())


def test_a_run_without_a_ledger_is_taken_for_what_its_manifest_names(copy: Path) -> None:
    (copy / LEDGER).unlink()
    (copy / "notes.txt").write_text("mine")
    table = open_run(copy).table("load")
    assert (copy / "tables" / "load.parquet").is_file()
    assert open_run(copy).table("load").equals(table)
    assert "notes.txt" not in (copy / LEDGER).read_text()
