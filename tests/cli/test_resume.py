"""Work that cannot be gone on with: which settings have changed is said, in words."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.bad.place import make_place

from moescope.cli import main
from moescope.cli.verb import typed

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(place)

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def test_settings_are_named_where_only_hashes_differ(call: Call, tmp_path: Path) -> None:
    """How much text is measured is known to the journal as a hash of the text alone."""
    first = ("ablate", "moe", "--corpus", "texts.jsonl", "--experts", "L1E3", "--controls", 1,
             "-o", tmp_path / "r")  # fmt: skip
    assert call(*first, "--tokens", 40)[0] == 0
    code, err = call(*first, "--tokens", 60, "--resume")
    assert code == 2
    assert "the text is another" in err
    assert "Changed since: --tokens 40 → 60" in err
    assert "sha256" not in err
    code, err = call(*first, "--tokens", 40, "--edit", "mask", "--resume")
    assert code == 2
    assert "edit was 'zero', now 'mask'" in err
    code, err = call(*first, "--tokens", 40)
    assert code == 2
    assert "already holds" in err


def test_settings_are_there_from_the_start(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moescope.intervene.measure_damage", stop)
    words = ("ablate", "moe", "--corpus", "texts.jsonl", "--experts", "L1E3", "-o", tmp_path / "r")
    assert call(*words)[0] == 130
    assert "L1E3" in (tmp_path / "r" / "config.yaml").read_text()


def test_a_demo_of_other_settings_says_what_to_do(call: Call, tmp_path: Path) -> None:
    assert call("demo", "-o", tmp_path / "d", "--limit", 60)[0] == 0
    code, err = call("demo", "-o", tmp_path / "d", "--limit", 60, "--corpus", "samples")
    assert code == 2
    assert "holds a demo of other settings (--corpus 'queries' → 'samples')" in err
    assert "give another folder with -o, or remove" in err
    assert "resume" not in err


def test_paths_are_shown_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moescope", "train", "recipe.yaml"])
    assert typed(f"{tmp_path}/data/x.jsonl does not exist") == "data/x.jsonl does not exist"
    monkeypatch.setattr(sys, "argv", ["moescope", "train", f"{tmp_path}/recipe.yaml"])
    assert typed(f"{tmp_path}/data/x.jsonl is none") == f"{tmp_path}/data/x.jsonl is none"
