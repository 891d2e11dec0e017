"""The order of a commit: what a manifest names is there for as long as it is the one on disk."""

import hashlib
import json
from pathlib import Path

import pytest

from moescope.corpus import CorpusSpec
from moescope.errors import WriteError
from moescope.metrics.runs import open_run
from moescope.models import LoadedModel
from moescope.run import commit as commit_module
from moescope.run.manifest import Manifest
from moescope.run.options import TraceOptions
from moescope.trace import trace


def test_a_manifest_that_cannot_be_written_leaves_the_state_before_it_whole(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = CorpusSpec(path=str(tiny_corpus))
    options = TraceOptions(context=64, pool_tokens=128, checkpoint_seconds=0)
    run, write, written = tmp_path / "run", commit_module.write_manifest, []

    def full(folder: Path, manifest: Manifest) -> None:
        if len(written) == 3:
            raise WriteError("no space left")
        written.append(manifest.state)
        write(folder, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "write_manifest", full)
        with pytest.raises(WriteError, match="no space"):
            trace(tiny_loaded, corpus, run, options)
    named = json.loads((run / "manifest.json").read_text())["state"]
    assert named["file"] == written[-1].file
    state = (run / named["file"]).read_bytes()
    assert hashlib.sha256(state).hexdigest() == named["sha256"]
    trace(tiny_loaded, corpus, run, options, resume=True)
    whole = trace(tiny_loaded, corpus, tmp_path / "whole", options)
    assert open_run(run).table("load").equals(open_run(whole).table("load"))
