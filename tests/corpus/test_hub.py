"""Hugging Face datasets, saved or streamed, are corpora like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.helpers import read
from tests.corpus.test_documents import complaint

from moescope.errors import MissingExtraError

datasets = pytest.importorskip("datasets")


def saved(path: Path, **columns: Any) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(path)
    return path


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine", text=["a", "b"], domain=["web", "law"], extra=[1, 2])
    assert [d[:3] for d in read(path)] == [("mine:0", "web", "a"), ("mine:1", "law", "b")]


def test_one_split_of_a_saved_dataset_is_read(tmp_path: Path) -> None:
    halves = {
        name: datasets.Dataset.from_dict({"text": [name], "domain": ["web"]})
        for name in ("train", "validation")
    }
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "mine")
    assert [d.text for d in read(tmp_path / "mine")] == ["train"]
    assert [d.text for d in read(tmp_path / "mine", dataset_split="validation")] == ["validation"]
    assert "no split 'test'; there is: train, validation" in complaint(
        tmp_path / "mine", dataset_split="test"
    )


def test_class_labels_become_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "domain": datasets.ClassLabel(names=["law", "web"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a"], "domain": [1]}, features=features)
    dataset.save_to_disk(tmp_path / "mine")
    assert read(tmp_path / "mine")[0].domain == "web"


def test_a_dataset_by_name_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(name: str, config: str | None, **options: Any) -> Any:
        asked.update(name=name, config=config, **options)
        return datasets.Dataset.from_dict({"text": ["a"], "domain": ["web"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("moescope.corpus.hub.why_unreachable", lambda: None)
    [document] = read("hf:owner/name", dataset_config="small")
    assert document.doc_id == "owner/name:0"
    assert asked == {"name": "owner/name", "config": "small", "split": "train", "streaming": True}


def test_a_dataset_that_fails_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("moescope.corpus.hub.why_unreachable", lambda: None)
    assert "hf:owner/name: the dataset cannot be loaded (no such thing)" in complaint(
        "hf:owner/name"
    )
    path = saved(tmp_path / "mine", body=["a"])
    assert "no column 'text'; there is: body" in complaint(path)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"reading a Hugging Face dataset needs .*\[hub\]"):
        read("hf:owner/name")
