"""A hub that cannot be asked costs seconds and one line; what is no name of it is not asked for."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from moescope import hub
from moescope.corpus import CorpusSpec, open_corpus
from moescope.errors import CorpusError, ModelError
from moescope.models import ModelSpec, load_meta
from moescope.models.source import checkpoint_folder, load_tokenizer
from moescope.progress import Progress


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of a hub that is not there."""
    seen: list[str] = []

    class Session:
        def head(self, url: str, **_: object) -> None:
            seen.append(url)
            raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    hub.why_unreachable.cache_clear()
    yield seen
    hub.why_unreachable.cache_clear()


def test_a_hub_that_is_not_there_is_asked_once(asked: list[str]) -> None:
    for read in (load_meta, load_tokenizer):
        with pytest.raises(ModelError, match=r"cannot be asked for it \(Name or service"):
            read(ModelSpec("owner/none"))
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["modle/", "gpt2", "./x", "../a/b", "a/b/c", "/no/where", "~/m"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(name: str, asked: list[str]) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_meta(ModelSpec(name))
    assert asked == []


def test_a_mistyped_folder_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"did you mean model\?"):
        load_meta(ModelSpec("modle/"))


def test_neither_is_a_data_set(asked: list[str]) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(CorpusError, match="hub cannot be asked"):
        next(iter(open_corpus(CorpusSpec(path="hf:owner/none"))))


def test_a_mistyped_folder_is_answered_before_the_large_libraries(tmp_path: Path) -> None:
    probe = (
        "import sys; sys.argv = ['moescope', 'inspect', 'modle/']\n"
        "from moescope.cli.main import run\n"
        "try: run()\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert len(done.stderr.splitlines()) == 1


def test_bytes_that_are_fetched_are_told_and_no_other_bar_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def snapshot_download(*_: object, tqdm_class: Any, **__: object) -> str:
        with tqdm_class(total=100, unit="B", desc="Reconstructing", mininterval=0) as bar:
            for _n in range(10):
                time.sleep(0.1)
                bar.update(10)
        list(tqdm_class(range(3), desc="Fetching 3 files"))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    told: list[Progress] = []
    checkpoint_folder(ModelSpec("owner/name"), told.append)
    assert told
    assert {p.stage for p in told} == {"fetching owner/name"}
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].total == 100
    assert capsys.readouterr().err == ""
