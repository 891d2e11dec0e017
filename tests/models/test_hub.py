"""A model by its name on the hub: the commit that is recorded, the files that are fetched."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, load_model
from moescope.models.source import checkpoint_folder, pinned
from moescope.models.stored import INDEX, SINGLE
from moescope.run.manifest import read_manifest
from moescope.run.merge import merge_runs
from moescope.trace import trace
from moescope.trace.importers.served import open_served

NAME, COMMIT, OTHER = "owner/tiny", "0123456789abcdef" * 2 + "01234567", "f" * 40


def cached(cache: Path) -> Path:
    """The model as the hub's cache holds it: main and step1000 are two commits."""
    place = cache / "models--owner--tiny"
    for seed, (branch, commit) in enumerate({"main": COMMIT, "step1000": OTHER}.items()):
        save_tiny("olmoe", place / "snapshots" / commit, seed=seed)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / branch).write_text(commit)
    return place


EACH = """
import json, sys
from moescope.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["moescope", *words]
    try:
        main.run()
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def test_a_run_says_which_commit_of_the_hub_it_read(tmp_path: Path) -> None:
    """One process for all of them: where the hub's cache is, is read at import."""
    cached(tmp_path / "hub")
    corpus = str(write_corpus(tmp_path / "c.jsonl", documents_per_domain=2))
    asked = {"resident": [], "streamed": ["--revision", "step1000"], "auto": ["--revision", OTHER]}
    commands = [
        ["trace", NAME, corpus, "-o", str(tmp_path / engine), "--engine", engine, *more]
        for engine, more in asked.items()
    ]
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(commands)],
        env={**os.environ, **offline}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = {engine: read_manifest(tmp_path / engine).model["revision"] for engine in asked}
    assert read == {"resident": COMMIT, "streamed": OTHER, "auto": OTHER}


def test_a_folder_of_the_cache_is_of_its_commit_and_any_other_of_none(tmp_path: Path) -> None:
    snapshot = cached(tmp_path) / "snapshots" / COMMIT
    assert load_model(ModelSpec(str(snapshot))).revision == COMMIT
    assert open_served(ModelSpec(str(snapshot))).revision == COMMIT
    shutil.copytree(snapshot, tmp_path / "m")
    assert pinned(ModelSpec(str(tmp_path / "m"))).revision is None


def test_parts_by_name_and_from_a_copy_of_the_same_weights_are_one_run(tmp_path: Path) -> None:
    snapshot = cached(tmp_path) / "snapshots" / COMMIT
    copy = Path(shutil.copytree(snapshot, tmp_path / "m"))
    text = str(write_corpus(tmp_path / "c.jsonl", documents_per_domain=2))
    parts = [
        trace(
            load_model(ModelSpec(str(model))), CorpusSpec(path=text, shard=f"{n}/2"), tmp_path / n
        )
        for n, model in (("1", snapshot), ("2", copy))
    ]
    merged = merge_runs(parts, tmp_path / "run")
    assert read_manifest(merged).model["revision"] == COMMIT


class Hub:
    """What the hub holds of a model, and what was asked of it."""

    def __init__(self, place: Path, shards: bool) -> None:
        self.place, self.cache, self.given = place / "hub", place / "cache", set[str]()
        save_tiny("olmoe", self.place)
        if shards:
            kept = load_file(self.place / SINGLE)
            (self.place / SINGLE).unlink()
            names = {key: f"part-{n % 2}.safetensors" for n, key in enumerate(sorted(kept))}
            for name in set(names.values()):
                save_file({k: kept[k] for k, at in names.items() if at == name}, self.place / name)
            (self.place / INDEX).write_text(json.dumps({"weight_map": names}))
        (self.place / "original").mkdir()
        for more in ("consolidated.safetensors", "original/model.safetensors", "tf_model.h5"):
            (self.place / more).write_bytes(b"x")

    def snapshot_download(
        self, name: str, *, revision: Any, allow_patterns: list[str], tqdm_class: type
    ) -> str:
        """As huggingface_hub's: a pattern holds for the whole path below the model."""
        assert name == NAME
        for path in self.place.rglob("*"):
            below = str(path.relative_to(self.place))
            if path.is_file() and any(fnmatch(below, pattern) for pattern in allow_patterns):
                (self.cache / below).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / below)
                self.given.add(below)
        return str(self.cache)


@pytest.mark.parametrize("shards", [True, False], ids=["an index", "one file"])
def test_only_the_weights_that_the_index_names_are_fetched(
    shards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, shards)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    assert checkpoint_folder(ModelSpec(NAME, COMMIT)) == hub.cache
    wanted = {INDEX, "part-0.safetensors", "part-1.safetensors"} if shards else {SINGLE}
    assert hub.given == wanted
